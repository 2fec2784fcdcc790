"""The part of a snapshot that a database server knows: its sessions, and who blocks whom.

It is asked by one statement, on a connection beside the pool: so it answers where the pool is
exhausted, and what is shown of the pool is not changed by looking.
"""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

from django.db import connections

from ..pool.dedicated import DedicatedConnection
from ..session.masking import Masked
from ..wrapper.attributes import BackendWrapper

# How long an answer may take, seconds; then the connection is given up.
ANSWER_SECONDS = 5.0

# How much of a statement is shown, characters.
SHOWN = 400

# Arguments of a database wrapper that are for its own cursors and pools.
_OF_WRAPPERS = ("context", "cursor_factory", "prepare_threshold", "row_factory")

# `pg_blocking_pids` takes the server's locks on its table of locks: it is called for those who
# wait for a lock alone. Without pg_read_all_stats the sessions of other roles are hidden.
_QUERY = """
WITH activity AS MATERIALIZED (
    SELECT pid, usename, application_name, datname, state, wait_event_type, wait_event,
        backend_type, left(query, 4000) AS query, query = '<insufficient privilege>' AS hidden,
        extract(epoch FROM clock_timestamp() - xact_start)::float8 AS open_seconds,
        extract(epoch FROM clock_timestamp() - state_change)::float8 AS state_seconds
    FROM pg_catalog.pg_stat_activity
    WHERE pid <> pg_catalog.pg_backend_pid()
), blocked AS MATERIALIZED (
    SELECT pid, pg_catalog.pg_blocking_pids(pid) AS blockers, state_seconds
    FROM activity
    WHERE wait_event_type = 'Lock' AND datname = pg_catalog.current_database()
    ORDER BY state_seconds DESC LIMIT 20
), waits AS (
    SELECT blocked.pid, blockers, locktype, mode,
        CASE WHEN database = (SELECT oid FROM pg_catalog.pg_database
            WHERE datname = pg_catalog.current_database()) THEN relation::regclass::text
        END AS relation,
        coalesce(extract(epoch FROM clock_timestamp() - waitstart)::float8, state_seconds)
            AS seconds
    FROM blocked JOIN pg_catalog.pg_locks held ON held.pid = blocked.pid AND NOT granted
), longest AS (
    SELECT pid, open_seconds FROM activity
    WHERE backend_type = 'client backend' AND open_seconds IS NOT NULL
        AND datname = pg_catalog.current_database()
    ORDER BY open_seconds DESC LIMIT 10
), named AS (
    SELECT pid FROM longest UNION SELECT pid FROM blocked
    UNION SELECT pg_catalog.unnest(blockers) FROM blocked
)
SELECT json_build_object(
    'sessions', (SELECT json_build_object(
        'active', count(*) FILTER (WHERE state = 'active'),
        'idle', count(*) FILTER (WHERE state = 'idle'),
        'in_transaction', count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
        'hidden', count(*) FILTER (WHERE hidden),
        'blocked', count(*) FILTER (WHERE wait_event_type = 'Lock')
        ) FROM activity WHERE datname = pg_catalog.current_database()
        AND (hidden OR backend_type = 'client backend')),
    'of_server', (SELECT count(*) FROM activity WHERE hidden OR backend_type = 'client backend'),
    'max_connections', pg_catalog.current_setting('max_connections')::int,
    'version', pg_catalog.current_setting('server_version'),
    'database', pg_catalog.current_database(),
    'replica', pg_catalog.pg_is_in_recovery(),
    'longest', (SELECT coalesce(json_agg(pid ORDER BY open_seconds DESC), '[]') FROM longest),
    'blocked', (SELECT coalesce(json_agg(waits ORDER BY seconds DESC), '[]') FROM waits),
    'by_pid', (SELECT coalesce(json_object_agg(pid, json_build_object(
        'user', usename, 'application', application_name, 'state', state,
        'wait', nullif(concat_ws(': ', wait_event_type, wait_event), ''), 'query', query,
        'hidden', hidden, 'open_seconds', open_seconds, 'state_seconds', state_seconds,
        'kind', backend_type)), '{}') FROM activity JOIN named USING (pid))
)::text
"""


def own_aliases() -> tuple[list[str], dict[str, str]]:
    """Return the aliases of this backend, and the others with their engines."""
    own, others = [], {}
    for alias in connections:
        if isinstance(connections[alias], BackendWrapper):
            own.append(alias)
        else:
            others[alias] = str(connections.settings[alias]["ENGINE"])
    return own, others


def shown(query: str) -> str:
    """Return a statement as it is shown: without values, cut to `SHOWN` characters."""
    text = " ".join(Masked(query, False).without_values().split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


class Server:
    """The server of *alias*, and its last answer."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._answer: dict[str, Any] | None = None
        self._answered_at = 0.0
        self._error = ""
        self._ready = asyncio.Event()
        self._asks: asyncio.Task[None] | None = None
        self.connection = DedicatedConnection(
            f"status of {alias}",
            self._arguments,
            prepare=self._prepare,
            received=lambda _, __: None,
            lost=lambda _: self._ready.clear(),
        )

    def ask(self) -> asyncio.Task[None]:
        """Ask the server, unless it has not answered the last time yet; return the task."""
        if self._asks is None or self._asks.done():
            self._asks = asyncio.create_task(self._ask())
        return self._asks

    def part(self) -> dict[str, Any]:
        """Return the last answer and its age in seconds, or why there is none."""
        if self._answer is None:
            return {"error": self._error or "connecting", "answer": None, "age": None}
        age = monotonic() - self._answered_at
        return {"error": self._error, "answer": self._answer, "age": age}

    async def close(self) -> None:
        """End the running question."""
        if self._asks is not None:
            self._asks.cancel()
            await asyncio.wait([self._asks])

    async def _prepare(self, connection: DedicatedConnection) -> None:
        self._ready.set()

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._ready.wait()
            [[text]] = await self.connection.execute(_QUERY, seconds=ANSWER_SECONDS)
            self._answer, self._answered_at, self._error = read(text), monotonic(), ""
        except Exception as error:
            self._error = _words(self.connection.error or error)

    def _arguments(self) -> dict[str, Any]:
        arguments = connections[self.alias].get_connection_params()
        for name in _OF_WRAPPERS:
            arguments.pop(name, None)
        # A pooler may give each statement another session.
        return {**arguments, "prepare_threshold": None}


def read(text: str) -> dict[str, Any]:
    """Return the server's answer, with its statements as they are shown."""
    answer: dict[str, Any] = json.loads(text)
    for session in answer["by_pid"].values():
        session["query"] = "" if session["hidden"] else shown(session["query"] or "")
    return answer


def _words(error: BaseException) -> str:
    """Return the first line of an error, and its class."""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}".rstrip(": ")
