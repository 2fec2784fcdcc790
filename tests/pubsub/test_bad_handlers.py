"""Handlers that misbehave: their own row dies, all others are handled, and nothing is lost."""

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone
from greenlet import GreenletExit

from pgbackend.pubsub import Channel, Notification, anotify, anotify_many, asend, listener
from tests.support.pubsub import effects, until, working

from .site.jobs import Leased, Once, Ordered, Stored, called
from .site.models import Effect
from .test_worker import counted, rows

# What `Rogue` numbers 2 do.
tricks: list[Callable[[], Any]] = []

done: list[int] = []


@dataclass
class Rogue(Channel):
    """Number 2 does something bad, after its effect; the others do nothing but write."""

    lock_notifications = True
    retries = 0
    number: int


@dataclass
class Patient(Rogue):
    """A channel whose listener is tried often."""

    retries = 9
    backoff = 0.01


@listener(Rogue)
@listener(Patient)
def rogue(number: int) -> Any:
    Effect.objects.create(number=number)
    transaction.on_commit(lambda: done.append(number))
    if number == 2:
        return tricks[0]()
    return None


@dataclass
class Hasty(Channel):
    """A plain channel."""

    number: int


@listener(Hasty)
def hasty(number: int) -> None:
    if number < 0:
        stop()
    Effect.objects.create(number=number)


@pytest.fixture(autouse=True)
def no_tricks() -> None:
    tricks.clear()
    done.clear()


class Stop(BaseException):
    """No Exception, as those of some frameworks."""


def stop() -> None:
    raise Stop


def leave() -> None:
    raise GreenletExit


async def close_itself() -> None:
    raise GeneratorExit


def group() -> None:
    raise BaseExceptionGroup("several", [SystemExit(1), ValueError()])


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(5)


def close_connection() -> None:
    connection.close()


def kill_connection() -> None:
    with suppress(Exception), connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def surrogate() -> None:
    raise ValueError("no such file: caf\udce9")


def rollback() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK")


def rollback_and_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ROLLBACK AND CHAIN")


def run_sql(text: str) -> Callable[[], None]:
    def run() -> None:
        with connection.cursor() as cursor:
            cursor.execute(text)

    return run


def commit_by_driver() -> None:
    connection.connection.commit()


def commit_and_go_on() -> None:
    with suppress(Exception):
        commit_by_driver()
    Effect.objects.create(number=77)


def rollback_by_driver() -> None:
    connection.connection.rollback()
    Effect.objects.create(number=77)


def settings() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('search_path'), current_setting('role'),"
            " current_setting('app.tenant', true), current_setting('TimeZone'),"
            " current_setting('statement_timeout')"
        )
        return [each or "" for each in cursor.fetchone()]


def swallow(text: str) -> Callable[[], None]:
    def run() -> None:
        with suppress(Exception):
            run_sql(text)()

    return run


def leave_copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY (SELECT generate_series(1, 2000000000)) TO STDOUT") as copy,
    ):
        assert next(iter(copy))


def half_block() -> None:
    transaction.atomic().__enter__()


async def generate() -> AsyncIterator[None]:
    yield


def hook_fails() -> None:
    raise ValueError("hook")


INSERT = f"INSERT INTO {Effect._meta.db_table} (number, note, pid) VALUES (77, '', 0)"

ways = [
    stop,
    leave,
    close_itself,
    group,
    cancel_itself,
    close_connection,
    kill_connection,
    surrogate,
    rollback,
    rollback_and_begin,
    leave_copy,
    half_block,
    generate,
    commit_by_driver,
    commit_and_go_on,
    rollback_by_driver,
]
texts = [
    "COMMIT",
    "END; BEGIN",
    "COMMIT AND CHAIN",
    "PREPARE TRANSACTION 'x'",
    f"{INSERT}; COMMIT; BEGIN",
]
ways += [run(text) for text in texts for run in (run_sql, swallow)]


@pytest.mark.parametrize("trick", ways, ids=lambda trick: trick.__name__)
async def test_only_its_own_row_dies(trick: Callable[[], Any]) -> None:
    """The row of a handler that misbehaves dies, its work undone; all others are handled once."""
    tricks.append(trick)
    await anotify_many([Rogue(n) for n in range(6)])
    async with working(Rogue) as worker:
        await until(counted(worker, dead=1, handled=5), worker)
        await anotify(Rogue, number=9)
        await until(counted(worker, dead=1, handled=6), worker)
    assert await effects() == [0, 1, 3, 4, 5, 9]
    assert sorted(done) == [0, 1, 3, 4, 5, 9]
    (dead,) = await rows()
    assert (dead.state, dead.payload["kwargs"]["number"]) == ("dead", 2)


@pytest.mark.parametrize(
    "text",
    [
        "SET LOCAL search_path TO pg_catalog",
        "SET LOCAL ROLE pg_monitor",
        "SET LOCAL SESSION AUTHORIZATION pg_monitor",
        "SELECT set_config('app.tenant', 'two', true)",
        "SET LOCAL TimeZone TO 'Asia/Tokyo'; SET LOCAL statement_timeout TO 5000",
        "CREATE TEMP TABLE pgpubsub_notification (id bigint) ON COMMIT DROP",
        "CREATE TEMP TABLE pgpubsub_notification ON COMMIT DROP AS SELECT 1::bigint AS id",
        "DO $$ BEGIN PERFORM set_config('search_path', 'pg_catalog', true); END $$",
    ],
)
async def test_settings_of_a_listener(text: str) -> None:
    """What a listener sets ends with it: the next one and the worker's statements do without."""
    seen: list[list[str]] = []

    def trick() -> None:
        seen.append(settings())
        run_sql(text)()
        transaction.on_commit(lambda: seen.append(settings()))

    tricks.append(trick)
    await anotify_many([Rogue(n) for n in (2, 2, 2, 2, 0, 1)])
    async with working(Rogue) as worker:
        await until(counted(worker, handled=6), worker)
    assert await effects() == [0, 1, 2, 2, 2, 2]
    assert not await rows()
    assert len(seen) == 8
    assert all(each == seen[0] for each in seen)


async def test_commit_after_a_rollback() -> None:
    """What a listener commits after a ROLLBACK is there once: the row is not tried again."""
    tricks.append(run_sql(f"ROLLBACK; BEGIN; {INSERT}; COMMIT"))
    await anotify_many([Patient(n) for n in range(6)])
    async with working(Patient) as worker:
        await until(counted(worker, dead=1, handled=5), worker)
    assert await effects() == [0, 1, 3, 4, 5, 77]
    (dead,) = await rows()
    assert "ended the transaction" in dead.last_error


async def test_own_row_deleted() -> None:
    """A listener may delete its own row."""
    tricks.append(lambda: Notification.objects.filter(payload__kwargs__number=2).delete())
    await anotify_many([Rogue(n) for n in range(6)])
    async with working(Rogue) as worker:
        await until(counted(worker, handled=6), worker)
    assert await effects() == list(range(6))


async def test_hook_that_fails() -> None:
    """A hook of on_commit that raises keeps no other from being called, and no row."""
    tricks.append(lambda: transaction.on_commit(hook_fails))
    await anotify_many([Rogue(n) for n in range(6)])
    async with working(Rogue) as worker:
        await until(counted(worker, handled=6), worker)
    assert await effects() == done == list(range(6))


async def test_empty_key() -> None:
    """An empty key is a key like any other."""
    await anotify_many([Ordered(n, "", "" if n % 2 else "a") for n in range(6)])
    async with working(Ordered) as worker:
        await until(counted(worker, handled=6), worker)
    assert await effects() == list(range(6))


async def test_long_keys() -> None:
    """A key of any length is a key like any other; an index would refuse the row."""
    keys = ["".join(map(chr, range(0x4E00, 0x4E00 + 3000))) + end for end in "ab"]
    await anotify(Ordered, number=0, key=keys[0])
    await anotify_many([Ordered(n, "", keys[n % 2]) for n in range(1, 6)])
    assert len({row.order_key for row in await rows()}) == 2
    async with working(Ordered) as worker:
        await until(counted(worker, handled=6), worker)
    assert [n for n in called if n % 2] == [1, 3, 5]
    assert [n for n in called if not n % 2] == [0, 2, 4]


async def test_lease_of_before() -> None:
    """A row that was leased comes back, though its channel leases no rows any longer."""
    await anotify(Stored, number=1)
    past = timezone.now() - datetime.timedelta(seconds=1)
    await Notification.objects.aupdate(state="leased", worker="gone", lease_until=past, attempts=1)
    async with working(Stored) as worker:
        await until(counted(worker, handled=1, expired=1), worker)


async def test_lease_of_others() -> None:
    """An ended lease of a channel that somebody else handles does not keep the worker busy."""
    await anotify(Leased, number=1)
    past = timezone.now() - datetime.timedelta(seconds=1)
    await Notification.objects.aupdate(state="leased", worker="gone", lease_until=past, attempts=1)
    async with working(Once) as worker:
        await asyncio.sleep(0.3)
        assert "next in 0." not in repr(worker.parts[0].part.schedule)


async def test_delayed_after_many() -> None:
    """A delayed row is handled in time, though many others were sent that wait for longer."""
    async with working(Stored) as worker:
        hour = timezone.now() + datetime.timedelta(hours=1)
        for number in range(8):
            await asend(Stored(number), run_after=hour)
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)
        await asend(Stored(9), run_after=timezone.now() + datetime.timedelta(seconds=0.2))
        await until(counted(worker, handled=1), worker)


@pytest.mark.parametrize("text", ["@" + "9" * 5000, "@" + "9" * 30, "#" + "9" * 5000, "stop"])
async def test_plain_goes_on(text: str) -> None:
    """What waits in a plain channel is handled, whatever the one before it was."""
    async with working(Hasty) as worker:
        plain = worker.parts[0].plain[0]
        # As the hub does with what comes in one message.
        plain.receive("", text if text != "stop" else '{"kwargs":{"number":-1}}')
        for number in range(3):
            plain.receive("", json.dumps({"kwargs": {"number": number}}))
        await until(lambda: plain.is_idle, worker)
    assert await effects() == [0, 1, 2]


@dataclass
class Careless(Channel):
    """A leased channel whose listener leaves a block open for number 2, and keeps it."""

    lock_notifications = True
    lease = 30.0
    retries = 0
    number: int


@dataclass
class CarelessPlain(Channel):
    """The same without a row."""

    number: int


kept: list[Any] = []


@listener(Careless)
@listener(CarelessPlain)
async def careless(number: int) -> None:
    if number == 2:
        kept.append(transaction.atomic())
        await kept[0].__aenter__()
    await Effect.objects.acreate(number=number)


async def test_open_block_of_a_leased_listener() -> None:
    """A leased listener that leaves a block open has failed, and the next ones are handled."""
    kept.clear()
    async with working(Careless) as worker:
        await anotify_many([Careless(n) for n in range(5)])
        await until(counted(worker, dead=1, handled=4), worker)
    assert await effects() == [0, 1, 3, 4]
    (dead,) = await rows()
    assert "has left a block of atomic() open" in dead.last_error


async def test_open_block_of_a_plain_listener() -> None:
    """So has a plain one."""
    kept.clear()
    async with working(CarelessPlain) as worker:
        await anotify_many([CarelessPlain(n) for n in range(5)])
        await until(counted(worker, handled=5, failed=1), worker)
    assert await effects() == [0, 1, 3, 4]


async def test_many_transactions() -> None:
    """No more tasks wait for rows of a channel than the worker has transactions."""
    async with working(Greedy, concurrency=3) as worker:
        serving = [each for each in asyncio.all_tasks() if each.get_name().endswith(".Greedy")]
        assert len(serving) == 3
        await anotify(Greedy, number=1)
        await until(counted(worker, handled=1), worker)


@dataclass
class Greedy(Stored):
    """A channel that asks for more than anybody has."""

    concurrency = 1_000_000


@listener(Greedy)
def greedy(number: int, do: str, key: str) -> None: ...
