"""Where handlers run: on the event loop, bridged, or in threads where the alias is not ours.

Both run synchronous functions that use the ORM, and both wait in them for the coroutines of
asynchronous listeners, so that one piece of code serves a transaction with either.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from types import CoroutineType, TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar

import psycopg
from asgiref.sync import async_to_sync
from django.db import (
    DatabaseError,
    InterfaceError,
    close_old_connections,
    connections,
    transaction,
)

from ..bridge import await_bridged, is_bridged, run_bridged
from ..bridge.current import can_wait
from ..deferred import CLOSE, HOLD_OPEN, deferred_savepoint
from ..errors import NotCommitted
from ..extending import runs_on_loop
from .thread_sessions import give_back, remember

P = ParamSpec("P")
T = TypeVar("T")


class Savepoint(Protocol):
    """What undoes the work of each of the blocks that use it, if the block raises.

    *has_ended* says that a block ended the transaction; *before_commit* is to be sent before that
    is committed, if it is not "".
    """

    has_ended: bool
    before_commit: str

    def series(self) -> AbstractContextManager[None]: ...

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class Running(Protocol):
    """What `OnLoop` and `InThreads` have in common."""

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...

    def call(
        self, callback: Callable[..., Any], arguments: dict[str, Any], seconds: float | None
    ) -> None: ...

    def savepoint(self, alias: str) -> Savepoint: ...

    def is_cancelled(self) -> bool: ...

    def is_closed(self) -> bool: ...

    def close(self) -> None: ...


class OnLoop:
    """Runs functions on the loop, bridged: they wait without holding it."""

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* in the running task and return its result."""
        return await run_bridged(function, *args, **kwargs)

    def call(
        self, callback: Callable[..., Any], arguments: dict[str, Any], seconds: float | None
    ) -> None:
        """Call a listener, in a function that `run` runs, and await its coroutine if it has one.

        Raise TimeoutError where it waits after *seconds*; None: never. The listener has a context
        of its own: what it sets there, the next one does not see.
        """
        if seconds is None:
            copy_context().run(_call, callback, arguments)
        else:
            with limited(seconds):
                copy_context().run(_call, callback, arguments)

    def savepoint(self, alias: str) -> Savepoint:
        """Return the savepoint of the transaction that is open."""
        return deferred_savepoint(alias, strict=True)

    def is_cancelled(self) -> bool:
        """Return whether the running task, if there is one, is being cancelled."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            # No loop runs in this thread.
            return False
        return task is not None and task.cancelling() > 0

    def is_closed(self) -> bool:
        """Return whether the coroutine of the running call was closed: nothing can be awaited."""
        return is_bridged() and not can_wait()

    def close(self) -> None:
        """Do nothing: the pools end with their loop."""


def _call(callback: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = _result(callback, arguments)
    if result is not None:
        await_bridged(result)


def _result(callback: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a listener; return what is to be awaited, or None.

    Raise TypeError for a generator, whose body would not run.
    """
    result = callback(**arguments)
    # The first two are what nearly all listeners return.
    if result is None or isinstance(result, CoroutineType) or inspect.isawaitable(result):
        return result
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(f"the listener returned {result!r}, whose body never ran")
    return None


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where the block, in bridged code, waits after so many *seconds*."""
    limit = asyncio.timeout(seconds)
    # Neither of the two methods waits for anything.
    await_bridged(limit.__aenter__())
    try:
        yield
    except BaseException as error:
        await_bridged(limit.__aexit__(type(error), error, error.__traceback__))
        raise
    else:
        await_bridged(limit.__aexit__(None, None, None))


class InThreads:
    """Runs functions in threads of its own, with Django's connections of those threads."""

    def __init__(self, alias: str, threads: int) -> None:
        self._alias = alias
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="pubsub")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* in a thread and return its result.

        If the task is cancelled, the function still runs to its end.
        """
        loop = asyncio.get_running_loop()
        context = copy_context()
        return await loop.run_in_executor(
            self._executor, lambda: context.run(_in_thread, self._alias, function, args, kwargs)
        )

    def call(
        self, callback: Callable[..., Any], arguments: dict[str, Any], seconds: float | None
    ) -> None:
        """Call a listener, and await its coroutine if it has one, on a loop of the thread.

        Raise TimeoutError if the coroutine takes longer than *seconds*. A function in a thread
        cannot be interrupted.
        """
        copy_context().run(_call_in_thread, callback, arguments, seconds)

    def savepoint(self, alias: str) -> Savepoint:
        """Return the savepoint of the transaction that is open."""
        return _Nested(alias)

    def is_cancelled(self) -> bool:
        """Return False: a thread is not cancelled."""
        return False

    def is_closed(self) -> bool:
        """Return False: nor is it closed."""
        return False

    def close(self) -> None:
        """Let the threads end; their connections end with them."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Nested:
    """A nested `atomic` for each block, as strict as `deferred_savepoint`."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._wrapper = connections[alias]
        self._block: Any = None
        self.has_ended = False
        self.before_commit = CLOSE
        remember(self._wrapper)
        with self._wrapper.cursor() as cursor:
            cursor.execute(HOLD_OPEN)

    def series(self) -> AbstractContextManager[None]:
        """Do nothing: no task shares the transaction of a thread."""
        return nullcontext()

    def __enter__(self) -> None:
        self._block = transaction.atomic(self._alias)
        self._block.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failed = exc_type is None and transaction.get_rollback(self._alias)
        try:
            self._block.__exit__(exc_type, exc_value, traceback)
            if exc_type is None and not failed:
                give_back(self._wrapper)
        finally:
            # The savepoint was not there, and not because the connection is lost.
            self.has_ended = self._wrapper.needs_rollback and _answers(self._wrapper.connection)
        if failed:
            # As `deferred_savepoint` has it: Django would roll back and say nothing.
            raise NotCommitted(
                "the listener's work was rolled back: a statement in it failed, or its rollback was"
                " asked for, and the listener ended without an exception"
            )


def _answers(connection: Any) -> bool:
    """Return whether the server answers on *connection* of psycopg's, be it with an error."""
    if connection is None or connection.closed:
        return False
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    except psycopg.Error:
        return True
    return True


def _call_in_thread(
    callback: Callable[..., Any], arguments: dict[str, Any], seconds: float | None
) -> None:
    result = _result(callback, arguments)
    if result is not None:
        async_to_sync(_awaited)(result, seconds)


async def _awaited(awaitable: Awaitable[Any], seconds: float | None) -> None:
    async with asyncio.timeout(seconds):
        await awaitable


def _in_thread(alias: str, function: Callable[..., T], args: Any, kwargs: Any) -> T:
    # As Django does at the begin and the end of a request.
    close_old_connections()
    wrapper: Any = connections[alias]
    stays = wrapper.settings_dict["CONN_MAX_AGE"] != 0
    if stays:
        remember(wrapper)
    try:
        return function(*args, **kwargs)
    finally:
        close_old_connections()
        if stays and wrapper.connection is not None:
            try:
                give_back(wrapper)
            except (DatabaseError, InterfaceError):
                wrapper.close()


def running_for(alias: str, threads: int) -> Running:
    """Return where the handlers of *alias* run: on the loop, or in so many *threads*."""
    if runs_on_loop(alias):
        return OnLoop()
    return InThreads(alias, threads)
