"""Leases: what a claim has leased is never lost, and what is sent with the removal is sent once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from pgbackend.bridge import is_bridged
from pgbackend.pubsub import Channel, Notification, anotify, listener
from pgbackend.pubsub.names import wire_name
from pgbackend.pubsub.sending import database
from pgbackend.pubsub.settling import send_at_end
from pgbackend.pubsub.wire import WAKE
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site.models import Effect
from tests.support.limits import AT_ONCE
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


calls: list[bool] = []

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


def test_sent_by_the_caller() -> None:
    """Where no leased notification of that alias is handled the caller is told to send it."""
    assert not send_at_end("default", ("SELECT 1", []))


async def test_messages(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leased notification takes a message for its claim, and one for its removal."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        monkeypatch.setattr(Told, "using", add_alias(HOST="127.0.0.1", PORT=proxy.port))
        async with working(Told) as worker:

            async def handled(number: int) -> int:
                """Have another notification handled, the *number*-th; return the messages."""
                before = proxy.messages
                server.conn.execute(SEND)
                await until(counted(worker, number))
                return proxy.messages - before

            # The worker looks at the table now and then, too. Where claims take long, one is made
            # behind the last row, and does not tell whether another one is there.
            assert min([await handled(number) for number in range(1, 11)]) <= 3


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
