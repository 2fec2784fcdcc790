"""What another site calls by name, through `kitchen.rpc`: orders are placed and moved on.

The arguments come from outside: they are checked as those of the API are. What is refused is a
ValidationError, whose words travel; the words of other exceptions stay in this site's log.
"""

from typing import Any

from asgiref.sync import async_to_sync
from django.core.exceptions import ValidationError

from kitchen import api, ordering
from kitchen.models import Order

REFUSALS = (api.Refused, ordering.OutOfStock, ordering.UnknownDish, ordering.AlreadyReady)


def place(customer: Any, lines: Any) -> Order:
    """Place an order: *lines* are of the form ``{"dish": 1, "quantity": 2}``."""
    try:
        name, quantities = api.read_customer(customer), api.read_lines(lines)
        return async_to_sync(ordering.place)(name, quantities)
    except REFUSALS as refusal:
        raise ValidationError(str(refusal)) from refusal


def advance(order: Order) -> Order:
    """Move an order to its next status."""
    try:
        return async_to_sync(ordering.advance)(order.pk)
    except REFUSALS as refusal:
        raise ValidationError(str(refusal)) from refusal
