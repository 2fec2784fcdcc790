"""Run the statements of threads that joined a transaction on the transaction's event loop.

``sync_to_async`` and `asyncio.to_thread` move the context into their worker thread, and with it the
transaction. The thread's cursors and ``atomic`` blocks are handed to the loop, whose task waits for
the thread anyway.
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
from ..bridge.held_locks import warn_of_held_locks
from .actors import acting_for, current_actor
from .frames import innermost
from .own_threads import TransactionThreads
from .thread_calls import yield_thread
from .transaction import Transaction, transactions

T = TypeVar("T")

# How often the waiting side checks whether the loop still runs, seconds.
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

    *wrapper* is the caller's own wrapper: its query log and ``execute_wrappers`` see the
    statements.

    Raise RuntimeError, with nothing done, if the loop does not begin within *seconds*. Raise
    `LoopEnded` if the loop ends meanwhile.
    """
    if transaction.thread == threading.get_ident():
        # This is the loop's own thread: it uses an object that a thread left to it, such as an
        # iterator.
        return function(*args)
    warn_of_held_locks()
    call = _Call(wrapper, transaction, seconds, lambda: function(*args))
    while not call.done.done():
        if call.began_to_wait.done() and yield_thread(call.done):
            break
        news: Future[Any] = call.done if call.began_to_wait.done() else call.began_to_wait
        if not wait([news], call.interval).done:
            call.check()
    return call.end()


async def ahand_over(
    wrapper: Any, transaction: Transaction, seconds: float, function: Callable[..., T], *args: Any
) -> T:
    """Do what `hand_over` does, waiting as a task of another loop."""
    call = _Call(wrapper, transaction, seconds, lambda: function(*args))
    done, cancelled = asyncio.wrap_future(call.done), False
    # `end` raises the error; without this callback asyncio would also report it as never retrieved.
    done.add_done_callback(asyncio.Future.exception)
    while not done.done():
        try:
            await asyncio.wait([done], timeout=call.interval)
        except asyncio.CancelledError:
            cancelled = True
            call.cancel()
        call.check()
    if cancelled and (task := asyncio.current_task()) is not None:
        # The call may have had an effect, such as an entered block: raise the cancellation after
        # it.
        task.uncancel()
        task.cancel()
    return call.end()


class _Call(Generic[T]):
    """A call that a transaction's loop makes for a thread or task elsewhere, which waits."""

    def __init__(
        self, wrapper: Any, transaction: Transaction, seconds: float, function: Callable[[], T]
    ) -> None:
        self.wrapper = wrapper
        self.transaction = transaction
        self.seconds = seconds
        self.function = function
        self.actor = current_actor()
        # The values that the function leaves in these context variables.
        self.frame, self.entered = innermost.get(), transactions.get({})
        self.done: Future[T] = Future()
        # Done when the call begins to wait for its turn, and at the end.
        self.began_to_wait: Future[None] = Future()
        self._threads = TransactionThreads.current()
        # The loop takes this lock when it begins, or the waiting side when it gives up.
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
            # asgiref hides a thread's wrappers from the context that it moves back, so set them
            # again.
            if each.thread == threading.get_ident():
                connections[each.wrapper.alias] = each.wrapper
        try:
            with acting_for(self.actor, self.wrapper, self._note_waiting):
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
        if not self.began_to_wait.done():
            self.began_to_wait.set_result(None)

    def _note_waiting(self, begins: bool) -> None:
        if begins and not self.began_to_wait.done():
            self.began_to_wait.set_result(None)
        if self._threads is not None:
            self._threads.note_waiting(begins=begins)

    # Elsewhere

    @property
    def interval(self) -> float:
        """The seconds to wait for `done` before the next `check`."""
        if self._begin.locked():
            return _INTERVAL
        return max(0, min(_INTERVAL, self._deadline - monotonic()))

    def check(self) -> None:
        """Cancel the call and raise RuntimeError if the call can never be done any more."""
        loop = self.transaction.loop
        if self.done.done():
            return
        if loop.is_closed():
            self._end_transaction()
            raise LoopEnded
        # A stopped loop may soon run again, between two calls of Runner.run() for example: raise
        # only at the second check.
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
        """Cancel the call as soon as the loop can, whether it has begun or not."""
        self.transaction.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def end(self) -> T:
        """Return the result of a call that is done, or raise its error."""
        innermost.set(self.frame)
        transactions.set(self.entered)
        try:
            return self.done.result()
        finally:
            # The traceback of an error refers to this frame: drop the reference back, which would
            # make a cycle.
            del self.done

    def _end_transaction(self) -> None:
        """Close the connection of a transaction that was open when its loop was closed."""
        self.transaction.ended = True
        state = self.transaction.state
        if state.lease is not None and state.lease.face.is_executing:
            state.lease.face.cancel()
        state.give_back()


class LoopProxy:
    """An object of psycopg or Django, usually a cursor, whose every call runs on the loop."""

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
        """Close the object, also in a destructor that runs after the loop has ended."""
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
            # The block is already being left because of an error.
            return None

    def __iter__(self) -> Any:
        return self._wrap(self._call(iter, self._target))

    def __next__(self) -> Any:
        # A coroutine cannot raise StopIteration, so ask for a sentinel at the end.
        end = object()
        item = self._call(next, self._target, end)
        if item is end:
            raise StopIteration
        return item

    def _wrap(self, result: Any) -> Any:
        if result is self._target:
            return self
        # Hand out cursors, COPY, their context managers and iterators, but not data such as a
        # memoryview.
        waits = hasattr(result, "__next__") or hasattr(result, "__enter__")
        if waits and not isinstance(result, memoryview):
            return LoopProxy(result, self._call)
        return result
