"""Rows of the example project, for tests whose settings have its application."""

from __future__ import annotations

from decimal import Decimal
from typing import Any


async def make_dish(name: str = "Soup", **fields: Any) -> Any:
    """Make a dish."""
    from kitchen.models import Dish

    return await Dish.objects.acreate(name=name, **{"price": Decimal("6.50"), "stock": 5, **fields})


async def make_order(customer: str = "Ada", dish: Any = None) -> Any:
    """Make an order, of three portions of *dish*."""
    from kitchen.models import Customer, Order, OrderLine

    order = await Order.objects.acreate(customer=await Customer.objects.acreate(name=customer))
    if dish is not None:
        await OrderLine.objects.acreate(order=order, dish=dish, quantity=3, price=dish.price)
    return order
