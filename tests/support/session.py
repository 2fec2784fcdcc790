"""Changes of a session, and how each is seen."""

from __future__ import annotations

from typing import Any

from django.db import (
    connections,
)

PROBES = {
    "setting": ("SET work_mem = '77MB'", "SHOW work_mem", "4MB"),
    "search_path": ("SET search_path = pg_catalog", "SHOW search_path", '"$user", public'),
    "custom setting": (
        "SELECT set_config('app.tenant', 'a', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "",
    ),
    "role": ("SET ROLE pg_monitor", "SELECT current_user <> session_user", False),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "UTC"),
    "temporary table": ("CREATE TEMP TABLE t AS SELECT 1", "SELECT to_regclass('t')", None),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        0,
    ),
    "listen": ("LISTEN orders", "SELECT count(*) FROM pg_listening_channels()", 0),
    "prepared statement": (
        "PREPARE p AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'",
        0,
    ),
    "cursor": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'c'",
        0,
    ),
}


def run(alias: str, sql: str, params: Any = None) -> Any:
    """Run a query on *alias*; return the first column of its first row, if it has rows."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


def backend(alias: str) -> int:
    return int(run(alias, "SELECT pg_backend_pid()"))


SETTING = "SELECT coalesce(current_setting('app.one', true), '')"


def named(connection: Any) -> None:
    with connection.cursor("n", withhold=True) as cursor:
        cursor.execute("SELECT set_config('app.one', 'a', false)")
