"""What the pools of a process do, and have done: pgbackend.pools."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.db import DatabaseError, connections

from pgbackend import bridged, pools
from pgbackend.statistics import PoolStatistics, sums_by_alias
from pgbackend.transaction import pinned
from tests.models import Author
from tests.support.wrapper import PID, AddAlias, avalue, until, value


def of(alias: str) -> PoolStatistics:
    """Return the statistics of the only pool of *alias* on a loop."""
    (found,) = (each for each in pools() if each.alias == alias and each.loop is not None)
    return found


@pytest.fixture
def alias(add_alias: AddAlias) -> str:
    return add_alias({"pool": {"max_size": 2, "min_size": 0, "timeout": 30}})


async def test_sizes(alias: str) -> None:
    """Connections are idle or on loan, and tasks wait for them."""
    assert [each for each in pools() if each.alias == alias] == []
    authors = Author.objects.using(alias)
    assert await authors.acount() == 0
    found = of(alias)
    assert (found.size, found.idle, found.on_loan, found.waiting) == (1, 1, 0, 0)
    assert (found.name, found.min_size, found.max_size) == (alias, 0, 2)
    assert found.loop is asyncio.get_running_loop()
    tasks = [asyncio.create_task(avalue("SELECT pg_sleep(0.2)", alias)) for _ in range(5)]
    await until(lambda: of(alias).waiting == 3 and of(alias).on_loan == 2)
    await asyncio.gather(*tasks)
    found = of(alias)
    assert (found.size, found.on_loan, found.waiting) == (2, 0, 0)
    # The first of all found none, and one of the five the idle one.
    assert (found.borrowed, found.queued, found.connects) == (6, 5, 2)
    assert found.wait_seconds > 0.5
    assert found.wait_buckets[-1] == (float("inf"), 5)
    assert [number for _, number in found.wait_buckets] == sorted(
        number for _, number in found.wait_buckets
    )
    assert found.connect_seconds > 0


async def test_statements(alias: str) -> None:
    """Statements count by their way: the short one, cursors, and threads."""
    authors = Author.objects.using(alias)
    for name in "abc":
        await authors.acreate(name=name)
    await authors.aget(name="a")
    before = of(alias)
    assert (before.short, before.cursor, before.thread) == (4, 0, 0)

    def with_cursor() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.executemany("SELECT %s", [[1], [2]])
            with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                list(copy)

    await bridged(with_cursor)()
    assert (of(alias).short, of(alias).cursor) == (4, 3)

    def in_thread() -> None:
        try:
            value("SELECT 1", alias)
            authors.count()
        finally:
            connections[alias].close()

    await asyncio.to_thread(in_thread)
    (threads,) = (each for each in pools() if each.alias == alias and each.loop is None)
    assert threads.thread == 2
    assert (threads.short, threads.cursor) == (0, 0)
    assert (of(alias).short, of(alias).cursor, of(alias).thread) == (4, 3, 0)


async def test_sessions_and_losses(alias: str) -> None:
    """Resets, lost connections and connections that cannot be opened count."""
    async with pinned(alias):
        await avalue("SELECT set_config('work_mem', '3MB', false)", alias)
    await until(lambda: of(alias).resets == 1)
    with pytest.raises(DatabaseError):
        await avalue("SELECT pg_terminate_backend(pg_backend_pid())", alias)
    await until(lambda: of(alias).discarded == 1)
    assert of(alias).connect_errors == 0


async def test_found_dead(alias: str) -> None:
    """Idle connections that the server has ended count when that is found."""
    pid = await avalue(PID, alias)
    assert await avalue(f"SELECT pg_terminate_backend({pid}, 10000)")
    assert await avalue(PID, alias) != pid
    assert of(alias).discarded == 1


def test_of_all_loops(alias: str) -> None:
    """There is one for each loop, seen from any thread; what ended pools counted is kept."""
    seen: list[list[Any]] = []

    async def work() -> None:
        await Author.objects.using(alias).acount()
        other = threading.Thread(
            target=lambda: seen.append([each for each in pools() if each.alias == alias])
        )
        other.start()
        other.join()
        assert sums_by_alias()[alias]["short"] == len(seen)

    for _ in range(3):
        asyncio.run(work())
    assert [[each.short for each in found] for found in seen] == [[1]] * 3
    assert [each for each in pools() if each.alias == alias] == []
    assert alias in sums_by_alias()
    assert (sums_by_alias()[alias]["short"], sums_by_alias()[alias]["borrowed"]) == (3, 3)
