"""Put tasks that a test starts in an empty Context into the test's transaction.

Tasks find the transaction that they were started in by their context. asgiref's
`ApplicationCommunicator`, which tests of Channels consumers use, starts its application in an empty
context. The application would not see the test's rows, and its own rows would remain for the next
test. So this module makes the tasks of the loops while tests run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections

from ..tasks.frames import innermost
from ..tasks.transaction import transactions

# The context of each task that was made here.
_contexts: WeakKeyDictionary[asyncio.Task[Any], Context] = WeakKeyDictionary()

# The context of the tests' own task.
_tests_context: Context | None = None

# The transactions that a context was given here: a context that is used again gets them anew.
_joined_here: ContextVar[Any] = ContextVar("pgbackend_given")

_probe: ContextVar[object] = ContextVar("pgbackend_probe")


@contextmanager
def joining_tests_transaction(loop: asyncio.AbstractEventLoop, context: Context) -> Iterator[None]:
    """Make the tasks of *loop* here while tests run in *context*; see the module."""
    global _tests_context
    outer, _tests_context = _tests_context, context
    join_tasks_of(loop)
    try:
        yield
    finally:
        _tests_context = outer
        if loop.get_task_factory() is _make_task:
            loop.set_task_factory(None)


def join_tasks_of(loop: asyncio.AbstractEventLoop) -> None:
    """Make the tasks of *loop* here, unless it has a task factory of its own."""
    if loop.get_task_factory() is None:
        loop.set_task_factory(_make_task)  # type: ignore[arg-type]  # its context comes by name


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any],
    *,
    context: Context | None = None,
    **names: Any,
) -> asyncio.Task[Any]:
    if context is None:
        context = copy_context()
        _join(context)
    elif not _is_running(context):
        _join(context)
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context, **names)
    _contexts[task] = context
    return task


def _join(context: Context) -> None:
    """Give *context*, if it knows no open transactions, those of the task that starts one in it."""
    known = context.get(transactions)
    if known is not None and (not known or known is not context.get(_joined_here)):
        return
    starter = None if asyncio._get_running_loop() is None else asyncio.current_task()
    source = _tests_context if starter is None else _contexts.get(starter, _tests_context)
    if source is None or source is context:
        return
    entered = source.get(transactions)
    if entered:
        context.run(_enter, {**entered}, source.get(innermost))


def _enter(entered: dict[Any, Any], frame: Any) -> None:
    transactions.set(entered)
    innermost.set(frame)
    _joined_here.set(entered)
    for wrapper in entered:
        # A context finds transactions by their wrapper, so set the wrapper, too.
        connections[wrapper.alias] = wrapper


def _is_running(context: Context) -> bool:
    """Return whether the caller runs in *context*, which then cannot be entered."""
    mark = object()
    token = _probe.set(mark)
    try:
        return context.get(_probe) is mark
    finally:
        _probe.reset(token)
