"""Channels and listeners; what they call is the process's `handle`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pgpubsub

from tests.benchmarks_pubsub.site_pgpubsub.models import Message


def ignore(sent: int) -> None:
    """Do nothing: this process does not listen."""


# What the listeners call, set by the peer.
handle: list[Callable[[int], None]] = [ignore]


@dataclass
class Plain(pgpubsub.Channel):
    sent: int


@dataclass
class Stored(pgpubsub.Channel):
    lock_notifications = True
    sent: int


@dataclass
class Inserted(pgpubsub.TriggerChannel):
    model = Message
    lock_notifications = True


@pgpubsub.listener(Plain)
def plain(sent: int) -> None:
    handle[0](sent)


@pgpubsub.listener(Stored)
def stored(sent: int) -> None:
    handle[0](sent)


@pgpubsub.post_insert_listener(Inserted)
def inserted(old: Any, new: Any) -> None:
    handle[0](new.sent)
