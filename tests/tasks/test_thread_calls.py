"""Threads inside a transaction: none is taken by a call that waits for its turn."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from tests.models import Author
from tests.support.fix_loops import Main
from tests.support.limits import PATIENCE
from tests.support.moves import (
    MOVES,
    Function,
    Move,
    create,
    create_in_block,
    in_context,
    sensitive,
)
from tests.support.server import Server
from tests.support.sessions import committed, until
from tests.support.turns import settle


async def acreate(name: str) -> None:
    await Author.objects.acreate(name=name)


def by_coroutine(name: str) -> None:
    async_to_sync(acreate)(name)


def by_nested_thread(name: str) -> None:
    async_to_sync(sensitive)(create, name)


def by_two_nested_threads(name: str) -> None:
    async_to_sync(sensitive)(by_nested_thread, name)


class Turn:
    """What runs inside a block on top of the transaction while others wait for their turn."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = asyncio.Event()

    async def hold(self, need: Callable[[], Awaitable[Any]]) -> None:
        await self.go.wait()
        async with transaction.atomic():
            await Author.objects.acreate(name="holder")
            self.entered.set()
            await settle()
            async with asyncio.timeout(PATIENCE):
                await need()

    def late(self, function: Function, name: str) -> None:
        """Begin before the holder's block, and call *function* when that is entered."""
        assert self.entered.wait(PATIENCE)
        function(name)

    async def early(self, move: Move, function: Function, name: str) -> None:
        """Begin when the holder's block is entered."""
        await until(self.entered.is_set)
        await move(function, name)


USES = [create, create_in_block, by_coroutine, by_nested_thread, by_two_nested_threads]


@MOVES
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("begun", ["before the block", "after it"])
def test_the_holder_needs_a_thread_like_those_that_wait(
    run_main: Main, server: Server, move: Move, use: Function, begun: str
) -> None:
    """Inside its block the holder has the threads it needs, however many wait for their turn."""

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        turn = Turn()

        async def need() -> None:
            await move(create, "needed")
            await move(by_coroutine, "needed too")
            # What resolves a host name, for one.
            await asyncio.get_running_loop().run_in_executor(None, settle_in_thread)

        async with transaction.atomic():
            holder = asyncio.create_task(turn.hold(need))
            others = [
                asyncio.create_task(
                    move(turn.late, use, f"other {n}")
                    if begun == "before the block" and (n == 0 or move is not sensitive)
                    else turn.early(move, use, f"other {n}")
                )
                for n in range(3)
            ]
            turn.go.set()
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(holder, *others)

    run_main(main())
    assert committed(server) == sorted(
        ["holder", "needed", "needed too", *(f"other {n}" for n in range(3))]
    )


def settle_in_thread() -> None:
    assert threading.current_thread() is not threading.main_thread()


@MOVES
def test_blocks_and_threads_of_a_threads_coroutines(
    run_main: Main, server: Server, move: Move
) -> None:
    """So it is for the coroutines, and the thread, of a thread that waits in async_to_sync."""

    async def order(entered: asyncio.Event) -> None:
        async with transaction.atomic():
            entered.set()
            await asyncio.sleep(0.05)
            await sync_to_async(create)("order")

    async def audit(entered: asyncio.Event, name: str) -> None:
        await entered.wait()
        await sync_to_async(create)(name)

    async def both() -> None:
        entered = asyncio.Event()
        await asyncio.gather(order(entered), audit(entered, "one"), audit(entered, "two"))

    async def main() -> None:
        async with transaction.atomic(), asyncio.timeout(PATIENCE):
            await move(async_to_sync(both))

    run_main(main())
    assert committed(server) == ["one", "order", "two"]


@MOVES
def test_a_function_that_needs_no_turn_is_not_kept_waiting(run_main: Main, move: Move) -> None:
    """A block may await a thread that was started before it, if that uses no database."""

    async def main() -> None:
        async with transaction.atomic():
            task = asyncio.create_task(move(str, 1))
            async with transaction.atomic():
                async with asyncio.timeout(PATIENCE):
                    assert await task == "1"

    run_main(main())


# A call that left its thread and came back


variable: ContextVar[str] = ContextVar("variable", default="")


def while_another_holds(
    run_main: Main, function: Function, move: Move = sensitive, **arguments: Any
) -> Any:
    """Run *function* in a thread, its first statement while another's block is on top."""

    async def main() -> Any:
        turn = Turn()

        def late() -> Any:
            assert turn.entered.wait(PATIENCE)
            return function()

        async def need() -> None:
            await move(create, "needed")

        async with transaction.atomic(**arguments):
            holder = asyncio.create_task(turn.hold(need))
            work = asyncio.create_task(awaited(move(late)))
            turn.go.set()
            await asyncio.wait([holder])
            try:
                async with asyncio.timeout(PATIENCE):
                    return await work
            finally:
                await holder

    async def awaited(awaitable: Awaitable[Any]) -> Any:
        result = await awaitable
        return result, variable.get()

    return run_main(main())


@pytest.mark.parametrize("move", [sensitive, in_context])
def test_the_thread_and_its_context_stay_the_same(run_main: Main, move: Move) -> None:
    """Before and after the wait: the thread, its context, what it sets there, and async_to_sync."""
    other: list[int] = []

    async def loop_of() -> int:
        return id(asyncio.get_running_loop())

    def work() -> tuple[bool, bool, str]:
        variable.set("before")
        thread, loop = threading.get_ident(), async_to_sync(loop_of)()
        create("waiter")
        other.append(thread)
        seen = variable.get()
        variable.set("after")
        return threading.get_ident() == thread, async_to_sync(loop_of)() == loop, seen

    result, value = while_another_holds(run_main, work, move)
    assert result == (True, True, "before")
    assert value == "after"


def test_an_error_after_the_wait(run_main: Main) -> None:
    """What the function raises after it came back is raised by the call."""

    def work() -> None:
        create("waiter")
        raise KeyError("after the wait")

    with pytest.raises(KeyError, match="after the wait"):
        while_another_holds(run_main, work)


def test_the_error_being_handled(run_main: Main, server: Server) -> None:
    """The function sees the exception that its caller handles, as asgiref has it."""

    def handled() -> str:
        create("waiter")
        return repr(sys.exc_info()[1])

    async def main() -> None:
        async with transaction.atomic():
            try:
                raise KeyError("handled")
            except KeyError:
                assert await sync_to_async(handled)() == "KeyError('handled')"

    run_main(main())


def test_many_that_left_one_thread(run_main: Main, server: Server) -> None:
    """Calls that left one thread come back to it one by one, and each ends."""

    async def main() -> None:
        async with transaction.atomic():
            blocks = (sensitive(create_in_block, f"block {n}") for n in range(10))
            rows = (sensitive(create, f"row {n}") for n in range(10))
            nested = (sensitive(by_nested_thread, f"nested {n}") for n in range(10))
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*blocks, *rows, *nested)

    run_main(main())
    assert len(committed(server)) == 30


@MOVES
def test_cancelled_while_it_waits(run_main: Main, server: Server, move: Move) -> None:
    """A call whose task is cancelled meanwhile goes on by itself, as any thread does."""
    outcome: list[str] = []
    begun = threading.Event()

    def work(name: str) -> None:
        begun.set()
        create(name)
        outcome.append(name)

    async def main() -> None:
        turn = Turn()

        async def need() -> None:
            await until(begun.is_set)
            await asyncio.sleep(0.05)
            task.cancel()
            await settle()
            await move(create, "needed")

        async with transaction.atomic():
            holder = asyncio.create_task(turn.hold(need))
            task = asyncio.create_task(turn.early(move, work, "waiter"))
            turn.go.set()
            await holder
            await until(lambda: bool(outcome))
            await asyncio.wait([task])
            assert task.cancelled()

    run_main(main())
    assert committed(server) == ["holder", "needed", "waiter"]


@MOVES
def test_the_owner_fails_while_it_waits(run_main: Main, server: Server, move: Move) -> None:
    """A call that waits when the owner fails is refused, and goes on with that error."""
    outcome: list[str] = []

    def work(name: str) -> None:
        try:
            create(name)
        except RuntimeError as error:
            outcome.append(str(error))
            raise

    async def own() -> None:
        turn = Turn()

        async def need() -> None:
            await asyncio.Event().wait()

        async with transaction.atomic():
            asyncio.create_task(turn.hold(need))  # noqa: RUF006  # ends with its block
            turn.go.set()
            tasks.append(asyncio.create_task(turn.early(move, work, "waiter")))
            await until(turn.entered.is_set)
            await asyncio.sleep(0.1)
            raise KeyError

    async def main() -> None:
        with pytest.raises(KeyError):
            await asyncio.create_task(own())
        with pytest.raises(RuntimeError, match="has ended"):
            await tasks[0]

    tasks: list[asyncio.Task[None]] = []
    run_main(main())
    assert len(outcome) == 1
    assert committed(server) == []


@MOVES
def test_one_call_after_the_other(run_main: Main, move: Move) -> None:
    """A task may move one function after the other, whether or not one of them left its thread."""

    async def main() -> None:
        async with transaction.atomic():
            for number in range(3):
                task = asyncio.create_task(several(str(number)))
                async with transaction.atomic():
                    # The child waits for this block, which began after it.
                    await Author.objects.acreate(name=f"the owner's {number}")
                    await settle()
                await task

    async def several(name: str) -> None:
        for number in range(3):
            await move(create, f"{name} {number}")
            await move(by_coroutine, f"{name} {number}, by a coroutine")

    run_main(main())
    assert Author.objects.count() == 21
