"""Channels and listeners; what they call is the process's `handle`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgbackend.pubsub import Channel, TriggerChannel, listener, post_insert_listener
from tests.benchmarks_pubsub.site_pgbackend.models import Message


def ignore(sent: int) -> None:
    """Do nothing: this process does not listen."""


# What the listeners call, set by the peer.
handle: list[Callable[[int], None]] = [ignore]


@dataclass
class Plain(Channel):
    sent: int


@dataclass
class Stored(Channel):
    lock_notifications = True
    sent: int


@dataclass
class Polled(Channel):
    lock_notifications = True
    wake = "poll"
    sent: int


@dataclass
class Inserted(TriggerChannel):
    model = Message
    lock_notifications = True


@listener(Plain)
async def plain(sent: int) -> None:
    handle[0](sent)


@listener(Stored)
async def stored(sent: int) -> None:
    handle[0](sent)


@listener(Polled)
async def polled(sent: int) -> None:
    handle[0](sent)


@post_insert_listener(Inserted)
async def inserted(old: Any, new: Any) -> None:
    handle[0](new.sent)
