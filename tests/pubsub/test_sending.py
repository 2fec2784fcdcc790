"""Sending: what reaches the server, and what is refused before anything does."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import ProgrammingError, connection, transaction
from django.test import override_settings
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


def test_time_by_the_servers_clock() -> None:
    """A time may be so long from now, by the clock of the server."""
    first = send(Orders(1), run_after=datetime.timedelta(hours=1))
    assert notify_many([Orders(2)], run_after=datetime.timedelta(0)) == 1
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id = %s, state, extract(epoch FROM run_after - created_at) FROM"
            " pgpubsub_notification ORDER BY id",
            [first],
        )
        (hour, now) = cursor.fetchall()
    assert (hour[:2], now[:2]) == ((True, "delayed"), (False, "delayed"))
    assert (round(hour[2]), round(now[2])) == (3600, 0)


def test_naive_time(ear: Ear) -> None:
    """A time without a zone is one of Django's current zone, where zones are used or not."""
    time = datetime.datetime(2030, 6, 1, 12)
    zone = datetime.timezone(datetime.timedelta(hours=-6))
    with (
        override_settings(TIME_ZONE="America/Belize"),
        pytest.warns(RuntimeWarning, match="received a naive datetime"),
    ):
        first = send(Orders(1), run_after=time)
    with override_settings(TIME_ZONE="America/Belize", USE_TZ=False):
        second = send(Orders(1), run_after=time)
        third = send(Orders(1), run_after=time.replace(tzinfo=zone))
        assert Notification.objects.get(pk=first).run_after == time
    rows = Notification.objects.in_bulk([first, second, third]).values()
    assert {each.run_after for each in rows} == {time.replace(tzinfo=zone)}


EARLY, LATE = datetime.datetime.min, datetime.datetime.max


@pytest.mark.parametrize(
    "run_after",
    [
        # In UTC, in which they would be read, those are not in the years 1 to 9999.
        LATE.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-1))),
        EARLY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
        datetime.timedelta.max,
        datetime.timedelta.min,
        "tomorrow",
        5,
    ],
)
def test_no_time(run_after: Any, ear: Ear) -> None:
    """What is no time, or cannot be read again, is refused before anything is sent."""
    for send_it in (
        lambda: send(Orders(1), run_after=run_after),
        lambda: notify_many([Orders(1), Reads(1)], run_after=run_after),
    ):
        with pytest.raises(PayloadError, match="run_after is"):
            send_it()
    for send_it in (
        lambda: send(Orders(1), priority=2**15),
        lambda: notify_many([Orders(1)], priority=-(2**15)),
    ):
        with pytest.raises(PayloadError, match="the most is 32767"):
            send_it()
    assert (ear.heard(), Notification.objects.count()) == ([], 0)


def test_alias() -> None:
    """A channel, or the sender, may name the alias; an unknown one is Django's error."""
    with pytest.raises(ConnectionDoesNotExist):
        send(Orders(1), using="nowhere")
    with pytest.raises(ProgrammingError, match="pgpubsub_notification"):
        # The table is on the other alias only.
        send(Orders(1), using="other")
