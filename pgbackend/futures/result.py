"""The result of work that runs elsewhere, or has yet to run.

One class serves tasks, bridged code and plain threads, for local and for remote work. It is thread
safe. The module knows neither Django nor psycopg.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from typing import Any, TypeVar

from ..bridge.current import BridgeError, is_bridged
from ..bridge.greenlets import await_bridged
from .outcome import Outcome, call_on, logger

T = TypeVar("T")


class NotAwaitedError(BridgeError):
    """The result of a future was asked for on a running event loop before there was one."""


class Future(Outcome[T]):
    """A result that is there now or later: await it, or call `result`.

    `pending` makes one. Any number of tasks, on any event loops, and of threads may wait for it,
    also again after it has ended. Where one of them is cancelled or stops waiting, the work goes on
    for the others: `cancel` ends the work.

    Work that has a *start* begins with the first `start`, ``await`` or `result`, not before. The
    work of a local future is its *call*; see `calls`.
    """

    __slots__ = ()

    @classmethod
    def pending(
        cls,
        *,
        start: Callable[[Future[T]], None] | None = None,
        on_cancel: Callable[[], object] | None = None,
    ) -> Future[T]:
        """Return a future whose maker will call `set_result` or `set_exception`.

        *start* is called with the future, at most once, when its result is first wanted; None:
        the work has begun. *on_cancel* is called at most once, in the thread that calls `cancel`.
        """
        return cls(start=start, on_cancel=on_cancel)

    def start(self) -> Future[T]:
        """Begin the work if it has not begun yet; return the future."""
        if not self._claimed and (start := self.claim()) is not None:
            start(self)
        return self

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the end; return the result or raise the exception.

        Cancelling the waiting task does not cancel the work. If the work is cancelled, raise
        `asyncio.CancelledError`.
        """
        if not self._done:
            self.start()
            yield from self.wait().__await__()
        try:
            if self._cancelled:
                raise asyncio.CancelledError
            return self._outcome()
        finally:
            # The traceback refers to this frame: break the cycle.
            del self

    def result(self, timeout: float | None = None) -> T:
        """Wait up to *timeout* seconds for the end; return the result or raise the exception.

        Bridged code waits without blocking the event loop. A plain thread blocks; work that is
        begun by this very call there may run in the thread, without a time limit: see `gathering`.

        Raise TimeoutError after *timeout*, and leave the work running; `NotAwaitedError` on a
        running event loop outside the bridge, unless the work has ended; and CancelledError if the
        work was cancelled: asyncio's in the bridge, that of `concurrent.futures` in a thread.
        """
        self._wait_here(timeout)
        try:
            if self._cancelled:
                raise _cancelled_error()
            return self._outcome()
        finally:
            # The traceback refers to this frame: break the cycle.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as `result` does; return the exception that the work has ended with, or None."""
        self._wait_here(timeout)
        if self._cancelled:
            raise _cancelled_error()
        self._retrieved = True
        return self._exception

    def cancel(self) -> bool:
        """Cancel the work; return False if it has ended already.

        Work that runs on an event loop has ended when `done` says so: the statement that it waits
        for is stopped in the server before.
        """
        with self._lock:
            if self._done:
                return False
            begun, self._claimed = self._claimed, True
            on_cancel, self._on_cancel = self._on_cancel, None
            stop = self._stop
        if stop is not None:
            stop()
            return True
        self.set_cancelled()
        if begun and on_cancel is not None:
            on_cancel()
        return True

    def add_done_callback(
        self, fn: Callable[[Future[T]], object], *, context: Context | None = None
    ) -> None:
        """Call *fn* with the future when the work has ended; soon, if it has.

        Where an event loop runs, it calls *fn* later, in *context* or a copy of the current one.
        Elsewhere the thread that ends the work calls *fn* at once; exceptions of *fn* are logged.
        This does not begin the work.
        """
        loop = _get_running_loop()
        within = copy_context() if context is None else context

        def call() -> None:
            if loop is None:
                _call_logged(within, fn, self)
            else:
                call_on(loop, lambda: fn(self), within)

        with self._lock:
            if not self._done:
                self._callbacks = [*(self._callbacks or ()), call]
                return
        call()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109  # no cancellation
        """Wait up to *timeout* seconds for the end; return whether the work has ended.

        This does not begin the work.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not waiting.done():
                waiting.set_result(None)

        def wake() -> None:
            call_on(loop, end)

        if not self._add_waker(wake):
            return True
        timer = None if timeout is None else loop.call_later(timeout, wake)
        try:
            await waiting
        finally:
            if timer is not None:
                timer.cancel()
            self._remove_waker(wake)
        return self._done

    def _wait_here(self, timeout: float | None) -> None:
        """Wait in synchronous code; raise TimeoutError after *timeout* seconds."""
        if self._done:
            return
        if is_bridged():
            self.start()
            ended = await_bridged(self.wait(timeout))
        elif _get_running_loop() is not None:
            raise not_awaited_error()
        else:
            self.start()
            ended = self._block(timeout)
        if not ended:
            raise TimeoutError(f"the work has not ended within {timeout:g} s; it goes on")

    def _block(self, timeout: float | None) -> bool:
        """Block the thread up to *timeout* seconds; return whether the work has ended."""
        event = threading.Event()
        if not self._add_waker(event.set):
            return True
        try:
            event.wait(timeout)
        finally:
            self._remove_waker(event.set)
        return self._done


def not_awaited_error() -> NotAwaitedError:
    """Return the error for synchronous code on a running event loop."""
    return NotAwaitedError(
        "the result of a future was asked for on the running event loop, which would block it:"
        " `await` the future; or call result() in a function that is run by `await"
        " pgbackend.bridged(function)(...)`"
    )


def _cancelled_error() -> BaseException:
    """Return the error for a future that was cancelled, as the caller's side knows it."""
    on_loop = _get_running_loop() is not None
    return asyncio.CancelledError() if on_loop else concurrent.futures.CancelledError()


def _call_logged(context: Context, fn: Callable[[Any], object], future: Future[Any]) -> None:
    try:
        context.run(fn, future)
    except Exception:
        logger.exception("a callback of %r failed", future)
