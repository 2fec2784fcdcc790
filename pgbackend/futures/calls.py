"""Calls that use the ORM, described now and run later.

Such a call runs where Django's a-methods run: bridged on the event loop, or in the thread that
waits for the loop. In a plain thread it runs at once, there.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import CoroutineType
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connections
from django.db.models import QuerySet
from django.db.models.query import RawQuerySet

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged, drive, run_bridged
from ..patches import aliases
from ..wrapper.attributes import BackendWrapper
from ..wrapper.dispatch import all_begin_here, all_run_bridged, run_for_aliases
from .result import Future

# The tasks of futures: an event loop keeps only weak references to its tasks.
_tasks: set[asyncio.Task[Any]] = set()


class Call:
    """A call of *function*, which may be a method of a queryset or a manager."""

    __slots__ = ("args", "function", "kwargs")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> Any:
        """Run the call, and wait for the coroutine of a coroutine function."""
        found = self.function(*self.args, **self.kwargs)
        if type(found) is not CoroutineType:
            return found
        return await_bridged(found) if is_bridged() else async_to_sync(_awaited)(found)

    def aliases(self) -> set[str | None]:
        """Return the aliases that the call will use; {None} if they are unknown."""
        subject = self.args[0] if self.function is list else None
        if isinstance(subject, QuerySet) and len(connections.settings) > 1:
            return {*aliases.of_queryset(subject)}
        if isinstance(subject, RawQuerySet):
            return {subject.db}
        return {*aliases.of(self.function, self.args, self.kwargs)} or {None}

    async def run(self, function: Callable[[], Any] | None = None) -> Any:
        """Run the call, or a *function* around it, where Django's a-methods run."""
        function = function or self
        if all_begin_here():
            return await drive(function, (), {})
        if all_run_bridged():
            return await run_bridged(function)
        with aliases.remembering():
            return await run_for_aliases(self.aliases(), function)


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


def future_of(call: Call) -> Future[Any]:
    """Return a future whose work is *call*; it has not begun yet."""
    return Future(start=start, call=call)


def start(future: Future[Any]) -> None:
    """Begin the work of a local future: in a task of its own, or here, in a plain thread."""
    call = future.call
    assert isinstance(call, Call)
    loop = _get_running_loop()
    if loop is None:
        # In a copy of the context, as a task would.
        run_here(future, partial(copy_context().run, call))
    else:
        run_as_task(future, call.run())


def run_as_task(future: Future[Any], coroutine: Any) -> asyncio.Task[Any]:
    """Start a task for *coroutine*, whose end ends *future*."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    _tasks.add(task)
    task.add_done_callback(partial(_has_ended, future))
    future.stopped_by(partial(_cancel, loop, task))
    return task


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    if _get_running_loop() is loop:
        task.cancel()
    else:
        # A closed loop has ended its tasks.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(task.cancel)


def _has_ended(future: Future[Any], task: asyncio.Task[Any]) -> None:
    _tasks.discard(task)
    if task.cancelled():
        future.set_cancelled()
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def run_here(future: Future[Any], call: Callable[[], Any]) -> None:
    """Run *call* in the calling thread; its end ends *future*."""
    try:
        result = call()
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:
        future.set_exception(error)
        raise
    else:
        future.set_result(result)


def holds_connection(alias: str | None) -> bool:
    """Return whether the running task is in a transaction of *alias*, or holds its connection.

    None stands for any alias.
    """
    wrappers = connections.all(initialized_only=True) if alias is None else (connections[alias],)
    for wrapper in wrappers:
        if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled:
            state = wrapper.state
            if state.transaction is not None or state.lease is not None:
                return True
    return False
