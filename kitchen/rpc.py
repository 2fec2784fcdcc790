"""What the waiter's terminal (`proj/waiter/`) may see and do here, and nothing else.

It reads the menu and the orders on the board, and places orders and moves them on by two methods.
It writes no row by itself, sees no old orders, and cannot list the customers.
"""

from datetime import timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from kitchen.models import Customer, Dish, Order, OrderLine
from pgbackend.rpc.server.expose import expose

# For so long a ready order is the waiter's business.
READY_FOR = timedelta(hours=1)


def current(principal: str, orders: QuerySet[Order]) -> QuerySet[Order]:
    """Return the orders that are placed, cooking, or were ready a moment ago."""
    recent = timezone.now() - READY_FOR
    return orders.filter(~Q(status=Order.Status.READY) | Q(ready_at__gte=recent))


expose(
    Dish,
    readable=["name", "description", "course", "price", "stock"],
    ordering=["name"],
)


@expose(Order)
class CurrentOrders:
    readable = ("customer", "status", "placed_at")
    paths = ("customer", "lines", "lines__dish")
    ordering = ("pk",)
    methods = ("place", "advance")
    rows = current


# These are read on the way from an order, and not by themselves.
expose(Customer, readable=["name"], operations=[])
expose(OrderLine, readable=["order", "dish", "quantity"], paths=["order", "dish"], operations=[])
