"""What another session of the server sees of ours, and statements that take a while."""

import asyncio
from collections.abc import Callable

from django.db import connections

from pgbackend import bridged
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server


def pid(alias: str = "default") -> int:
    """Return the process id of the backend that serves the caller."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


apid = bridged(pid)


def sleep(seconds: float, alias: str = "default") -> None:
    """Let the server sleep in a statement."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


asleep = bridged(sleep)


def committed(server: Server) -> list[str]:
    """Return the names of the authors that another session sees."""
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]


def running(server: Server, state: str, query: str = "%") -> int:
    """Return how many backends of ours are in *state* with a query like *query*."""
    return int(
        server.one(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = %s AND state = %s AND query LIKE %s",
            NAME,
            state,
            query,
        )
    )


async def until(condition: Callable[[], bool]) -> None:
    """Wait, letting the loop run, until the server is in a state; fail after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        # The server sets no event.
        while not condition():
            await asyncio.sleep(0.01)
