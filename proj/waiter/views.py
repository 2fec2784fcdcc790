"""The pages. Each asks the kitchen by one message, and has no other source."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from pgbackend.rpc import RemoteError, RpcQuerySet
from proj.waiter.forms import OrderForm
from proj.waiter.models import Dish, Order

View = Callable[..., Awaitable[HttpResponse]]


def asks_kitchen(view: View) -> View:
    """Decorate a view: where the kitchen does not answer, or refuses, a page says so."""

    @wraps(view)
    async def asking(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return await view(request, *args, **kwargs)
        except RemoteError as error:
            silent = error.code in ("Unavailable", "DeadlinePassed")
            context = {"error": error, "silent": silent}
            return render(request, "waiter/no_answer.html", context, status=503)

    return asking


@require_http_methods(["GET", "HEAD", "POST"])
@asks_kitchen
async def menu(request: HttpRequest) -> HttpResponse:
    """Show the menu, and how many orders wait to be served; or place an order."""
    dishes, ready = await connections["rpc"].cursor().agather(Dish.objects.all(), ready_orders())
    if request.method != "POST":
        return menu_page(request, OrderForm(dishes), ready)
    form = OrderForm(dishes, request.POST)
    if not form.is_valid():
        return menu_page(request, form, ready, status=400)
    try:
        order = await Order.objects.place(form.cleaned_data["customer"], form.quantities)
    except ValidationError as refusal:
        # The kitchen's words; the stock is not what the form has read before.
        form = OrderForm([dish async for dish in Dish.objects.all()], request.POST)
        form.add_error(None, refusal.messages)
        return menu_page(request, form, ready, status=409)
    return redirect(f"/orders/#order-{order.pk}")


@require_safe
@asks_kitchen
async def orders(request: HttpRequest) -> HttpResponse:
    found = [order async for order in current_orders()]
    # Ready ones first: somebody waits for them.
    columns = [
        (status, [order for order in found if order.status == status])
        for status in reversed(Order.Status)
    ]
    ready = len(columns[0][1])
    return render(request, "waiter/orders.html", {"columns": columns, "ready": ready})


@require_POST
@asks_kitchen
async def advance(request: HttpRequest, pk: int) -> HttpResponse:
    """Move an order on, by a method of the kitchen's own queryset."""
    # If somebody was faster, the page of orders shows it.
    with suppress(Order.DoesNotExist, ValidationError):
        await Order.objects.advance(pk)
    return redirect("orders")


def current_orders() -> RpcQuerySet:
    """Return the orders that the kitchen shows, with what a page says of them."""
    orders = Order.objects.select_related("customer").prefetch_related("lines__dish")
    return orders.order_by("pk")


def ready_orders() -> Any:
    """Return the future of the number of orders that wait to be served."""
    return Order.objects.filter(status=Order.Status.READY).future().count()


def menu_page(request: HttpRequest, form: OrderForm, ready: int, status: int = 200) -> HttpResponse:
    return render(request, "waiter/menu.html", {"form": form, "ready": ready}, status=status)
