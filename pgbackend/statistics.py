"""What the pools of this process do, and have done: `pools`."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from .pool.counts import BOUNDS, ended, in_threads, totals
from .pool.open_pools import pools_of_loops
from .wrapper.attributes import BackendWrapper

__all__ = ["PoolStatistics", "pools"]


@dataclass(frozen=True, kw_only=True)
class PoolStatistics:
    """The sizes of a pool now, and what it has counted since it was opened."""

    alias: str
    # The name of the pool: the alias, unless ``OPTIONS["pool"]["name"]`` says another.
    name: str
    # The event loop that the pool belongs to; None for the threads of Django's own path.
    loop: AbstractEventLoop | None = field(compare=False, repr=False)
    min_size: int
    max_size: int
    # The connections there are, being opened included: idle ones, those that tasks have, and those
    # whose session is being reset.
    size: int
    idle: int
    on_loan: int
    resetting: int
    # How many tasks wait for a connection.
    waiting: int
    # How many connections were borrowed, and how many tasks had to wait for one: for how long, in
    # seconds, and in vain.
    borrowed: int
    queued: int
    wait_seconds: float
    timeouts: int
    # Pairs of seconds and how many waits were at most as long; the last, of infinity, has all.
    wait_buckets: tuple[tuple[float, int], ...]
    # How many connections were opened, how long that took, in seconds, and how often it failed.
    connects: int
    connect_seconds: float
    connect_errors: int
    # How many connections were lost or found dead, or closed since they were of no use any more.
    discarded: int
    # How many statements were stopped in the server, for a task that was cancelled for example.
    cancelled: int
    # How many sessions were reset.
    resets: int
    # How many statements were sent, by the short way of the ORM's own, by cursors, and in threads.
    short: int
    cursor: int
    thread: int


def pools() -> list[PoolStatistics]:
    """Return the statistics of each open pool of this process, and of threads for each alias.

    There is a pool for each alias and event loop. Those of threads have ``loop`` None: the sizes
    are those of Django's own pool, or 0 if ``OPTIONS["pool"]`` asks for none. May be called in any
    thread; numbers that change meanwhile may be of different moments.
    """
    found = [_of(each, loop) for loop, each in pools_of_loops()]
    found += [_of_threads(alias, number) for alias, number in sorted(in_threads().items())]
    return sorted(found, key=lambda each: each.alias)


def pools_by_alias() -> dict[str, list[PoolStatistics]]:
    """Return the statistics of `pools`, by alias."""
    found: dict[str, list[PoolStatistics]] = {}
    for each in pools():
        found.setdefault(each.alias, []).append(each)
    return found


def sums_by_alias() -> dict[str, Counter[str]]:
    """Return what all pools have counted since the process began, closed ones too, by alias.

    The aliases are those that have, or had, a pool, or statements in threads.
    """
    found = {alias: Counter(counts) for alias, counts in list(ended.items())}
    for _, pool in pools_of_loops():
        total = found.setdefault(pool.alias, Counter())
        if not pool.counts.kept:
            total.update(totals(pool))
    for alias, number in in_threads().items():
        found.setdefault(alias, Counter())["thread"] = number
    return dict(sorted(found.items()))


def _of(pool: Any, loop: AbstractEventLoop) -> PoolStatistics:
    stats = pool.get_stats()
    size, idle, resetting = stats["pool_size"], stats["pool_available"], stats["pool_resetting"]
    return PoolStatistics(
        alias=pool.alias,
        name=pool.name,
        loop=loop,
        min_size=stats["pool_min"],
        max_size=stats["pool_max"],
        size=size,
        idle=idle,
        on_loan=max(0, size - idle - resetting),
        resetting=resetting,
        waiting=stats["requests_waiting"],
        **_counted(totals(pool)),
    )


def _of_threads(alias: str, number: int) -> PoolStatistics:
    pool = BackendWrapper._connection_pools.get(alias)
    stats = {} if pool is None else pool.get_stats()
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    counts = Counter(
        borrowed=stats.get("requests_num", 0),
        queued=stats.get("requests_queued", 0),
        wait_ms=stats.get("requests_wait_ms", 0),
        timeouts=stats.get("requests_errors", 0),
        connects=stats.get("connections_num", 0),
        connect_ms=stats.get("connections_ms", 0),
        connect_errors=stats.get("connections_errors", 0),
        discarded=stats.get("connections_lost", 0) + stats.get("returns_bad", 0),
        thread=number,
    )
    return PoolStatistics(
        alias=alias,
        name=alias,
        loop=None,
        min_size=stats.get("pool_min", 0),
        max_size=stats.get("pool_max", 0),
        size=size,
        idle=idle,
        on_loan=size - idle,
        resetting=0,
        waiting=stats.get("requests_waiting", 0),
        **_counted(counts),
    )


def _counted(counts: Counter[str]) -> dict[str, Any]:
    """Return *counts* by the names of `PoolStatistics`."""
    names = "borrowed queued timeouts connects connect_errors discarded cancelled resets"
    return {
        "wait_seconds": counts["wait_ms"] / 1000,
        "connect_seconds": counts["connect_ms"] / 1000,
        "wait_buckets": buckets(counts),
        **{name: counts[name] for name in f"{names} short cursor thread".split()},
    }


def buckets(counts: Counter[str]) -> tuple[tuple[float, int], ...]:
    """Return the waits among *counts* as pairs of a bound and how many were at most as long."""
    bounds = (*BOUNDS, float("inf"))
    numbers = accumulate(counts[f"waits_{place}"] for place in range(len(bounds)))
    return tuple(zip(bounds, numbers, strict=True))
