"""The bridge: synchronous code on the event loop's thread, waiting as a task does."""

import asyncio
import contextvars
import gc
import inspect
import os
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import pytest
import uvloop
from greenlet import GreenletExit, getcurrent, greenlet

from pgbackend import bridged
from pgbackend.bridge.current import BridgeError, is_bridged
from pgbackend.bridge.ends import begin_scope, in_scope, on_exit, on_scope_end
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.limits import PATIENCE
from tests.support.suspended import suspend

number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


class Argument:
    """Something a weak reference can be made to."""


# Results and exceptions


async def test_run_bridged_passes_arguments_and_returns_the_result() -> None:
    """Positional and keyword arguments reach the function, and its result comes back."""

    def function(a: int, *args: int, b: int = 0, **kwargs: int) -> tuple[Any, ...]:
        return a, args, b, kwargs, await_bridged(suspend("waited"))

    result = await run_bridged(function, 1, 2, b=3, function=4)
    assert result == (1, (2,), 3, {"function": 4}, "waited")


async def test_waiting_lets_other_tasks_run() -> None:
    """While bridged code waits, the loop runs other tasks."""
    event = asyncio.Event()
    waiting = asyncio.create_task(bridged(lambda: await_bridged(event.wait()))())
    await suspend()
    assert not waiting.done()
    event.set()
    assert await waiting is True


async def test_exception_of_the_function_is_unchanged() -> None:
    """What the function raises is the very object that the caller catches."""
    error = LookupError("x")

    def function() -> None:
        await_bridged(suspend())
        raise error

    with pytest.raises(LookupError) as caught:
        await run_bridged(function)
    assert caught.value is error
    assert caught.value.__context__ is None


async def test_exception_of_the_awaitable_is_unchanged() -> None:
    """What an awaitable raises is the very object caught around await_bridged."""
    error = LookupError("x")

    def function() -> None:
        with pytest.raises(LookupError) as caught:
            await_bridged(fail(error))
        assert caught.value is error

    await run_bridged(function)


async def test_base_exception_passes_through() -> None:
    """An exception that is no Exception crosses the bridge in both directions."""

    class Stop(BaseException):
        pass

    error = Stop()
    with pytest.raises(Stop) as caught:
        await run_bridged(lambda: await_bridged(fail(error)))
    assert caught.value is error


async def test_traceback_shows_both_sides() -> None:
    """A traceback leads from the caller through the bridged function into the awaitable."""

    def inner() -> None:
        await_bridged(fail(ValueError()))

    async def outer() -> None:
        await run_bridged(inner)

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the traceback matters
        await outer()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    order = [names.index(name) for name in ("outer", "inner", "fail")]
    assert order == sorted(order)


async def test_exceptions_chain_across_a_wait() -> None:
    """An exception from an awaitable has the one being handled in the function as context."""
    first = ValueError("first")

    def function() -> None:
        try:
            raise first
        except ValueError:
            await_bridged(fail(KeyError("second")))

    with pytest.raises(KeyError) as caught:
        await run_bridged(function)
    assert caught.value.__context__ is first


async def test_handled_exception_stays_with_its_function() -> None:
    """Waiting inside an except block shows no other task the exception being handled."""
    event = asyncio.Event()

    def function() -> Any:
        try:
            raise ValueError
        except ValueError as error:
            await_bridged(event.wait())
            return sys.exc_info()[1] is error

    task = asyncio.create_task(run_bridged(function))
    await suspend(times=2)
    assert sys.exc_info()[1] is None
    event.set()
    assert await task


# Nesting


async def test_nested_call_is_a_plain_call() -> None:
    """run_bridged in bridged code calls the function in the greenlet that is there."""

    async def inner(outside: object) -> bool:
        return await run_bridged(lambda: getcurrent() is outside)

    assert await run_bridged(lambda: await_bridged(inner(getcurrent())))


async def test_recursion_through_coroutines() -> None:
    """Bridged code may await coroutines that run bridged code, as deep as the stack allows."""

    def down(depth: int) -> int:
        if depth == 0:
            return await_bridged(suspend(0))
        return 1 + await_bridged(level(depth - 1))

    async def level(depth: int) -> int:
        await asyncio.sleep(0)
        return await run_bridged(down, depth)

    assert await level(50) == 50


async def test_many_calls_at_once() -> None:
    """A thousand bridged calls interleave and each gets its own results."""

    def function(n: int) -> int:
        return sum(await_bridged(suspend(n, times=n % 3)) for _ in range(10))

    results = await asyncio.gather(*(run_bridged(function, n) for n in range(1000)))
    assert results == [10 * n for n in range(1000)]


# What can be awaited


class Custom:
    """An awaitable whose iterator is a generator."""

    def __await__(self) -> Generator[Any, None, str]:
        yield from suspend().__await__()
        return "custom"


class Bare:
    """An awaitable whose iterator knows nothing but ``__next__``."""

    def __await__(self) -> Iterator[None]:
        return iter([None, None])


async def _future() -> Any:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "future")
    return future


async def _task() -> Any:
    return asyncio.create_task(suspend("task"))


async def _asend() -> Any:
    async def numbers() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        yield "asend"

    return numbers().__anext__()


async def _gather() -> Any:
    return asyncio.gather(suspend(1), suspend(2))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_future, "future"),
        (_task, "task"),
        (_asend, "asend"),
        (_gather, [1, 2]),
    ],
)
async def test_awaitables_of_asyncio(make: Callable[[], Any], expected: Any) -> None:
    """Futures, tasks, gather and async generators can be awaited as coroutines can."""
    awaitable = await make()
    assert await run_bridged(lambda: await_bridged(awaitable)) == expected


@pytest.mark.parametrize(("awaitable", "expected"), [(Custom(), "custom"), (Bare(), None)])
async def test_custom_awaitables(awaitable: Any, expected: Any) -> None:
    """Any object with ``__await__`` can be awaited, whatever kind of iterator it returns."""
    assert await run_bridged(lambda: await_bridged(awaitable)) == expected


async def test_not_awaitable_is_a_type_error() -> None:
    """Awaiting something else is the TypeError that ``await`` raises."""
    with pytest.raises(TypeError, match="await"):
        await run_bridged(lambda: await_bridged(1))  # type: ignore[arg-type]  # the misuse


async def test_awaitable_that_never_suspends_costs_no_switch() -> None:
    """The loop gets no iteration in between awaitables that do not wait."""

    async def immediate() -> int:
        return 1

    def function() -> int:
        return sum(await_bridged(immediate()) for _ in range(100))

    iterations: list[int] = []
    asyncio.get_running_loop().call_soon(iterations.append, 1)
    assert await run_bridged(function) == 100
    assert not iterations
    await suspend()
    assert iterations


# Context variables


async def test_context_variables_are_the_tasks_own() -> None:
    """Caller, function and awaitables see each other's changes to context variables."""
    seen = []

    async def inner() -> None:
        await asyncio.sleep(0)
        seen.append(number.get())
        number.set(3)

    def function() -> None:
        seen.append(number.get())
        number.set(2)
        await_bridged(inner())
        seen.append(number.get())
        number.set(4)

    number.set(1)
    await run_bridged(function)
    assert [*seen, number.get()] == [1, 2, 3, 4]


async def test_context_variables_are_separate_between_tasks() -> None:
    """Tasks that run bridged at the same time do not see each other's context variables."""

    def function(n: int) -> None:
        number.set(n)
        for _ in range(5):
            await_bridged(suspend())
            assert number.get() == n

    await asyncio.gather(*(run_bridged(function, n) for n in range(20)))
    assert number.get() == 0


async def test_token_is_reset_on_the_other_side() -> None:
    """A token made before a wait can be used after it, and by the caller."""

    def function() -> contextvars.Token[int]:
        token = number.set(1)
        await_bridged(suspend())
        number.reset(token)
        return number.set(2)

    token = await run_bridged(function)
    number.reset(token)
    assert number.get() == 0


# Cancellation and timeouts


async def test_cancellation_is_raised_inside_the_function() -> None:
    """A cancelled task sees CancelledError at its await_bridged, and may clean up by awaiting."""
    steps: list[str] = []
    started = asyncio.Event()

    def function() -> None:
        try:
            started.set()
            await_bridged(asyncio.Event().wait())
        except asyncio.CancelledError:
            steps.append("caught")
            steps.append(await_bridged(suspend("cleaned", times=3)))
            raise

    task = asyncio.create_task(run_bridged(function))
    await started.wait()
    await suspend()
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task
    assert steps == ["caught", "cleaned"]
    assert task.cancelled()


async def test_cancellation_may_be_caught() -> None:
    """A function that swallows the cancellation returns its result."""

    def function() -> str:
        try:
            await_bridged(asyncio.Event().wait())
        except asyncio.CancelledError:
            return "went on"
        raise AssertionError

    task = asyncio.create_task(run_bridged(function))
    await suspend(times=2)
    task.cancel()
    assert await task == "went on"


async def test_cancellation_reaches_the_awaitable_first() -> None:
    """The innermost awaitable is cancelled; what it raises instead is what the function sees."""

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "finished all the same"
        raise AssertionError

    task = asyncio.create_task(run_bridged(lambda: await_bridged(stubborn())))
    await suspend(times=2)
    task.cancel()
    assert await task == "finished all the same"


async def test_timeout_around_a_bridged_call() -> None:
    """``asyncio.timeout`` around a bridged call ends its wait and the task goes on."""
    cleaned = []

    def function() -> None:
        try:
            await_bridged(asyncio.Event().wait())
        finally:
            cleaned.append(await_bridged(suspend(True)))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run_bridged(function)
    assert cleaned == [True]
    assert await run_bridged(lambda: await_bridged(suspend("on"))) == "on"


async def test_timeout_inside_a_bridged_call() -> None:
    """``asyncio.timeout`` inside raises TimeoutError in the function, which goes on."""

    async def bounded() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    def function() -> str:
        with pytest.raises(TimeoutError):
            await_bridged(bounded())
        return await_bridged(suspend("on"))

    assert await run_bridged(function) == "on"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# Misuse


async def test_await_bridged_outside_on_a_loop() -> None:
    """Outside the bridge BridgeError names the fix, and the coroutine is closed."""
    coroutine = suspend()
    with pytest.raises(BridgeError, match=r"outside the bridge.*pgbackend\.bridged\(function\)"):
        await_bridged(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_await_bridged_outside_without_a_loop() -> None:
    """Without a running loop it is the same BridgeError."""
    coroutine = suspend()
    with pytest.raises(BridgeError, match="outside the bridge"):
        await_bridged(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_await_bridged_outside_refuses_other_awaitables() -> None:
    """A future given outside the bridge is refused and left as it is."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(BridgeError):
        await_bridged(future)
    assert not future.done()


async def test_await_bridged_in_another_thread() -> None:
    """A thread started by bridged code is not bridged."""
    outcome: list[Any] = []

    def in_thread() -> None:
        outcome.append(is_bridged())
        try:
            await_bridged(suspend())
        except BridgeError as error:
            outcome.append(type(error))

    def function() -> None:
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()

    await run_bridged(function)
    assert outcome == [False, BridgeError]


def test_bridge_error_is_a_runtime_error() -> None:
    """Who knows nothing of the bridge can catch its misuse as RuntimeError."""
    assert issubclass(BridgeError, RuntimeError)


# is_bridged


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
class TestEagerTasks:
    """A task that starts at once starts inside the greenlet of the task that creates it."""

    async def test_eager_task_is_not_bridged(self) -> None:
        """An eager task is outside the bridge it starts in: awaiting and on_exit are refused."""
        outcome: list[Any] = []

        async def other() -> None:
            outcome.append(is_bridged())
            coroutine = suspend()
            for misuse in (lambda: await_bridged(coroutine), lambda: on_exit(print)):
                try:
                    misuse()
                except BridgeError:
                    outcome.append(BridgeError)

        def function() -> None:
            task = asyncio.get_running_loop().create_task(other())
            assert outcome, "the task is not eager"
            await_bridged(task)
            assert is_bridged()

        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await run_bridged(function)
        assert outcome == [False, BridgeError, BridgeError]

    async def test_bridges_of_eager_tasks_do_not_mix(self) -> None:
        """Bridged calls of eager tasks started in bridged code each return to their own task."""

        def inner(n: int) -> int:
            total = 0
            for _ in range(n):
                total += await_bridged(suspend(1))
                assert is_bridged()
            return total

        def function(first: int) -> list[int]:
            tasks = [
                asyncio.get_running_loop().create_task(run_bridged(inner, n))
                for n in range(first, first + 5)
            ]
            await_bridged(suspend())
            return [await_bridged(task) for task in tasks]

        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        results = await asyncio.gather(*(run_bridged(function, n) for n in range(5)))
        assert results == [list(range(n, n + 5)) for n in range(5)]

    async def test_eager_task_outlives_the_call_that_started_it(self) -> None:
        """A bridged call of an eager task goes on after the call it started in has ended."""
        event = asyncio.Event()

        def inner() -> str:
            await_bridged(event.wait())
            return await_bridged(suspend("done"))

        def function() -> "asyncio.Task[str]":
            return asyncio.get_running_loop().create_task(run_bridged(inner))

        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        task = await run_bridged(function)
        event.set()
        assert await task == "done"


def test_loops_in_two_threads() -> None:
    """Loops in several threads bridge at the same time without seeing each other."""
    results: list[int] = []
    barrier = threading.Barrier(2)

    def function(n: int) -> int:
        return sum(await_bridged(suspend(n)) for _ in range(100))

    async def main() -> None:
        barrier.wait(PATIENCE)
        results.extend(await asyncio.gather(*(run_bridged(function, n) for n in range(20))))

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted(100 * n for n in range(20) for _ in range(2))


# Calls that are never finished


async def test_function_that_raises_greenlet_exit() -> None:
    """GreenletExit is raised, as any other exception; greenlet itself would return it."""

    def leave() -> None:
        raise GreenletExit

    for _ in range(3):
        with pytest.raises(GreenletExit):
            await run_bridged(leave)
    assert await run_bridged(is_bridged)


async def test_closed_coroutine_unwinds_the_function() -> None:
    """Closing a bridged call in mid-wait unwinds the function, without waiting any more."""
    steps: list[Any] = []

    def function() -> None:
        try:
            await_bridged(asyncio.Event().wait())
        finally:
            steps.append("unwound")
            try:
                await_bridged(suspend())
            except BridgeError as error:
                steps.append(str(error))

    coroutine = run_bridged(function)
    coroutine.send(None)
    coroutine.close()
    assert steps[0] == "unwound"
    assert "closed while it waited" in steps[1]
    gc.collect()


async def test_closed_coroutine_gives_up_a_clean_up_that_waits() -> None:
    """A clean-up that would have to wait fails by BridgeError inside, and close() still works."""
    entered = []

    def function() -> None:
        try:
            await_bridged(asyncio.Event().wait())
        finally:
            entered.append(True)
            await_bridged(suspend())

    coroutine = run_bridged(function)
    coroutine.send(None)
    with pytest.raises(BridgeError, match="closed while it waited"):
        coroutine.close()
    assert entered == [True]
    gc.collect()


async def test_collected_coroutine_unwinds_the_function() -> None:
    """A bridged call that nobody refers to any more is unwound when it is collected."""
    steps: list[str] = []

    def function(argument: Argument) -> None:
        try:
            await_bridged(asyncio.Event().wait())
        finally:
            steps.append("unwound")

    argument = Argument()
    freed = weakref.ref(argument)
    coroutine = run_bridged(function, argument)
    coroutine.send(None)
    del coroutine, argument
    gc.collect()
    assert steps == ["unwound"]
    assert freed() is None


def test_collected_after_its_loop() -> None:
    """A call collected when its loop is gone is refused further waiting by BridgeError too."""
    steps: list[Any] = []

    def function() -> None:
        try:
            await_bridged(asyncio.Event().wait())
        finally:
            steps.append(is_bridged())
            coroutine = suspend()
            try:
                await_bridged(coroutine)
            except BridgeError:
                steps.append(inspect.getcoroutinestate(coroutine))

    async def main() -> Any:
        coroutine = run_bridged(function)
        coroutine.send(None)
        return coroutine

    coroutine = asyncio.run(main())
    coroutine.close()
    assert steps == [False, inspect.CORO_CLOSED]
    gc.collect()


async def test_nothing_is_kept_after_a_call() -> None:
    """Arguments and results of ended calls are freed without the collector.

    Also those of the first call of a greenlet, of which there are many here.
    """

    def function(argument: Argument) -> Argument:
        await_bridged(suspend())
        return Argument()

    async def call() -> list[weakref.ref[Any]]:
        argument = Argument()
        return [weakref.ref(argument), weakref.ref(await run_bridged(function, argument))]

    gc.disable()
    try:
        calls = await asyncio.gather(*(call() for _ in range(50)))
        await asyncio.sleep(0)
        assert {each() for freed in calls for each in freed} == {None}
    finally:
        gc.enable()


async def test_driven_by_another_greenlet() -> None:
    """A call that a greenlet of another library drives keeps nothing of that."""

    def function() -> None:
        await_bridged(suspend())

    def drive() -> None:
        coroutine = run_bridged(function)
        try:
            while True:
                coroutine.send(None)
        except StopIteration:
            pass

    other = greenlet(drive)
    freed = weakref.ref(other)
    other.switch()
    assert other.dead
    del other
    gc.collect()
    assert freed() is None


async def test_nothing_is_kept_after_an_exception() -> None:
    """Arguments are freed after an exception too, with the exception."""

    def function(argument: Argument) -> None:
        await_bridged(suspend())
        raise ValueError

    argument = Argument()
    freed = weakref.ref(argument)
    try:
        await run_bridged(function, argument)
    except ValueError:
        del argument
    gc.collect()
    assert freed() is None


async def test_context_of_an_exception() -> None:
    """What was being handled inside when an exception was raised stays its context."""

    def function() -> None:
        try:
            raise KeyError
        except KeyError:
            await_bridged(suspend())
            raise ValueError("inside")  # noqa: B904  # that is what is looked at

    try:
        raise OSError
    except OSError:
        with pytest.raises(ValueError, match="inside") as caught:
            await run_bridged(function)
    assert isinstance(caught.value.__context__, KeyError)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_context_of_an_exception"
    assert names[-1] == "function"


async def test_one_call_after_the_other() -> None:
    """A greenlet takes the next call when one has ended, and none of what belonged to that."""
    ended: list[int] = []
    kept: list[Callable[[], None]] = []

    def function(number: int) -> Any:
        assert not in_scope()
        on_scope_end(lambda: ended.append(number))
        begin_scope(kept.append)
        await_bridged(suspend())
        return weakref.ref(getcurrent())

    first, second = [await run_bridged(function, number) for number in (1, 2)]
    assert first() is second() is not None
    assert ended == [1, 2]
    assert kept == []


class Greenlets:
    """A function to be run bridged, and the greenlets that ran it."""

    def __init__(self) -> None:
        self.found: list[weakref.ref[Any]] = []

    def __call__(self) -> None:
        self.found.append(weakref.ref(getcurrent()))
        await_bridged(suspend())

    async def run(self, times: int = 2) -> None:
        for _ in range(times):
            await run_bridged(self)


def test_greenlets_on_uvloop() -> None:
    """On uvloop a greenlet takes the next call, one of another loop's does not."""
    greenlets = Greenlets()
    asyncio.run(greenlets.run())
    assert greenlets.found[0]() is greenlets.found[1]() is not None
    for _ in range(2):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            on_uvloop = Greenlets()
            runner.run(on_uvloop.run())
            runner.run(on_uvloop.run())
            assert len({id(each()) for each in on_uvloop.found}) == 1
            assert on_uvloop.found[0]() not in (None, greenlets.found[0]())
            greenlets.found.append(on_uvloop.found[0])
    asyncio.run(greenlets.run())
    assert greenlets.found[0]() is greenlets.found[-1]() is not None


def in_libuv(work: Callable[[], None]) -> Any:
    """Call *work* on uvloop inside a callback from libuv.

    Return a greenlet that waits for a call meanwhile.
    """
    before = Greenlets()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await before.run(1)
        reading, writing = os.pipe()
        done = loop.create_future()

        def readable() -> None:
            loop.remove_reader(reading)
            try:
                work()
            finally:
                done.set_result(None)

        loop.add_reader(reading, readable)
        os.write(writing, b"x")
        await done
        os.close(reading)
        os.close(writing)
        # What was started goes on in steps of tasks.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    found = before.found[0]()
    assert found is not None
    return found


def test_greenlets_inside_a_callback_from_libuv() -> None:
    """A coroutine that starts inside a callback from libuv has a new greenlet for its calls."""
    greenlets = Greenlets()
    used: list[Any] = []

    def work() -> None:
        coroutine = greenlets.run(1)
        coroutine.send(None)
        used.append(greenlets.found[0]())
        coroutine.close()

    idle = in_libuv(work)
    assert used
    assert idle not in used


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_greenlets_of_an_eager_task_inside_a_callback_from_libuv() -> None:
    """A task that starts inside a callback from libuv has a new greenlet for its first call.

    In its later steps it takes any.
    """
    greenlets = Greenlets()
    used: list[Any] = []

    def work() -> None:
        loop = asyncio.get_running_loop()
        asyncio.Task(greenlets.run(3), loop=loop, eager_start=True)
        used.append(greenlets.found[0]())

    idle = in_libuv(work)
    assert used
    assert idle not in used
    assert greenlets.found[1]() is greenlets.found[2]() is not None


def test_eager_tasks_are_known() -> None:
    """This Python has asyncio's private set of the tasks that are just starting."""
    assert hasattr(asyncio.tasks, "_eager_tasks") == (sys.version_info >= (3, 12))


async def test_greenlets_of_many_calls() -> None:
    """However many calls there were at once, a bounded number of greenlets stays.

    Also while somebody keeps what they raised, with its traceback.
    """
    greenlets: list[weakref.ref[Any]] = []

    def function() -> None:
        greenlets.append(weakref.ref(getcurrent()))
        await_bridged(fail(ValueError()))

    calls = [run_bridged(function) for _ in range(300)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    gc.collect()
    assert len(errors) == len(greenlets) == 300
    assert len({id(each()) for each in greenlets if each() is not None}) <= 100


def test_greenlets_of_a_thread() -> None:
    """A thread's greenlets end with it."""
    greenlets: list[weakref.ref[Any]] = []

    def function() -> None:
        await_bridged(suspend())
        greenlets.append(weakref.ref(getcurrent()))

    thread = threading.Thread(target=lambda: asyncio.run(run_bridged(function)))
    thread.start()
    thread.join()
    gc.collect()
    assert [each() for each in greenlets] == [None]


async def test_nothing_is_kept_after_an_abandoned_call() -> None:
    """Greenlet and arguments of a call that was closed in mid-wait are freed."""
    greenlets: list[weakref.ref[Any]] = []

    def function(argument: Argument) -> None:
        greenlets.append(weakref.ref(getcurrent()))
        await_bridged(asyncio.Event().wait())

    argument = Argument()
    freed = weakref.ref(argument)
    coroutine = run_bridged(function, argument)
    coroutine.send(None)
    coroutine.close()
    del argument, coroutine
    gc.collect()
    assert [each() for each in (*greenlets, freed)] == [None, None]


# on_exit


# bridged


async def test_bridged_as_decorator_and_as_call() -> None:
    """bridged() makes a coroutine function that keeps name, docstring and signature."""

    @bridged
    def double(n: int) -> int:
        """Return twice *n*."""
        return 2 * await_bridged(suspend(n))

    assert inspect.iscoroutinefunction(double)
    assert (double.__name__, double.__doc__) == ("double", "Return twice *n*.")
    assert list(inspect.signature(double).parameters) == ["n"]
    assert await double(n=2) == 4
    assert await bridged(len)([1, 2]) == 2


async def test_bridged_as_method() -> None:
    """bridged() decorates methods: self is bound."""

    class Counter:
        def __init__(self) -> None:
            self.value = 0

        @bridged
        def add(self, n: int) -> int:
            self.value += await_bridged(suspend(n))
            return self.value

    assert await Counter().add(3) == 3


async def test_bridged_coroutine_function() -> None:
    """bridged() of a coroutine function runs the whole coroutine in one bridge."""

    @bridged
    async def work(n: int) -> int:
        assert is_bridged()
        return await_bridged(suspend(n)) + await suspend(n)

    assert inspect.iscoroutinefunction(work)
    assert await asyncio.gather(work(1), work(2)) == [2, 4]


async def test_bridged_refuses_asynchronous_generators() -> None:
    """An async generator function is a TypeError that names the fix."""

    async def generator() -> AsyncIterator[None]:
        yield

    with pytest.raises(TypeError, match=r"generator.* decorate the function that iterates"):
        bridged(generator)
