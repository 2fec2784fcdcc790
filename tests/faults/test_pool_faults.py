"""The pool under pressure, and what comes back to it: rows 7, 8, 16, 19, 21, 31, 35."""

import asyncio
import gc
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import (
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from pgbackend import await_bridged, bridged
from tests.models import Author
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.server import Server
from tests.support.sessions import committed, running
from tests.support.work import Held, ended, execute, fill, pid, settled, within
from tests.support.wrapper import AddAlias, until, use_wrapper

# Exhaustion


async def test_07_exhausted(server: Server) -> None:
    """An exhausted pool is an error at ``timeout`` that names it, its size and the setting."""
    use_wrapper(options={"pool": {"max_size": 1, "timeout": 0.2, "name": "small"}})
    release = asyncio.Event()
    holder = Held("default", release, "the holder")
    await holder.held.wait()
    with within(AT_ONCE), pytest.raises(OperationalError) as caught:
        await pid()
    for words in (
        "'small'",
        "0.2 s",
        "all 1 are on loan, to the holder",
        "'max_size'",
        "'timeout'",
    ):
        assert words in str(caught.value)
    release.set()
    await holder.task
    assert await pid()


async def test_07_too_many_waiting() -> None:
    """Beyond ``max_waiting`` a task is refused at once; those that wait are served."""
    use_wrapper(options={"pool": {"max_size": 1, "max_waiting": 3}})
    release = asyncio.Event()
    holder = Held("default", release)
    await holder.held.wait()
    waiters = [asyncio.create_task(execute("SELECT 1")) for _ in range(3)]
    await until(lambda: connection.async_pool.get_stats()["requests_waiting"] == 3)
    with within(AT_ONCE), pytest.raises(OperationalError, match="max_waiting") as caught:
        await pid()
    assert "'default' (max_size 1) has 3 tasks waiting" in str(caught.value)
    release.set()
    await holder.task
    assert await ended(*waiters) == [1, 1, 1]


async def test_08_many_waiters() -> None:
    """Of 2,000 waiters half are cancelled: none is lost, and all slots are free afterwards."""
    use_wrapper(options={"pool": {"max_size": 8, "max_waiting": 2000}})
    release = asyncio.Event()
    holders = [Held("default", release) for _ in range(8)]
    for holder in holders:
        await holder.held.wait()
    waiters = [asyncio.create_task(execute("SELECT 1")) for _ in range(2000)]
    await until(lambda: connection.async_pool.get_stats()["requests_waiting"] == 2000)
    # Some before any connection comes free, and the others while they do.
    for waiter in waiters[:1000:2]:
        waiter.cancel()
    release.set()
    for waiter in waiters[1000::2]:
        waiter.cancel()
        await asyncio.sleep(0)
    results = await ended(*waiters)
    assert results[1::2] == [1] * 1000
    assert all(isinstance(each, asyncio.CancelledError) for each in results[:1000:2])
    assert all(each == 1 or isinstance(each, asyncio.CancelledError) for each in results)
    assert (await settled())["pool_size"] == 8
    await fill(8)


# Left open


async def nine_authors() -> None:
    await Author.objects.abulk_create([Author(name=f"author {number}") for number in range(9)])


async def test_16_aclose_frees_at_once() -> None:
    """aclose() of an aiterator frees its connection at once, and closes the cursor."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await nine_authors()
    rows = Author.objects.aiterator(chunk_size=2)
    await anext(rows)
    before = await pid()
    await rows.aclose()
    assert await pid() == before
    assert await execute("SELECT count(*) FROM pg_cursors") == 0


@bridged
def _iterator() -> Any:
    rows = Author.objects.iterator(chunk_size=2)
    next(rows)
    return rows


@bridged
def _cursor() -> Any:
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT name FROM tests_author")
    return cursor


@pytest.mark.parametrize("start", [_iterator, _cursor])
async def test_16_collected(start: Callable[[], Any]) -> None:
    """A server-side cursor that is dropped warns, and its connection is replaced."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await nine_authors()
    rows = await start()
    before = await pid()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del rows
        gc.collect()
    assert {each.category for each in caught} == {ResourceWarning}
    assert await pid() != before
    assert (await settled())["pool_size"] == 1


# On the way out


class Failed(Exception):
    pass


async def test_19_exception_in_the_block(server: Server) -> None:
    """The exception that leaves the block is the original one, also when ROLLBACK fails."""
    use_wrapper(options={"pool": {"max_size": 1}})
    for kill in (False, True):
        error = Failed()
        with pytest.raises(Failed) as caught:
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                if kill:
                    server.all("SELECT pg_terminate_backend(%s, 10000)", await pid())
                raise error
        assert caught.value is error
        assert not connection.in_atomic_block
        assert await Author.objects.acount() == 0


async def test_19_commit_fails(server: Server) -> None:
    """What fails at COMMIT is raised, hooks are dropped, and the next block works."""
    ran: list[str] = []
    with pytest.raises(IntegrityError):
        async with transaction.atomic():
            # Checked at the end.
            await execute("INSERT INTO tests_book_readers (book_id, author_id) VALUES (7, 7)")
            await Author.objects.acreate(name="lost")
            transaction.on_commit(lambda: ran.append("hook"))
    assert not connection.in_atomic_block
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert committed(server) == ["next"]
    assert ran == []


# What comes back


def in_transaction() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO tests_author (name) VALUES ('lost')")


def in_error() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        with suppress(DataError):
            cursor.execute("SELECT 1 / 0")


def active() -> None:
    with connection.cursor() as cursor:
        for _ in cursor.stream("SELECT generate_series(1, 100000)"):
            break
        raise Failed


@pytest.mark.parametrize("leave", [in_transaction, in_error])
async def test_21_returned_in_transaction(server: Server, leave: Callable[[], None]) -> None:
    """A connection that comes back in a transaction, failed or not, is rolled back and kept."""
    use_wrapper(options={"pool": {"max_size": 1}})
    before = await pid()
    await bridged(leave)()
    assert await pid() == before
    assert committed(server) == []
    assert running(server, "idle in transaction%") == 0


async def test_21_returned_active(server: Server) -> None:
    """A connection that comes back in the middle of a statement leaves nothing running."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await pid()
    with pytest.raises(Failed):
        await bridged(active)()
    assert await execute("SELECT 1") == 1
    assert (await settled())["pool_size"] == 1
    await until(lambda: running(server, "active") == 0)


# Recycled


async def test_31_max_lifetime(server: Server) -> None:
    """Connections older than ``max_lifetime`` are replaced when they come back: no error."""
    use_wrapper(options={"pool": {"max_size": 4, "max_lifetime": 0.05}})
    pids: set[int] = set()
    async with asyncio.timeout(PATIENCE):
        while len(pids) < 12:
            pids.update(await asyncio.gather(*(pid() for _ in range(8))))
    assert (await settled())["pool_size"] <= 4
    await asyncio.to_thread(until_at_most, server, 4)


def until_at_most(server: Server, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.backends() > count:
        assert time.monotonic() < deadline
        server.all("SELECT pg_sleep(0.01)")


async def test_31_max_idle(server: Server) -> None:
    """Connections idle for ``max_idle`` are closed down to ``min_size``, while others are used."""
    use_wrapper(options={"pool": {"min_size": 1, "max_size": 4, "max_idle": 0.1}})
    await fill(4)
    async with asyncio.timeout(PATIENCE):
        while connection.async_pool.get_stats()["pool_size"] > 1:
            assert await Author.objects.acount() == 0
    await asyncio.to_thread(until_at_most, server, 1)


# Holding one and wanting another


async def test_35_two_pools_of_one(add_alias: AddAlias) -> None:
    """Tasks that hold one of two pools of one and want the other: an error names both."""
    aliases = [add_alias({"pool": {"max_size": 1, "timeout": 0.5}}) for _ in range(2)]
    barrier = asyncio.Barrier(2)

    async def work(first: str, second: str) -> None:
        async with transaction.atomic(using=first):
            await Author.objects.using(first).acount()
            await barrier.wait()
            await Author.objects.using(second).acount()

    tasks = [
        asyncio.create_task(work(*aliases), name="forward"),
        asyncio.create_task(work(*reversed(aliases)), name="backward"),
    ]
    with within(AT_ONCE):
        results = await ended(*tasks)
    errors = [str(each) for each in results if isinstance(each, OperationalError)]
    assert errors
    for words in errors:
        assert "forward" in words
        assert "backward" in words
        assert f"{aliases[0]!r}" in words
        assert f"{aliases[1]!r}" in words
    for alias in aliases:
        assert (await settled(connections[alias]))["pool_size"] == 1


async def test_35_aiterator_and_gather(server: Server) -> None:
    """gather inside an aiterator on a pool of one is bounded, and the error names the reader."""
    use_wrapper(options={"pool": {"max_size": 1, "timeout": 0.3}})
    await nine_authors()

    async def read() -> None:
        async for _ in Author.objects.aiterator(chunk_size=2):
            await asyncio.gather(Author.objects.acount(), Author.objects.acount())

    task = asyncio.create_task(read(), name="the reader")
    with within(AT_ONCE):
        (error,) = await ended(task)
    assert isinstance(error, OperationalError)
    assert "all 1 are on loan, to the reader" in str(error)
    gc.collect()
    assert (await settled())["pool_size"] == 1


def test_35_a_bridged_call_that_wants_two(server: Server) -> None:
    """A cursor held while a task on the same pool of one is awaited ends at ``timeout``."""

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": 1, "timeout": 0.3}})

        def work() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                await_bridged(asyncio.create_task(pid()))

        with pytest.raises(OperationalError, match="all 1 are on loan"):
            await bridged(work)()
        assert await pid()

    asyncio.run(main())
