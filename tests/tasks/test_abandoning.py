"""Blocks in generators and coroutines that are left early: ended for the task that entered them.

What the task writes afterwards is not part of them: it is there when it was acknowledged.
"""

import asyncio
import functools
import gc
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext, suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import Error, OperationalError, connection, transaction
from django.db.transaction import TransactionManagementError

from pgbackend import bridged, is_bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.transaction import aon_commit, detached
from tests.models import Author
from tests.support.left_early import collect, driven_then_closed
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import committed, running
from tests.support.work import fill, settled
from tests.support.wrapper import PID, avalue, run, until, use_wrapper, value

SIZE = 2

Leave = Callable[[], Awaitable[Any]]
Place = Callable[[Leave, list[str]], Awaitable[None]]


class Failed(Exception):
    pass


# Generators with a block in them


async def rows() -> AsyncIterator[int]:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        for number in range(3):
            yield number


async def rows_from_the_server() -> AsyncIterator[int]:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        async for author in Author.objects.all().aiterator(chunk_size=1):
            yield author.pk


async def rows_of_nested_blocks() -> AsyncIterator[int]:
    async with transaction.atomic(), transaction.atomic():
        await Author.objects.acreate(name="lost")
        async with transaction.atomic(savepoint=False):
            yield 1


@asynccontextmanager
async def _block() -> AsyncIterator[None]:
    async with transaction.atomic():
        yield


async def rows_in_a_context_manager() -> AsyncIterator[int]:
    async with _block():
        await Author.objects.acreate(name="lost")
        yield 1


async def rows_in_a_stack() -> AsyncIterator[int]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(transaction.atomic())
        await stack.enter_async_context(_block())
        await Author.objects.acreate(name="lost")
        yield 1


async def rows_of_another() -> AsyncIterator[int]:
    async for row in rows():
        yield row


GENERATORS = [
    rows,
    rows_from_the_server,
    rows_of_nested_blocks,
    rows_in_a_context_manager,
    rows_in_a_stack,
    rows_of_another,
]


# Ways to leave them


async def by_break() -> None:
    for generator in GENERATORS:
        async for _ in generator():
            break


async def by_break_of(generator: Callable[[], AsyncIterator[int]]) -> None:
    async for _ in generator():
        break


async def by_return() -> Any:
    async for row in rows():
        return row


async def by_error() -> None:
    with pytest.raises(Failed):
        async for _ in rows():
            raise Failed


async def by_aclose() -> None:
    async with aclosing(rows()) as reading:  # type: ignore[type-var]  # a generator
        async for _ in reading:
            break


async def by_aclose_in_a_task() -> None:
    reading: Any = rows()
    await anext(reading)
    await asyncio.create_task(reading.aclose())


async def by_collection() -> None:
    await _start_in_a_cycle(rows)
    collect()


async def by_collection_in_a_thread() -> None:
    await _start_in_a_cycle(rows)
    await asyncio.get_running_loop().run_in_executor(None, collect)


async def by_collection_in_another_task() -> None:
    await _start_in_a_cycle(rows)

    async def other() -> None:
        async with transaction.atomic():
            collect()

    with detached():
        task = asyncio.create_task(other())
    await task


async def _start_in_a_cycle(generator: Callable[[], AsyncIterator[int]]) -> None:
    reading = generator()
    await anext(reading)
    cycle: list[Any] = [reading]
    cycle.append(cycle)


async def by_time_out() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            async for _ in rows():
                await asyncio.Event().wait()


async def by_closing_the_reader() -> None:
    async def reader() -> None:
        async for _ in rows():
            await asyncio.Event().wait()

    await driven_then_closed(reader(), 50)


async def by_closing_a_block() -> None:
    async def block() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            async with transaction.atomic():
                await asyncio.Event().wait()

    await driven_then_closed(block(), 50)


async def by_closing_a_statement() -> None:
    if is_bridged():
        # The statement would wait in the bridge around, not in the coroutine.
        await by_closing_a_block()
        return

    async def block() -> None:
        async with _block(), transaction.atomic():
            await Author.objects.acreate(name="lost")
            await avalue("SELECT pg_sleep(600)")

    await driven_then_closed(block(), 50)


async def by_closing_a_bridged_block() -> None:
    @bridged
    async def block() -> None:
        with transaction.atomic():
            await Author.objects.acreate(name="lost")
            async with transaction.atomic():
                await asyncio.Event().wait()

    await driven_then_closed(block(), 50)


def _sync_rows() -> Iterator[int]:
    with transaction.atomic():
        Author.objects.create(name="lost")
        yield 1
        yield 2


@bridged
def synchronous_by_break() -> None:
    for _ in _sync_rows():
        break


async def synchronous_by_collection_outside() -> None:
    def start() -> None:
        reading = _sync_rows()
        next(reading)
        cycle: list[Any] = [reading]
        cycle.append(cycle)

    await run_bridged(start)
    collect()


async def synchronous_by_collection_in_another_task() -> None:
    def start() -> None:
        reading = _sync_rows()
        next(reading)
        cycle: list[Any] = [reading]
        cycle.append(cycle)

    @bridged
    def other() -> None:
        with transaction.atomic():
            collect()

    await run_bridged(start)
    with detached():
        task = asyncio.create_task(other())
    await task


WAYS: list[Leave] = [
    by_break,
    by_return,
    by_error,
    by_aclose,
    by_aclose_in_a_task,
    by_collection,
    by_collection_in_a_thread,
    by_time_out,
    by_closing_the_reader,
    by_closing_a_block,
    by_closing_a_bridged_block,
    synchronous_by_break,
    synchronous_by_collection_outside,
]

# They take a connection each, or end the one that they were on.
WAYS_OUTSIDE: list[Leave] = [
    *WAYS,
    by_collection_in_another_task,
    by_closing_a_statement,
    synchronous_by_collection_in_another_task,
]


# Places to leave from: each writes "one" and "two", which must be there, and notes its hooks.


async def alone(leave: Leave, hooks: list[str]) -> None:
    await leave()
    await Author.objects.acreate(name="one")
    await Author.objects.acreate(name="two")
    hooks += ["one", "two"]


async def before_a_block(leave: Leave, hooks: list[str]) -> None:
    await leave()
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await aon_commit(lambda: hooks.append("one"))
    await leave()
    async with transaction.atomic(durable=True):
        await Author.objects.acreate(name="two")
        await aon_commit(lambda: hooks.append("two"))


@bridged
async def in_a_request(leave: Leave, hooks: list[str]) -> None:
    await leave()
    transaction.on_commit(lambda: hooks.append("one"))
    with transaction.atomic():
        await bridged(Author.objects.create)(name="one")
    await leave()
    await Author.objects.acreate(name="two")
    hooks.append("two")


async def in_a_block(leave: Leave, hooks: list[str]) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await leave()
        await aon_commit(lambda: hooks.append("one"))
        await Author.objects.acreate(name="two")
        await aon_commit(lambda: hooks.append("two"))


async def last_in_a_block(leave: Leave, hooks: list[str]) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await Author.objects.acreate(name="two")
        await aon_commit(lambda: hooks.append("one"))
        await aon_commit(lambda: hooks.append("two"))
        await leave()


async def in_nested_blocks(leave: Leave, hooks: list[str]) -> None:
    async with transaction.atomic():
        async with transaction.atomic():
            await Author.objects.acreate(name="one")
            await leave()
            await aon_commit(lambda: hooks.append("one"))
        await leave()
        async with transaction.atomic():
            await Author.objects.acreate(name="two")
            await aon_commit(lambda: hooks.append("two"))


async def in_a_nested_block_that_fails(leave: Leave, hooks: list[str]) -> None:
    async with transaction.atomic():
        with pytest.raises(Failed):
            async with transaction.atomic():
                await leave()
                raise Failed
        await Author.objects.acreate(name="one")
        await Author.objects.acreate(name="two")
        await aon_commit(lambda: hooks.extend(["one", "two"]))


async def in_a_child(leave: Leave, hooks: list[str]) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        await asyncio.gather(leave())
        await Author.objects.acreate(name="two")
        await aon_commit(lambda: hooks.extend(["one", "two"]))


OUTSIDE: list[Place] = [alone, before_a_block, in_a_request]
INSIDE: list[Place] = [
    in_a_block,
    last_in_a_block,
    in_nested_blocks,
    in_a_nested_block_that_fails,
    in_a_child,
]


async def _check(leave: Leave, place: Place, server: Server) -> tuple[list[str], list[str]]:
    """Return the rows that are there and the hooks that ran; check all else."""
    server.all("DELETE FROM tests_author")
    hooks: list[str] = []
    async with asyncio.timeout(PATIENCE):
        await asyncio.create_task(place(leave, hooks))
        # Nobody notices a block's end in a task of its own.
        await fill(SIZE)
        stats = await settled()
    assert stats["pool_available"] == SIZE
    assert not connection.in_atomic_block
    assert (
        server.all(
            "SELECT query FROM pg_stat_activity WHERE application_name = 'pgbackend-tests'"
            " AND state <> 'idle'"
        )
        == []
    )
    return committed(server), sorted(hooks)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("leave", WAYS_OUTSIDE)
def test_outermost_block_left_early(leave: Leave, runner: asyncio.Runner, server: Server) -> None:
    """The block is rolled back; what its task writes afterwards, outside or in a block, stays."""

    async def main() -> dict[str, Any]:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        return {place.__name__: await _check(leave, place, server) for place in OUTSIDE}

    right = (["one", "two"], ["one", "two"])
    assert runner.run(main()) == {place.__name__: right for place in OUTSIDE}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("leave", WAYS)
def test_nested_block_left_early(leave: Leave, runner: asyncio.Runner, server: Server) -> None:
    """The block is rolled back to its savepoint, and the one around it commits what it says."""

    async def main() -> dict[str, Any]:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        return {place.__name__: await _check(leave, place, server) for place in INSIDE}

    right = (["one", "two"], ["one", "two"])
    assert runner.run(main()) == {place.__name__: right for place in INSIDE}


# One by one


@pytest.mark.parametrize("generator", GENERATORS)
async def test_no_warning(generator: Callable[[], AsyncIterator[int]], server: Server) -> None:
    """A generator left as the last thing of its task is no mistake: nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await asyncio.create_task(by_break_of(generator))
        await settled()
    assert committed(server) == []


async def test_statement_closed_in_a_nested_block(server: Server) -> None:
    """A statement that is closed while it runs ends the transaction around: its block raises."""
    hooks: list[str] = []
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever notices first
        async with transaction.atomic():
            await Author.objects.acreate(name="lost too")
            transaction.on_commit(lambda: hooks.append("ran"))
            await by_closing_a_statement()
    assert isinstance(caught.value, Exception)
    assert hooks == []
    await Author.objects.acreate(name="next")
    assert committed(server) == ["next"]
    assert not connection.in_atomic_block


async def test_on_commit_at_once(server: Server) -> None:
    """on_commit() right after leaving a generator is not a hook of the block in that."""
    hooks: list[str] = []
    await by_break_of(rows)
    with pytest.raises(TransactionManagementError, match="aon_commit"):
        transaction.on_commit(lambda: hooks.append("lost"))
    await aon_commit(lambda: hooks.append("first"))
    transaction.on_commit(lambda: hooks.append("second"))
    assert hooks == ["first", "second"]


async def test_set_rollback_at_once(server: Server) -> None:
    """set_rollback() after a nested block was left is about the block around that."""

    @bridged
    async def work() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="rolled back")
            await by_break_of(rows)
            transaction.set_rollback(True)

    await work()
    assert committed(server) == []


async def test_children_wait(server: Server) -> None:
    """A child task that works in a block while it is left is refused, or its rows are there."""
    go_on = asyncio.Event()
    found: list[Any] = []

    async def child() -> None:
        await go_on.wait()
        for number in range(5):
            try:
                await Author.objects.acreate(name=f"child {number}")
            except RuntimeError as error:
                found.append(error)
            else:
                found.append(number)

    async def with_child() -> AsyncIterator[asyncio.Task[None]]:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            yield asyncio.create_task(child())

    async with transaction.atomic():
        async for task in with_child():  # noqa: B007  # used below
            break
        go_on.set()
        await task
        await Author.objects.acreate(name="two")
    written = [f"child {each}" for each in found if isinstance(each, int)]
    assert committed(server) == sorted([*written, "two"])


async def test_consumer_in_the_block(server: Server) -> None:
    """A generator that is read to its end commits what was written in and between its rows."""
    async for number in rows():
        await Author.objects.acreate(name=f"between {number}")
    assert committed(server) == ["between 0", "between 1", "between 2", "lost"]


async def test_two_at_once(server: Server) -> None:
    """Of two generators read in turns the outer one, left first, takes the inner one with it."""
    first, second = rows(), rows_in_a_context_manager()
    await anext(first)
    with pytest.raises(Exception):  # noqa: B017, PT011  # the names are unique
        await anext(second)
    server.all("SELECT 1")
    del first, second
    gc.collect()
    await Author.objects.acreate(name="next")
    assert committed(server) == ["next"]


async def test_in_a_thread(server: Server) -> None:
    """A thread that joined the transaction leaves a block in a generator; the owner goes on."""

    def leave() -> None:
        for _ in _sync_rows():
            break
        Author.objects.create(name="one")

    async with transaction.atomic():
        await sync_to_async(leave)()
        await Author.objects.acreate(name="two")
    assert committed(server) == ["one", "two"]


def test_synchronous_path(server: Server) -> None:
    """On the synchronous path a generator's block is Django's own."""
    for _ in _sync_rows():
        break
    Author.objects.create(name="one")
    assert committed(server) == ["one"]
    assert value(PID)


async def test_decorated_by_one_block(server: Server) -> None:
    """Of many calls of one decorated function, those that are closed disturb no other."""

    @transaction.atomic
    async def write(name: str, wait: bool) -> None:
        await Author.objects.acreate(name=name)
        if wait:
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        await Author.objects.acreate(name=f"{name} too")

    async def close(number: int) -> None:
        await driven_then_closed(write(f"closed {number}", True), 50)

    calls = [write(f"{number}", False) for number in range(5)]
    await asyncio.gather(*(close(number) for number in range(5)), *calls)
    await settled()
    assert committed(server) == sorted([f"{n}" for n in range(5)] + [f"{n} too" for n in range(5)])
    assert await run(connection, "SELECT 1") == 1


# Blocks that another task leaves as if nothing were wrong


async def by_a_stack() -> None:
    stack = AsyncExitStack()
    await stack.enter_async_context(transaction.atomic())
    await Author.objects.acreate(name="lost")
    await asyncio.create_task(stack.aclose())


async def by_a_context_manager() -> None:
    block = _block()
    await block.__aenter__()
    await Author.objects.acreate(name="lost")
    await asyncio.create_task(block.__aexit__(None, None, None))


async def by_the_rest_of_a_generator() -> None:
    generator = rows()
    await anext(generator)

    async def read() -> None:
        async for _ in generator:
            pass

    await asyncio.create_task(read())


@pytest.mark.parametrize("reader", [False, True], ids=["plain", "bridged"])
@pytest.mark.parametrize("outer", [False, True], ids=["outermost", "nested"])
@pytest.mark.parametrize(
    "leave",
    [by_a_stack, by_a_context_manager, by_the_rest_of_a_generator],
    ids=lambda f: f.__name__,
)
def test_left_by_another_task(
    leave: Leave, outer: bool, reader: bool, runner: asyncio.Runner, server: Server
) -> None:
    """It is rolled back for who entered it, whose later writes stay; who leaves it is told."""

    async def work() -> None:
        with pytest.raises(RuntimeError, match=r"entered by .* and is left by another task"):
            await leave()
        await Author.objects.acreate(name="kept")
        async with transaction.atomic():
            await Author.objects.acreate(name="kept in a block")

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": SIZE}})
        await fill(SIZE)
        call = bridged(work) if reader else work
        if outer:
            async with transaction.atomic():
                await call()
        else:
            await call()
        assert not connection.in_atomic_block
        await settled()

    runner.run(main())
    assert committed(server) == ["kept", "kept in a block"]


# Generators that are suspended still when the block around theirs is left


async def _read_rest(generator: AsyncIterator[int]) -> None:
    async for _ in generator:
        pass


async def _start(stack: list[Any]) -> Any:
    generator: Any = rows()
    await anext(generator)
    stack.append(generator)
    return functools.partial(_read_rest, generator)


async def _start_nested(stack: list[Any]) -> Any:
    generator: Any = rows_of_nested_blocks()
    await anext(generator)
    stack.append(generator)
    return functools.partial(_read_rest, generator)


async def _start_synchronous(stack: list[Any]) -> Any:
    generator = _sync_rows()
    stack.append(generator)
    await bridged(next)(generator)
    return functools.partial(bridged(list), generator)


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "start", [_start, _start_nested, _start_synchronous], ids=lambda f: f.__name__
)
def test_left_before_the_generator_within(
    start: Callable[[list[Any]], Awaitable[Any]],
    depth: int,
    fails: bool,
    runner: asyncio.Runner,
    server: Server,
) -> None:
    """What the generator's block has not finished is rolled back, and no other block is meant."""
    kept: list[Any] = []

    async def work() -> None:
        with pytest.raises(Failed) if fails else nullcontext():
            async with transaction.atomic():
                await Author.objects.acreate(name="one")
                resume = await start(kept)
                await Author.objects.acreate(name="of the generator's block, too")
                if fails:
                    raise Failed
        with pytest.raises(RuntimeError):
            await resume()
        await Author.objects.acreate(name="two")

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        await fill(SIZE)
        async with asyncio.timeout(PATIENCE):
            if depth == 1:
                await work()
                assert not connection.in_atomic_block
            else:
                async with transaction.atomic():
                    await work()
                    await Author.objects.acreate(name="three")
                assert not connection.in_atomic_block
        kept.clear()
        await fill(SIZE)
        await settled()

    runner.run(main())
    assert committed(server) == sorted(
        [*(["three"] if depth == 2 else []), *([] if fails else ["one"]), "two"]
    )


# Coroutines that are closed while a generator of theirs waits: before CPython 3.13 it is not told


async def slow_rows() -> AsyncIterator[int]:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        await avalue("SELECT pg_sleep(600)")
        yield 1


async def slow_rows_without_a_block() -> AsyncIterator[int]:
    await Author.objects.acreate(name="of no block of its own")
    await avalue("SELECT pg_sleep(600)")
    yield 1


async def _read(
    generator: Callable[[], AsyncIterator[int]], kept: list[Any], *, keep: bool
) -> None:
    """Read a generator to its end, which is in *kept*, too, if it is to outlast the coroutine."""
    reading: Any = generator()
    if keep:
        kept.append(reading)
    async for _ in reading:
        pass


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("generator", [slow_rows, slow_rows_without_a_block])
def test_statement_of_a_generator_closed(
    generator: Callable[[], AsyncIterator[int]],
    keep: bool,
    runner: asyncio.Runner,
    server: Server,
) -> None:
    """Outside a transaction the next statement has another connection; nothing of it stays.

    Before CPython 3.13 the task finds out by an error that it is in a block that nobody leaves.
    """
    kept: list[Any] = []

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        await fill(SIZE)
        async with asyncio.timeout(PATIENCE):
            await driven_then_closed(_read(generator, kept, keep=keep), 50)
            with suppress(OperationalError) if sys.version_info < (3, 13) else nullcontext():
                await Author.objects.acreate(name="maybe")
            await Author.objects.acreate(name="one")
            async with transaction.atomic():
                await Author.objects.acreate(name="two")
        kept.clear()
        await settled()
        # The loop's end would end the pool's task that has the server stop it.
        await until(lambda: running(server, "active") == 0)

    runner.run(main())
    assert set(committed(server)) - {"of no block of its own", "maybe"} == {"one", "two"}


@pytest.mark.parametrize("statement", [False, True], ids=["end", "statement"])
@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("generator", [slow_rows, slow_rows_without_a_block])
def test_statement_of_a_generator_closed_in_a_block(
    generator: Callable[[], AsyncIterator[int]],
    keep: bool,
    statement: bool,
    runner: asyncio.Runner,
    server: Server,
) -> None:
    """Inside one, nobody reads its answer: the transaction is lost, and its block says so."""
    kept: list[Any] = []

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": SIZE, "timeout": 10.0}})
        await fill(SIZE)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Exception) as caught:  # noqa: PT011  # whichever notices first
                async with transaction.atomic():
                    await Author.objects.acreate(name="lost too")
                    await driven_then_closed(_read(generator, kept, keep=keep), 50)
                    if statement:
                        await Author.objects.acreate(name="lost at last")
            assert isinstance(caught.value, Error | RuntimeError)
            await Author.objects.acreate(name="one")
            async with transaction.atomic():
                await Author.objects.acreate(name="two")
        kept.clear()
        await settled()
        # The loop's end would end the pool's task that has the server stop it.
        await until(lambda: running(server, "active") == 0)

    runner.run(main())
    assert committed(server) == ["one", "two"]
