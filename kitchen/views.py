"""The pages. Each request is one transaction: see ATOMIC_REQUESTS in the settings."""

from django.db.models import Count, F, Sum
from django.http import HttpRequest, HttpResponse
from django.shortcuts import aget_object_or_404, redirect, render
from django.templatetags.static import static
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from kitchen import ordering
from kitchen.board import board_orders
from kitchen.forms import OrderForm
from kitchen.models import Dish, Order, Ticket
from pgbackend import bridged

EARLIER_SHOWN = 3
TICKETS_SHOWN = 50


@require_safe
async def menu(request: HttpRequest) -> HttpResponse:
    return menu_page(request, OrderForm(await all_dishes()))


@require_safe
def favicon(request: HttpRequest) -> HttpResponse:
    """Say where the icon is, for pages that do not name it, as those of the API."""
    return redirect(static("kitchen/icon.svg"))


@require_http_methods(["GET", "HEAD", "POST"])
async def orders(request: HttpRequest) -> HttpResponse:
    """Place an order, or show those of today."""
    if request.method == "POST":
        return await place_order(request)
    # What the template reads of each is fetched here, in three queries for all of them.
    of_today = Order.objects.filter(placed_at__date=timezone.localdate()).select_related("customer")
    shown = [order async for order in of_today.prefetch_related("lines__dish")]
    return render(request, "kitchen/orders.html", {"orders": shown})


async def place_order(request: HttpRequest) -> HttpResponse:
    form = OrderForm(await all_dishes(), request.POST)
    if not form.is_valid():
        return menu_page(request, form, status=400)
    try:
        order = await ordering.place(form.cleaned_data["customer"], form.quantities)
    except (ordering.OutOfStock, ordering.UnknownDish) as refusal:
        # The stock is not what the form has read before.
        form = OrderForm(await all_dishes(), request.POST)
        form.add_error(None, str(refusal))
        return menu_page(request, form, status=409)
    return redirect(order)


@require_safe
async def show_order(request: HttpRequest, pk: int) -> HttpResponse:
    order = await aget_object_or_404(Order, pk=pk)
    # No select_related: in a request a lazy relation waits for its query, in the template as well.
    earlier = order.customer.orders.filter(pk__lt=order.pk)[:EARLIER_SHOWN]
    context = {"order": order, "earlier": earlier, "statuses": Order.Status}
    return render(request, "kitchen/order.html", context)


@require_POST
async def advance_order(request: HttpRequest, pk: int) -> HttpResponse:
    """Do what the board's buttons do where there is no JavaScript."""
    try:
        await ordering.advance(pk)
    except Order.DoesNotExist:
        return render(request, "404.html", status=404)
    except ordering.AlreadyReady:
        # Another cook was faster: the board shows it.
        pass
    return redirect("board")


@require_safe
async def board(request: HttpRequest) -> HttpResponse:
    orders = await board_orders()
    columns = [
        (status, [order for order in orders if order.status == status]) for status in Order.Status
    ]
    return render(request, "kitchen/board.html", {"columns": columns})


@require_safe
async def tickets(request: HttpRequest) -> HttpResponse:
    latest = [ticket async for ticket in Ticket.objects.all()[:TICKETS_SHOWN]]
    return render(request, "kitchen/tickets.html", {"tickets": latest})


@require_safe
@bridged
def report(request: HttpRequest) -> HttpResponse:
    """Show what was sold: a synchronous view, run on the event loop instead of in a thread."""
    sold = Sum("lines__quantity", default=0)
    takings = Sum(F("lines__quantity") * F("lines__price"), default=0)
    dishes = Dish.objects.annotate(sold=sold, takings=takings).order_by("-takings", "name")
    total = Order.objects.aggregate(orders=Count("pk", distinct=True), sold=sold, takings=takings)
    return render(request, "kitchen/report.html", {"dishes": dishes, "total": total})


async def all_dishes() -> list[Dish]:
    return [dish async for dish in Dish.objects.all()]


def menu_page(request: HttpRequest, form: OrderForm, status: int = 200) -> HttpResponse:
    return render(request, "kitchen/menu.html", {"form": form}, status=status)
