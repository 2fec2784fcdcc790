"""psycopg's connection, as borrowers see it."""

from collections.abc import Callable
from typing import Any

import psycopg

from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import run_bridged
from tests.support.server import NAME, Server
from tests.support.wrapper import until

Face = psycopg.Connection[Any]


async def on_face(wrapper: DatabaseWrapper, function: Callable[[Face], Any]) -> Any:
    """Call *function* bridged with the psycopg connection that a cursor of *wrapper* is on."""

    def call() -> Any:
        with wrapper.cursor() as cursor:
            return function(cursor.connection)

    return await run_bridged(call)


async def running(server: Server, query: str) -> int:
    """Wait until a backend of ours runs *query* and return its pid; fail after PATIENCE."""
    active = (
        "SELECT pid FROM pg_stat_activity"
        " WHERE application_name = %s AND query = %s AND state = 'active'"
    )
    rows = await until(lambda: server.all(active, NAME, query))
    return int(rows[0][0])
