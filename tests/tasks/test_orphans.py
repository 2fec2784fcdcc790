"""Blocks that a task enters and another one goes on in: refused, not executed without them."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    ExitStack,
    contextmanager,
    suppress,
)
from contextvars import copy_context
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import transaction

from pgbackend import bridged
from pgbackend.requests.serving import serve
from pgbackend.tasks.orphans import orphans
from pgbackend.transaction import aon_commit
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.orphans import (
    KEPT,
    Failed,
    begin,
    block,
    end,
    lost,
    rows,
    write,
    write_by_cursor,
    write_kept,
)
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.work import settled

Enter = Callable[[AsyncExitStack], Awaitable[None]]
Use = Callable[[], Awaitable[Any]]


@contextmanager
def bridged_block() -> Iterator[None]:
    with transaction.atomic():
        yield


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


async def write_in_a_block() -> None:
    async with transaction.atomic():
        await write()


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


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
def test_forgotten_with_its_loop() -> None:
    """What could leave the block is kept, and the loop is gone: nothing is refused any more."""

    async def enter() -> AsyncExitStack:
        stack = AsyncExitStack()
        await by_a_task(stack)
        with pytest.raises(RuntimeError, match="ended inside"):
            await write()
        return stack

    kept = asyncio.run(enter())
    gc.collect()
    assert orphans == []
    kept.pop_all()
