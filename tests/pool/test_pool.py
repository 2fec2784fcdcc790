"""Pools: what an exhausted one does, who shares one, and how one is closed."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connections

from pgbackend import bridged
from pgbackend.bridge.greenlets import run_bridged
from tests.models import Author
from tests.support.limits import AT_ONCE
from tests.support.pool import PID, Held, at_once, settled, waiting
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import make_wrapper, run

# Exhaustion


async def test_exhausted_pool_times_out() -> None:
    """With all connections on loan a query fails after ``timeout``, naming pool and settings."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "timeout": 0.2, "name": "small"}})
    async with Held(wrapper):
        started = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            await run(wrapper, PID)
        assert 0.2 <= time.monotonic() - started < AT_ONCE
    for words in (
        "'small'",
        "0.2 s",
        "all 1 are",
        "'timeout'",
        "'max_size'",
        "DATABASES['default']",
    ):
        assert words in str(caught.value)
    assert (await settled(wrapper))["pool_size"] == 1
    assert await run(wrapper, "SELECT 1") == 1


async def test_too_many_waiting_is_refused_at_once() -> None:
    """Beyond ``max_waiting`` a query fails at once, and those that wait are served later."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "max_waiting": 2}})
    async with Held(wrapper):
        waiters = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(2)]
        await waiting(wrapper, 2)
        with at_once(), pytest.raises(OperationalError, match="max_waiting") as caught:
            await run(wrapper, PID)
        for words in ("'default'", "max_size 1", "2 tasks", "DATABASES['default']"):
            assert words in str(caught.value)
    assert await asyncio.gather(*waiters) == [1, 1]


async def test_many_tasks_stay_within_max_size(server: Server) -> None:
    """64 tasks of 40 queries each never hold more than 8 backends, and leave none on loan."""
    await Author.objects.acreate(name="Ada")
    most = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, server.backends())
            server.all("SELECT pg_sleep(0.002)")

    async def queries() -> int:
        return sum([(await Author.objects.aget(name="Ada")).pk for _ in range(40)])

    sampler = asyncio.create_task(asyncio.to_thread(sample))
    pk = (await Author.objects.aget()).pk
    try:
        results = await asyncio.gather(*(queries() for _ in range(64)))
    finally:
        done.set()
        await sampler
    assert results == [40 * pk] * 64
    assert most == 8
    stats = await settled(connections["default"])
    assert (stats["pool_size"], stats["pool_available"]) == (8, 8)
    assert stats["requests_waiting"] == 0


async def test_queries_outside_a_transaction_run_in_parallel(server: Server) -> None:
    """Tasks lease a connection each: they run on different backends at the same time."""
    wrapper = make_wrapper(options={"pool": {"max_size": 5}})
    query = "SELECT pg_backend_pid() FROM (SELECT count(*) FROM tests_author) AS counted"
    with TableLock(server, "tests_author") as lock:
        tasks = [asyncio.create_task(run(wrapper, query)) for _ in range(5)]
        await lock.waited_for(5)
        lock.release()
        assert len(set(await asyncio.gather(*tasks))) == 5


# Opening


async def test_first_requests_open_one_pool() -> None:
    """Twenty tasks that race to be the first share one pool, whose size bounds them all."""
    wrapper = make_wrapper(options={"pool": {"max_size": 3}})

    def pool_and_pid() -> tuple[Any, int]:
        with wrapper.cursor() as cursor:
            cursor.execute(PID)
            return wrapper.async_pool, cursor.fetchone()[0]

    results = await asyncio.gather(*(run_bridged(pool_and_pid) for _ in range(20)))
    assert len({pool for pool, _ in results}) == 1
    assert 1 <= len({pid for _, pid in results}) <= 3


async def test_copies_with_the_same_settings_share_a_pool() -> None:
    """Wrappers of different contexts with equal settings use one pool."""
    assert make_wrapper().async_pool is connections["default"].async_pool


async def test_copies_with_other_settings_have_another_pool() -> None:
    """A wrapper's copy with settings of its own never gets the other's connections."""
    wrapper = make_wrapper()
    copy = wrapper.copy()
    copy.settings_dict["NAME"] = connections["other"].settings_dict["NAME"]
    assert await run(wrapper, "SELECT current_database()") == "pgbackend_tests"
    assert await run(copy, "SELECT current_database()") == "pgbackend_tests_other"
    with_options = make_wrapper(options={"options": "-c work_mem=7MB"})
    assert await run(with_options, "SHOW work_mem") == "7MB"
    assert await run(wrapper, "SHOW work_mem") != "7MB"


# Closing


async def test_close_pool() -> None:
    """close_pool() in bridged code closes the loop's pool; the next query opens another."""
    wrapper = make_wrapper()
    first = await run(wrapper, PID)
    pool = wrapper.async_pool
    await run_bridged(wrapper.close_pool)
    assert pool.closed
    assert await run(wrapper, PID) != first


async def test_close_pool_of_threads(server: Server, add_alias: Callable[..., str]) -> None:
    """In the bridge, close_pool() closes the pool that threads have for the alias, too."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 2}})

    def use() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        connections[alias].close()

    await asyncio.to_thread(use)
    await bridged(use)()
    assert server.backends() == 2
    await bridged(connections[alias].close_pool)()
    server.wait_for_backends(0)
