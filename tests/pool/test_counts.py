"""What a pool counts; how it is put together is in tests/test_statistics.py."""

from __future__ import annotations

import asyncio
import threading

import pytest
from django.db import OperationalError, connections

from pgbackend.pool import counts
from pgbackend.pool.counts import BOUNDS, Counts, in_threads
from tests.support.wrapper import AddAlias, avalue, until, use_wrapper


def test_classes_of_waits() -> None:
    """A wait is in the class of the first bound that it does not exceed."""
    found = Counts()
    for seconds in (0, BOUNDS[0], BOUNDS[0] * 1.01, 1e9):
        found.waited(seconds)
    assert found.waits == [2, 1, *[0] * (len(BOUNDS) - 2), 1]


def test_threads_lose_nothing(add_alias: AddAlias) -> None:
    """Threads that count at once lose nothing of each other."""
    alias = add_alias()
    threads = [
        threading.Thread(target=lambda: [counts.count_in_thread(alias) for _ in range(10_000)])
        for _ in range(4)
    ]
    before = in_threads()[alias]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert in_threads()[alias] - before == 40_000


async def test_observers() -> None:
    """Who looks is told of each wait, and of each connection that was made."""
    told: list[tuple[str, str]] = []

    def observe(pool: object, what: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        told.append((getattr(pool, "alias", ""), what))

    counts.observers.append(observe)
    try:
        use_wrapper(options={"pool": {"max_size": 1, "timeout": 30}})
        await asyncio.gather(*(avalue("SELECT pg_sleep(0.01)") for _ in range(3)))
    finally:
        counts.observers.remove(observe)
    assert told.count(("default", "create")) == 1
    assert told.count(("default", "wait")) >= 2


async def test_cancelled_and_timed_out() -> None:
    """A statement that is stopped in the server counts, and so does a task that waits in vain."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1, "timeout": 0.05}})
    task = asyncio.create_task(avalue("SELECT pg_sleep(60)"))
    await until(lambda: "default" in connections.settings and wrapper.async_pool.counts.cursor)
    with pytest.raises(OperationalError, match="came free"):
        await avalue("SELECT 1")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    found = wrapper.async_pool.counts
    assert (found.timeouts, found.cancelled) == (1, 1)
