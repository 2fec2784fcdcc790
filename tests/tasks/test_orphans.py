"""Blocks that a task enters and another one goes on in: refused, not executed without them."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import copy_context
from itertools import count
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction

from pgbackend import bridged
from pgbackend.requests.serving import serve
from pgbackend.tasks.orphans import open_transactions, orphans
from pgbackend.tasks.revoked import revoked_blocks
from pgbackend.transaction import aon_commit, detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.loops import EACH_LOOP, LOOPS
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.work import fill, settled
from tests.support.wrapper import run, use_wrapper

SIZE = 2

Enter = Callable[[AsyncExitStack], Awaitable[None]]
Use = Callable[[], Awaitable[Any]]


_numbers = count()


class Failed(Exception):
    pass


def lost() -> str:
    """Return the name of an author who must not stay."""
    return f"lost {next(_numbers)}"


@pytest.fixture(params=EACH_LOOP)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of each kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


@asynccontextmanager
async def block() -> AsyncIterator[None]:
    async with transaction.atomic():
        await Author.objects.acreate(name=lost())
        yield


@contextmanager
def bridged_block() -> Iterator[None]:
    with transaction.atomic():
        yield


async def rows() -> AsyncIterator[int]:
    async with transaction.atomic():
        for number in range(3):
            await Author.objects.acreate(name=lost())
            yield number


# Ways to enter a block that leave its object to the stack


async def by_a_task(stack: AsyncExitStack) -> None:
    await asyncio.create_task(stack.enter_async_context(transaction.atomic()))


async def by_shield(stack: AsyncExitStack) -> None:
    await asyncio.shield(stack.enter_async_context(transaction.atomic()))


async def by_gather(stack: AsyncExitStack) -> None:
    await asyncio.gather(stack.enter_async_context(transaction.atomic()))


async def by_wait_for(stack: AsyncExitStack) -> None:
    await asyncio.wait_for(stack.enter_async_context(transaction.atomic()), PATIENCE)


async def by_a_context_manager(stack: AsyncExitStack) -> None:
    await asyncio.create_task(stack.enter_async_context(block()))


async def by_a_synchronous_one(stack: AsyncExitStack) -> None:
    within = ExitStack()
    stack.push_async_exit(bridged(within.__exit__))
    await asyncio.create_task(bridged(within.enter_context)(bridged_block()))


async def by_a_task_that_fails(stack: AsyncExitStack) -> None:
    async def enter() -> None:
        await stack.enter_async_context(transaction.atomic())
        raise Failed

    with suppress(Failed):
        await asyncio.create_task(enter())


async def by_a_task_that_is_cancelled(stack: AsyncExitStack) -> None:
    entered = asyncio.Event()

    async def enter() -> None:
        await stack.enter_async_context(transaction.atomic())
        entered.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(enter())
    await entered.wait()
    task.cancel()
    await asyncio.wait([task])


async def with_blocks_within(stack: AsyncExitStack) -> None:
    async def enter() -> None:
        await stack.enter_async_context(transaction.atomic())
        await stack.enter_async_context(transaction.atomic())

    await asyncio.create_task(enter())


WAYS: list[Enter] = [
    by_a_task,
    by_shield,
    by_gather,
    by_a_context_manager,
    by_a_synchronous_one,
    by_a_task_that_fails,
    by_a_task_that_is_cancelled,
    with_blocks_within,
]
if sys.version_info < (3, 12):
    WAYS.append(by_wait_for)


# Statements in the block's body


async def write() -> None:
    await Author.objects.acreate(name=lost())


async def write_in_a_block() -> None:
    async with transaction.atomic():
        await write()


async def write_by_cursor() -> None:
    await run(connection, "INSERT INTO tests_author (name) VALUES (%s)", [lost()])


async def write_in_a_child() -> None:
    await asyncio.create_task(write())


async def write_bridged() -> None:
    await bridged(Author.objects.create)(name=lost())


async def call_after_the_commit() -> None:
    await aon_commit(lambda: pytest.fail("called"))


USES: list[Use] = [
    write,
    write_in_a_block,
    write_by_cursor,
    write_in_a_child,
    write_bridged,
    call_after_the_commit,
]


async def begin(pool: int = SIZE) -> None:
    use_wrapper(options={"pool": {"max_size": pool}})
    await fill(pool)


async def end() -> None:
    """Check that nothing of it is left."""
    await write_kept()
    assert orphans == []
    loop = asyncio.get_running_loop()
    noted = [each() for found in open_transactions.values() for each in found]
    # Other tests may have closed their loops in the middle of a transaction.
    assert [each for each in noted if each is not None and each.loop is loop] == []
    await settled()


async def write_kept(name: str = "kept") -> None:
    await Author.objects.acreate(name=name)
    async with transaction.atomic():
        await Author.objects.acreate(name=f"{name} in a block")


KEPT = ["kept", "kept in a block"]


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("use", USES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("enter", WAYS, ids=lambda f: f.__name__)
def test_goes_on_in_another_task(
    enter: Enter, use: Use, runner: asyncio.Runner, server: Server
) -> None:
    """What is executed in the rest of the body is refused until the block is left."""

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RuntimeError, match=r"entered an atomic block and ended inside it"):
                async with AsyncExitStack() as stack:
                    await enter(stack)
                    with pytest.raises(RuntimeError, match="ended inside it"):
                        await use()
                    await use()
            await end()

    runner.run(main())
    assert committed(server) == KEPT


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("enter", WAYS, ids=lambda f: f.__name__)
def test_left_as_if_nothing_were_wrong(
    enter: Enter, runner: asyncio.Runner, server: Server
) -> None:
    """Who leaves it without a statement is told that it has ended."""

    async def main() -> None:
        await begin()
        stack = AsyncExitStack()
        await enter(stack)
        with pytest.raises(RuntimeError):
            await stack.aclose()
        await end()

    runner.run(main())
    assert committed(server) == KEPT


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("enter", WAYS, ids=lambda f: f.__name__)
def test_nobody_can_leave_it_any_more(enter: Enter, runner: asyncio.Runner, server: Server) -> None:
    """A block whose object is gone is nobody's: what comes next is executed."""

    async def main() -> None:
        await begin()
        stack = AsyncExitStack()
        await enter(stack)
        stack.pop_all()
        gc.collect()
        await end()

    runner.run(main())
    assert committed(server) == KEPT


# Blocks in generators: who reads is in no block of theirs


def sync_rows() -> Iterator[int]:
    with transaction.atomic():
        for number in range(3):
            Author.objects.create(name=lost())
            yield number


Step = Callable[[], Any]


def stepping() -> Step:
    """Return what makes a coroutine of the next step of a generator with a block."""
    generator: Any = rows()
    return lambda: anext(generator)


def stepping_bridged() -> Step:
    generator = sync_rows()
    return lambda: bridged(next)(generator)


def stepping_nested() -> Step:
    async def nested() -> AsyncIterator[int]:
        async with transaction.atomic(), transaction.atomic():
            for number in range(3):
                async with transaction.atomic():
                    await Author.objects.acreate(name=lost())
                yield number

    generator: Any = nested()
    return lambda: anext(generator)


def stepping_by_cursor() -> Step:
    async def numbers() -> AsyncIterator[int]:
        async with transaction.atomic():
            for number in range(3):
                await write_by_cursor()
                yield number

    generator: Any = numbers()
    return lambda: anext(generator)


STEPS = [stepping, stepping_bridged, stepping_nested, stepping_by_cursor]


async def succeeds(step: Any) -> None:
    await step


async def fails(step: Any) -> None:
    await step
    raise Failed


async def hangs(step: Any) -> None:
    await step
    running = asyncio.current_task()
    assert running is not None
    # When it waits already.
    asyncio.get_running_loop().call_soon(running.cancel)
    await asyncio.Event().wait()


async def in_a_task(work: Callable[[Any], Any], step: Any) -> None:
    await asyncio.wait([asyncio.create_task(work(step))])


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("outer", [False, True], ids=["outermost", "nested"])
@pytest.mark.parametrize("work", [succeeds, fails, hangs], ids=lambda f: f.__name__)
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_rest_of_a_generator(
    start: Callable[[], Step],
    work: Callable[[Any], Any],
    outer: bool,
    runner: asyncio.Runner,
    server: Server,
) -> None:
    """Of a generator whose block ended with its task nothing is executed; its readers' is."""

    async def read() -> None:
        step = start()
        await in_a_task(work, step())
        await Author.objects.acreate(name="of the reader")
        # An error in save() breaks the block that it is in.
        with pytest.raises(RuntimeError):
            async with transaction.atomic():
                await asyncio.create_task(succeeds(step()))
        step = start()
        await in_a_task(work, step())
        with pytest.raises(RuntimeError):
            async with transaction.atomic():
                await step()

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            if outer:
                async with transaction.atomic():
                    await read()
            else:
                await read()
        gc.collect()
        await end()
        assert revoked_blocks == []

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "of the reader"])


@pytest.mark.parametrize("later", [False, True], ids=["outside", "in a later block"])
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_rest_of_a_generator_after_the_block_around(
    start: Callable[[], Step], later: bool, runner: asyncio.Runner, server: Server
) -> None:
    """Nor of one that the block around has ended, wherever it goes on."""

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            step = start()
            async with transaction.atomic():
                await Author.objects.acreate(name="outer")
                await step()
            if later:
                async with transaction.atomic():
                    with pytest.raises(RuntimeError):
                        await step()
            else:
                with pytest.raises(RuntimeError):
                    await step()
        await end()
        assert revoked_blocks == []

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "outer"])


@pytest.mark.parametrize("fail", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_generator_below_a_childs_block(
    start: Callable[[], Step], fail: bool, runner: asyncio.Runner, server: Server
) -> None:
    """The block around waits for the child's, and not for its own in the generator."""

    async def child(inside: asyncio.Event) -> None:
        async with transaction.atomic():
            inside.set()
            await asyncio.sleep(0.05)

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            step, inside = start(), asyncio.Event()
            with pytest.raises(Failed) if fail else nullcontext():
                async with transaction.atomic():
                    await Author.objects.acreate(name="outer")
                    await step()
                    task = asyncio.create_task(child(inside))
                    await inside.wait()
                    if fail:
                        raise Failed
            await asyncio.wait([task])
        del step
        gc.collect()
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, *([] if fail else ["outer"])])


# One object for several blocks


def test_one_object_for_the_block_around(runner: asyncio.Runner, server: Server) -> None:
    """Which of the blocks is left is known by where it stands."""
    block = transaction.atomic()

    async def numbers() -> AsyncIterator[int]:
        async with block:
            await write()
            yield 1
            yield 2

    async def main() -> None:
        await begin()
        generator = numbers()
        async with block:
            await Author.objects.acreate(name="outer")
            await anext(generator)
        assert not connection.in_atomic_block
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "outer"])


def test_one_object_for_two_generators(runner: asyncio.Runner, server: Server) -> None:
    """To close one of them ends its own block."""
    block = transaction.atomic()

    async def numbers() -> AsyncIterator[int]:
        async with block:
            await write()
            yield 1

    async def main() -> None:
        await begin()
        first: Any = numbers()
        second: Any = numbers()
        async with transaction.atomic():
            await anext(second)
            await anext(first)
            await first.aclose()
            await Author.objects.acreate(name="lost with the second's")
            await second.aclose()
            await Author.objects.acreate(name="between")
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "between"])


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("requests", [False, True])
def test_one_object_for_an_orphan(requests: bool, runner: asyncio.Runner, server: Server) -> None:
    """That another task leaves its own block of it changes nothing for who is in the orphan."""
    shared = transaction.atomic()
    entered, inside, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await inside.wait()
        with pytest.raises(RuntimeError):
            async with AsyncExitStack() as stack:
                await asyncio.create_task(stack.enter_async_context(shared))
                entered.set()
                await left.wait()
                await write()

    async def second() -> None:
        async with shared:
            inside.set()
            await entered.wait()
            await Author.objects.acreate(name="second")
        left.set()

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            if requests:
                await asyncio.gather(serve(first), serve(second))
            else:
                with detached():
                    tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
                await asyncio.gather(*tasks)
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "second"])


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
def test_kept_exception_and_cycle(runner: asyncio.Runner, server: Server) -> None:
    """Who keeps a generator, by an exception or in a cycle, keeps nobody from going on."""
    errors: list[Exception] = []

    async def keeps_the_exception() -> None:
        generator = rows()
        try:
            async for _ in generator:
                raise Failed
        except Failed as error:
            errors.append(error)

    async def in_a_cycle() -> Any:
        cycle: list[Any] = [rows()]
        cycle.append(cycle)
        async for number in cycle[0]:
            return number

    async def main() -> None:
        await begin()
        await asyncio.create_task(keeps_the_exception())
        await Author.objects.acreate(name="one")
        await asyncio.create_task(in_a_cycle())
        await Author.objects.acreate(name="two")
        errors.clear()
        gc.collect()
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "one", "two"])


# Inside another block


@pytest.mark.parametrize("enter", WAYS, ids=lambda f: f.__name__)
def test_nested(enter: Enter, runner: asyncio.Runner, server: Server) -> None:
    """Inside another block it is an error of that one, at once, and nothing is committed."""

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RuntimeError, match=r"entered an atomic block and ended inside it"):
                async with transaction.atomic():
                    await write()
                    stack = AsyncExitStack()
                    await enter(stack)
                    await write()
            with suppress(RuntimeError):
                await stack.aclose()
        del stack
        await end()

    runner.run(main())
    assert committed(server) == KEPT


@pytest.mark.parametrize("enter", WAYS, ids=lambda f: f.__name__)
def test_nested_without_a_statement(enter: Enter, runner: asyncio.Runner, server: Server) -> None:
    """The block around one that nobody has left does not end as if it had been."""

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RuntimeError, match=r"entered an atomic block and ended inside it"):
                async with transaction.atomic():
                    stack = AsyncExitStack()
                    await enter(stack)
            with suppress(RuntimeError):
                await stack.aclose()
        del stack
        await end()

    runner.run(main())
    assert committed(server) == KEPT


@pytest.mark.parametrize("outer", [False, True], ids=["outermost", "nested"])
@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
def test_task_that_failed(outer: bool, runner: asyncio.Runner, server: Server) -> None:
    """A task that fails has told so: its block is rolled back, and others go on.

    Though its exception keeps the generator, and that the block.
    """

    async def work() -> None:
        async for _ in rows():
            raise Failed

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            if outer:
                async with transaction.atomic():
                    (error,) = await asyncio.gather(work(), return_exceptions=True)
                    await Author.objects.acreate(name="kept")
            else:
                (error,) = await asyncio.gather(work(), return_exceptions=True)
                await Author.objects.acreate(name="kept")
            assert isinstance(error, Failed)
        await settled()

    runner.run(main())
    assert committed(server) == ["kept"]


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
def test_other_requests(runner: asyncio.Runner, server: Server) -> None:
    """A request with such a block disturbs no other one, and none that comes after it."""
    stack = AsyncExitStack()
    entered, seen = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await by_a_task(stack)
        entered.set()
        await seen.wait()
        with pytest.raises(RuntimeError, match="ended inside it"):
            await write()
        with pytest.raises(RuntimeError, match="ended inside it"):
            await sync_to_async(Author.objects.create)(name=lost())

    async def second() -> None:
        await entered.wait()
        await write_kept("second")
        seen.set()

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(serve(first), serve(second))
            await serve(write_kept, "third")
        with suppress(RuntimeError):
            await stack.aclose()
        await end()

    runner.run(main())
    assert committed(server) == [*KEPT, "second", "second in a block", "third", "third in a block"]


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
def test_in_one_context(server: Server) -> None:
    """Tasks that share one Context, as fixtures and tests of pytest-asyncio may."""
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        runner.run(begin())
        context = copy_context()
        runner.run(stack.enter_async_context(transaction.atomic()), context=context)
        with pytest.raises(RuntimeError, match="ended inside it"):
            runner.run(write(), context=context)
        with pytest.raises(RuntimeError):
            runner.run(stack.aclose(), context=context)
        runner.run(end(), context=context)
    assert committed(server) == KEPT
