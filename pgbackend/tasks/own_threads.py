"""A transaction's own threads, used instead of the event loop's default executor.

The default executor may be full of calls that wait for their turn in a transaction, while the
holder of the turn needs the executor, to resolve host names for example.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from .waiting_line import Waiter, WaitingLine

# How many calls of one transaction run in its own threads at a time, not counting those that wait
# for a turn. The default executor has as many threads on a large machine.
_RUNNING = 32


class _CurrentThreads(threading.local):
    """The transaction's threads that the calling thread belongs to, if any."""

    threads: TransactionThreads | None = None


_current = _CurrentThreads()


class TransactionThreads(ThreadPoolExecutor):
    """The own threads of one transaction; used on its event loop.

    There are as many threads as calls wait for a turn, and `_RUNNING` more.
    """

    def __init__(self, state: Any) -> None:
        super().__init__(2**16, "pgbackend")
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._begun = self._waiting = self._came = 0
        self._waiting_line = WaitingLine()

    @staticmethod
    def current() -> TransactionThreads | None:
        """Return the `TransactionThreads` that run the calling thread's current call, or None."""
        return _current.threads

    def note_waiting(self, *, begins: bool) -> None:
        """Note that a call begins or stops waiting for its turn."""
        self._waiting += 1 if begins else -1
        self._waiting_line.call_next()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(...)`` in a thread; await `may_begin` before."""
        self._begun += 1
        future = super().submit(self._run, functools.partial(fn, *args, **kwargs))
        future.add_done_callback(self._ended)
        return future

    def _run(self, function: Callable[[], Any]) -> Any:
        _current.threads = self
        try:
            return function()
        finally:
            _current.threads = None

    def _ended(self, _: Future[Any]) -> None:
        with suppress(RuntimeError):
            # The loop may have been closed before the thread ended.
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._begun -= 1
        self._waiting_line.call_next()

    async def may_begin(self, timeout: float) -> None:  # noqa: ASYNC109  # for a turn
        """Wait until there is a thread for the running task.

        While few calls run, even a task without the turn gets a thread: it may never use the
        transaction. Raise RuntimeError if the turn does not come within *timeout* seconds.
        """
        while True:
            if self._begun - self._waiting >= _RUNNING:
                await self._until_one_ends()
            elif self._begun >= _RUNNING and not self._state.has_turn():
                self._waiting_line.call_next()
                await self._state.wait_for_turn_to_begin(timeout)
            else:
                return

    async def _until_one_ends(self) -> None:
        self._came += 1
        waiter = Waiter(self._came, 0)
        self._waiting_line.add(waiter)
        try:
            await waiter.wait()
        except BaseException:
            waiter.gone = True
            if waiter.called:
                self._waiting_line.call_next()
            raise
