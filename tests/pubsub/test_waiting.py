"""Channels with `unique_by`, and notifications that are taken back before a worker has them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from pgbackend.pubsub import (
    Channel,
    Notification,
    adiscard,
    anotify,
    anotify_many,
    asend,
    claiming,
    discard,
    listener,
    notify,
    notify_many,
    send,
)
from pgbackend.pubsub.test import adeliver
from pgbackend.pubsub.waiting import handling, unique_key
from tests.support.limits import AT_ONCE
from tests.support.pubsub import until, working
from tests.support.server import Server

from .site.models import Effect

# What the listener was called with.
called: list[int] = []


@dataclass
class Reindex(Channel):
    """Of those with the same key one waits."""

    lock_notifications = True
    unique_by = ("key", "more")

    number: int
    key: str | None = None
    more: int | None = None
    again: bool = False


@listener(Reindex)
async def reindex(number: int, key: str | None, more: int | None, again: bool) -> None:
    called.append(number)
    if again:
        await anotify(Reindex, number=number + 1, key=key)


@dataclass
class InTurn(Channel):
    """Of those with the same number one waits; those of one key are handled in order."""

    lock_notifications = True
    unique_by = "number"
    ordered_by = "key"

    number: int
    key: str


@listener(InTurn)
def in_turn(number: int, key: str) -> None:
    called.append(number)


@dataclass
class Gather(Channel):
    """Takes whatever was written before it was sent."""

    lock_notifications = True
    unique_by = "key"

    key: str


@listener(Gather)
async def gather(key: str) -> None:
    await Effect.objects.all().adelete()


@dataclass
class Discarding(Channel):
    """Whose listener takes back what it is called for."""

    lock_notifications = True


@listener(Discarding)
async def discard_own() -> None:
    row = await Notification.from_channel(Discarding).aget()
    called.append(await adiscard(row.pk))


@pytest.fixture(autouse=True)
def forget() -> None:
    called.clear()


def numbers() -> list[int]:
    return [each.payload["kwargs"]["number"] for each in Notification.objects.order_by("id")]


def test_one_waits() -> None:
    """Of two with the same values the first one waits; other values and none are sent."""
    first = send(Reindex(1, "a"))
    assert send(Reindex(2, "a")) == first
    later = timezone.now() + timedelta(hours=1)
    delayed = send(Reindex(3, "b"), run_after=later)
    assert send(Reindex(4, "b"), priority=5) == delayed
    notify(Reindex, number=5, key="a", more=1)
    long = send(Reindex(6, "x" * 5000))
    assert send(Reindex(7, "x" * 5000)) == long
    notify(Reindex, number=8)
    notify(Reindex, number=9)
    assert numbers() == [1, 3, 5, 6, 8, 9]
    assert list(Notification.objects.filter(pk=delayed).values_list("state", "priority")) == [
        ("delayed", 0)
    ]


def test_many() -> None:
    """Those of one statement are compared, too."""
    notify_many([Reindex(1, "b"), Reindex(2, "a"), Reindex(3, "a"), Reindex(4), Reindex(5)])
    assert sorted(numbers()) == [1, 2, 4, 5]


def test_dead_and_leased() -> None:
    """What is dead or leased does not wait."""
    for state in ("dead", "leased"):
        row = send(Reindex(1, state))
        Notification.objects.filter(pk=row).update(state=state, lease_until=timezone.now())
        assert send(Reindex(2, state)) != row
    assert numbers() == [1, 2, 1, 2]


def test_being_handled(server: Server) -> None:
    """While a worker handles one, another is stored: the listener may have looked before."""
    first = send(Reindex(1, "a"))
    server.all("BEGIN")
    try:
        server.all("SELECT id FROM pgpubsub_notification FOR UPDATE")
        second = send(Reindex(2, "a"))
        assert send(Reindex(3, "a")) == second != first
    finally:
        server.all("ROLLBACK")
    assert numbers() == [1, 2]


def test_not_before_the_commit(server: Server) -> None:
    """The one that waits is not handled before the sender's transaction has ended."""
    row = send(Reindex(1, "a"))
    claim = "SELECT id FROM pgpubsub_notification FOR UPDATE SKIP LOCKED"
    with transaction.atomic():
        assert send(Reindex(2, "a")) == row
        assert server.all(claim) == []
    assert server.all(claim) == [(row,)]


async def test_heard_after_the_commit() -> None:
    """A worker that has passed it over meanwhile is told of it."""
    row = await asend(Reindex(1, "a"))
    async with transaction.atomic():  # type: ignore[attr-defined]
        assert await asend(Reindex(2, "a")) == row
        task = asyncio.create_task(_work())
        await asyncio.sleep(0.3)
        assert called == []
    await asyncio.wait_for(task, AT_ONCE)
    assert called == [1]


async def _work() -> None:
    async with working(Reindex):
        await until(lambda: called)


async def test_senders_at_once(server: Server) -> None:
    """Two senders at once have one row: the second waits until the first has committed."""
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with transaction.atomic():  # type: ignore[attr-defined]
        row = await asend(Reindex(1, "a"))
        # In a context of its own, or it would join this transaction.
        other = asyncio.get_running_loop().create_task(_send_alone(), context=Context())
        await until(lambda: server.one(waiting) == 1)
    assert await asyncio.wait_for(other, AT_ONCE) == row


async def _send_alone() -> int | None:
    return await asend(Reindex(2, "a"))


def test_rolled_back(server: Server) -> None:
    """What a transaction that is rolled back has stored or found keeps no others."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            send(Reindex(1, "a"))
            raise ZeroDivisionError
        assert numbers() == []
    row = send(Reindex(2, "a"))
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            assert send(Reindex(3, "a")) == row
            assert send(Reindex(4, "b"))
            raise ZeroDivisionError
        # Neither the row nor the key is locked any longer.
        assert server.all("SELECT id FROM pgpubsub_notification FOR UPDATE NOWAIT") == [(row,)]
        assert server.one("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
    assert numbers() == [2]


async def test_found_and_rolled_back() -> None:
    """A row that a worker passed over since a sender had found it is handled once that has ended.

    The sender's own NOTIFY is rolled back with it.
    """
    async with working(Reindex) as worker:
        # So many that the worker takes several at once.
        await anotify_many([Reindex(0) for _ in range(50)])
        await until(lambda: len(called) == 50 and worker.is_idle)
        first = Reindex(1, "a")
        # In a state in which no worker takes it, and without a NOTIFY.
        row = await Notification.objects.acreate(
            channel=Reindex.listen_name(),
            payload=json.loads(first.serialize()),
            unique_key=unique_key(first, first.serialize()),
            state="delayed",
            run_after=timezone.now() + timedelta(hours=1),
        )
        async with _sending(Reindex(2, "a")) as found:
            assert found == row.pk
            await Notification.objects.aupdate(state="ready", run_after=None)
            await asend(Reindex(3, "b"))
            await until(lambda: called[50:] == [3])
        await until(lambda: called[50:] == [3, 1])


async def test_found_by_a_sender_in_turn() -> None:
    """A row that a sender has found holds up its own key alone, and those behind it wait."""
    row = await asend(InTurn(1, "a"))
    async with AsyncExitStack() as sender:
        assert row == await sender.enter_async_context(_sending(InTurn(1, "a")))
        async with working(InTurn):
            for number in range(2, 20):
                await asend(InTurn(number, "a" if number == 2 else f"b{number}"))
            await until(lambda: sorted(called) == [*range(3, 20)])
            await sender.aclose()
            await until(lambda: called[17:] == [1, 2])


async def test_delayed_row_found_by_a_sender() -> None:
    """A delayed row whose time comes while a sender has it is not looked for again and again."""
    row = await asend(Reindex(1, "a"), run_after=timedelta(seconds=0.2))
    async with working(Reindex) as worker, _sending(Reindex(2, "a")) as found:
        assert found == row
        looks = 0

        def count(*args: object) -> None:
            nonlocal looks
            looks += 1

        worker.parts[0].part.schedule.expire.append(count)
        await asyncio.sleep(1.0)
        assert called == []
        assert looks < 8
        # What becomes due meanwhile is not held up.
        await asend(Reindex(3, "b"), run_after=timedelta(seconds=0.1))
        await until(lambda: called == [3])


def test_what_waits_longer_is_not_read() -> None:
    """To look for what is due reads no row that is due later, however many there are."""
    later = timezone.now() + timedelta(hours=1)
    name = Reindex.listen_name()
    rows = [Notification(channel=name, payload={}, state="delayed", run_after=later)] * 5000
    Notification.objects.bulk_create(rows)
    send(Reindex(1), run_after=timedelta(0))
    with transaction.atomic(), connection.cursor() as cursor:
        claiming.promote(cursor)
        cursor.execute(
            "SELECT pg_stat_get_xact_tuples_fetched(%s::regclass)", [Notification._meta.db_table]
        )
        assert cursor.fetchone()[0] < 100
    assert Notification.objects.filter(state="ready").count() == 1


@asynccontextmanager
async def _sending(notification: Channel) -> AsyncIterator[int | None]:
    """Send in a transaction of another task, which is rolled back at the end of the block."""
    found: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
    end = asyncio.Event()

    async def send() -> None:
        with suppress(ZeroDivisionError):
            async with transaction.atomic():  # type: ignore[attr-defined]
                found.set_result(await asend(notification))
                await end.wait()
                raise ZeroDivisionError

    task = asyncio.get_running_loop().create_task(send(), context=Context())
    try:
        yield await asyncio.wait_for(found, AT_ONCE)
    finally:
        end.set()
        await task


async def test_many_senders() -> None:
    """Many senders at once, some of which roll back, leave one row for each key."""

    async def one(number: int) -> None:
        with suppress(ZeroDivisionError):
            async with transaction.atomic():  # type: ignore[attr-defined]
                await asend(Reindex(number, str(number % 3)))
                if number % 4 == 0:
                    raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.create_task(one(each), context=Context()) for each in range(48)))
    keys = [row.payload["kwargs"]["key"] async for row in Notification.objects.all()]
    assert sorted(keys) == ["0", "1", "2"]


async def test_nothing_is_lost() -> None:
    """A worker that handles while others send has seen what each sender has written."""
    sent = 0

    async def one(number: int) -> None:
        nonlocal sent
        async with transaction.atomic():  # type: ignore[attr-defined]
            await Effect.objects.acreate(number=number)
            await asend(Gather("a"))
        sent += 1

    loop = asyncio.get_running_loop()
    async with working(Gather):
        for first in range(0, 60, 6):
            some = range(first, first + 6)
            await asyncio.gather(*(loop.create_task(one(each), context=Context()) for each in some))
        await until(_none_waits)
    assert sent == 60
    assert not await Effect.objects.aexists()


async def _none_waits() -> bool:
    return not await Notification.objects.aexists()


def test_other_database() -> None:
    """A row of one database is not that of the other with the same id."""
    row = send(Reindex(1, "a"))
    assert row is not None
    with handling("other", [row]):
        assert send(Reindex(2, "a")) == row
        with handling("default", [row]), handling("other", []):
            assert send(Reindex(3, "a")) != row


async def test_own_key() -> None:
    """A listener that sends the key of its own notification is called again, and loses nothing."""
    await asend(Reindex(1, "a", again=True))
    await asend(Reindex(5, "b"))
    async with working(Reindex):
        await until(lambda: sorted(called) == [1, 2, 5])
    assert not await Notification.objects.aexists()
    called.clear()
    await asend(Reindex(1, "a", again=True))
    assert len(await adeliver(Reindex)) == 2
    assert called == [1, 2]


async def test_own_row() -> None:
    """A listener cannot take back what it is called for."""
    row = await asend(Discarding())
    async with working(Discarding):
        await until(lambda: called)
    assert called == [False]
    assert row is not None
    assert not await Notification.objects.aexists()


def test_discard(server: Server) -> None:
    """What waits is taken back; what a worker has is not."""
    later = timezone.now() + timedelta(hours=1)
    for run_after in (None, later):
        row = send(Reindex(1), run_after=run_after)
        assert row is not None
        server.all("BEGIN")
        try:
            server.all("SELECT id FROM pgpubsub_notification FOR UPDATE")
            assert not discard(row)
        finally:
            server.all("ROLLBACK")
        assert discard(row)
        assert not discard(row)
    row = send(Reindex(1))
    assert row is not None
    Notification.objects.update(state="dead")
    assert not discard(row)


async def test_discard_on_the_loop() -> None:
    """So it is on the event loop."""
    row = await asend(Reindex(1))
    assert row is not None
    assert await adiscard(row)
    assert not await Notification.objects.aexists()
