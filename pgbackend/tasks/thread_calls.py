"""Calls in threads from inside a transaction: none may block a thread that the turn's holder needs.

``sync_to_async`` has one thread for all thread-sensitive calls of a context. A call runs in a
greenlet of that thread. If its statement has to wait for its turn, the call yields the thread
(`yield_thread`), and resumes in the same thread when the turn has come. Meanwhile the thread serves
other calls, for example those of the turn's holder.

`asyncio.to_thread`, and ``sync_to_async`` without *thread_sensitive*, use the transaction's own
threads: see `own_threads`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import Context, copy_context
from typing import Any
from weakref import WeakKeyDictionary

import asgiref.sync
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync, SyncToAsync
from greenlet import getcurrent, greenlet

from . import membership
from .own_threads import TransactionThreads

# One thread for all


class _Runner(greenlet):
    """The greenlet that a `ThreadCall` runs in."""


def yield_thread(heard: Future[Any]) -> bool:
    """Let other calls use the calling thread until *heard* is done; False where that is impossible.

    Only the function of a `ThreadCall` can yield its thread.
    """
    if not isinstance(getcurrent(), _Runner):
        return False
    if not heard.done():
        # The greenlet has no name here: its own frame would refer to it, which makes a cycle.
        getcurrent().parent.switch(heard)  # type: ignore[union-attr]  # has a parent
    return True


# The calls that yielded the thread of an executor, until they have resumed and ended.
_calls_away: WeakKeyDictionary[Any, set[ThreadCall]] = WeakKeyDictionary()


class ThreadCall:
    """A call of a thread-sensitive function that may yield its thread and come back to it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._greenlet: _Runner | None = None
        self._executor: Any = None
        # The thread-local values that asgiref keeps while the thread runs this function.
        self._threadlocal: dict[str, Any] = {}
        self.context: Context | None = None
        # The result of a call that yielded its thread.
        self.finished: Future[Any] = Future()

    def begin(self) -> Any:
        """Run the function in the calling thread; return the call if it yielded the thread."""
        self._executor = _executor(self._loop)
        self.context = copy_context()
        self._greenlet = _Runner(functools.partial(_run, self._function, sys.exc_info()[1]))
        self._greenlet.gr_context = self.context
        del self._function
        try:
            return self._run_on()
        finally:
            # Copy the call's context variables into the thread's context; asgiref moves them into
            # the task.
            asgiref.sync._restore_context(self.context)

    def _run_on(self) -> Any:
        runner = self._greenlet
        assert runner is not None
        runner.parent = getcurrent()
        heard = runner.switch()
        if runner.dead:
            return heard
        self._threadlocal = dict(vars(SyncToAsync.threadlocal))
        _calls_away.setdefault(self._executor, set()).add(self)
        if isinstance(self._executor, SharedThread):
            self._executor.note_away(1)
        heard.add_done_callback(self._go_on_soon)
        return self

    def _go_on_soon(self, _: Future[Any]) -> None:
        # Go by way of the loop: a thread cannot submit to its own executor.
        try:
            self._loop.call_soon_threadsafe(self._submit)
        except RuntimeError:
            self._submit()

    def _submit(self) -> None:
        try:
            self._executor.submit(self._go_on)
        except RuntimeError as error:
            # The request has ended, and its thread with it.
            _calls_away[self._executor].discard(self)
            self.finished.set_exception(error)

    def _go_on(self) -> None:
        if isinstance(self._executor, SharedThread):
            self._executor.note_away(-1)
        current = vars(SyncToAsync.threadlocal)
        before = dict(current)
        current.update(self._threadlocal)
        try:
            result = self._run_on()
        except BaseException as error:
            _calls_away[self._executor].discard(self)
            self.finished.set_exception(error)
        else:
            if result is not self:
                _calls_away[self._executor].discard(self)
                self.finished.set_result(result)
        finally:
            current.clear()
            current.update(before)

    async def rest(self) -> Any:
        """Wait for the result of a call that yielded its thread; cancel as asgiref does."""
        finished = self.awaitable()
        try:
            await asyncio.wait([finished])
            return finished.result()
        except asyncio.CancelledError:
            if finished.done():
                raise
            # Cancel the tasks that the function waits for in async_to_sync.
            for task in list(self._threadlocal.get("task_context") or ()):
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    return await finished
            raise
        finally:
            assert self.context is not None
            asgiref.sync._restore_context(self.context)
            # As in asgiref: the thread is free for the next call of this task.
            SyncToAsync.deadlock_context.set(False)

    def awaitable(self) -> asyncio.Future[Any]:
        """Return `finished` as an asyncio future whose error counts as retrieved.

        A waiting task may be cancelled and never ask for the error: asyncio would then report it,
        for example when a function ends after its client has gone.
        """
        finished = asyncio.wrap_future(self.finished)
        finished.add_done_callback(lambda done: done.cancelled() or done.exception())
        return finished


def _run(function: Callable[[], Any], error: BaseException | None) -> Any:
    if error is None:
        return function()
    # A greenlet begins without the exception that is being handled; asgiref hands it on, too.
    try:
        raise error
    except BaseException:
        return function()
    finally:
        del error


def _executor(loop: asyncio.AbstractEventLoop) -> Any:
    """Return the executor with which asgiref runs this context's thread-sensitive functions."""
    executor = getattr(AsyncToSync.executors, "current", None)
    if executor is None and (context := SyncToAsync.thread_sensitive_context.get(None)):
        executor = SyncToAsync.context_to_thread_executor.get(context)
    if executor is None:
        executor = AsyncToSync.loop_thread_executors.get(loop)
    return SyncToAsync.single_thread_executor if executor is None else executor


class SharedThread(Executor):
    """A thread that waits in ``async_to_sync`` inside a transaction, and runs submitted calls.

    This does what asgiref's ``CurrentThreadExecutor`` does, and lets calls yield the thread: the
    call that runs this executor may yield it, too, and the executor does not end while calls that
    yielded it are still to come back.
    """

    def __init__(self, older: Executor | None) -> None:
        # The executor of an outer async_to_sync.
        self._older = older
        self._lock = threading.Lock()
        self._items: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        # Done when there is something new to look at.
        self._heard: Future[None] = Future()
        self._expected = 0
        self._ended = False

    def run_until_future(self, future: Future[Any]) -> None:
        """Run submitted calls until *future* is done, in the thread that made this executor."""
        future.add_done_callback(lambda _: self._tell())
        while True:
            with self._lock:
                heard = self._heard = Future()
                item = self._items.popleft() if self._items else None
                if item is None and future.done() and not self._expected:
                    self._ended = True
                    return
            if item is not None:
                _run_item(*item)
                del item
            elif not yield_thread(heard):
                heard.result()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(...)`` in the thread; once this executor has ended, by the outer executor."""
        future: Future[Any] = Future()
        with self._lock:
            if not self._ended:
                self._items.append((future, functools.partial(fn, *args, **kwargs)))
        if self._ended:
            if self._older is None:
                raise RuntimeError("the thread does not wait in async_to_sync any more")
            return self._older.submit(fn, *args, **kwargs)
        self._tell()
        return future

    def note_away(self, count: int) -> None:
        """Note that a call which ran here yielded the thread (1) or came back (-1)."""
        with self._lock:
            self._expected += count

    def _tell(self) -> None:
        with self._lock:
            heard = self._heard
            if heard.done():
                return
            # Another thread may be about to set the result, too.
            self._heard = Future()
        heard.set_result(None)


def _run_item(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
        # The error's traceback refers to this frame: drop the reference back.
        del future
    else:
        future.set_result(result)


# What asgiref and asyncio do


async def context_ends(leave: Callable[..., Any], context: Any, *exc_info: Any) -> Any:
    """Do what ``ThreadSensitiveContext.__aexit__`` (*leave*) does: wait for its thread.

    Wait for the calls that yielded the thread, too.
    """
    try:
        executor = SyncToAsync.context_to_thread_executor.get(context)
        while context.token and executor is not None and (left := _calls_away.get(executor)):
            # The thread removes the calls that end, so loop until none is left.
            await asyncio.wait([call.awaitable() for call in tuple(left)])
    finally:
        result = await leave(context, *exc_info)
    return result


async def sync_to_async(
    call_async: Callable[..., Any], subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run asgiref's ``SyncToAsync.__call__`` (*call_async*) by the rules of this module."""
    if membership.in_any_transaction():
        if subject._thread_sensitive:
            call = ThreadCall(functools.partial(subject.func, *args, **kwargs))
            twin = copy.copy(subject)
            twin.func = call.begin
            result = await call_async(twin)
            return await call.rest() if result is call else result
        if subject._executor is None and (threads := await _own_threads()) is not None:
            subject = copy.copy(subject)
            subject._executor = threads
    return await call_async(subject, *args, **kwargs)


async def _own_threads() -> TransactionThreads | None:
    """Return the own threads of the running task's transaction.

    Return None outside of a transaction, and in one of another event loop.
    """
    transaction = membership.joinable_transaction()
    if transaction is None:
        return None
    threads: TransactionThreads = transaction.state.own_threads()
    await threads.may_begin(transaction.wrapper.turn_timeout)
    return threads if transaction.open else None


async def to_thread(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Do what `asyncio.to_thread` does, by the rules of this module."""
    if not membership.in_any_transaction() or (threads := await _own_threads()) is None:
        return await _to_thread(func, *args, **kwargs)
    call = functools.partial(copy_context().run, func, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads, call)


_to_thread = asyncio.to_thread


def current_thread_executor(*args: Any) -> Any:
    """Return the executor of asgiref's ``async_to_sync``; *args* differ between its versions."""
    if membership.in_any_transaction():
        return SharedThread(getattr(AsyncToSync.executors, "current", None))
    return CurrentThreadExecutor(*args)
