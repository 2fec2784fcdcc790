"""What the table of orders tells: its triggers notify, whoever changes a row.

https://www.postgresql.org/docs/current/sql-notify.html
"""

from dataclasses import dataclass

import pgtrigger

from kitchen.models import Order
from pgbackend.pubsub import TriggerChannel
from pgbackend.pubsub.triggers import notify_trigger


@dataclass
class OrderChanged(TriggerChannel):
    """An order was placed, changed or deleted: for the boards that look on at the moment."""

    model = Order


@dataclass
class OrderPlaced(TriggerChannel):
    """An order was placed: stored, until its ticket is printed."""

    model = Order
    lock_notifications = True


# The boards hear the channel by streams. It has no listener, whose decorator would do this.
pgtrigger.register(
    *(notify_trigger(OrderChanged, "AFTER", each) for each in ("INSERT", "UPDATE", "DELETE"))
)(Order)
