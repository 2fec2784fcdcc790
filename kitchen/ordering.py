"""What happens to an order: it is placed, then cooked, then ready."""

from collections.abc import Mapping

from django.db import transaction
from django.utils import timezone

from kitchen.models import Customer, Dish, Order, OrderLine


class OutOfStock(Exception):
    """There are fewer portions of *dish* than were ordered; `dish.stock` says how many."""

    def __init__(self, dish: Dish) -> None:
        left = f"only {dish.stock} left" if dish.stock else "sold out"
        super().__init__(f"{dish.name}: {left}.")
        self.dish = dish


class UnknownDish(Exception):
    """No dish has the key *pk*."""

    def __init__(self, pk: int) -> None:
        super().__init__(f"There is no dish {pk}.")


class AlreadyReady(Exception):
    """The order has no next status."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"{order} is ready already.")


async def place(customer: str, quantities: Mapping[int, int]) -> Order:
    """Take the dishes from the stock and write the order down, or do nothing at all.

    *quantities* has the number of portions for each dish's key. Raise `OutOfStock` or
    `UnknownDish`.
    """
    # In a request, which is a transaction itself (ATOMIC_REQUESTS), this is a savepoint: an order
    # that is refused lets go of the dishes here, before its answer is made.
    async with transaction.atomic():
        # Whoever wants some of the same dishes waits here. All lock them in the same order, so
        # that no two orders each hold a dish the other waits for.
        locked = Dish.objects.select_for_update().filter(pk__in=quantities).order_by("pk")
        dishes = [dish async for dish in locked]
        if unknown := quantities.keys() - {dish.pk for dish in dishes}:
            raise UnknownDish(min(unknown))

        for dish in dishes:
            if dish.stock < quantities[dish.pk]:
                raise OutOfStock(dish)
            dish.stock -= quantities[dish.pk]
        await Dish.objects.abulk_update(dishes, ["stock"])

        # After the dishes: a transaction that waits for a customer's name holds no dish that the
        # name's writer still needs.
        guest, _ = await Customer.objects.aget_or_create(name=customer)
        order = await Order.objects.acreate(customer=guest)
        await OrderLine.objects.abulk_create(
            OrderLine(order=order, dish=dish, quantity=quantities[dish.pk], price=dish.price)
            for dish in dishes
        )
    return order


async def advance(pk: int) -> Order:
    """Move an order from placed to cooking, or from cooking to ready.

    Raise `Order.DoesNotExist` or `AlreadyReady`.
    """
    async with transaction.atomic():
        order = await Order.objects.select_for_update().aget(pk=pk)
        match order.status:
            case Order.Status.PLACED:
                order.status = Order.Status.COOKING
                order.cooking_at = timezone.now()
            case Order.Status.COOKING:
                order.status = Order.Status.READY
                order.ready_at = timezone.now()
            case _:
                raise AlreadyReady(order)
        await order.asave(update_fields=["status", "cooking_at", "ready_at"])
    return order
