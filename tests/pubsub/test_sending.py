"""Sending: what reaches the server, and what is refused before anything does."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from django.db import ProgrammingError, transaction
from django.utils import timezone
from django.utils.connection import ConnectionDoesNotExist

from pgbackend.pubsub import (
    Channel,
    Notification,
    PayloadError,
    TriggerChannel,
    anotify,
    notify,
    notify_many,
    send,
)
from pgbackend.pubsub.payload import decode
from pgbackend.pubsub.sending import parse
from pgbackend.pubsub.triggers import notify_trigger
from tests.support.server import Server

from .ear import Ear
from .site.channels import AuthorStored, Orders, Reads
from .site.models import Author


@pytest.fixture
def ear(server: Server) -> Iterator[Ear]:
    ear = Ear(server.dsn, Reads, Orders)
    yield ear
    ear.conn.close()


def test_plain(ear: Ear) -> None:
    """A plain notification carries its payload, which gives the same values again."""
    text = notify(Reads, model_id=1, date=datetime.date(2026, 1, 2))
    assert ear.heard() == [(Reads.listen_name(), text)]
    assert decode(Reads, text) == Reads(1, datetime.date(2026, 1, 2))
    assert Notification.objects.count() == 0


async def test_stored(ear: Ear) -> None:
    """A stored notification is a row; NOTIFY carries its id alone."""
    text = await anotify("tests.pubsub.site.channels.Orders", number=5, note="it's")
    row = await Notification.objects.aget()
    assert ear.heard() == [(Orders.listen_name(), f"#{row.pk}")]
    assert parse(f"#{row.pk}").id == row.pk
    assert decode(Orders, row.payload) == decode(Orders, text) == Orders(5, "it's")
    assert (row.channel, row.state, row.attempts) == (Orders.listen_name(), "ready", 0)


def test_many(ear: Ear) -> None:
    """Many notifications wake each stored channel once, in one transaction."""
    sent = notify_many([*map(Orders, range(100)), Reads(1), Reads(2)])
    assert (sent, Notification.objects.count()) == (102, 100)
    assert ear.heard() == [
        (Orders.listen_name(), "#"),
        (Reads.listen_name(), Reads(1).serialize()),
        (Reads.listen_name(), Reads(2).serialize()),
    ]


def test_rollback(ear: Ear) -> None:
    """What is rolled back was never sent."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        notify(Reads, model_id=1)
        notify(Orders, number=1)
        raise ZeroDivisionError
    assert (ear.heard(), Notification.objects.count()) == ([], 0)


def test_crafted_text(ear: Ear, server: Server) -> None:
    """All values are bound: a crafted string is text."""
    crafted = "'); CREATE TABLE crafted (id int); --"
    notify(Orders, number=1, note=crafted)
    assert decode(Orders, Notification.objects.get().payload).note == crafted
    assert server.one("SELECT to_regclass('crafted')") is None


def test_refused(ear: Ear) -> None:
    """What does not fit is refused before anything is sent, by class and field."""
    with pytest.raises(PayloadError, match=r"site\.channels\.Orders\.number: 'many' is no int"):
        notify(Orders, number="many")
    with pytest.raises(PayloadError, match=r"Orders does not take these fields: .*'nmber'"):
        notify(Orders, nmber=1)
    with pytest.raises(PayloadError, match=r"Reads is not stored, so it has no priority"):
        send(Reads(1), priority=1)
    with pytest.raises(PayloadError, match=r"NUL character"):
        notify_many([Orders(1), Orders(2, "a\0b")])
    assert (ear.heard(), Notification.objects.count()) == ([], 0)


def test_poll(server: Server) -> None:
    """A channel whose workers look by themselves sends no NOTIFY, by notify or by triggers."""

    @dataclass
    class Polled(Channel):
        lock_notifications = True
        wake = "poll"
        number: int

    @dataclass
    class PolledAuthors(TriggerChannel):
        model = Author
        lock_notifications = True
        wake = "poll"

    ear = Ear(server.dsn, Polled)
    notify(Polled, number=1)
    notify_many([Polled(2), Polled(3)])
    assert (ear.heard(), Notification.objects.count()) == ([], 3)
    ear.conn.close()
    assert "pg_notify" not in notify_trigger(PolledAuthors, "AFTER", "INSERT").get_func(Author)
    assert "pg_notify" in notify_trigger(AuthorStored, "AFTER", "INSERT").get_func(Author)


def test_priority_and_time() -> None:
    """A notification may have a priority, and a time before which it is not ready."""
    later = timezone.now() + datetime.timedelta(hours=1)
    first = send(Orders(1), priority=5)
    second = send(Orders(2), run_after=later)
    rows = Notification.objects.in_bulk([first, second])
    assert (rows[first].state, rows[first].priority) == ("ready", 5)
    assert (rows[second].state, rows[second].run_after) == ("delayed", later)


def test_alias() -> None:
    """A channel, or the sender, may name the alias; an unknown one is Django's error."""
    with pytest.raises(ConnectionDoesNotExist):
        send(Orders(1), using="nowhere")
    with pytest.raises(ProgrammingError, match="pgpubsub_notification"):
        # The table is on the other alias only.
        send(Orders(1), using="other")
