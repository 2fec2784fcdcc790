"""Connections given back: none is lost, whatever ends the borrower or who waits."""

import asyncio
import random

import pytest

from pgbackend.bridge.greenlets import run_bridged
from tests.support.limits import PATIENCE
from tests.support.pool import PID, Held, settled, waiting
from tests.support.wrapper import make_wrapper, run, until


async def test_cancelled_waiters_lose_no_connection() -> None:
    """Of 200 tasks that wait for a connection, half are cancelled; the others get theirs."""
    wrapper = make_wrapper(options={"pool": {"max_size": 2}})
    async with Held(wrapper), Held(wrapper):
        tasks = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(200)]
        await waiting(wrapper, 200)
        for task in tasks[::2]:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert results[1::2] == [1] * 100
    assert (await settled(wrapper))["pool_size"] == 2
    async with Held(wrapper), Held(wrapper):
        pass


async def test_cancellation_during_checkout_is_never_lost() -> None:
    """Whenever a task is cancelled, CancelledError ends it and its connection is given back."""
    wrapper = make_wrapper(options={"pool": {"max_size": 4}})
    chance = random.Random(1)
    await run(wrapper, PID)
    for _ in range(20):
        tasks = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(50)]
        accepted = []
        for task in chance.sample(tasks, 25):
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if task.cancel():
                accepted.append(task)
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in accepted)
        assert all(task.result() == 1 for task in tasks if not task.cancelled())
    stats = await settled(wrapper)
    assert stats["pool_size"] <= 4
    async with Held(wrapper), Held(wrapper), Held(wrapper), Held(wrapper):
        pass


async def test_cancelled_borrower_gives_its_connection_back() -> None:
    """A task cancelled while it holds a connection leaves nothing on loan."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    held = Held(wrapper)
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(run_bridged(held.hold))
        await held.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wrapper.async_pool.get_stats()["pool_available"] == 1


async def test_closed_coroutine_gives_its_connection_back() -> None:
    """A bridged call whose coroutine is closed while it holds a connection gives it back."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, PID)
    await until(lambda: wrapper.async_pool.get_stats()["pool_available"] == 1)
    # With a connection idle in the pool, the call comes to its own wait in one step.
    held = Held(wrapper)
    coroutine = run_bridged(held.hold)
    coroutine.send(None)
    assert held.held.is_set()
    coroutine.close()
    assert wrapper.async_pool.get_stats()["pool_available"] == 1
    assert await run(wrapper, PID) == pid


@pytest.mark.parametrize("granted", [False, True])
async def test_closed_coroutine_loses_no_connection_that_it_waited_for(granted: bool) -> None:
    """A call whose coroutine is closed while it waits for a connection leaves none on loan."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    held = Held(wrapper)
    holder = asyncio.create_task(run_bridged(held.hold))
    await held.held.wait()
    coroutine = run_bridged(held.hold)
    coroutine.send(None)
    assert wrapper.async_pool.get_stats()["requests_waiting"] == 1
    if not granted:
        coroutine.close()
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    # The connection is given on without waiting, before the call can take it.
    coroutine.close()
    assert (await settled(wrapper))["pool_available"] == 1
    assert await run(wrapper, "SELECT 1") == 1
