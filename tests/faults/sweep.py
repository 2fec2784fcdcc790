"""The cancel sweep: an operation is ended at each of its suspension points, then at each pair.

A task is suspended wherever what it runs waits. `sweep` counts how often that is for an operation,
and repeats it once for each point and each pair of points with a cancellation there: *early*, as it
begins to wait, and *late*, together with what it waited for. `sweep_closing` does so for each point
with its coroutine closed there, in each of the ways of `ENDS`. After each the invariants must hold.

What was found is in `report.reports`, which pytest's terminal summary prints. Two variables of the
environment make a sweep larger:

``PGBACKEND_SWEEP_ROUNDS``   how often each sweep is repeated, 1
``PGBACKEND_SWEEP_SLICES``   1: replies arrive byte by byte, which makes many more points; 0
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import coroutine
from typing import Any

from django.db import connection, connections, transaction

from pgbackend import bridged
from tests.faults.files import open_files
from tests.faults.greenlets import is_busy
from tests.faults.report import Report, reports
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.proxy import Proxy
from tests.support.server import NAME, Server
from tests.support.wrapper import until, use_wrapper

ROUNDS = int(os.environ.get("PGBACKEND_SWEEP_ROUNDS", "1"))
SLICES = int(os.environ.get("PGBACKEND_SWEEP_SLICES", "0"))

# Seconds within which an operation must end after it was cancelled, and all be as it was.

KEPT = ["kept 0", "kept 1", "kept 2", "kept 3", "kept 4"]


async def nothing() -> None:
    pass


@dataclass(frozen=True)
class Operation:
    """What is swept, and what may be in the table of authors after it beside `KEPT`."""

    work: Callable[[], Awaitable[Any]]
    # The last of these is what is there when it was not cancelled.
    written: tuple[list[str], ...] = ([],)
    # Changes to the alias's settings; see `make_wrapper`.
    settings: dict[str, Any] = field(default_factory=dict)
    # In the same task, not cancelled.
    before: Callable[[], Awaitable[None]] = nothing
    after: Callable[[], Awaitable[None]] = nothing


# What nobody but this list refers to, in the ways of `ENDS`.
Held = list[Coroutine[Any, Any, Any]]


async def _close(held: Held) -> None:
    held.pop().close()


async def _drop(held: Held) -> None:
    held.clear()


async def _drop_in_a_thread(held: Held) -> None:
    await asyncio.get_running_loop().run_in_executor(None, held.clear)


async def _drop_on_another_loop(held: Held) -> None:
    await asyncio.get_running_loop().run_in_executor(None, asyncio.run, _drop(held))


# How a coroutine is ended that is not cancelled. One that is dropped is closed by the interpreter.
ENDS: dict[str, Callable[[Held], Coroutine[Any, Any, None]]] = {
    "closed": _close,
    "dropped": _drop,
    "dropped in a thread": _drop_in_a_thread,
    "dropped on another loop": _drop_on_another_loop,
}


class Interrupted:
    """A coroutine whose task is cancelled at some of its suspension points, counted from 1.

    Or which is ended at the first of them in a way of `ENDS`.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        points: tuple[int, ...] = (),
        *,
        late: bool = False,
        end: str | None = None,
    ) -> None:
        self.work = work
        self.points = points
        self.late = late
        self.end = end
        self.ended = False
        # How often it was suspended, and cancelled.
        self.count = 0
        self.cancelled = 0

    async def run(self) -> Any:
        """Run it to its end, in the running task."""
        return await self._steps()

    @coroutine
    def _steps(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self.work.send
        argument: Any = None
        while True:
            try:
                waiting = step(argument)
            except StopIteration as stop:
                return stop.value
            self.count += 1
            here = self.count in self.points
            if here and self.end is not None:
                held, step = [self.work], nothing
                del self.work
                self.ended = True
                yield from ENDS[self.end](held).__await__()
                return None
            late = here and self.late and waiting is not None
            if late:
                # Called before the task's own callback, which was not added yet.
                waiting.add_done_callback(self._cancel)
            elif here:
                self._cancel()
            try:
                argument, step = (yield waiting), self.work.send
            except BaseException as error:
                argument, step = error, self.work.throw
            if late:
                waiting.remove_done_callback(self._cancel)

    def _cancel(self, done: Any = None) -> None:
        task = self.task
        self.cancelled += task.cancel()

    @property
    def task(self) -> asyncio.Task[Any]:
        """The task that runs it."""
        task = self._task
        assert task is not None
        return task

    def start(self) -> None:
        """Note that the running task is the one to cancel."""
        self._task = asyncio.current_task()


class Noise:
    """What must not happen meanwhile, and is told to nobody who could catch it."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Be the loop's exception handler."""
        self.heard.append(f"exception handler: {context['message']}: {context.get('exception')!r}")

    def unraisable(self, args: Any) -> None:
        """Be `sys.unraisablehook`."""
        self.heard.append(f"unraisable: {args.exc_value!r} in {args.object!r}")

    def log(self, record: logging.LogRecord) -> bool:
        """Be a filter of the connections' logger: none that works is given up."""
        self.heard.append(f"log: {record.getMessage()}")
        return True


@contextmanager
def listening() -> Iterator[Noise]:
    """Listen to what the loop, the interpreter and the connections complain of."""
    noise = Noise()
    loop = asyncio.get_running_loop()
    handler, hook = loop.get_exception_handler(), sys.unraisablehook
    logger = logging.getLogger("pgbackend.connection")
    loop.set_exception_handler(noise.exception)
    sys.unraisablehook = noise.unraisable
    logger.addFilter(noise.log)
    # What was there before cannot be garbage of the block's.
    gc.collect()
    gc.freeze()
    try:
        yield noise
    finally:
        gc.collect()
        logger.removeFilter(noise.log)
        sys.unraisablehook = hook
        loop.set_exception_handler(handler)


async def sweep(name: str, operation: Operation, server: Server) -> Report:
    """Cancel *operation* at each suspension point and at each pair; return what was found.

    On the running loop, with its task factory. It is not raised if an invariant is broken.
    """
    return await _sweep(name, operation, server, _sweep_once)


async def _sweep(
    name: str,
    operation: Operation,
    server: Server,
    once: Callable[[Operation, Server, Report], Awaitable[None]],
) -> Report:
    report = Report(name)
    reports.append(report)
    with listening() as noise:
        async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
            proxy.slices = SLICES
            changes = {"PORT": proxy.port, "HOST": "127.0.0.1"} if SLICES else {}
            use_wrapper(**changes, **operation.settings)
            # What a loop opens with its first socket stays open.
            await Author.objects.aexists()
            await bridged(connection.close_pool)()
            await until(lambda: not proxy.links)
            before = census()
            await Author.objects.aexists()
            for _ in range(ROUNDS):
                await once(operation, server, report)
            await bridged(connection.close_pool)()
            await until(lambda: not proxy.links)
            after = census()
        server.wait_for_backends(0)
        gc.collect()
        await asyncio.sleep(0)
        if after != before:
            report.broken.append(f"tasks, greenlets, files: {after}, before {before}")
    report.broken += noise.heard
    return report


def census() -> tuple[int, int, int]:
    """Return how many tasks, suspended greenlets and open files there are."""
    suspended = sum(map(is_busy, gc.get_objects()))
    return len(asyncio.all_tasks()), suspended, open_files()


async def sweep_closing(name: str, operation: Operation, server: Server) -> Report:
    """Do what `sweep` does, with *operation* closed at each suspension point, in each way."""
    return await _sweep(name, operation, server, _close_once)


async def _close_once(operation: Operation, server: Server, report: Report) -> None:
    report.points = (await _once(operation, server, report)).count
    for end in ENDS:
        for point in range(1, report.points + 1):
            each = await _once(operation, server, report, (point,), end=end)
            if not each.ended or report.broken:
                break
            report.closed += 1


async def _sweep_once(operation: Operation, server: Server, report: Report) -> None:
    report.points = (await _once(operation, server, report)).count
    for late in (False, True):
        for first in range(1, report.points + 1):
            each = await _once(operation, server, report, (first,), late=late)
            if not each.cancelled or report.broken:
                # A connection that was kept or made anew makes a few points more or less. What is
                # broken stays so, and is waited for each time.
                break
            report.once += 1
            # Its clean-up has points of its own.
            for second in range(first + 1, each.count + 1):
                pair = await _once(operation, server, report, (first, second), late=late)
                if pair.cancelled < 2 or report.broken:
                    break
                report.twice += 1


async def _once(
    operation: Operation,
    server: Server,
    report: Report,
    points: tuple[int, ...] = (),
    *,
    late: bool = False,
    end: str | None = None,
) -> Interrupted:
    """Run the operation, ended at *points*, in a task of its own; check the invariants."""
    server.all("DELETE FROM tests_author")
    server.all("INSERT INTO tests_author (name) SELECT unnest(%s::text[])", KEPT)

    async def work() -> None:
        await operation.work()

    each = Interrupted(work(), points, late=late, end=end)
    broken: list[str] = []
    outcome: list[str] = []

    async def run() -> None:
        each.start()
        await operation.before()
        try:
            await each.run()
        except asyncio.CancelledError:
            outcome.append("cancelled")
        except Exception as error:
            outcome.append(repr(error))
        else:
            outcome.append("closed" if each.ended else "ended")
        while each.task.uncancel():
            pass
        await operation.after()
        # Blocks that were closed end with the task's next use of the transaction.
        await Author.objects.aexists()
        if connection.in_atomic_block or connection.run_on_commit:
            broken.append("the state of the transaction was not reset")
        async with transaction.atomic():
            await Author.objects.acreate(name="next")

    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.create_task(run())
    except Exception as error:
        broken.append(f"the next transaction: {error!r}")
    right = "cancelled" if each.cancelled else "closed" if each.ended else "ended"
    if outcome != [right]:
        broken.append(f"outcome {outcome} after {each.cancelled} cancellations")
    with suppress(TimeoutError):
        await until(lambda: _settled(server))
    broken += _left(server)
    names = [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]
    allowed = operation.written if each.cancelled or each.ended else operation.written[-1:]
    if names not in [sorted([*KEPT, *written, "next"]) for written in allowed]:
        broken.append(f"rows {names}")
    how = end or ("cancelled late" if late else "cancelled early")
    report.broken += [f"{how} at {points} of {each.count}: {words}" for words in broken]
    return each


def _settled(server: Server) -> bool:
    return not _left(server)


def _left(server: Server) -> list[str]:
    """Return what of the pool, and of the server, is not as it is when nobody works."""
    left = []
    stats = connections["default"].async_pool.get_stats()
    if stats["pool_size"] != stats["pool_available"] or stats["pool_resetting"]:
        left.append(f"connections on loan: {stats}")
    if stats["requests_waiting"]:
        left.append(f"{stats['requests_waiting']} tasks wait")
    busy = server.all(
        "SELECT state, query FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'",
        NAME,
    )
    if busy:
        left.append(f"busy backends: {busy}")
    return left
