"""The statements on leased rows of the table of stored notifications; see `claiming`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..extending import takes_several
from .claiming import TABLE, TO_LEASE, UNFLUSHED, ToLease
from .settling import Statement

_LEASE = f"{TO_LEASE} WHERE id = ANY(%s) AND {UNFLUSHED}"

_PROLONG = f"""
UPDATE {TABLE} SET lease_until = clock_timestamp() + make_interval(secs => %s)
WHERE id = ANY(%s) AND state = 'leased' AND worker = ANY(%s) RETURNING worker
"""

_REMOVE_LEASED = f"DELETE FROM {TABLE} WHERE id = %s AND state = 'leased' AND worker = %s"

_GIVE_BACK = f"""
UPDATE {TABLE} SET state = 'ready', attempts = attempts - 1, worker = NULL, lease_until = NULL
WHERE state = 'leased' AND worker = %s
"""

# Leases whose worker has not prolonged them: an attempt has failed.
_EXPIRE = f"""
UPDATE {TABLE} SET worker = NULL, lease_until = NULL,
    last_error = 'the lease of ' || worker || ' ended before its handler did',
    state = CASE WHEN attempts > %s THEN 'dead' ELSE 'ready' END
WHERE id = ANY(ARRAY(
    SELECT id FROM {TABLE} WHERE state = 'leased' AND lease_until <= statement_timestamp()
        AND channel = ANY(%s) LIMIT 1000 FOR UPDATE SKIP LOCKED
)) RETURNING state
"""


def lease(cursor: Any, ids: Sequence[int], to_lease: ToLease) -> None:
    """Lease rows that this transaction has claimed."""
    cursor.execute(_LEASE, [*to_lease, list(ids)])


def prolong(cursor: Any, ids: Iterable[int], workers: Iterable[str], seconds: float) -> set[str]:
    """Prolong leases; return those of *workers* that still have one of the rows."""
    cursor.execute(_PROLONG, [seconds, list(ids), list(workers)])
    return {each for (each,) in cursor.fetchall()}


def remove_leased(cursor: Any, row_id: int, worker: str, more: Sequence[Statement] = ()) -> bool:
    """Delete a row that was handled; return whether *worker* still had it.

    The statements *more* go in the same message, and are committed with it, or before it where
    *cursor* takes one at a time.
    """
    if more and takes_several(cursor):
        text = ";\n".join([_REMOVE_LEASED, *(sql for sql, _ in more)])
        cursor.execute(text, [row_id, worker, *(each for _, params in more for each in params)])
    else:
        for sql, params in more:
            cursor.execute(sql, params)
        cursor.execute(_REMOVE_LEASED, [row_id, worker])
    return bool(cursor.rowcount)


def give_back(cursor: Any, worker: str) -> None:
    """Make the rows ready again that *worker* has leased, as if they had not been claimed."""
    cursor.execute(_GIVE_BACK, [worker])


def expire(cursor: Any, names: Sequence[str], retries: int) -> list[str]:
    """Take rows back whose leases have ended; return their new states."""
    cursor.execute(_EXPIRE, [retries, list(names)])
    return [state for (state,) in cursor.fetchall()]
