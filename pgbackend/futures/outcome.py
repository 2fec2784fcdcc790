"""How the work of a future ends, and who is told.

The module knows neither Django nor psycopg.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

logger = logging.getLogger("pgbackend.futures")

# Wakes something that waits for a future, from any thread.
Waker = Callable[[], object]


class Outcome(Generic[T]):
    """The end of work: a result, an exception, or that it was cancelled; see `result.Future`."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_cancelled",
        "_claimed",
        "_done",
        "_exception",
        "_lock",
        "_loop",
        "_on_cancel",
        "_result",
        "_retrieved",
        "_start",
        "_stop",
        "_traceback",
        "_wakers",
        "call",
    )

    def __init__(
        self,
        *,
        start: Callable[[Self], None] | None = None,
        on_cancel: Callable[[], object] | None = None,
        call: Callable[[], T] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._start = start
        self._on_cancel = on_cancel
        # What ends running work of this process; see `stopped_by`.
        self._stop: Callable[[], object] | None = None
        self._done = False
        # Whether the work has begun, or has no beginning of its own.
        self._claimed = start is None
        self._cancelled = False
        self._result: Any = None
        self._exception: BaseException | None = None
        # The traceback of the exception when it came: each raise adds to the exception's own.
        self._traceback: TracebackType | None = None
        # Whether somebody was told how the work ended; see `__del__`.
        self._retrieved = False
        # The wakers of those who wait, and the callbacks; None while there are none.
        self._wakers: list[Waker] | None = None
        self._callbacks: list[Waker] | None = None
        # The event loop that the work was begun on, which reports a lost exception.
        self._loop = _get_running_loop() if start is None else None
        self.call = call

    def __repr__(self) -> str:
        if not self._done:
            words = "pending" if self._claimed else "not started"
        elif self._cancelled:
            words = "cancelled"
        elif self._exception is not None:
            words = f"exception={self._exception!r}"
        else:
            words = f"result={self._result!r}"
        return f"<{type(self).__name__} {words}>"

    def done(self) -> bool:
        """Return whether the work has ended: with a result, an exception, or cancelled."""
        return self._done

    def cancelled(self) -> bool:
        """Return whether the work was cancelled."""
        return self._cancelled

    def outcome(self) -> tuple[T, BaseException | None]:
        """Return the result and the exception of work that has ended; one of them counts.

        The exception is asyncio's CancelledError if the work was cancelled.
        """
        self._retrieved = True
        return self._result, asyncio.CancelledError() if self._cancelled else self._exception

    def set_result(self, result: T) -> bool:
        """End the work with *result*, from any thread; return False if it has ended already."""
        return self._end(result, None)

    def set_exception(self, exception: BaseException) -> bool:
        """End the work with *exception*, from any thread; return False if it has ended already."""
        return self._end(None, exception)

    def set_cancelled(self) -> bool:
        """End the work as cancelled, from any thread; return False if it has ended already."""
        return self._end(None, None, cancelled=True)

    def claim(self) -> Callable[[Self], None] | None:
        """Return what begins the work if nobody has begun it; the caller then owes its end."""
        with self._lock:
            if self._claimed:
                return None
            self._claimed = True
            self._loop = _get_running_loop()
            return self._start

    def stopped_by(self, stop: Callable[[], object] | None) -> None:
        """Have `cancel` call *stop*, from any thread, and leave it to the work to end the future.

        None: `cancel` ends the future itself, as in the beginning.
        """
        self._stop = stop

    def _add_waker(self, wake: Waker) -> bool:
        """Have *wake* called at the end; return False if the work has ended."""
        with self._lock:
            if self._done:
                return False
            self._wakers = [*(self._wakers or ()), wake]
            return True

    def _remove_waker(self, wake: Waker) -> None:
        with self._lock:
            if self._wakers is not None:
                self._wakers = [each for each in self._wakers if each != wake]

    def _end(
        self, result: Any, exception: BaseException | None, *, cancelled: bool = False
    ) -> bool:
        with self._lock:
            if self._done:
                return False
            self._result, self._exception, self._cancelled = result, exception, cancelled
            if exception is not None:
                self._traceback = exception.__traceback__
            self._claimed = self._done = True
            wakers, self._wakers = self._wakers, None
            callbacks, self._callbacks = self._callbacks, None
            # Drop what the work refers to: it is not needed any more.
            self._start = self._on_cancel = self._stop = self.call = None
        for call in (*(wakers or ()), *(callbacks or ())):
            call()
        return True

    def _outcome(self) -> T:
        """Return the result or raise the exception of work that has ended."""
        self._retrieved = True
        error = self._exception
        if error is None:
            result: T = self._result
            return result
        try:
            raise error.with_traceback(self._traceback)
        finally:
            # The traceback refers to this frame: break the cycle.
            del error, self

    def __del__(self) -> None:
        """Report an exception that nobody asked for, as asyncio does."""
        if getattr(self, "_exception", None) is None or self._retrieved:
            return
        message = f"{type(self).__name__} exception was never retrieved"
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_exception_handler(
                {"message": message, "exception": self._exception, "future": self}
            )
        else:
            logger.error(message, exc_info=self._exception)


def call_on(
    loop: AbstractEventLoop, call: Callable[[], object], context: Context | None = None
) -> None:
    """Have *loop* call *call* soon, from any thread; nothing calls it if *loop* is closed."""
    if _get_running_loop() is loop:
        loop.call_soon(call, context=context)
    else:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call, context=context)
