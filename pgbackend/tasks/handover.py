"""Threads that joined a transaction of the event loop: what they do with it runs on the loop.

``sync_to_async`` and `asyncio.to_thread` move the context into their worker thread, and with it
the transaction. The thread's cursors and ``atomic`` blocks are handed to the loop, which waits
for the thread anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from time import monotonic
from typing import Any, Generic, TypeVar

from django.db import connections

from ..bridge.greenlets import run_bridged
from ..bridge.held_locks import name_held
from .actors import current_actor, work_for
from .frames import innermost
from .own_threads import Threads
from .thread_calls import leave_thread
from .transaction import Transaction, transactions

T = TypeVar("T")

# How often who waits looks whether the loop still runs, seconds.
_INTERVAL = 0.5


class LoopEnded(RuntimeError):
    """The event loop of the transaction that a thread joined has ended."""

    def __init__(self) -> None:
        super().__init__(
            "the event loop of the transaction that this thread joined has ended, and with it the"
            " transaction: nothing of it was committed"
        )


def hand_over(
    wrapper: Any, transaction: Transaction, seconds: float, function: Callable[..., T], *args: Any
) -> T:
    """Run *function* bridged on the loop of *transaction*, and return its result.

    *wrapper* is the caller's own: its query log and its ``execute_wrappers`` see the statements.

    The loop has *seconds* to begin; RuntimeError after that, with nothing done, and when the
    loop ends meanwhile.
    """
    if transaction.thread == threading.get_ident():
        # What a thread left to the loop, such as an iterator.
        return function(*args)
    name_held()
    call = _Call(wrapper, transaction, seconds, lambda: function(*args))
    while not call.done.done():
        if call.waits.done() and leave_thread(call.done):
            break
        news: Future[Any] = call.done if call.waits.done() else call.waits
        if not wait([news], call.interval).done:
            call.check()
    return call.end()


async def ahand_over(
    wrapper: Any, transaction: Transaction, seconds: float, function: Callable[..., T], *args: Any
) -> T:
    """Do what `hand_over` does, waiting as a task of another loop."""
    call = _Call(wrapper, transaction, seconds, lambda: function(*args))
    done, cancelled = asyncio.wrap_future(call.done), False
    # `end` raises it; asyncio would report it as never retrieved.
    done.add_done_callback(asyncio.Future.exception)
    while not done.done():
        try:
            await asyncio.wait([done], timeout=call.interval)
        except asyncio.CancelledError:
            cancelled = True
            call.cancel()
        call.check()
    if cancelled and (task := asyncio.current_task()) is not None:
        # What was done is done, a block entered for example: the cancellation comes after it.
        task.uncancel()
        task.cancel()
    return call.end()


class _Call(Generic[T]):
    """A call that the loop of a transaction makes for somebody elsewhere, who waits for it."""

    def __init__(
        self, wrapper: Any, transaction: Transaction, seconds: float, function: Callable[[], T]
    ) -> None:
        self.wrapper = wrapper
        self.transaction = transaction
        self.seconds = seconds
        self.function = function
        self.actor = current_actor()
        # What the function leaves behind in these variables.
        self.frame, self.entered = innermost.get(), transactions.get({})
        self.done: Future[T] = Future()
        # Done when it has to wait for its turn, and in the end.
        self.waits: Future[None] = Future()
        self._threads = Threads.here()
        # Taken by the loop when it begins, or by who waits to give up.
        self._begin = threading.Lock()
        self._task: asyncio.Task[T] | None = None
        self._deadline = monotonic() + seconds
        self._stopped = 0
        try:
            transaction.loop.call_soon_threadsafe(self._start)
        except RuntimeError as error:
            self._end_transaction()
            raise LoopEnded from error

    # On the loop

    def _start(self) -> None:
        if self._begin.acquire(blocking=False):
            self._task = self.transaction.loop.create_task(self._run())
            self._task.add_done_callback(self._finish)

    async def _run(self) -> T:
        for each in transactions.get({}).values():
            # asgiref hides a thread's wrappers from the context that is moved back.
            if each.thread == threading.get_ident():
                connections[each.wrapper.alias] = each.wrapper
        try:
            with work_for(self.actor, self.wrapper, self._waits):
                return await run_bridged(self.function)
        finally:
            self.frame, self.entered = innermost.get(), transactions.get({})

    def _finish(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if task.cancelled():
            self.done.set_exception(LoopEnded())
        elif (error := task.exception()) is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(task.result())
        if not self.waits.done():
            self.waits.set_result(None)

    def _waits(self, begins: bool) -> None:
        if begins and not self.waits.done():
            self.waits.set_result(None)
        if self._threads is not None:
            self._threads.waits(begins=begins)

    # Elsewhere

    @property
    def interval(self) -> float:
        """How long to wait for `done` before the next `check`, seconds."""
        if self._begin.locked():
            return _INTERVAL
        return max(0, min(_INTERVAL, self._deadline - monotonic()))

    def check(self) -> None:
        """Raise RuntimeError, with the call cancelled, if it is not done and never will be."""
        loop = self.transaction.loop
        if self.done.done():
            return
        if loop.is_closed():
            self._end_transaction()
            raise LoopEnded
        # It may run again at once: between two calls of Runner.run(), for example.
        self._stopped = 0 if loop.is_running() else self._stopped + 1
        if self._stopped > 1:
            self.cancel()
            raise LoopEnded
        if monotonic() >= self._deadline and self._begin.acquire(blocking=False):
            raise RuntimeError(
                f"the event loop did not take a thread's statement within {self.seconds:g} s:"
                " something blocks it. See 'turn_timeout' in OPTIONS"
            )

    def cancel(self) -> None:
        """Cancel the call, begun or not, as soon as the loop can."""
        self.transaction.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def end(self) -> T:
        """Return the result of the call that is done."""
        innermost.set(self.frame)
        transactions.set(self.entered)
        try:
            return self.done.result()
        finally:
            # An error's traceback leads here.
            del self.done

    def _end_transaction(self) -> None:
        """Close the connection of a transaction that was open when its loop was closed."""
        self.transaction.ended = True
        state = self.transaction.state
        if state.lease is not None and state.lease.face.is_executing:
            state.lease.face.cancel()
        state.drop()


class Handed:
    """Something of psycopg's or Django's whose every call runs on the loop; a cursor mostly."""

    def __init__(self, target: Any, call: Callable[..., Any]) -> None:
        self._target = target
        self._call = call

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._wrap(self._call(lambda: value(*args, **kwargs)))

        return call

    def close(self) -> None:
        """Close it, also where the loop cannot be waited for: in a destructor that runs on it."""
        try:
            self._call(self._target.close)
        except LoopEnded:
            self._target.close()

    def __enter__(self) -> Any:
        return self._wrap(self._call(self._target.__enter__))

    def __exit__(self, *exc_info: Any) -> Any:
        try:
            return self._call(self._target.__exit__, *exc_info)
        except LoopEnded:
            if exc_info[0] is None:
                raise
            # A block on its way out for that reason.
            return None

    def __iter__(self) -> Any:
        return self._wrap(self._call(iter, self._target))

    def __next__(self) -> Any:
        # A StopIteration cannot cross a coroutine's end.
        end = object()
        item = self._call(next, self._target, end)
        if item is end:
            raise StopIteration
        return item

    def _wrap(self, result: Any) -> Any:
        if result is self._target:
            return self
        # Cursors, COPY, their context managers and iterators; no data, such as a memoryview.
        waits = hasattr(result, "__next__") or hasattr(result, "__enter__")
        if waits and not isinstance(result, memoryview):
            return Handed(result, self._call)
        return result
