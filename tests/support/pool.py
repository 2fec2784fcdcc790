"""A pool's connections: held by a task, waited for, all back."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.wrapper import until

PID = "SELECT pg_backend_pid()"


@contextmanager
def at_once() -> Iterator[None]:
    """Check that the block takes far less than a pool's time-out."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE


async def settled(wrapper: DatabaseWrapper) -> dict[str, int]:
    """Return the pool's statistics once all connections are back; fail after PATIENCE.

    A connection that was closed is replaced by a task of the pool.
    """

    def stats_if_settled() -> dict[str, int] | None:
        stats = wrapper.async_pool.get_stats()
        idle = stats["pool_available"] == stats["pool_size"] and not stats["requests_waiting"]
        return stats if idle else None

    stats: dict[str, int] = await until(stats_if_settled)
    return stats


class Held:
    """A connection on loan to a task of its own until the block is left."""

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self.wrapper = wrapper
        self.release = asyncio.Event()
        self.held = asyncio.Event()

    async def __aenter__(self) -> None:
        self.task = asyncio.create_task(run_bridged(self.hold))
        await asyncio.wait_for(self.held.wait(), PATIENCE)

    async def __aexit__(self, *exc_info: Any) -> None:
        self.release.set()
        await self.task

    def hold(self) -> None:
        with self.wrapper.cursor():
            self.held.set()
            await_bridged(self.release.wait())


async def waiting(wrapper: DatabaseWrapper, count: int) -> None:
    """Wait until *count* tasks wait for a connection of the pool; fail after PATIENCE."""
    await until(lambda: wrapper.async_pool.get_stats()["requests_waiting"] == count)
