"""Leases: what a claim has leased is never lost, and what is sent with the removal is sent once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from pgbackend.bridge import is_bridged
from pgbackend.pubsub import Channel, Notification, anotify, listener, positions
from pgbackend.pubsub.names import wire_name
from pgbackend.pubsub.sending import database
from pgbackend.pubsub.settling import send_at_end
from pgbackend.pubsub.wire import WAKE
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site.models import Effect
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.proxy import Link, Proxy
from tests.support.pubsub import effects, until, working
from tests.support.server import Server
from tests.support.wrapper import AddAlias


@dataclass
class Told(Channel):
    """Its listener ends with a statement that goes with the removal, and may fail after that."""

    lock_notifications = True
    lease = 30.0
    backoff = 0.01
    retries = 2

    number: int
    attempts: int = 1


@dataclass
class Held(Channel):
    """Its listener ends when the test lets it."""

    lock_notifications = True
    lease = 0.4
    concurrency = 2

    number: int


calls: list[bool] = []
# A future for each call of the listener of `Held`.
held: list[asyncio.Future[None]] = []

CLAIM = b"claimed AS MATERIALIZED"
Action = Callable[[Link], None]

# As `anotify` does it, by another connection.
SEND = f"""
WITH stored AS (
    INSERT INTO pgpubsub_notification (channel, payload, state, priority)
    VALUES ('{wire_name(Told.name())}', '{{"kwargs": {{"number": 1}}}}', 'ready', 0)
) SELECT pg_notify('{wire_name(Told.name())}', '{WAKE}')
"""


@listener(Told)
def tell(number: int, attempts: int) -> None:
    assert is_bridged()
    table = Effect._meta.db_table
    statement = f"INSERT INTO {table} (number, note, pid) VALUES (%s, '', 0)", [number]
    calls.append(send_at_end(database(Told), statement))
    if len(calls) < attempts:
        raise ValueError


@listener(Held)
async def hold_on(number: int) -> None:
    held.append(asyncio.get_running_loop().create_future())
    await held[-1]


async def nothing_is_left() -> bool:
    return not await Notification.objects.aexists()


@pytest.mark.parametrize("attempts", [1, 3])
async def test_sent_with_the_removal(attempts: int) -> None:
    """What a listener hands over is sent once, of the attempt that went well."""
    calls.clear()
    await anotify(Told, number=7, attempts=attempts)
    async with working(Told):
        await until(nothing_is_left)
    assert calls == [True] * attempts
    assert await effects() == [7]


async def test_sent_in_vain() -> None:
    """Where what a listener hands over fails, the attempt has failed, and is told of so."""
    calls.clear()
    # The column takes no such number.
    await anotify(Told, number=2**40)
    async with working(Told):
        await until(lambda: len(calls) == Told.retries + 1)
        await until(lambda: Notification.objects.filter(state="dead").aexists())
    row = await Notification.objects.aget()
    assert row.attempts == Told.retries + 1
    assert "out of range" in row.last_error


def test_sent_by_the_caller() -> None:
    """Where no leased notification of that alias is handled the caller is told to send it."""
    assert not send_at_end("default", ("SELECT 1", []))


async def test_messages(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leased notification takes a message for its claim, and one for its removal: no others."""
    # A slow machine must not make the worker claim behind the last row.
    monkeypatch.setattr(positions, "QUICK", PATIENCE)
    found = []
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        monkeypatch.setattr(Told, "using", add_alias(HOST="127.0.0.1", PORT=proxy.port))
        async with working(Told) as worker:
            for number in range(1, 12):
                before = proxy.messages
                server.conn.execute(SEND)
                await until(counted(worker, number))
                found.append(proxy.messages - before)
    # The worker looks at the table by a clock, too, which may be while a row is handled.
    assert found.count(2) > len(found) / 2, found


def counted(worker: Worker, number: int) -> Callable[[], bool]:
    """Return whether so many notifications were handled, and nothing is being done."""
    (part,) = worker.parts
    return lambda: worker.progress.counts["handled"] == number and part.stored[0].is_idle


@asynccontextmanager
async def claiming(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch, action: Action
) -> AsyncIterator[Worker]:
    """Run a worker, to whose connection *action* is done while it claims the only row."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        monkeypatch.setattr(Told, "using", add_alias(HOST="127.0.0.1", PORT=proxy.port))
        server.conn.execute(SEND)
        claims = asyncio.Event()
        proxy.on(CLAIM, action)
        proxy.on(CLAIM, lambda link: claims.set())
        worker = Worker([Told])
        task = asyncio.create_task(worker.run())
        async with asyncio.timeout(AT_ONCE):
            await claims.wait()
        yield worker
        await worker.stop(0)
        await asyncio.wait([task])


def hold(link: Link) -> None:
    """Pass the message on when the worker no longer waits for its answer."""
    link.hold = 0.3


async def test_cancelled_while_it_is_claimed(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is stopped at once while it claims a row leaves it to others."""
    calls.clear()
    async with claiming(server, add_alias, monkeypatch, hold):
        pass
    row = await Notification.objects.aget()
    assert (row.state, row.worker, row.attempts) == ("ready", None, 0)
    assert not calls


async def test_lost_while_it_is_claimed(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose claim was not answered, since the connection was lost, is handled at once."""
    calls.clear()
    async with claiming(server, add_alias, monkeypatch, mute):
        await until(nothing_is_left)
    assert calls == [True]


def mute(link: Link) -> None:
    """Lose the connection in place of the answer."""
    link.mute = True


async def test_claimed_again_by_the_same_worker(server: Server) -> None:
    """A row that two tasks of a worker have, since a lease was lost, is the later one's alone."""
    held.clear()
    await anotify(Held, number=1)
    async with working(Held) as worker:
        await until(lambda: len(held) == 1)
        # As at the end of a lease that an outage has kept from being prolonged.
        server.conn.execute(
            "UPDATE pgpubsub_notification SET state = 'ready', worker = NULL, lease_until = NULL"
        )
        server.conn.execute("SELECT pg_notify(%s, %s)", [wire_name(Held.name()), WAKE])
        await until(lambda: len(held) == 2)
        await until(held[0].cancelled)
        row = await Notification.objects.aget()
        await until(lambda: prolonged(row))
        held[1].set_result(None)
        await until(nothing_is_left)
        assert len(held) == 2
        assert worker.progress.counts["handled"] == 1


async def prolonged(row: Notification) -> bool:
    """Return whether the lease of *row* was prolonged three times since it was read."""
    found = await Notification.objects.aget(pk=row.pk)
    assert found.worker == row.worker
    assert found.lease_until is not None
    assert row.lease_until is not None
    return (found.lease_until - row.lease_until).total_seconds() > Held.lease


@pytest.mark.parametrize("fails", [False, True])
async def test_stopped_while_it_is_settled(server: Server, fails: bool) -> None:
    """A worker that is stopped at once while it settles a row still does so."""
    held.clear()
    await anotify(Held, number=1)
    worker = Worker([Held])
    task = asyncio.create_task(worker.run())
    await until(lambda: len(held) == 1)
    with server.conn.transaction():
        server.conn.execute("SELECT FROM pgpubsub_notification FOR UPDATE")
        if fails:
            held[0].set_exception(ValueError())
        else:
            held[0].set_result(None)
        waiting = (
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE"
            f" '%{'UPDATE' if fails else 'DELETE'} %pgpubsub_notification%'"
        )
        await until(lambda: server.other.execute(waiting).fetchone())
        stop = asyncio.create_task(worker.stop(0))
        await asyncio.wait([stop], timeout=0.2)
    await stop
    await asyncio.wait([task])
    if fails:
        row = await Notification.objects.aget()
        assert (row.state, row.attempts) == ("delayed", 1)
    else:
        assert await nothing_is_left()
