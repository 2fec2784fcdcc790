"""A runner of synchronous functions, bridged on one event loop, for tests.

Test code was written for a thread in which no loop runs: it starts loops of its own, leaves tasks
behind, and is stopped by signals. While a `Runner` runs, a few functions of asyncio and one of
unittest are replaced so that this still works.

The replacements are in the room `testing`. Projects use a `Runner` through `test`, Django's test
runner, or `pytest_plugin`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from types import FrameType, TracebackType, coroutine
from typing import Any, ParamSpec, TypeVar

from .bridge.current import is_bridged
from .bridge.ends import begin_scope
from .bridge.greenlets import run_bridged
from .testing.loops import changed_for_tests, note_interruption
from .testing.tests_transaction import joining_tests_transaction

P = ParamSpec("P")
T = TypeVar("T")


class Runner:
    """The counterpart of `asyncio.Runner` for synchronous functions that run bridged.

    All calls of `run` share one event loop and one context, so that one call's connection wrapper
    is also the next call's.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context = copy_context()
        # The exception to raise in the function instead of the cancellation that is sent there.
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
        """Cancel all tasks on the loop, including the pools', and close the loop."""
        self._runner.close()

    def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run *function* bridged and return its result.

        An exception that a signal handler raises is raised in the function, even while the function
        waits: the KeyboardInterrupt of Ctrl-C, or the failure of a time-out.

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
            stack.enter_context(joining_tests_transaction(loop, self._context))
            task = loop.create_task(
                self._main(run_bridged(_in_scope, function, args, kwargs)), context=self._context
            )
            stack.enter_context(self._handling_sigint(task))
            stack.enter_context(changed_for_tests(task))
            while True:
                try:
                    return loop.run_until_complete(task)
                except BaseException as error:
                    if self._error is not None:
                        raise self._error from error
                    if task.done():
                        raise
                    # A signal handler raised the exception in the loop itself.
                    self._throw(error, task)

    def _throw(self, error: BaseException, task: asyncio.Task[Any]) -> None:
        self._error = error
        task.cancel()

    async def _main(self, coro: Coroutine[Any, Any, T]) -> T:
        return await self._drive(coro)

    @coroutine
    def _drive(self, coro: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Drive the bridged call; raise `_error` in place of the cancellation that brings it.

        A test that gets CancelledError fails, and the next one begins; KeyboardInterrupt ends the
        run.
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
        """Take SIGINT over from Python, whose handler raises KeyboardInterrupt anywhere.

        Raised in the middle of the loop, it would lose the callback that the loop was about to run.
        """
        loop, process = task.get_loop(), os.getpid()

        def interrupt(signum: int, frame: FrameType | None) -> None:
            running = asyncio._get_running_loop()
            if running is None and os.getpid() == process:
                # The interrupted code is somewhere in `outside_loop`.
                note_interruption()
            elif running is not loop or self._error is not None or _runs_in(task):
                raise KeyboardInterrupt
            else:
                # Another task runs, for example a pool's, and must not get the exception.
                self._throw(KeyboardInterrupt(), task)
                # Wake the loop, which may be waiting for a socket: the cancellation is a callback.
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


def _in_scope(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    # As in a plain run, settings that tests make in a session live until they close the connection.
    begin_scope()
    return function(*args, **kwargs)
