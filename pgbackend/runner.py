"""A runner of synchronous functions, bridged on one event loop, for tests and what they expect.

Test code was written for a thread in which no loop runs: it starts loops of its own, leaves
tasks behind, and is stopped by signals. While a `Runner` runs, a few functions of asyncio's and
one of unittest's are replaced so that this still works.
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
from .bridge.ends import last
from .bridge.greenlets import run_bridged
from .testing.adopting import adopting
from .testing.loops import changed_for_tests, note_interruption

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
            stack.enter_context(changed_for_tests(task))
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
            running = asyncio._get_running_loop()
            if running is None and os.getpid() == process:
                # Somewhere in `outside_loop`.
                note_interruption()
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
