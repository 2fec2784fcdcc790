"""The statements on the table of stored notifications that claim rows and settle them.

No claim reads more than it takes: the index of ready rows is in the order of the claims, and rows
that others have locked are skipped. The functions are called in a transaction, or in autocommit,
of the alias that their cursor is of.

https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..extending import KeptStatement, execute_kept
from .conditions import Condition
from .encoding import undo_escapes

TABLE = "pgpubsub_notification"

# What a failed attempt leaves of its error, characters.
_ERROR_LENGTH = 4000

_COLUMNS = f"""
    id, payload::text, attempts, order_key, headers::text, priority, pg_current_xact_id()::text,
    '{TABLE}'::regclass::oid::bigint
"""

# What settles rows names the table with its schema: a listener may change the search path, or make
# a temporary table of the same name. To ask for it in each claim would double the claim's time.
_NAME = """
SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_catalog.pg_class AS class
JOIN pg_catalog.pg_namespace AS schema ON schema.oid = class.relnamespace WHERE class.oid = %s
"""

# Of a database without an encoding, where a payload may be no text.
_ESCAPED_COLUMNS = _COLUMNS.replace(
    "payload::text", "encode(convert_to(payload::text, 'SQL_ASCII'), 'escape')"
)

_READY = f"""
SELECT {{columns}} FROM {TABLE}
WHERE channel = %s AND state = 'ready' {{where}}
ORDER BY priority DESC, id LIMIT %s FOR UPDATE SKIP LOCKED
"""

# Those behind a row, of its priority. The server goes to that place of the index.
_READY_BEHIND = f"""
SELECT {{columns}} FROM {TABLE}
WHERE channel = %s AND state = 'ready' AND priority = %s AND id > %s {{where}}
ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
"""

# The keys of which nobody handles a row, from a key on: a walk along the index, one step a key. The
# lock ends with the transaction. Keys without rows to claim are not locked.
_KEYS = f"""
WITH RECURSIVE walk (key) AS (
    (SELECT order_key FROM {TABLE} WHERE channel = %s AND order_key {{more}} %s
        AND state IN ('ready', 'delayed', 'leased') ORDER BY order_key LIMIT 1)
    UNION ALL
    SELECT (SELECT order_key FROM {TABLE} WHERE channel = %s AND order_key > key
        AND state IN ('ready', 'delayed', 'leased') ORDER BY order_key LIMIT 1)
    FROM walk WHERE key IS NOT NULL
)
SELECT key FROM walk WHERE key IS NOT NULL AND CASE WHEN (
    SELECT state FROM {TABLE} WHERE channel = %s AND order_key = key
        AND state IN ('ready', 'delayed', 'leased') ORDER BY id LIMIT 1
) = 'ready' {{exists}} THEN pg_try_advisory_xact_lock(hashtextextended(%s || ' ' || key, 0)) END
LIMIT %s
"""

# The row at the head of a key may be one that the condition leaves out.
_EXISTS = f"""AND EXISTS (SELECT FROM {TABLE} WHERE channel = %s AND order_key = key
    AND state = 'ready' {{where}})"""

# The next rows of keys that the transaction has locked, so many of each, up to the first that is
# not ready, or locked by a sender who has found it waiting. The server goes by the index for each
# key, however many rows there are. Rows that the condition leaves out hold no others up.
_OF_KEYS = f"""
WITH near AS MATERIALIZED (
    SELECT key, row.* FROM unnest(%s::text[]) AS keys (key), LATERAL (
        SELECT id, state FROM {TABLE} WHERE channel = %s AND order_key = key
            AND state IN ('ready', 'delayed', 'leased') AND (state <> 'ready' OR true {{where}})
            ORDER BY id LIMIT %s
    ) AS row
), locked AS MATERIALIZED (
    SELECT {{columns}} FROM {TABLE}
    WHERE id = ANY(ARRAY(SELECT id FROM near WHERE state = 'ready')) AND state = 'ready'
    ORDER BY id FOR UPDATE SKIP LOCKED
), checked AS (
    SELECT near.id, bool_and(locked.id IS NOT NULL) OVER (PARTITION BY key ORDER BY near.id)
        AS ready FROM near LEFT JOIN locked ON locked.id = near.id
)
SELECT * FROM locked WHERE id IN (SELECT id FROM checked WHERE ready) ORDER BY id LIMIT %s
"""

# The commit of a lease does not wait for the disk: after a crash of the server the row is ready as
# before, and its handler runs once more, as it may after any end of a lease.
TO_LEASE = f"""
UPDATE {TABLE} AS row SET state = 'leased', worker = %s, attempts = row.attempts + 1,
    lease_until = clock_timestamp() + make_interval(secs => %s)
"""
UNFLUSHED = "set_config('synchronous_commit', 'off', true) IS NOT NULL"
# A claim and its lease as one statement, which needs no transaction around it. It says whether
# further rows are ready, be they locked by others, so that no claim is needed to find none.
_AND_LEASE = f"""
WITH claimed AS MATERIALIZED ({{claim}}) {TO_LEASE}
FROM claimed WHERE row.id = claimed.id AND {UNFLUSHED} RETURNING claimed.*, {{more}}
"""

# The name is compared with the table that the rows are of: somebody may have renamed its schema.
_REMOVE = """
DELETE FROM {table} WHERE id = ANY(%s) AND pg_current_xact_id()::text = %s
    AND %s::regclass::oid::bigint = %s
"""

_WHERE = "SELECT pg_current_xact_id()::text, to_regclass(%s)::oid::bigint"

# A row that failed: the first in each pair of values is for the last attempt.
_FAIL = """
UPDATE {table} SET attempts = attempts + %(more)s, last_error = %(error)s, worker = NULL,
    lease_until = NULL,
    state = CASE WHEN attempts + %(more)s > %(retries)s THEN 'dead' ELSE 'delayed' END,
    run_after = CASE WHEN attempts + %(more)s > %(retries)s THEN NULL
        ELSE clock_timestamp() + make_interval(secs => %(delay)s) END
WHERE id = %(id)s AND state IN ('ready', 'leased') AND %(name)s::regclass::oid::bigint = %(oid)s
    AND worker IS NOT DISTINCT FROM %(worker)s RETURNING state
"""

# How many delayed rows one statement makes ready.
_PROMOTED = 1000

# Delayed rows whose time has come. The server reads the index up to the time of the statement; it
# would read the whole of it to compare each row with clock_timestamp().
_PROMOTE = f"""
UPDATE {TABLE} SET state = 'ready', run_after = NULL WHERE id = ANY(ARRAY(
    SELECT id FROM {TABLE} WHERE state = 'delayed' AND run_after <= statement_timestamp()
    ORDER BY run_after LIMIT {_PROMOTED} FOR UPDATE SKIP LOCKED
))
"""


class Claimed(NamedTuple):
    """A row that was claimed; *payload* and *headers* are JSON texts."""

    id: int
    payload: str
    attempts: int
    order_key: str | None
    headers: str | None
    priority: int
    # The number of the transaction that has locked the row.
    transaction: str
    # The table: its number, and its name with the schema.
    oid: int
    table: str
    # Whether further rows may be ready.
    more: bool = True


_MORE = f"EXISTS (SELECT FROM {TABLE} WHERE channel = %s AND state = 'ready' {{where}} OFFSET 1)"


class ToLease(NamedTuple):
    """To whom the rows of a claim are leased at once, and for how many seconds."""

    worker: str
    seconds: float


_OID = Claimed._fields.index("oid")


@functools.cache
def _ready(where: str, escaped: bool) -> KeptStatement:
    columns = _ESCAPED_COLUMNS if escaped else _COLUMNS
    return KeptStatement(_READY.format(columns=columns, where=where))


def _claimed(
    cursor: Any,
    sql: str,
    condition: Condition,
    params: Sequence[Any],
    to_lease: ToLease | None = None,
    more: tuple[str, Sequence[Any]] = ("true", ()),
) -> list[Claimed]:
    columns = _ESCAPED_COLUMNS if condition.escaped else _COLUMNS
    text = sql.format(columns=columns, where=condition.sql)
    if to_lease is not None:
        text = _AND_LEASE.format(claim=text, more=more[0])
        params = [*params, *to_lease, *more[1]]
    cursor.execute(text, params)
    return _fetched(cursor, condition)


def _fetched(cursor: Any, condition: Condition) -> list[Claimed]:
    rows = cursor.fetchall()
    if not rows:
        return []
    oid = rows[0][_OID]
    if (table := condition.names.get(oid)) is None:
        cursor.execute(_NAME, [oid])
        (table,) = cursor.fetchone()
        condition.names[oid] = table
    end = _OID + 1
    found = [Claimed._make((*row[:end], table, *(row[end:] or (True,)))) for row in rows]
    if condition.escaped:
        return [row._replace(payload=undo_escapes(row.payload)) for row in found]
    return found


def claim(
    cursor: Any,
    name: str,
    limit: int,
    condition: Condition,
    to_lease: ToLease | None = None,
    *,
    keep: bool = False,
) -> list[Claimed]:
    """Lock up to *limit* ready rows of the channel *name*, and return them in their order.

    With *to_lease* they are leased, and locked no longer; several come in any order. *keep*: by a
    plan that the connection may have kept.
    """
    params = [name, *condition.params]
    if keep:
        kept = _ready(condition.sql, condition.escaped)
        execute_kept(cursor, kept, [*params, limit])
        return _fetched(cursor, condition)
    # A claim behind a row is made where one from the beginning takes long, so it does not look.
    more = _MORE.format(where=condition.sql), params
    return _claimed(cursor, _READY, condition, [*params, limit], to_lease, more)


def claim_behind(
    cursor: Any,
    name: str,
    limit: int,
    condition: Condition,
    row: tuple[int, int],
    to_lease: ToLease | None = None,
) -> list[Claimed]:
    """Do what `claim` does, for the rows behind *row*, its priority and its id; see `positions`."""
    params = [name, *row, *condition.params, limit]
    return _claimed(cursor, _READY_BEHIND, condition, params, to_lease)


def claim_in_order(
    cursor: Any, name: str, limit: int, condition: Condition, after: str | None, keys: int
) -> tuple[list[Claimed], str | None]:
    """Lock rows of a channel with `ordered_by`: of up to *keys* keys that nobody else works on.

    Return them in their order, and the last key, to go on *after*: None begins with the first key.
    """
    # No key is before "", which is one, too.
    more = ">=" if after is None else ">"
    exists, params = "", ()
    if condition.sql:
        exists, params = _EXISTS.format(where=condition.sql), (name, *condition.params)
    cursor.execute(
        _KEYS.format(more=more, exists=exists),
        [name, after or "", name, name, *params, name, keys],
    )
    found = [key for (key,) in cursor.fetchall()]
    if not found:
        return [], None
    # A statement of its own: only one that begins after the keys were locked is sure to see what
    # their last holder did.
    each = max(1, limit // len(found))
    params = (found, name, *condition.params, each, limit)
    rows = _claimed(cursor, _OF_KEYS, condition, params)
    return rows, found[-1] if len(found) == keys else None


def remove(cursor: Any, rows: Sequence[Claimed], last: str = "") -> bool:
    """Delete rows that were handled in the transaction that has claimed them.

    *last* begins with a semicolon: what to send in the same message. Return False, and delete none,
    if that transaction is not the one that is open.
    """
    first = rows[0]
    parameters = [[row.id for row in rows], first.transaction, first.table, first.oid]
    cursor.execute(_REMOVE.format(table=_escaped(first.table)) + last, parameters)
    if cursor.rowcount == len(rows):
        return True
    # A listener may have deleted its own row.
    cursor.execute(_WHERE, [first.table])
    return tuple(cursor.fetchone()) == (first.transaction, first.oid)


def fail(
    cursor: Any,
    row: Claimed,
    error: str,
    *,
    retries: int,
    delay: float,
    worker: str | None = None,
) -> str | None:
    """Note a failed attempt: the row is ``delayed`` for *delay* seconds, or ``dead``.

    With *retries* below zero it is dead. Return its state; None if the row is no longer ours. A
    leased row, with a *worker*, counted the attempt when it began.
    """
    cursor.execute(
        _FAIL.format(table=_escaped(row.table)),
        {
            "id": row.id,
            "name": row.table,
            "oid": row.oid,
            "error": error.replace("\0", "")[-_ERROR_LENGTH:],
            "retries": retries,
            "delay": delay,
            "worker": worker,
            "more": 0 if worker else 1,
        },
    )
    found = cursor.fetchone()
    return None if found is None else found[0]


def _escaped(table: str) -> str:
    """Return a name as a statement with parameters has it."""
    return table.replace("%", "%%")


def promote(cursor: Any) -> None:
    """Make delayed rows ready whose time has come, all of them but those that others do."""
    cursor.execute(_PROMOTE)
    while cursor.rowcount == _PROMOTED:
        cursor.execute(_PROMOTE)
