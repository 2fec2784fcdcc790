"""The tickets that tell the cooks what to make: one for each order, whatever happens."""

import logging
from functools import partial

from kitchen.channels import OrderPlaced
from kitchen.models import Order, Ticket
from pgbackend.pubsub import post_insert_listener
from pgbackend.transaction import aon_commit

logger = logging.getLogger("kitchen.tickets")


@post_insert_listener(OrderPlaced)
async def print_ticket(old: None, new: Order) -> None:
    """Write the ticket down, in the transaction that removes the notification.

    Both happen, or neither: a process that is killed here leaves the notification to the next one.
    """
    order = await Order.objects.detailed().filter(pk=new.pk).afirst()
    if order is None:
        # The admin has deleted the order meanwhile.
        return
    ticket = await Ticket.objects.acreate(order=order, text=text_of(order))
    # A log is no part of the transaction. A line may be lost if the process is killed right after
    # the commit; written before, it could be there twice.
    line = f"ticket {ticket.pk}: " + ", ".join(ticket.text.splitlines())
    await aon_commit(partial(logger.info, "%s", line))


def text_of(order: Order) -> str:
    """Return what the ticket of an order says that was fetched `detailed()`."""
    lines = [f"{line.quantity} x {line.dish.name}" for line in order.lines.all()]
    return "\n".join([f"Order {order.pk} for {order.customer.name}", *lines])
