"""COMMIT: what the server answers by ROLLBACK is an error for whoever leaves the block."""

import asyncio
from collections.abc import Callable

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InternalError, connection, transaction

from pgbackend import bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.transaction import acommit, arollback, aset_autocommit
from tests.models import Author
from tests.support.loops import LOOPS
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.wrapper import avalue, small_pool, use_wrapper


class Hooks:
    """Counts how often it was called after a commit."""

    def __init__(self) -> None:
        self.ran = 0

    def __call__(self) -> None:
        self.ran += 1


# What aborts a transaction in the server, and is caught inside the block.


def by_a_query() -> None:
    # No block of Django's own is around it: that would note the failure.
    with pytest.raises(DatabaseError):
        Author.objects.extra(where=["1 / 0 = 1"]).count()


def by_raw_sql() -> None:
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def by_a_cursor_that_is_none() -> None:
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("CLOSE nothing")


def by_psycopg() -> None:
    with connection.cursor() as cursor, pytest.raises(psycopg.Error):
        cursor.connection.execute("ROLLBACK TO SAVEPOINT nothing")


def by_a_time_out() -> None:
    with pytest.raises(DatabaseError), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 1")
        cursor.execute("SELECT pg_sleep(600)")


def by_copy() -> None:
    with pytest.raises(psycopg.Error), connection.cursor() as cursor:  # noqa: SIM117
        with cursor.copy("COPY tests_author (id) FROM STDIN") as copy:
            copy.write("no number\n")


def by_an_own_savepoint() -> None:
    sid = connection.savepoint()
    by_raw_sql()
    connection.savepoint_rollback(sid)
    by_raw_sql()


ABORTS = [
    by_a_query,
    by_raw_sql,
    by_a_cursor_that_is_none,
    by_psycopg,
    by_a_time_out,
    by_copy,
    by_an_own_savepoint,
]


def _work(abort: Callable[[], None], hooks: Hooks) -> None:
    """Check a block in which *abort* was called, and the next one."""
    with pytest.raises(InternalError, match="cannot be committed"), transaction.atomic():
        Author.objects.create(name="first")
        transaction.on_commit(hooks)
        abort()
    assert not connection.in_atomic_block
    assert connection.get_autocommit()
    with transaction.atomic():
        Author.objects.create(name="next")


@pytest.mark.parametrize("abort", ABORTS)
async def test_caught_error_fails_the_commit(abort: Callable[[], None], server: Server) -> None:
    """A block whose transaction a caught error has aborted raises; its hooks do not run."""
    wrapper, hooks = small_pool(), Hooks()
    await run_bridged(_work, abort, hooks)
    assert committed(server) == ["next"]
    assert hooks.ran == 0
    assert wrapper.async_pool.get_stats()["pool_available"] == 1


@pytest.mark.parametrize("abort", ABORTS)
def test_caught_error_fails_the_commit_of_a_thread(
    abort: Callable[[], None], server: Server
) -> None:
    """On the synchronous path, too, a block whose transaction was aborted raises."""
    hooks = Hooks()
    _work(abort, hooks)
    assert committed(server) == ["next"]
    assert hooks.ran == 0


@pytest.mark.parametrize("abort", ABORTS)
async def test_thread_that_joined(abort: Callable[[], None], server: Server) -> None:
    """What a thread that joined the transaction aborts fails the owner's commit."""
    if abort in (by_psycopg, by_copy):
        pytest.skip("a thread gets the cursor through the loop, and psycopg's errors as they are")
    hooks = Hooks()
    with pytest.raises(InternalError, match="cannot be committed"):
        async with transaction.atomic():
            await Author.objects.acreate(name="first")
            transaction.on_commit(hooks)
            await sync_to_async(abort)()
    assert committed(server) == []
    assert hooks.ran == 0


async def test_error_of_a_child(server: Server) -> None:
    """A statement of a child task that fails, and is caught, fails the owner's commit."""
    hooks = Hooks()
    with pytest.raises(InternalError, match="cannot be committed"):
        async with transaction.atomic():
            await Author.objects.acreate(name="first")
            transaction.on_commit(hooks)
            (error,) = await asyncio.gather(avalue("SELECT 1 / 0"), return_exceptions=True)
            assert isinstance(error, DatabaseError)
    assert committed(server) == []
    assert hooks.ran == 0


async def test_statement_of_a_child_that_fails_before_the_commit_is_read(server: Server) -> None:
    """A child's statement that fails while the COMMIT waits behind it fails the commit."""
    use_wrapper(options={"pool": {"max_size": 1}})
    with pytest.raises((InternalError, RuntimeError)):
        async with transaction.atomic():
            await Author.objects.acreate(name="first")
            child = asyncio.create_task(avalue("SELECT 1 / (SELECT 0 FROM pg_sleep(0.05))"))
            await asyncio.sleep(0)
    with pytest.raises((DatabaseError, RuntimeError)):
        await child
    assert committed(server) == []


async def test_cancelled_statement(server: Server) -> None:
    """A statement that a time-out has stopped, and nobody else, fails the commit."""
    with pytest.raises(InternalError, match="cannot be committed"):
        async with transaction.atomic():
            await Author.objects.acreate(name="first")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await avalue("SELECT pg_sleep(600)")
    assert committed(server) == []


async def test_nested_block_that_was_aborted(server: Server) -> None:
    """A nested block whose savepoint was rolled back does not fail the commit."""
    async with transaction.atomic():
        await Author.objects.acreate(name="outer")
        with pytest.raises(DatabaseError):
            async with transaction.atomic():
                await Author.objects.acreate(name="inner")
                with pytest.raises(DatabaseError):
                    await avalue("SELECT 1 / 0")
    assert committed(server) == ["outer"]


async def test_commit_without_autocommit(server: Server) -> None:
    """acommit() of an aborted transaction raises; after arollback() the next one commits."""
    await aset_autocommit(False)
    await Author.objects.acreate(name="first")
    with pytest.raises(DatabaseError):
        await avalue("SELECT 1 / 0")
    with pytest.raises(InternalError, match="cannot be committed"):
        await acommit()
    await arollback()
    await Author.objects.acreate(name="next")
    await acommit()
    await aset_autocommit(True)
    assert committed(server) == ["next"]


async def test_commit_of_psycopgs_connection(server: Server) -> None:
    """commit() of the connection itself raises, where psycopg takes ROLLBACK for success."""

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="first")
            by_raw_sql()
            with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="cannot be committed"):
                connection.connection.commit()
            transaction.set_rollback(True)

    await run_bridged(work)
    assert committed(server) == []


@pytest.mark.parametrize("loop", LOOPS)
def test_each_loop(loop: str, server: Server) -> None:
    """It is the same on each kind of loop, for many blocks at once."""

    async def block(number: int) -> str:
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name=f"{number}")
                if number % 2:
                    await bridged(by_raw_sql)()
        except InternalError:
            return "raised"
        return "committed"

    async def main() -> list[str]:
        return await asyncio.gather(*map(block, range(40)))

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        assert runner.run(main()) == ["committed", "raised"] * 20
    assert sorted(map(int, committed(server))) == list(range(0, 40, 2))
