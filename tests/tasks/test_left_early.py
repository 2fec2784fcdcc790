"""Server-side cursors whose reader leaves early, in every way and place that there is.

Whatever happens to them, the transactions around and after them commit what they say, nothing stays
open in the server, and the pool can lend all its connections.
"""

import asyncio
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, OperationalError, connection, transaction

from pgbackend import bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.transaction import pinned
from tests.models import Author
from tests.support.left_early import collect, driven_then_closed
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.work import fill, settled
from tests.support.wrapper import PID, avalue, on_loan, run, small_pool, use_wrapper, value

SIZE = 2
ROWS = 9
CURSORS = "SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django%'"

Leave = Callable[[], Awaitable[Any]]
Place = Callable[[Leave], Awaitable[None]]


class Failed(Exception):
    pass


def read() -> AsyncIterator[Author]:
    return Author.objects.filter(name__startswith="read").order_by("pk").aiterator(chunk_size=2)


def iterate() -> Iterator[Author]:
    return Author.objects.filter(name__startswith="read").order_by("pk").iterator(chunk_size=2)


# Ways to leave


async def by_break() -> None:
    async for _ in read():
        break


async def by_return() -> Any:
    async for author in read():
        return author
    return None


async def by_error() -> None:
    with pytest.raises(Failed):
        async for _ in read():
            raise Failed


async def by_aclose() -> None:
    async with aclosing(read()) as rows:  # type: ignore[type-var]  # Django is untyped
        async for _ in rows:
            break


async def by_time_out() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            async for _ in read():
                await asyncio.Event().wait()


async def by_cancelled_child() -> None:
    reading = asyncio.Event()

    async def child() -> None:
        async for _ in read():
            reading.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(child())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_collection() -> None:
    rows = read()
    await anext(rows)
    cycle = [rows]
    cycle.append(cycle)  # type: ignore[arg-type]  # the cycle
    del rows, cycle
    collect()


async def by_collection_in_a_thread() -> None:
    rows = read()
    await anext(rows)
    cycle = [rows]
    cycle.append(cycle)  # type: ignore[arg-type]  # the cycle
    del rows, cycle
    await asyncio.get_running_loop().run_in_executor(None, collect)


async def by_closing_its_coroutine() -> None:
    async def reader() -> None:
        async for _ in read():
            await asyncio.sleep(0)
            await asyncio.Event().wait()

    await driven_then_closed(reader(), 20)


async def by_breaks_in_a_row() -> None:
    for _ in range(5):
        await by_break()


@bridged
def iterator_by_break() -> None:
    for _ in iterate():
        break


@bridged
def iterator_by_error() -> None:
    with pytest.raises(Failed):
        for _ in iterate():
            raise Failed


@bridged
def iterator_by_collection() -> None:
    rows = iterate()
    next(rows)
    cycle: list[Any] = [rows]
    cycle.append(cycle)
    del rows, cycle
    collect()


async def iterator_by_collection_outside() -> None:
    def start() -> None:
        rows = iterate()
        next(rows)
        cycle: list[Any] = [rows]
        cycle.append(cycle)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await run_bridged(start)
        collect()


async def iterator_by_collection_in_a_thread() -> None:
    def start() -> None:
        rows = iterate()
        next(rows)
        cycle: list[Any] = [rows]
        cycle.append(cycle)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await run_bridged(start)
        await asyncio.get_running_loop().run_in_executor(None, collect)


@bridged
def cursor_by_error() -> None:
    with pytest.raises(Failed), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT name FROM tests_author")
        cursor.fetchone()
        raise Failed


@bridged
def cursor_by_collection() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT name FROM tests_author")
        cursor.fetchone()
        del cursor
        collect()


WAYS = [
    by_break,
    by_return,
    by_error,
    by_aclose,
    by_time_out,
    by_cancelled_child,
    by_collection,
    by_collection_in_a_thread,
    by_closing_its_coroutine,
    by_breaks_in_a_row,
    iterator_by_break,
    iterator_by_error,
    iterator_by_collection,
    iterator_by_collection_outside,
    iterator_by_collection_in_a_thread,
    cursor_by_error,
    cursor_by_collection,
]


# Places to leave from: each writes "one" and "two", in transactions that must commit.


async def in_a_block(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await leave()
        await Author.objects.acreate(name="two")
        await gone()


async def last_in_a_block(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await leave()
    async with transaction.atomic():
        await Author.objects.acreate(name="two")


async def in_a_nested_block(leave: Leave) -> None:
    async with transaction.atomic():
        async with transaction.atomic():
            await Author.objects.acreate(name="one")
            await leave()
        await Author.objects.acreate(name="two")
        await gone()


async def in_a_nested_block_that_fails(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        with pytest.raises(Failed):
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                await leave()
                raise Failed
        await Author.objects.acreate(name="two")
        await gone()


async def before_a_nested_block_that_fails(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await leave()
        with pytest.raises(DatabaseError):
            async with transaction.atomic():
                await avalue("SELECT 1 / 0")
        await Author.objects.acreate(name="two")
        await gone()


async def in_a_transaction_that_fails(leave: Leave) -> None:
    with pytest.raises(Failed):
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await leave()
            raise Failed
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
    await Author.objects.acreate(name="two")


async def outside_a_transaction(leave: Leave) -> None:
    await leave()
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
    await leave()
    await Author.objects.acreate(name="two")


async def in_a_child(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await asyncio.gather(leave(), leave())
        await Author.objects.acreate(name="two")
        await gone()


async def in_a_pin(leave: Leave) -> None:
    async with pinned():
        pid = await avalue(PID)
        await leave()
        await Author.objects.acreate(name="one")
        await gone()
        assert await avalue(PID) == pid
        async with transaction.atomic():
            await leave()
            await Author.objects.acreate(name="two")


@bridged
async def in_a_request(leave: Leave) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await leave()
    await leave()
    await bridged(Author.objects.create)(name="two")


PLACES = [
    in_a_block,
    last_in_a_block,
    in_a_nested_block,
    in_a_nested_block_that_fails,
    before_a_nested_block_that_fails,
    in_a_transaction_that_fails,
    outside_a_transaction,
    in_a_child,
    in_a_pin,
    in_a_request,
]


async def gone() -> None:
    """Check that the session has no cursor open."""
    assert await avalue(CURSORS) == 0


def names() -> list[str]:
    return [f"read {number}" for number in range(ROWS)]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("leave", WAYS)
def test_cursor_left_early(leave: Leave, runner: asyncio.Runner, server: Server) -> None:
    """Wherever and however a cursor is left, what is acknowledged is there, and nothing else."""

    async def check(place: Place) -> list[str]:
        server.all("DELETE FROM tests_author")
        server.all("INSERT INTO tests_author (name) SELECT unnest(%s::text[])", names())
        await asyncio.create_task(place(leave))
        await fill(SIZE)
        await asyncio.gather(*(gone() for _ in range(SIZE)))
        assert (await settled())["pool_available"] == SIZE
        assert not connection.in_atomic_block
        return committed(server)

    async def main() -> dict[str, list[str]]:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        return {place.__name__: await check(place) for place in PLACES}

    right = sorted([*names(), "one", "two"])
    assert runner.run(main()) == {place.__name__: right for place in PLACES}


# One by one


@pytest.fixture
def authors(server: Server) -> list[str]:
    """Authors to read."""
    server.all("INSERT INTO tests_author (name) SELECT unnest(%s::text[])", names())
    return names()


async def test_closed_after_its_savepoint_was_rolled_back(
    authors: list[str], server: Server
) -> None:
    """A reader that is closed after the block it was opened in has failed disturbs nothing."""
    async with transaction.atomic():
        with pytest.raises(Failed):
            async with transaction.atomic():
                rows, more = read(), await bridged(iterate)()
                await anext(rows)
                await bridged(next)(more)
                raise Failed
        await rows.aclose()  # type: ignore[attr-defined]  # a generator
        await bridged(more.close)()  # type: ignore[attr-defined]  # a generator
        await Author.objects.acreate(name="written")
    assert "written" in committed(server)


async def test_read_after_its_savepoint_was_rolled_back(authors: list[str], server: Server) -> None:
    """Who reads on after that gets an error of the server's, and the commit fails, too."""
    with pytest.raises(DatabaseError, match="cannot be committed"):
        async with transaction.atomic():
            with pytest.raises(Failed):
                async with transaction.atomic():
                    rows = read()
                    await anext(rows)
                    raise Failed
            await Author.objects.acreate(name="written")
            with pytest.raises(DatabaseError, match="does not exist"):
                [author async for author in rows]
    assert committed(server) == authors


async def test_read_after_its_transaction(authors: list[str], server: Server) -> None:
    """Who reads on after the transaction gets an error, and disturbs no other transaction."""
    wrapper = small_pool(1)
    async with transaction.atomic():
        rows = read()
        await anext(rows)
    # It ended with the transaction, and holds nothing.
    assert on_loan(wrapper) == 0
    async with transaction.atomic():
        await Author.objects.acreate(name="written")
        with pytest.raises(OperationalError, match="the connection is closed"):
            [author async for author in rows]
        await rows.aclose()  # type: ignore[attr-defined]  # a generator
    assert "written" in committed(server)


async def test_opened_before_the_transaction(authors: list[str], server: Server) -> None:
    """A reader begun outside a transaction goes on in it and after it, and may be left in it."""
    wrapper = small_pool(1)
    rows = read()
    found = [(await anext(rows)).name]
    async with transaction.atomic():
        found += [(await anext(rows)).name for _ in range(4)]
        await Author.objects.acreate(name="written")
    found += [author.name async for author in rows]
    assert found == authors
    rows = read()
    await anext(rows)
    async with transaction.atomic():
        await Author.objects.acreate(name="written too")
        await rows.aclose()  # type: ignore[attr-defined]  # a generator
        await gone()
    assert {"written", "written too"} <= set(committed(server))
    assert on_loan(wrapper) == 0


async def test_table_can_be_altered_at_once(authors: list[str]) -> None:
    """A left cursor is closed before the next statement: none that changes the table is refused."""
    async with transaction.atomic():
        await by_break()
        await run(connection, "ALTER TABLE tests_author ADD COLUMN left_early integer")
        await bridged(iterator_by_break.__wrapped__)()  # type: ignore[attr-defined]  # bridged
        await run(connection, "ALTER TABLE tests_author DROP COLUMN left_early")


async def test_others_turn(authors: list[str], server: Server) -> None:
    """A cursor left while another task is inside a block of the transaction is closed later."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            inside.set()
            await go_on.wait()

    async with transaction.atomic():
        rows = read()
        await anext(rows)
        task = asyncio.create_task(child())
        await inside.wait()
        await rows.aclose()  # type: ignore[attr-defined]  # a generator
        go_on.set()
        await task
        await gone()
    assert "child" in committed(server)


async def test_closed_in_a_thread(authors: list[str]) -> None:
    """A cursor that another thread closes gives its connection back on the loop."""
    wrapper = small_pool(1)

    def start() -> Any:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        return cursor

    @bridged
    async def work() -> None:
        cursor = start()
        await asyncio.get_running_loop().run_in_executor(None, cursor.close)
        await asyncio.sleep(0)
        assert on_loan(wrapper) == 0

    await work()
    await fill(1)


async def test_moved_to_a_thread_in_a_transaction(authors: list[str], server: Server) -> None:
    """A thread that joined the transaction leaves its iterator early: the transaction goes on."""

    def leave() -> None:
        for _ in iterate():
            break
        Author.objects.create(name="written")

    async with transaction.atomic():
        await sync_to_async(leave)()
        await gone()
    assert "written" in committed(server)


def test_on_another_loop(authors: list[str], server: Server) -> None:
    """A reader dropped while another loop of the thread runs costs its own loop no place."""
    with asyncio.Runner() as first, asyncio.Runner() as second:

        async def start() -> Any:
            use_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
            rows = read()
            await anext(rows)
            return [rows, await bridged(iterate)()]

        async def drop(rows: list[Any]) -> None:
            rows.clear()
            collect()
            assert value is not None
            assert await avalue("SELECT 1") == 1

        async def again() -> int:
            await asyncio.sleep(0)
            return int(await avalue("SELECT 1"))

        async def main(rows: list[Any]) -> None:
            await drop(rows)

        context = first.run(_context_of(start))
        second.run(main(context[1]))
        assert first.run(again(), context=context[0]) == 1


async def _context_of(start: Callable[[], Awaitable[Any]]) -> Any:
    import contextvars

    found = await start()
    return contextvars.copy_context(), found


async def test_pool_closed_meanwhile(authors: list[str], server: Server) -> None:
    """A reader that is left after its pool was closed is no trouble."""
    rows = read()
    await anext(rows)
    await bridged(connection.close_pool)()
    del rows
    collect()
    await Author.objects.acreate(name="written")
    assert "written" in committed(server)
