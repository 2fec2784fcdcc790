"""A runner of synchronous functions, bridged on one event loop, for tests and what they expect.

Test code was written for a thread in which no loop runs: it starts loops of its own, leaves
tasks behind, and is stopped by signals. While a `Runner` runs, a few functions of asyncio's and
one of unittest's are replaced so that this still works.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import sys
import threading
import unittest
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import copy_context
from types import FrameType, TracebackType, coroutine
from typing import Any, ParamSpec, TypeVar

from .bridge.greenlets import await_bridged, is_bridged, last, run_bridged
from .patches import guards
from .pool.face import BridgedLock
from .pool.pool import is_of_pool
from .tasks.adopting import adopt_on, adopting
from .tasks.membership import Transaction, transactions

P = ParamSpec("P")
T = TypeVar("T")


class Runner:
    """What `asyncio.Runner` is for coroutines, for synchronous functions that run bridged.

    All calls of `run` share one event loop and one context, so that a connection's wrapper
    that one of them finds is the next one's, too.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context = copy_context()
        # What is to be raised in the function instead of the cancellation that goes there.
        self._error: BaseException | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs on the loop, the pools with it, and close the loop."""
        self._runner.close()

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* bridged and return its result.

        What a signal handler raises is raised in the function, also while that waits: the
        KeyboardInterrupt of Ctrl-C, the failure of a time-out.

        Raise RuntimeError if an event loop runs in this thread already.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "tests cannot be run in the bridge from a running event loop. Call the runner"
                " from synchronous code; or, to run the tests on that loop, by `await"
                " pgbackend.bridged(...)`; or switch the bridge off by --no-bridge"
            )
        self._error = None
        loop = self._runner.get_loop()
        with ExitStack() as stack:
            stack.enter_context(adopting(loop, self._context))
            task = loop.create_task(
                self._main(run_bridged(_lasting, function, args, kwargs)), context=self._context
            )
            stack.enter_context(self._handling_sigint(task))
            stack.enter_context(_changed_for_tests(task))
            while True:
                try:
                    return loop.run_until_complete(task)
                except BaseException as error:
                    if self._error is not None:
                        raise self._error from error
                    if task.done():
                        raise
                    # It came out of the loop itself, where a signal handler raised it.
                    self._throw(error, task)

    def _throw(self, error: BaseException, task: asyncio.Task[Any]) -> None:
        self._error = error
        task.cancel()

    async def _main(self, coro: Coroutine[Any, Any, T]) -> T:
        return await self._drive(coro)

    @coroutine
    def _drive(self, coro: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Drive the bridged call, with `_error` in place of the cancellation that brings it.

        A test that sees CancelledError fails and the next one begins; KeyboardInterrupt ends
        the run.
        """
        step = functools.partial(coro.send, None)
        while True:
            try:
                waiting = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                value = yield waiting
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as error:
                if self._error is not None and isinstance(error, asyncio.CancelledError):
                    error, self._error = self._error, None
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()
                step = functools.partial(coro.throw, error)
            else:
                step = functools.partial(coro.send, value)

    @contextmanager
    def _handling_sigint(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """Take SIGINT over from Python, whose handler raises KeyboardInterrupt wherever it is.

        In the middle of the loop, the callback it was about to run would be lost.
        """
        loop, process = task.get_loop(), os.getpid()

        def interrupt(signum: int, frame: FrameType | None) -> None:
            global _interrupted
            running = asyncio._get_running_loop()
            if running is None and os.getpid() == process:
                # Somewhere in `outside_loop`.
                _interrupted = True
            elif running is not loop or self._error is not None or _runs_in(task):
                raise KeyboardInterrupt
            else:
                # In another task, a pool's for one, the exception would be that task's.
                self._throw(KeyboardInterrupt(), task)
                # The loop may be waiting for a socket: the cancellation is a callback.
                loop.call_soon_threadsafe(lambda: None)

        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            if ours and signal.getsignal(signal.SIGINT) is interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)


def _runs_in(task: asyncio.Task[Any]) -> bool:
    return is_bridged() and asyncio.current_task() is task


def _lasting(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    # What tests set in a session lives until they close the connection, as in a plain run.
    last()
    return function(*args, **kwargs)


# Tests on a loop that runs already

# The task whose synchronous code may run a loop: that of `Runner.run`.
_main_task: asyncio.Task[Any] | None = None


@contextmanager
def _changed_for_tests(task: asyncio.Task[Any]) -> Iterator[None]:
    """Let the tests of *task* find a running loop as if it were none, as far as that goes."""
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
    """Return a decorator of functions that run a loop, so that synchronous test code may call them.

    *loop_of* returns the loop from the function's first argument.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with outside_loop() if _in_synchronous_test_code() else nullcontext():
                if loop_of is not None:
                    loop = loop_of(args[0])
                    adopt_on(loop)
                    for transaction in _lent:
                        if transaction.thread == threading.get_ident():
                            transaction.loop = loop
                _raise_interruption()
                return function(*args, **kwargs)

        return call

    return decorate


_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


def _in_synchronous_test_code() -> bool:
    """Return whether the caller runs bridged in the tests' task, without a coroutine around."""
    if not is_bridged() or asyncio.current_task() is not _main_task:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_code.co_flags & _ASYNCHRONOUS:
        frame = frame.f_back
    # The stack ends where the bridged call begins: what awaits that is not on it.
    return frame is None


# Where third-party code is installed, and which of it works on the run's loop.
_INSTALLED = ("site-packages", "dist-packages")
_OF_THE_LOOP = ("anyio", "asgiref", "django", "psycopg", "psycopg_pool", "uvloop", __package__)


def _hidden_from_libraries(get_running_loop: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``asyncio.get_running_loop`` as synchronous code of a plain run has it, for libraries.

    Some ask it to learn whether they are called by asynchronous code, and then hand out a coroutine
    instead of a result (GraphQL), or refuse to work.
    """

    @functools.wraps(get_running_loop)
    def call() -> Any:
        caller = sys._getframe(1)
        if _is_library(caller.f_globals) and _in_synchronous_code(caller):
            raise RuntimeError("no running event loop")
        return get_running_loop()

    return call


def _importers(name: str, function: Any) -> list[Any]:
    """Return the installed modules that have imported a function of asyncio's by its name."""
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
    # A synchronous view, for one, of a request that a test makes in a coroutine.
    return frame is None or frame.f_code is run_bridged.__code__


# The open transactions that belong, meanwhile, to a loop run by a test.
_lent: list[Transaction] = []


@contextmanager
def outside_loop() -> Iterator[None]:
    """Let no loop be running in this thread: in the block, another one may be run.

    That loop's tasks join the open transactions, which nothing else can use meanwhile.
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


def _raise_interruption() -> None:
    global _interrupted
    if _interrupted and threading.current_thread() is threading.main_thread():
        _interrupted = False
        raise KeyboardInterrupt


def _renew_locks() -> None:
    """Let the connections of `_lent` be used on another loop.

    A lock of asyncio's that was once waited for belongs to the loop of that time.
    """
    for transaction in _lent:
        if transaction.state.lease is not None:
            lock: Any = BridgedLock()
            transaction.state.lease.face.lock = lock


@contextmanager
def no_tasks_left() -> Iterator[None]:
    """Cancel, at the end of the block, what was started in it and still runs.

    Each test of a plain run has a task and a loop of its own, whose end does that. The tasks of
    the pools are not the test's.
    """
    before = asyncio.all_tasks() if is_bridged() else set()
    try:
        yield
    finally:
        if is_bridged():
            await_bridged(_forget_cancellations())
            left = [task for task in asyncio.all_tasks() - before if not is_of_pool(task)]
            if left:
                await_bridged(_cancel(left))


async def _forget_cancellations() -> None:
    """Undo what a test did that cancelled its own task, which is the next test's, too."""
    task = asyncio.current_task()
    assert task is not None
    if task.cancelling():
        # If the test did not wait for anything any more, its cancellation is still to come.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.uncancel():
            pass


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task, result in zip(
        tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True
    ):
        if isinstance(result, Exception):
            asyncio.get_running_loop().call_exception_handler(
                {
                    "message": "a task left by a test failed when it was cancelled",
                    "exception": result,
                    "task": task,
                }
            )
