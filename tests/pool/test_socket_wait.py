"""Waiting for a connection's socket: nothing is missed, nothing turns, nothing is left open."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from django.db import OperationalError, connection, transaction

from pgbackend import bridged
from pgbackend.pool.open_pools import open_pools
from pgbackend.pool.socket_wait import SocketWait
from tests.faults.files import open_files
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.work import until_running
from tests.support.wrapper import check_all_back, on_loan, run, small_pool, until


async def test_many_statements_on_few_connections() -> None:
    """A thousand statements of a hundred tasks on three connections are all answered."""
    wrapper = small_pool(3)

    async def work(number: int) -> int:
        return sum([int(await run(wrapper, f"SELECT {number}")) for _ in range(10)])

    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*map(work, range(100))) == [10 * n for n in range(100)]


async def test_closed_while_somebody_waits(server: Server) -> None:
    """Whoever waits for a connection that another task closes gets an error, at once."""

    async def sleep() -> None:
        await bridged(lambda: connection.cursor().execute("SELECT pg_sleep(600)"))()

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OperationalError):
            async with transaction.atomic():
                task = asyncio.create_task(sleep())
                await until_running(server.all, "SELECT pg_sleep(600)%")
                transaction.get_connection().state.lease.pooled.discard()
                await task


async def test_the_server_speaks_to_an_idle_connection(server: Server) -> None:
    """A message to an idle connection neither keeps the loop turning nor harms what follows."""
    wrapper = small_pool()
    pid = await run(wrapper, "SELECT pg_backend_pid()")
    loop = asyncio.get_running_loop()
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1

    select = loop._selector.select  # type: ignore[attr-defined]

    def counting(timeout: float | None = None) -> object:
        count()
        return select(timeout)

    loop._selector.select = counting  # type: ignore[attr-defined]
    try:
        server.all("SELECT pg_terminate_backend(%s)", pid)
        server.wait_for_backends(0)
        await asyncio.sleep(0.3)
    finally:
        loop._selector.select = select  # type: ignore[attr-defined]
    assert turns < 200
    await check_all_back(wrapper)


async def test_descriptors() -> None:
    """A pool that is closed leaves no descriptor open, nor does one that is dropped."""
    await Author.objects.acount()
    await open_pools()[0].close()
    gc.collect()
    before = open_files()
    for _ in range(3):
        await asyncio.gather(*(Author.objects.acount() for _ in range(5)))
        for pool in open_pools():
            await pool.close()
    gc.collect()
    await until(lambda: open_files() <= before)


@pytest.mark.parametrize("loop_factory", [asyncio.SelectorEventLoop, uvloop.new_event_loop])
def test_where_a_task_goes_on(
    monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A task goes on inside the loop's callback on asyncio's own loop, and not on uvloop.

    There libuv has pointers into the C stack meanwhile, which switching greenlets moves.
    """
    steps: list[str] = []
    readable = SocketWait.readable

    def watched(self: SocketWait, **options: bool) -> None:
        steps.append("called")
        readable(self, **options)
        steps.append("returned")

    async def main() -> None:
        await Author.objects.acount()
        monkeypatch.setattr(SocketWait, "readable", watched)
        steps.clear()
        await Author.objects.acount()
        steps.append("went on")

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    if loop_factory is asyncio.SelectorEventLoop:
        assert steps[:3] == ["called", "went on", "returned"]
    else:
        assert steps[:3] == ["called", "returned", "went on"]


def test_a_call_that_ends_inside_a_callback_from_libuv() -> None:
    """Closed there, in a greenlet laid over libuv's stack, it lets libuv forget its socket later.

    The connection is closed all the same, and the pool has its place again.
    """
    inside = False
    forgotten: list[bool] = []

    async def main() -> None:
        nonlocal inside
        wrapper = small_pool()
        await Author.objects.acount()
        loop = asyncio.get_running_loop()
        before = open_files()
        task = asyncio.create_task(run(wrapper, "SELECT pg_sleep(600)"))
        await until(lambda: on_loan(wrapper))
        reading, writing = os.pipe()
        closed = loop.create_future()

        def readable() -> None:
            nonlocal inside
            inside = True
            coroutine: Any = task.get_coro()
            coroutine.close()
            inside = False
            loop.remove_reader(reading)
            closed.set_result(None)

        remove_reader = loop.remove_reader

        def remembering(fd: int) -> bool:
            forgotten.append(inside)
            return remove_reader(fd)

        loop.remove_reader = remembering  # type: ignore[method-assign]
        loop.add_reader(reading, readable)
        os.write(writing, b"x")
        await closed
        os.close(reading)
        os.close(writing)
        await until(lambda: len(forgotten) == 2)
        assert forgotten == [False, False]
        task.cancel()
        await asyncio.wait([task])
        await check_all_back(wrapper)
        await until(lambda: open_files() <= before)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
