"""Functions that a request's threads add by ``execute_wrapper``, for statements of the loop.

These functions are called on the loop. But a function may keep state in a ``threading.local`` that
only its own thread can see, for example in synchronous middleware that waits for the view. Such a
function is called in its thread, and each statement then costs two thread switches, as every
statement does with Django's own backend. Inside a transaction it is not called: the thread may be
waiting for its turn there, or for this very statement.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from asgiref.sync import sync_to_async

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged

Execute = Callable[..., Any]

logger = logging.getLogger("pgbackend")

# The result of a call in a thread that is not the expected one.
_NOT_THERE = object()


class ThreadWrapper:
    """A *function* that the calling thread adds by ``execute_wrapper``; equals the function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # True once the thread has left the block. The function is then not called any more,
        # although tasks that began inside still have it in their context.
        self.block_left = False
        self._thread = threading.get_ident()
        self._needs_thread = False
        self._warned = False

    def __eq__(self, other: object) -> bool:
        return self.function == (other.function if isinstance(other, ThreadWrapper) else other)

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, execute: Execute, *args: Any) -> Any:
        if self.block_left:
            return execute(*args)
        if self._thread == threading.get_ident():
            return self.function(execute, *args)
        done: list[Any] = []
        if not self._needs_thread:

            def noting(*statement: Any) -> Any:
                done.append(execute(*statement))
                return done[-1]

            try:
                return self.function(noting, *args)
            except AttributeError as error:
                if not isinstance(error.obj, threading.local):
                    raise
                self._needs_thread = True

        def once(*statement: Any) -> Any:
            # A statement that was executed before the function failed must not be executed again.
            return done.pop(0) if done else execute(*statement)

        if not is_bridged():
            # This thread has a connection of its own, for which Django would not call the function.
            return once(*args)
        if args[-1]["connection"].in_atomic_block:
            self._warn()
            return once(*args)
        result = _Call(self.function, self._thread, once).make(args)
        return once(*args) if result is _NOT_THERE else result

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%r, added by execute_wrapper() in a thread, keeps state in a threading.local: it"
                " is not called for what asynchronous code executes inside a transaction. Keep the"
                " state in a ContextVar or in asgiref's Local",
                self.function,
            )


class _Call:
    """A call of *function* in its *thread*; the loop executes its statements by *execute*."""

    def __init__(self, function: Callable[..., Any], thread: int, execute: Execute) -> None:
        self._function = function
        self._thread = thread
        self._execute = execute
        self._loop = asyncio.get_running_loop()
        # The statements that the thread waits for; None marks the end.
        self._requested: asyncio.Queue[tuple[tuple[Any, ...], Future[Any]] | None] = asyncio.Queue()
        self._interrupted = False

    def make(self, args: tuple[Any, ...]) -> Any:
        """Make the call, waiting through the bridge; return its result, or `_NOT_THERE`."""
        work = self._loop.create_task(self._work(args))
        work.add_done_callback(self._end)
        try:
            while (asked := await_bridged(self._requested.get())) is not None:
                self._answer(*asked)
        except BaseException:
            self._interrupted = True
            while not self._requested.empty():
                if (asked := self._requested.get_nowait()) is not None:
                    self._answer(*asked)
            raise
        return work.result()

    async def _work(self, args: tuple[Any, ...]) -> Any:
        # asgiref picks the thread of the request's synchronous code, which waits for the loop.
        return await sync_to_async(self._in_thread)(args)

    def _end(self, work: asyncio.Task[Any]) -> None:
        self._requested.put_nowait(None)
        if not work.cancelled():
            # Retrieve the error: `make` raises it, unless it was interrupted, and asyncio must not
            # report it as never retrieved.
            work.exception()

    def _answer(self, statement: tuple[Any, ...], answer: Future[Any]) -> None:
        if self._interrupted:
            answer.set_exception(asyncio.CancelledError())
            return
        try:
            answer.set_result(self._execute(*statement))
        except BaseException as error:
            answer.set_exception(error)
        finally:
            # The error's traceback refers to this frame: drop the reference back.
            del answer

    # In the thread

    def _in_thread(self, args: tuple[Any, ...]) -> Any:
        if self._thread != threading.get_ident():
            return _NOT_THERE
        return self._function(self._ask, *args)

    def _ask(self, *statement: Any) -> Any:
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._take, statement, answer)
        return answer.result()

    def _take(self, statement: tuple[Any, ...], answer: Future[Any]) -> None:
        if self._interrupted:
            self._answer(statement, answer)
        else:
            self._requested.put_nowait((statement, answer))
