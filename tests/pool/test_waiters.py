"""The queue of a pool: first come, first served, each as long as it may wait."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, transaction
from psycopg_pool import PoolClosed, PoolTimeout

from pgbackend.pool.pool import ConnectionPool
from tests.models import Author
from tests.support.limits import AT_ONCE
from tests.support.wrapper import check_all_back, small_pool, until


async def waiting(pool: ConnectionPool, count: int) -> None:
    """Wait until so many wait for a connection."""
    await until(lambda: pool.get_stats()["requests_waiting"] == count)


async def test_first_come_first_served() -> None:
    """Connections go to those who wait in the order in which they came."""
    wrapper = small_pool()
    pool = wrapper.async_pool
    conn = await pool.checkout()
    served: list[int] = []

    async def work(number: int) -> None:
        conn = await pool.checkout()
        served.append(number)
        await asyncio.sleep(0)
        pool.give_back(conn)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(work(number))
        await waiting(pool, 5)
        pool.give_back(conn)
    assert served == [0, 1, 2, 3, 4]
    await check_all_back(wrapper)


async def test_each_has_a_time_of_its_own() -> None:
    """Who may wait for less gives up first, and takes nobody else along."""
    wrapper = small_pool()
    pool = wrapper.async_pool
    conn = await pool.checkout()
    ended: list[float] = []

    async def wait(seconds: float) -> None:
        began = asyncio.get_running_loop().time()
        with pytest.raises(PoolTimeout):
            await pool.getconn(seconds)
        assert asyncio.get_running_loop().time() - began >= seconds - 0.01
        ended.append(seconds)

    async with asyncio.TaskGroup() as group:
        patient = asyncio.create_task(pool.checkout())
        for seconds in (0.3, 0.1, 0.2):
            group.create_task(wait(seconds))
    assert ended == [0.1, 0.2, 0.3]
    assert pool.get_stats()["requests_waiting"] == 1
    pool.give_back(conn)
    pool.give_back(await patient)
    await check_all_back(wrapper)


async def test_a_connection_that_comes_with_the_time_out() -> None:
    """Whose time is over just before one comes free, gets that."""
    wrapper = small_pool()
    pool = wrapper.async_pool
    conn = await pool.checkout()
    late = asyncio.create_task(pool.checkout())
    await waiting(pool, 1)
    client = pool._waiting.popleft()
    await client.fail(PoolTimeout("what the queue says when it looks at its clock"))
    pool.give_back(conn)
    assert await late is conn
    pool.give_back(conn)
    await check_all_back(wrapper)


async def test_who_left_is_passed_over() -> None:
    """A connection does not go to a task that was cancelled, also at the same moment."""
    wrapper = small_pool()
    pool = wrapper.async_pool
    conn = await pool.checkout()
    first, second, third = (asyncio.create_task(pool.checkout()) for _ in range(3))
    await waiting(pool, 3)
    first.cancel()
    pool.give_back(conn)
    second.cancel()
    assert await third is conn
    pool.give_back(conn)
    assert first.cancelled()
    assert second.cancelled()
    await check_all_back(wrapper)


async def test_closed_pool() -> None:
    """Whoever waits for a pool that is closed is told so at once."""
    pool = small_pool().async_pool
    conn = await pool.checkout()
    waiters = [asyncio.create_task(pool.checkout()) for _ in range(3)]
    await waiting(pool, 3)
    await pool.close()
    for waiter in waiters:
        with pytest.raises(PoolClosed):
            await waiter
    pool.give_back(conn)


def test_closed_by_the_end_of_the_loop() -> None:
    """Whoever comes to wait while the loop ends is served or told, and the loop ends."""
    came_of_it: list[Any] = []

    async def hold(holding: asyncio.Event) -> None:
        async with transaction.atomic():
            holding.set()
            await asyncio.Event().wait()

    async def count_on_the_way_out(started: asyncio.Event) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            try:
                came_of_it.append(await Author.objects.acount())
            except OperationalError as error:
                came_of_it.append(error.__cause__)

    async def main() -> None:
        small_pool()
        for work in (count_on_the_way_out, hold):
            ready = asyncio.Event()
            tasks.append(asyncio.create_task(work(ready)))
            await ready.wait()

    tasks: list[asyncio.Task[None]] = []
    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < AT_ONCE
    assert len(came_of_it) == 1
    assert came_of_it[0] == 0 or isinstance(came_of_it[0], PoolClosed)


async def test_close_is_interrupted() -> None:
    """Who waits is told at once that the pool is closed, also if close() itself is given up."""
    pool = small_pool().async_pool
    conn = await pool.checkout()
    waiter = asyncio.create_task(pool.checkout())
    await waiting(pool, 1)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(PoolClosed):
        await waiter
    await asyncio.wait([closing])
    pool.give_back(conn)


async def test_nothing_is_kept_of_who_waited() -> None:
    """A task that waited, in vain or not, is freed when it has ended."""
    wrapper = small_pool()
    pool = wrapper.async_pool
    ended: list[weakref.ref[Any]] = []

    async def wait_for_one() -> None:
        pool.give_back(await pool.checkout())

    async def wait_in_vain() -> None:
        with pytest.raises(PoolTimeout):
            await pool.getconn(0.05)

    async def wait(work: Callable[[], Any]) -> None:
        conn = await pool.checkout()
        task = asyncio.create_task(work())
        ended.append(weakref.ref(task))
        await waiting(pool, 1)
        if work is wait_in_vain:
            await task
        pool.give_back(conn)
        await task

    for work in (wait_for_one, wait_in_vain):
        await wait(work)
    # The loop's callback that woke this task has the other one among its arguments.
    await asyncio.sleep(0)
    gc.collect()
    assert [each() for each in ended] == [None, None]
