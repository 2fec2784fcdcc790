"""The connection's lock: whoever stops waiting for it, however that ends, keeps nobody out."""

import asyncio
import gc
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from pgbackend.bridge.greenlets import await_bridged, run_bridged
from pgbackend.bridge.lock import BridgedLock
from tests.support.limits import PATIENCE

Factory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(
    params=[asyncio.SelectorEventLoop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
def factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """A function that makes an event loop: asyncio's own, or uvloop's. Nothing is unraisable."""
    unraisable: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, unraisable.append
    yield request.param
    gc.collect()
    sys.unraisablehook = before
    assert unraisable == []


class Work:
    """Bridged calls that share a lock, and the order in which they had it."""

    def __init__(self) -> None:
        self.lock = BridgedLock()
        self.release = asyncio.Event()
        self.order: list[str] = []

    def hold(self) -> None:
        with self.lock:
            await_bridged(self.release.wait())

    def take(self, name: str) -> None:
        with self.lock:
            self.order.append(name)

    async def held(self) -> asyncio.Task[None]:
        """Start a task that holds the lock until `release` is set."""
        task = asyncio.create_task(run_bridged(self.hold))
        await asyncio.sleep(0)
        return task


def begun(coroutine: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """Run a coroutine's first step, which ends where it waits, outside any task's steps."""
    waiting = coroutine.send(None)
    # What a task does with the future that it is given.
    waiting._asyncio_future_blocking = False
    return coroutine


def close(coroutine: Coroutine[Any, Any, None]) -> None:
    coroutine.close()


def collect(coroutine: Coroutine[Any, Any, None]) -> None:
    """Nothing: the caller's reference was the last but this function's."""


@pytest.mark.parametrize("end", [close, collect])
@pytest.mark.parametrize("closed", [1, 3])
def test_closed_while_it_waits(factory: Factory, closed: int, end: Callable[..., None]) -> None:
    """Of those who wait, the next who still does gets the lock, in the order of coming."""

    async def main() -> None:
        work = Work()
        holder = await work.held()
        waiting = [begun(run_bridged(work.take, "closed")) for _ in range(closed)]
        tasks = [asyncio.create_task(run_bridged(work.take, name)) for name in "ab"]
        await asyncio.sleep(0)
        while waiting:
            end(waiting.pop())
        gc.collect()
        work.release.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(holder, *tasks)
            await run_bridged(work.take, "c")
        assert work.order == ["a", "b", "c"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("end", [close, collect])
def test_closed_when_it_was_handed_over(factory: Factory, end: Callable[..., None]) -> None:
    """One that is closed after the lock was handed to it, and before it ran, passes it on."""

    async def main() -> None:
        work = Work()
        holder = await work.held()
        waiting = [begun(run_bridged(work.take, "closed"))]
        task = asyncio.create_task(run_bridged(work.take, "a"))
        await asyncio.sleep(0)
        work.release.set()
        async with asyncio.timeout(PATIENCE):
            await holder
            end(waiting.pop())
            gc.collect()
            await task
            await run_bridged(work.take, "b")
        assert work.order == ["a", "b"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_cancelled_when_it_was_handed_over(factory: Factory) -> None:
    """One that is cancelled at the moment of its turn passes the lock on."""

    async def main() -> None:
        work = Work()
        holder = await work.held()
        tasks = [asyncio.create_task(run_bridged(work.take, name)) for name in "abc"]
        await asyncio.sleep(0)
        holder.add_done_callback(lambda _: tasks[0].cancel())
        work.release.set()
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(holder, *tasks, return_exceptions=True)
            await run_bridged(work.take, "d")
        assert [type(each) for each in results[1:]] in (
            [asyncio.CancelledError, type(None), type(None)],
            [type(None)] * 3,
        )
        assert work.order == [*("abc"[isinstance(results[1], asyncio.CancelledError) :]), "d"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("waiter_first", [False, True])
def test_closed_after_its_loop(factory: Factory, waiter_first: bool) -> None:
    """Holder and waiter that are closed when their loop is closed already unwind without error."""

    async def main() -> list[asyncio.Task[None]]:
        work = Work()
        tasks = [await work.held(), asyncio.create_task(run_bridged(work.take, "a"))]
        await asyncio.sleep(0)
        return tasks

    loop = factory()
    tasks = loop.run_until_complete(main())
    loop.close()
    for task in reversed(tasks) if waiter_first else tasks:
        coroutine: Any = task.get_coro()
        coroutine.close()


def test_taken_in_a_thread(factory: Factory) -> None:
    """A thread without a loop cannot take the lock, and does not leave it held."""

    async def main() -> None:
        work = Work()

        def take() -> None:
            with work.lock:
                pass

        with pytest.raises(RuntimeError):
            await asyncio.to_thread(take)
        async with asyncio.timeout(PATIENCE):
            await run_bridged(work.take, "a")
        assert work.order == ["a"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
