"""Channels of each kind."""

import datetime
from dataclasses import dataclass

from pgbackend.pubsub import Channel, TriggerChannel

from .models import Author, Child, Kinds, Line, Post


@dataclass
class Reads(Channel):
    """Plain: whoever listens gets it."""

    model_id: int
    date: datetime.date | None = None


@dataclass
class Orders(Channel):
    """Stored: handled once."""

    lock_notifications = True

    number: int
    note: str = ""


@dataclass
class AuthorPlain(TriggerChannel):
    model = Author


@dataclass
class AuthorStored(TriggerChannel):
    model = Author
    lock_notifications = True


@dataclass
class PostStored(TriggerChannel):
    model = Post
    lock_notifications = True
    ordered_by = "author"


@dataclass
class ChildStored(TriggerChannel):
    model = Child
    lock_notifications = True


@dataclass
class KindsStored(TriggerChannel):
    model = Kinds
    lock_notifications = True


@dataclass
class LineStored(TriggerChannel):
    model = Line
    lock_notifications = True
