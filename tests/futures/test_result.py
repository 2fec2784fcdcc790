"""Futures: they are awaited anywhere, and waiting for one is not the work itself."""

import asyncio
import concurrent.futures
import contextvars
import logging
import subprocess
import sys
import threading
import time

import pytest

from pgbackend import BridgeError, bridged
from pgbackend.futures import Future, NotAwaitedError
from tests.support.fix_loops import Main
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.threads import start_thread

WHERE: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Failed(Exception):
    pass


def test_awaited(run_main: Main) -> None:
    """Several tasks get the result, and it can be awaited again after the end."""

    async def main() -> list[int]:
        future = Future[int].pending()
        tasks = [asyncio.ensure_future(future) for _ in range(3)]
        await asyncio.sleep(0)
        assert future.set_result(7)
        return [*await asyncio.gather(*tasks), await future, future.result()]

    assert run_main(main()) == [7] * 5


def test_result_from_a_thread(run_main: Main) -> None:
    """A thread may end what a task awaits, bridged or not."""

    async def main() -> tuple[int, int]:
        first, second = Future[int].pending(), Future[int].pending()
        threads = [
            start_thread(lambda: first.set_result(1)),
            start_thread(lambda: second.set_result(2)),
        ]
        async with asyncio.timeout(PATIENCE):
            found = await first, await bridged(second.result)()
        for thread in threads:
            thread.join()
        return found

    assert run_main(main()) == (1, 2)


def test_awaited_on_another_loop() -> None:
    """A future of one loop is awaited on the loop of another thread."""
    future = Future[str].pending()
    found: list[str] = []

    async def wait() -> str:
        return await future

    thread = start_thread(lambda: found.append(asyncio.run(wait())))

    async def end() -> None:
        future.set_result("done")

    asyncio.run(end())
    thread.join()
    assert found == ["done"]


def test_exception() -> None:
    """Each who waits gets the exception; `exception` returns it."""
    future = Future[int].pending()
    error = Failed("once")
    assert future.set_exception(error)
    for _ in range(3):
        with pytest.raises(Failed):
            future.result()
    assert future.exception() is error
    lines = []
    while error.__traceback__ is not None and len(lines) < 10:
        lines.append(error.__traceback__)
        error.__traceback__ = error.__traceback__.tb_next
    assert len(lines) <= 4, "a traceback that grows with each raise"


async def test_on_a_bare_loop() -> None:
    """On a running loop `result` names `await`, unless the work has ended."""
    future = Future[int].pending()
    with pytest.raises(NotAwaitedError, match="`await` the future"):
        future.result()
    assert issubclass(NotAwaitedError, BridgeError)
    future.set_result(1)
    assert future.result() == 1


def test_timeout_in_a_thread() -> None:
    """A time-out leaves the work running: the result can still come."""
    future = Future[int].pending()
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    assert not future.done()
    future.set_result(3)
    assert future.result(timeout=0.01) == 3


def test_timeout_in_the_bridge(run_main: Main) -> None:
    """Bridged code does not block the loop while it waits, and its time-out ends the wait alone."""

    async def main() -> int:
        future = Future[int].pending()

        def wait() -> int:
            with pytest.raises(TimeoutError):
                future.result(timeout=0.01)
            return future.result(timeout=PATIENCE)

        task = asyncio.create_task(bridged(wait)())
        await asyncio.sleep(0.05)
        assert not task.done()
        future.set_result(4)
        return await task

    assert run_main(main()) == 4


def test_cancelled_waiter(run_main: Main) -> None:
    """Cancelling one who waits does not cancel the work for the others."""

    async def main() -> int:
        future = Future[int].pending()
        first, second = asyncio.ensure_future(future), asyncio.ensure_future(future)
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not future.cancelled()
        future.set_result(5)
        return await second

    assert run_main(main()) == 5


def test_cancel(run_main: Main) -> None:
    """Cancelling the future ends the work, once, and all who wait get CancelledError."""

    async def main() -> None:
        told: list[str] = []
        future = Future[int].pending(on_cancel=lambda: told.append("cancel"))
        task = asyncio.ensure_future(future)
        await asyncio.sleep(0)
        assert future.cancel()
        assert not future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()
        assert future.done()
        assert told == ["cancel"]
        assert not future.set_result(1), "the answer came too late"
        with pytest.raises(asyncio.CancelledError):
            await bridged(future.result)()

    run_main(main())


def test_cancelled_in_a_thread() -> None:
    """In a thread the error is that of `concurrent.futures`."""
    future = Future[int].pending()
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()


def test_lazy() -> None:
    """Work begins when its result is wanted, once; cancelled before, it never begins."""
    started: list[str] = []

    def start(future: Future[int]) -> None:
        started.append("start")
        future.set_result(len(started))

    future = Future[int].pending(start=start)
    assert started == []
    assert not future.done()
    assert [future.result(), future.result()] == [1, 1]

    told: list[str] = []
    never = Future[int].pending(start=start, on_cancel=lambda: told.append("cancel"))
    never.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        never.result()
    assert started == ["start"]
    assert told == []


def test_callbacks_on_a_loop(run_main: Main) -> None:
    """A callback that was added on a loop is called there, later, in its context."""

    async def main() -> None:
        future = Future[int].pending()
        called: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

        def note(ended: Future[int]) -> None:
            called.put_nowait((ended, WHERE.get(), threading.get_ident()))

        token = WHERE.set("here")
        future.add_done_callback(note)
        WHERE.reset(token)
        start_thread(lambda: future.set_result(1)).join()
        async with asyncio.timeout(PATIENCE):
            assert await called.get() == (future, "here", threading.get_ident())
            own = contextvars.copy_context()
            own.run(WHERE.set, "own")
            future.add_done_callback(note, context=own)
            assert called.empty(), "called at once"
            assert await called.get() == (future, "own", threading.get_ident())

    run_main(main())


def test_callbacks_in_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Without a loop whoever ends the work calls the callback; its exception is logged."""
    future = Future[int].pending()
    called: list[Future[int]] = []

    def fail(ended: Future[int]) -> None:
        raise Failed

    future.add_done_callback(fail)
    future.add_done_callback(called.append)
    with caplog.at_level(logging.ERROR, "pgbackend.futures"):
        future.set_result(1)
    future.add_done_callback(called.append)
    assert called == [future, future]
    assert "a callback of" in caplog.text


def test_closed_loop() -> None:
    """Whoever waited on a loop that is closed by now is not told, and hurts nobody."""
    future = Future[int].pending()
    called: list[object] = []

    async def leave() -> None:
        future.add_done_callback(called.append)

    asyncio.run(leave())
    assert future.set_result(1)
    assert called == []
    assert future.result() == 1


def test_wait_leaves_nothing(run_main: Main) -> None:
    """Waits that ended early leave nothing on the future."""

    async def main() -> None:
        future = Future[int].pending()
        began = time.monotonic()
        for _ in range(3):
            assert not await future.wait(0.001)
        assert time.monotonic() - began < AT_ONCE
        future.set_result(1)
        assert await future.wait(0)

    run_main(main())


@pytest.mark.process
def test_without_django() -> None:
    """`Future` needs neither Django nor psycopg."""
    source = """
import sys
for name in ("django", "psycopg", "psycopg_pool", "asgiref"):
    sys.modules[name] = None
from pgbackend.futures import Future
future = Future.pending(start=lambda future: future.set_result("found"))
print(future.result())
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "found\n", "")
