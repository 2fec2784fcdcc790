"""What the tests of faults do and look at, over and over."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, connections

from pgbackend import await_bridged, bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import run_bridged
from tests.support.limits import PATIENCE
from tests.support.wrapper import until

# Seconds within which everything ends that has no time-out of its own.


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Check that the block takes no longer than *seconds*."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


@bridged
def execute(query: str, params: Any = None, alias: str = "default") -> Any:
    """Run a query and return the first column of its first row, if it has rows."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query, params)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


async def pid(alias: str = "default") -> int:
    """Return the process id of the backend that serves the caller."""
    found: int = await execute("SELECT pg_backend_pid()", alias=alias)
    return found


async def fill(size: int, alias: str = "default") -> None:
    """Open *size* connections of the pool, and leave them idle."""
    release = asyncio.Event()
    held = [Held(alias, release) for _ in range(size)]
    for each in held:
        await each.held.wait()
    release.set()
    await asyncio.gather(*(each.task for each in held))
    stats = await settled(connections[alias])
    assert stats["pool_available"] == size


class Held:
    """A task with a connection on loan until *release* is set."""

    def __init__(self, alias: str, release: asyncio.Event, name: str | None = None) -> None:
        self.alias = alias
        self.release = release
        self.held = asyncio.Event()
        self.task = asyncio.create_task(run_bridged(self._hold), name=name)

    def _hold(self) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            self.held.set()
            await_bridged(self.release.wait())


async def settled(wrapper: Any = connection) -> dict[str, int]:
    """Return the pool's statistics once nothing is on loan or awaited; fail after PATIENCE."""

    def stats() -> dict[str, int] | None:
        found: dict[str, int] = wrapper.async_pool.get_stats()
        back = found["pool_size"] == found["pool_available"] and not found["pool_resetting"]
        return found if back and not found["requests_waiting"] else None

    found: dict[str, int] = await until(stats)
    return found


async def ended(*tasks: asyncio.Future[Any]) -> list[Any]:
    """Wait until all *tasks* have ended; return their results and exceptions."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*tasks, return_exceptions=True)


async def until_running(look: Callable[..., list[Any]], query: str, state: str = "active") -> int:
    """Wait until a backend of ours is in *state* with a query like *query*; return its pid."""
    found = await until(
        lambda: look(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbackend-tests'"
            " AND state = %s AND query LIKE %s",
            state,
            query,
        ),
    )
    return int(found[0][0])


def stats_of(wrapper: DatabaseWrapper) -> tuple[int, int]:
    """Return the pool's size, and how many connections are idle in it."""
    stats = wrapper.async_pool.get_stats()
    return stats["pool_size"], stats["pool_available"]
