"""Gather: several calls that use the ORM, run together.

Where the running task is in a transaction, or holds a connection otherwise, the calls run in this
task, on that connection: the statements of a transaction go to the server in one message for each
round of them. Elsewhere each call is a task with a connection of its own, and no more run at a time
than the pool has connections. A plain thread, without an event loop, runs one call after another.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections import Counter
from collections.abc import Generator
from contextlib import nullcontext
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Manager, QuerySet
from django.db.models.query import RawQuerySet

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged, run_bridged
from ..errors import NotRun
from ..pool.stopping import shielded
from ..wrapper.attributes import BackendWrapper
from ..wrapper.dispatch import runs_bridged
from .calls import Call, holds_connection, run_as_task, run_here
from .driving import Driven, Driver
from .keys import Read, merged
from .recording import Recorder, rows
from .result import Future, not_awaited_error
from .threads import ThreadDriver, saved


def gather(*subjects: Any, return_exceptions: bool = False, savepoints: bool = False) -> Gathering:
    """Return an object to await, for the list of the results of *subjects*, in their order.

    The *subjects* are futures, and querysets, whose results are lists. Bridged code, and a plain
    thread, may call `Gathering.result` instead of awaiting.

    All calls run to their ends. Then the first exception, in the order of time, is raised; with
    *return_exceptions* each exception is in the list instead of a result. In a transaction a failed
    statement breaks the transaction, as it does in Django, and statements in the same message
    behind it raise `NotRun`. With *savepoints* each statement of a transaction has a savepoint: a
    failed one is undone, and the others are not affected. Other tasks of the transaction wait
    meanwhile, as they do for nested blocks of ``atomic``; so a call must not await one of them.

    Cancelling the task that awaits cancels the calls, and stops their statements in the server.
    """
    return Gathering(
        [future_for(each) for each in subjects],
        return_exceptions=return_exceptions,
        savepoints=savepoints,
    )


def future_for(subject: Any) -> Future[Any]:
    """Return the future that *subject* is, or that of its rows if it is a queryset."""
    if isinstance(subject, Future):
        return subject
    if isinstance(subject, Recorder):
        return subject.submit()
    if not isinstance(subject, QuerySet | RawQuerySet | Manager):
        raise TypeError(f"expected a future or a queryset, not {subject!r}: see future()")
    return rows(subject)


class Gathering:
    """Futures that are run together; made by `gather`."""

    def __init__(
        self, futures: list[Future[Any]], *, return_exceptions: bool, savepoints: bool
    ) -> None:
        self.futures = futures
        self._return_exceptions = return_exceptions
        self._savepoints = savepoints
        # The futures that have failed, in the order of time.
        self._failed: list[Future[Any]] = []
        # The futures that were begun here.
        self._own: list[Future[Any]] = []

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        """Run the futures, and wait for all of them; return their results."""
        yield from self.run().__await__()
        return self._results()

    def result(self, timeout: float | None = None) -> list[Any]:
        """Do what awaiting does, in bridged code or in a plain thread.

        In bridged code, raise TimeoutError after *timeout* seconds, when the calls have been
        cancelled. A plain thread runs the calls itself, and *timeout* does not end them. On an
        event loop outside the bridge, raise `NotAwaitedError`.
        """
        if is_bridged():
            await_bridged(self._run_within(timeout))
        elif _get_running_loop() is not None:
            if not all(future.done() for future in self.futures):
                raise not_awaited_error()
        else:
            self._run_in_thread(timeout)
        return self._results()

    def _run_in_thread(self, timeout: float | None) -> None:
        """Run the futures that have not begun in this thread, and wait for the others."""
        try:
            if own := merged(self.claimed(), self._failed, in_order=True):
                self.drive(own, ThreadDriver)
        except BaseException:
            self._leave_interrupted()
            raise
        for future in self.futures:
            if not future.cancelled():
                future.exception(timeout)

    def parts_in_thread(self) -> list[list[Future[Any]]]:
        """Return the futures that have not begun, in the parts that this thread is to run."""
        own = self.claimed()
        if any(wrapper.in_atomic_block for wrapper in connections.all(initialized_only=True)):
            return [merged(own, self._failed, in_order=True)]
        return [[future] for future in own]

    async def _run_within(self, seconds: float | None) -> None:
        async with asyncio.timeout(seconds):
            await self.run()

    async def run(self) -> None:
        """Begin the futures that have not begun, and wait for all; raise none of their errors."""
        together, apart = self.begin()
        try:
            if together:
                await run_bridged(self.drive, together)
            for future in self.futures:
                if not future.done():
                    await future.wait()
        except BaseException as error:
            # Leave nothing running that was begun here.
            for future in apart:
                future.cancel()
            if apart and not isinstance(error, GeneratorExit):
                await shielded(_all_ended(apart))
            self._leave_interrupted()
            raise

    def leave(self) -> None:
        """Cancel what was begun here and has not ended."""
        for future in self._own:
            future.cancel()
            future.set_cancelled()

    def _leave_interrupted(self) -> None:
        """Cancel what has not ended; nobody is left to ask for the exceptions of the others."""
        self.leave()
        for future in self._own:
            future.outcome()

    def begin(self) -> tuple[list[Future[Any]], list[Future[Any]]]:
        """Begin all futures but the first ones returned, which are to be driven in this task.

        Return also those that were begun as tasks.
        """
        together: list[Future[Any]] = []
        apart: list[Future[Any]] = []
        # Which pool the calls apart use.
        pools: dict[Future[Any], str] = {}
        # For each alias, whether its calls are driven in this task.
        driven: dict[str | None, bool] = {}
        for future in self.claimed():
            call = future.call
            assert isinstance(call, Call)
            try:
                aliases = call.aliases()
                for alias in aliases - driven.keys():
                    driven[alias] = holds_connection(alias) and runs_bridged(alias)
            except Exception as error:
                # The error of a router, or of an unknown alias, is the call's.
                self._failed.append(future)
                future.set_exception(error)
                continue
            if any(map(driven.__getitem__, aliases)):
                together.append(future)
            else:
                named = [alias for alias in aliases if alias is not None]
                apart.append(future)
                pools[future] = min(named, default=DEFAULT_DB_ALIAS)
        together = merged(together, self._failed, in_order=True)
        apart = merged(apart, self._failed, in_order=False)
        self._begin_apart(apart, pools)
        return together, apart

    def claimed(self) -> list[Future[Any]]:
        """Return the futures whose calls are to be run here; begin the others."""
        own: list[Future[Any]] = []
        for future in self.futures:
            if not isinstance(future.call, Call):
                future.start()
            elif future.claim() is not None:
                own.append(future)
        self._own += own
        return own

    def _begin_apart(self, futures: list[Future[Any]], pools: dict[Future[Any], str]) -> None:
        """Start a task for each of *futures*; no more run at a time than their pools can lend to.

        *pools* has their aliases, but those of reads.
        """
        calls: list[tuple[Future[Any], Call, str]] = []
        for future in futures:
            call = future.call
            assert isinstance(call, Call)
            calls.append((future, call, pools[future] if future in pools else call.args[0].db))
        limits: dict[str, Any] = {}
        for alias, number in Counter(alias for *_, alias in calls).items():
            size = pool_size(alias)
            limits[alias] = nullcontext() if number <= size else asyncio.Semaphore(size)
        for future, call, alias in calls:
            run_as_task(future, self._run_within_limit(future, call, limits[alias]))

    async def _run_within_limit(self, future: Future[Any], call: Call, limit: Any) -> Any:
        async with limit:
            try:
                # The transaction may be that of a thread which waits for this loop.
                return await call.run(saved(call) if self._savepoints else call)
            except Exception:
                self._failed.append(future)
                raise

    def drive(self, futures: list[Future[Any]], kind: type[Driver] = Driver) -> None:
        """Run *futures* in this task, and send their statements together."""
        # What was cancelled meanwhile has no call.
        calls = [(future, call) for future in futures if (call := future.call) is not None]
        if len(calls) == 1 and isinstance(calls[0][1], Read) and not self._savepoints:
            # There is no other statement to send with its one, and nobody has it to cancel.
            run_here(*calls[0])
            return
        future_of: dict[Driven, Future[Any]] = {}

        def end(call: Driven) -> None:
            future = future_of.pop(call)
            if call.exception is None:
                future.set_result(call.result)
            elif isinstance(call.exception, asyncio.CancelledError):
                future.set_cancelled()
            else:
                self._failed.append(future)
                future.set_exception(call.exception)

        driver = kind([call for _, call in calls], end, savepoints=self._savepoints)
        for driven, (future, _) in zip(driver.calls, calls, strict=True):
            future_of[driven] = future
            future.stopped_by(driven.cancel)
        try:
            driver.run()
        finally:
            for future in future_of.values():
                future.set_cancelled()

    def _results(self) -> list[Any]:
        """Return the results, and exceptions if they are asked for, or raise the first one."""
        found: list[Any] = []
        failed: list[Future[Any]] = []
        for future in self.futures:
            result, error = future.outcome()
            if error is not None:
                failed.append(future)
            found.append(result if error is None else error)
        if failed and not self._return_exceptions:
            in_time = [future for future in self._failed if future in failed] or failed
            first = next((each for each in in_time if not _was_not_run(each)), in_time[0])
            first.result()
        return found


def _was_not_run(future: Future[Any]) -> bool:
    return not future.cancelled() and isinstance(future.exception(), NotRun)


async def _all_ended(futures: list[Future[Any]]) -> None:
    for future in futures:
        await future.wait()


def pool_size(alias: str) -> int:
    """Return how many connections of *alias* the running loop can lend; 1 if none of a pool."""
    wrapper = connections[alias]
    if isinstance(wrapper, BackendWrapper) and runs_bridged(alias):
        size: int = wrapper.async_pool.max_size
        return size
    return 1
