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
_of_tests: Context | None = None

# The transactions that a context was given here: a context that is used again gets them anew.
_given: ContextVar[Any] = ContextVar("pgbackend_given")

_probe: ContextVar[object] = ContextVar("pgbackend_probe")


@contextmanager
def adopting(loop: asyncio.AbstractEventLoop, context: Context) -> Iterator[None]:
    """Make the tasks of *loop* here while tests run in *context*."""
    global _of_tests
    outer, _of_tests = _of_tests, context
    adopt_on(loop)
    try:
        yield
    finally:
        _of_tests = outer
        if loop.get_task_factory() is _make_task:
            loop.set_task_factory(None)


def adopt_on(loop: asyncio.AbstractEventLoop) -> None:
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
        _adopt(context)
    elif not _is_running(context):
        _adopt(context)
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context, **names)
    _contexts[task] = context
    return task


def _adopt(context: Context) -> None:
    """Give *context*, if it knows no open transactions, those of the task that starts one in it."""
    known = context.get(transactions)
    if known is not None and (not known or known is not context.get(_given)):
        return
    starter = None if asyncio._get_running_loop() is None else asyncio.current_task()
    source = _of_tests if starter is None else _contexts.get(starter, _of_tests)
    if source is None or source is context:
        return
    entered = source.get(transactions)
    if entered:
        context.run(_enter, {**entered}, source.get(innermost))


def _enter(entered: dict[Any, Any], frame: Any) -> None:
    transactions.set(entered)
    innermost.set(frame)
    _given.set(entered)
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
