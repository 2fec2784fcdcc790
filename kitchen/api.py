"""The same as the pages, as JSON."""

import json
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.db.models import BigIntegerField
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from kitchen import ordering
from kitchen.models import Customer, Dish, Order

LINES_MAX = 100
ORDERS_MAX = 100
NAME_MAX = Customer._meta.get_field("name").max_length


class Refused(Exception):
    """The request cannot be served: answered with *status*, the message and *details*."""

    def __init__(self, status: int, message: str, **details: str) -> None:
        super().__init__(message)
        self.status = status
        self.details = details


# No token is needed: a page of another site can make a browser post a form here, but not
# "application/json", for which the browser asks first and is never allowed. Nothing here looks at
# the session either, so there is nothing to borrow.
@method_decorator(csrf_exempt, name="dispatch")
class JsonView(View):
    """A view whose answers are JSON, refusals included."""

    async def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            if request.method == "POST" and request.content_type != "application/json":
                raise Refused(415, "Send the header Content-Type: application/json.")
            return await super().dispatch(request, *args, **kwargs)
        except Refused as refusal:
            answer = {"error": str(refusal), **refusal.details}
            return JsonResponse(answer, status=refusal.status)
        except ordering.OutOfStock as refusal:
            return JsonResponse({"error": str(refusal), "dish": refusal.dish.name}, status=409)
        except ordering.UnknownDish as refusal:
            return JsonResponse({"error": str(refusal)}, status=400)
        except ordering.AlreadyReady as refusal:
            return JsonResponse({"error": str(refusal)}, status=409)
        except Order.DoesNotExist:
            return JsonResponse({"error": f"There is no order {kwargs['pk']}."}, status=404)


class DishList(JsonView):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return JsonResponse({"dishes": [dish.as_json() async for dish in Dish.objects.all()]})


class OrderList(JsonView):
    """The newest orders, at most 100; and where new ones are placed."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        orders = Order.objects.detailed()
        if status := request.GET.get("status"):
            if status not in Order.Status.values:
                raise Refused(400, f"status must be one of {', '.join(Order.Status.values)}.")
            orders = orders.filter(status=status)
        return JsonResponse({"orders": [order.as_json() async for order in orders[:ORDERS_MAX]]})

    async def post(self, request: HttpRequest) -> HttpResponse:
        try:
            customer, quantities = read_order(request.body)
        except RequestDataTooBig:
            raise Refused(413, "The body is too large.") from None
        order = await ordering.place(customer, quantities)
        return JsonResponse(
            (await Order.objects.detailed().aget(pk=order.pk)).as_json(), status=201
        )


class OrderDetail(JsonView):
    async def get(self, request: HttpRequest, pk: int) -> HttpResponse:
        return JsonResponse((await Order.objects.detailed().aget(pk=pk)).as_json())


class OrderAdvance(JsonView):
    """Move the order to its next status."""

    async def post(self, request: HttpRequest, pk: int) -> HttpResponse:
        await ordering.advance(pk)
        return JsonResponse((await Order.objects.detailed().aget(pk=pk)).as_json())


def read_order(body: bytes) -> tuple[str, dict[int, int]]:
    """Return the customer's name and the portions of each dish, or raise `Refused`."""
    try:
        order = json.loads(body)
    # Python's parser also refuses numbers of thousands of digits, and gives up on deep nesting.
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not valid JSON.") from None
    if not isinstance(order, dict):
        raise Refused(400, 'Send an object: {"customer": ..., "lines": [...]}.')
    return read_customer(order.get("customer")), read_lines(order.get("lines"))


def read_customer(name: object) -> str:
    if not isinstance(name, str) or not name.strip():
        raise Refused(400, "customer must be a name.")
    name = name.strip()
    if len(name) > NAME_MAX:
        raise Refused(400, f"customer must have at most {NAME_MAX} characters.")
    # PostgreSQL stores neither NUL nor half of a surrogate pair, and JSON can express both.
    if "\x00" in name or any("\ud800" <= character <= "\udfff" for character in name):
        raise Refused(400, "customer has characters that no name has.")
    return name


def read_lines(lines: object) -> dict[int, int]:
    if not isinstance(lines, list) or not lines:
        raise Refused(400, 'lines must be a list with at least one {"dish": ..., "quantity": ...}.')
    if len(lines) > LINES_MAX:
        raise Refused(400, f"lines must be at most {LINES_MAX}.")
    quantities: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict):
            raise Refused(400, f'Line {number} must be an object: {{"dish": 1, "quantity": 2}}.')
        dish, quantity = line.get("dish"), line.get("quantity")
        # True is an int to isinstance().
        if type(dish) is not int:
            raise Refused(400, f"Line {number}: dish must be the id of a dish.")
        if type(quantity) is not int or quantity < 1:
            raise Refused(400, f"Line {number}: quantity must be a whole number, 1 or more.")
        if not 0 < dish <= BigIntegerField.MAX_BIGINT:
            raise ordering.UnknownDish(dish)
        quantities[dish] = quantities.get(dish, 0) + quantity
    return quantities
