"""The invariants of the load test, by the numbers of `faults`: what must hold after all faults."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import connection

from tests.faults.files import open_files
from tests.faults.greenlets import is_busy
from tests.faults.load_bank import TOTAL, Account, Ledger, Transfer

# How long the pool and the server may take to come to rest, seconds.
_REST = 30.0

# Objects that a run may leave behind, for each operation: less than one.
_OBJECTS = 0.25


class Baseline:
    """What a process with an idle pool has of tasks, greenlets, file descriptors and objects."""

    def __init__(self) -> None:
        gc.collect()
        self.tasks = len(asyncio.all_tasks())
        self.descriptors = open_files()
        objects = gc.get_objects()
        self.greenlets = sum(map(is_busy, objects))
        self.objects = len(objects)

    def compare(self, before: Baseline, operations: int) -> Iterator[str]:
        for name in ("tasks", "greenlets", "descriptors"):
            was, now = getattr(before, name), getattr(self, name)
            if was != now:
                yield f"4: {now} {name}, {was} before"
        if self.objects - before.objects > _OBJECTS * max(operations, 4000):
            yield f"4: {self.objects} objects, {before.objects} before {operations} operations"


class Complaints(list[str]):
    """What was said during the run by those who have nobody to raise to."""

    def __init__(self) -> None:
        super().__init__()
        # How many warnings and errors each logger was given. Faults are worth a word.
        self.logged: Counter[str] = Counter()

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect warnings and unraisable exceptions while the block runs, and what is logged."""
        root = logging.getLogger()
        # In place of those that are there: who keeps records keeps requests and tracebacks.
        handlers, root.handlers = root.handlers, [_Log(self)]
        hook = sys.unraisablehook
        sys.unraisablehook = lambda each: self.append(
            f"unraisable: {each.exc_value!r} in {each.object!r}"
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = lambda message, category, *_: self.append(
                    f"{category.__name__}: {message}"
                )
                yield
                gc.collect()
        finally:
            sys.unraisablehook = hook
            root.handlers = handlers

    def of_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Collect what the loop's exception handler is called with."""
        self.append(f"loop: {context['message']}: {context.get('exception')!r}")


class _Log(logging.Handler):
    def __init__(self, complaints: Complaints) -> None:
        super().__init__(logging.WARNING)
        self.complaints = complaints

    def emit(self, record: logging.LogRecord) -> None:
        self.complaints.logged[record.name] += 1
        if record.name == "asyncio":
            self.complaints.append(f"asyncio: {record.getMessage()}")


async def at_rest(server: psycopg.AsyncConnection[Any], name: str, size: int) -> Iterator[str]:
    """Wait until pool and server have come to rest; return what does not hold then."""
    looks: dict[str, Callable[[Any, Any], bool]] = {
        "2: the pool's size, of which available": lambda pool, _: pool[:2] == (size, size),
        "2: tasks waiting for the pool": lambda pool, _: pool[2] == 0,
        "2: backends": lambda _, backends: len(backends) == size,
        "3: backends that are not idle": lambda _, backends: (
            {each[1] for each in backends} <= {"idle"}
        ),
        "3: advisory locks, temporary tables": lambda _, backends: (
            not any(each[2] or each[3] for each in backends)
        ),
    }
    deadline = time.monotonic() + _REST
    while True:
        stats = connection.async_pool.get_stats()
        pool = stats["pool_size"], stats["pool_available"], stats["requests_waiting"]
        cursor = await server.execute(
            "SELECT pid, state,"
            " (SELECT count(*) FROM pg_locks"
            "  WHERE locktype = 'advisory' AND pg_locks.pid = activity.pid),"
            " (SELECT count(*) FROM pg_class WHERE relpersistence = 't'), query"
            " FROM pg_stat_activity activity WHERE application_name = %s",
            [name],
        )
        backends = await cursor.fetchall()
        broken = [words for words, holds in looks.items() if not holds(pool, backends)]
        if not broken or time.monotonic() > deadline:
            return (f"{words}: {pool}, {backends}" for words in broken)
        await asyncio.sleep(0.01)


async def check_ledger(ledger: Ledger) -> Iterator[str]:
    """Compare what tasks were told with the rows that are there; return what differs."""
    committed = {nonce async for nonce in Transfer.objects.values_list("nonce", flat=True)}
    balances = [each async for each in Account.objects.values_list("balance", flat=True)]
    return _differences(ledger, committed, sum(balances))


def _differences(ledger: Ledger, committed: set[int], total: int) -> Iterator[str]:
    if total != TOTAL:
        yield f"1: the sum of all balances is {total}, not {TOTAL}"
    if strangers := committed - ledger.entries.keys():
        yield f"1: {len(strangers)} rows of nobody's"
    for entry in ledger.entries.values():
        there = entry.nonce in committed
        if entry.outcome == "open":
            yield f"6: {entry} has not ended"
        elif entry.outcome == "acknowledged":
            ledger.counts["lost"] += not there
            if not there or entry.hooks != 1:
                yield f"1, 7: {entry} is {'committed' if there else 'lost'}"
        elif entry.outcome == "in doubt":
            ledger.counts["in doubt, committed"] += there
            if entry.hooks > there:
                yield f"7: {entry} is {'committed' if there else 'not committed'}"
        elif there or entry.hooks:
            yield f"1, 7: {entry} is {'committed' if there else 'not committed'}"
