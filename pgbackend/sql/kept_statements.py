"""Statements that the server plans once for each connection, instead of at each execution.

For a short statement on a table with many indexes the server takes longer to plan than to execute
it. A `KeptStatement` is prepared by SQL, so that its EXECUTE is a text like any other, and goes in
one message with a BEGIN that is due. It is a second way to execute the same statement: where the
connection cannot keep it, or has lost it, the text itself is executed.

https://www.postgresql.org/docs/current/sql-prepare.html
"""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING, Any

import psycopg
from greenlet import getcurrent
from psycopg import generators
from psycopg.pq import DiagnosticField, TransactionStatus

from ..pool.session_reset import failure

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

IDLE = TransactionStatus.IDLE

# How often a connection executes the text since its session was last reset, before it keeps the
# statement: where each borrower has the session reset, to prepare would only cost more.
THRESHOLD = 3

# The statement is not there (somebody's function deallocated it), or a column's type has changed.
_FORGOTTEN = ("26000", "0A000")

# The statement would wait for the lock as long once more.
_LOCK_NOT_AVAILABLE = b"55P03"


class KeptStatement:
    """A statement with parameters as %s, and its two texts with a name that stands for it.

    *types* names the types of the parameters, where the server cannot find them out.
    """

    def __init__(self, sql: str, types: str = "") -> None:
        self.sql = sql
        self.name = f"pgbackend_{hashlib.sha256(sql.encode()).hexdigest()[:16]}"
        numbers = itertools.count(1)
        text = re.sub("%(.)", lambda m: f"${next(numbers)}" if m[1] == "s" else m[1], sql)
        self.prepare = f"PREPARE {self.name} {types and f'({types})'} AS {text}".encode()
        marks = ", ".join(["%s"] * (next(numbers) - 1))
        self.execute = f"EXECUTE {self.name}{marks and f'({marks})'}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def is_kept(wrapper: Any, face: Any, kept: KeptStatement) -> bool:
    """Return whether the next statement on *face* may be the EXECUTE; prepare it where it is due.

    Only before anything else of a transaction: a statement that is not there would break it. The
    caller is bridged, and holds the connection.
    """
    counts = face.kept_statements
    if (
        counts is None
        or not face.has_session
        or face.reset_due
        or face.savepoint_due
        or face._pipeline is not None
        or getcurrent().gathered  # type: ignore[attr-defined]  # it is a `Bridge`
        or not _is_first(face)
    ):
        return False
    count = counts.get(kept.name, 0)
    if count < THRESHOLD:
        counts[kept.name] = count + 1
        return False
    if count > THRESHOLD:
        return True
    with wrapper.wrap_database_errors:
        # Another task of the block may have come meanwhile.
        return _prepare(face, kept) and _is_first(face)


def was_forgotten(face: Any, error: psycopg.Error) -> PQGen[bool]:
    """Return whether *error* says that an EXECUTE found no statement; undo its BEGIN then.

    The connection keeps no statements any more. The EXECUTE must have been the first statement of
    its transaction, and the caller still have its turn: what another task has done is not undone.
    """
    if error.sqlstate not in _FORGOTTEN or face.closed:
        return False
    face.kept_statements = None
    if face.pgconn.transaction_status != IDLE:
        failed = yield from _send(face, b"ROLLBACK")
        if failed is not None:
            raise psycopg.errors.error_from_result(failed, encoding=face.pgconn._encoding)
    return True


def _is_first(face: Any) -> bool:
    """Return whether nothing has begun a transaction, or waits for its turn to do so."""
    return face.pgconn.transaction_status == IDLE and not face.lock.held


def _prepare(face: Any, kept: KeptStatement) -> bool:
    # If the task is cancelled meanwhile, nobody knows whether it is there.
    counts, face.kept_statements = face.kept_statements, None
    with face.lock:
        failed = face.wait(_send(face, kept.prepare))
    counts[kept.name] = 0 if failed else THRESHOLD + 1
    face.kept_statements = counts
    if failed is not None and (face.closed or _was_stopped(failed)):
        raise psycopg.errors.error_from_result(failed, encoding=face.pgconn._encoding)
    # Where the server refuses it, the statement's own text says why.
    return failed is None


def _send(face: Any, text: bytes) -> PQGen[PGresult | None]:
    """Send *text*, without a BEGIN; return the error if the server refuses it."""
    face.pgconn.send_query(text)
    return failure((yield from generators.execute(face.pgconn)))


def _was_stopped(failed: PGresult) -> bool:
    """Return whether somebody or a time-out has stopped a statement: it is not to be executed."""
    code = failed.error_field(DiagnosticField.SQLSTATE) or b""
    return code.startswith(b"57") or code == _LOCK_NOT_AVAILABLE
