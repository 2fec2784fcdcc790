"""What pools count beside psycopg_pool's ``get_stats()``: numbers that only grow.

Each is an addition where the thing happens, which costs a statement nothing that can be measured.
They are read, and made into something, by `pgbackend.statistics`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from threading import get_ident
from typing import Any

# The upper bounds of the classes of waits for a connection, seconds; the last class has none.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counts:
    """The counts of one pool."""

    __slots__ = ("cancelled", "cursor", "dead", "kept", "resets", "short", "timeouts", "waits")

    def __init__(self) -> None:
        # Statements by the short way of `sql.direct`, and by cursors.
        self.short = 0
        self.cursor = 0
        # Sessions that were reset, alone or with the next statement.
        self.resets = 0
        # Statements that were stopped in the server after a cancellation or a time-out.
        self.cancelled = 0
        # Connections that were found dead while they were idle, except by psycopg_pool.
        self.dead = 0
        # Tasks that waited for a connection in vain.
        self.timeouts = 0
        # How many waits there were in each class of `BOUNDS`.
        self.waits = [0] * (len(BOUNDS) + 1)
        # Whether the counts have been added to `ended`.
        self.kept = False

    def waited(self, seconds: float) -> None:
        """Count a task that has waited for a connection."""
        self.waits[bisect_left(BOUNDS, seconds)] += 1


# Functions that are called with a pool, "wait" or "create", and how long that took, in seconds.
observers: list[Callable[[Any, str, float], None]] = []


def observe(pool: Any, what: str, seconds: float) -> None:
    """Tell those who look how long a wait or the making of a connection took."""
    for each in observers:
        each(pool, what, seconds)


# Statements in threads, on Django's own path, by alias and thread: a thread adds to its own
# numbers alone, since an addition is no single step.
_in_threads: defaultdict[tuple[str, int], int] = defaultdict(int)


def count_in_thread(alias: str) -> None:
    """Count a statement of *alias* in the running thread."""
    _in_threads[alias, get_ident()] += 1


def in_threads() -> Counter[str]:
    """Return how many statements ran in threads, by alias."""
    found: Counter[str] = Counter()
    for (alias, _), number in list(_in_threads.items()):
        found[alias] += number
    return found


# The sums of the pools that were closed, by alias and name of the count: what only grows must not
# shrink when a pool is closed.
ended: defaultdict[str, Counter[str]] = defaultdict(Counter)


def totals(pool: Any) -> Counter[str]:
    """Return everything that *pool* has counted, by psycopg_pool and by itself."""
    counts: Counts = pool.counts
    stats: dict[str, int] = pool.get_stats()
    found = Counter(
        borrowed=stats.get("requests_num", 0),
        queued=stats.get("requests_queued", 0),
        wait_ms=stats.get("requests_wait_ms", 0),
        timeouts=counts.timeouts,
        connects=stats.get("connections_num", 0),
        connect_ms=stats.get("connections_ms", 0),
        connect_errors=stats.get("connections_errors", 0),
        discarded=stats.get("connections_lost", 0) + stats.get("returns_bad", 0) + counts.dead,
        cancelled=counts.cancelled,
        resets=counts.resets,
        short=counts.short,
        cursor=counts.cursor,
    )
    found.update({f"waits_{place}": number for place, number in enumerate(counts.waits)})
    return found


def keep(pool: Any) -> None:
    """Add the counts of *pool*, which was closed, to those of its alias."""
    if not pool.counts.kept:
        pool.counts.kept = True
        ended[pool.alias].update(totals(pool))
