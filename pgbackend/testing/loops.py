"""Synchronous test code on a running loop, which the code was not written for.

The code may run a loop of its own (`outside_loop`), and libraries that ask whether a loop runs get
the answer of a plain run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import unittest
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from ..bridge.current import is_bridged
from ..bridge.greenlets import run_bridged
from ..bridge.lock import BridgedLock
from ..patches import guards
from ..pool.physical import unread_error
from ..tasks.transaction import Transaction, transactions
from .leftovers import no_tasks_left
from .tests_transaction import join_tasks_of

P = ParamSpec("P")

T = TypeVar("T")

# The task whose synchronous code may run a loop: that of `runner.Runner.run`.
_main_task: asyncio.Task[Any] | None = None


@contextmanager
def changed_for_tests(task: asyncio.Task[Any]) -> Iterator[None]:
    """Hide the running loop from the tests of *task*, as far as that is possible."""
    global _main_task
    outer, _main_task = _main_task, task
    changes: list[tuple[Any, str, Callable[..., Any]]] = [
        (asyncio, "run", _stepping_outside()),
        (asyncio.runners, "run", _stepping_outside()),
        (asyncio.Runner, "run", _stepping_outside(asyncio.Runner.get_loop)),
        (asyncio.Runner, "close", _stepping_outside()),
        (asyncio, "get_running_loop", _hidden_from_libraries),
        (unittest.TestCase, "_callTestMethod", no_tasks_left()),
    ]
    for cls in _classes_of_loops(task.get_loop()):
        for name in ("run_until_complete", "run_forever"):
            changes.append((cls, name, _stepping_outside(lambda loop: loop)))
    with ExitStack() as stack, guards.others_in_place():
        for owner, name, change in changes:
            function = getattr(owner, name)
            changed = change(function)
            for each in [owner, *_importers(name, function)]:
                stack.callback(setattr, each, name, function)
                setattr(each, name, changed)
        try:
            yield
        finally:
            _main_task = outer


def _classes_of_loops(loop: Any) -> list[Any]:
    """Return the classes of the loops that tests may run: asyncio's, and that of *loop*."""
    return [asyncio.BaseEventLoop] + [type(loop)] * (not isinstance(loop, asyncio.BaseEventLoop))


def _stepping_outside(loop_of: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """Return a decorator for functions that run a loop: synchronous test code may call them.

    *loop_of* returns the loop from the function's first argument.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with outside_loop() if _in_synchronous_test_code() else nullcontext():
                if loop_of is not None:
                    loop = loop_of(args[0])
                    join_tasks_of(loop)
                    for transaction in _lent:
                        if transaction.thread == threading.get_ident():
                            transaction.loop = loop
                _raise_interruption()
                return function(*args, **kwargs)

        return call

    return decorate


_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


def _in_synchronous_test_code() -> bool:
    """Return whether the caller runs bridged in the tests' task, with no coroutine on the stack."""
    if not is_bridged() or asyncio.current_task() is not _main_task:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_flags & _ASYNCHRONOUS:
        frame = frame.f_back
    # The stack ends where the bridged call begins: the coroutine that awaits the call is not on it.
    return frame is None


# The folders of installed third-party code, and the packages in them that work on the run's loop.
_INSTALLED = ("site-packages", "dist-packages")

_OF_THE_LOOP = ("anyio", "asgiref", "django", "psycopg", "psycopg_pool", "uvloop", "pgbackend")


def _hidden_from_libraries(get_running_loop: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``asyncio.get_running_loop`` that hides the loop from libraries in synchronous code.

    Some libraries ask it whether asynchronous code calls them, and then return a coroutine instead
    of a result (GraphQL), or refuse to work.
    """

    @functools.wraps(get_running_loop)
    def call() -> Any:
        caller = sys._getframe(1)
        if _is_library(caller.f_globals) and _in_synchronous_code(caller):
            raise RuntimeError("no running event loop")
        return get_running_loop()

    return call


def _importers(name: str, function: Any) -> list[Any]:
    """Return the installed modules that have imported a function of asyncio by its name."""
    return [
        module
        for module in list(sys.modules.values())
        if getattr(module, "__dict__", {}).get(name) is function and _is_library(module.__dict__)
    ]


def _is_library(names: dict[str, Any]) -> bool:
    top, path = str(names.get("__name__", "")).partition(".")[0], str(names.get("__file__", ""))
    return top not in _OF_THE_LOOP and any(folder in path for folder in _INSTALLED)


def _in_synchronous_code(frame: FrameType | None) -> bool:
    """Return whether *frame* would run in a thread without a loop if the tests were not bridged."""
    if not is_bridged() or asyncio.current_task() is not _main_task:
        return False
    while frame is not None and not frame.f_code.co_flags & _ASYNCHRONOUS:
        frame = frame.f_back
    # A synchronous view, for example, runs here in a request that a test makes in a coroutine.
    return frame is None or frame.f_code is run_bridged.__code__


# The open transactions that currently belong to a loop run by a test.
_lent: list[Transaction] = []


@contextmanager
def outside_loop() -> Iterator[None]:
    """Make no loop run in this thread, so that the block may run another one.

    The other loop's tasks join the open transactions, which nothing else can use meanwhile.
    asyncio's private functions set the running task and loop; there are no public ones.
    """
    global _lent
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    try:
        _lent = [each for each in transactions.get({}).values() if each.open]
        _renew_locks()
        asyncio.tasks._leave_task(loop, task)
        asyncio._set_running_loop(None)
        yield
    finally:
        asyncio._set_running_loop(loop)
        if asyncio.current_task() is None:
            asyncio.tasks._enter_task(loop, task)
        _renew_locks()
        for transaction in _lent:
            transaction.loop = loop
        _lent = []
        _raise_interruption()


# Whether SIGINT came while no loop was running, where KeyboardInterrupt would do harm.
_interrupted = False


def note_interruption() -> None:
    """Have KeyboardInterrupt raised as soon as a loop runs again, or is about to."""
    global _interrupted
    _interrupted = True


def _raise_interruption() -> None:
    global _interrupted
    if _interrupted and threading.current_thread() is threading.main_thread():
        _interrupted = False
        raise KeyboardInterrupt


def _renew_locks() -> None:
    """Let another loop use the connections of `_lent`.

    A lock that tasks have waited for is bound to their loop.
    """
    for transaction in _lent:
        if transaction.state.lease is not None:
            lock: Any = BridgedLock(unread_error)
            transaction.state.lease.face.lock = lock
