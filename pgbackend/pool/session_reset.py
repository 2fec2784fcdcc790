"""Resets of sessions, sent in one message with the next statement.

After a statement that may have changed its session (raw SQL that calls a function of the
application's) the session is reset before anything else is executed in it. A reset of its own costs
as much as a statement. So it is put off: the connection is idle at once, and whoever gets it sends
the reset in front of the first statement, where the server can take both in one message; otherwise
before it. If nobody comes, the pool sends it soon.

The reset is a transaction of its own there, too: it stays if the statement fails, and what a
function has set for new transactions is gone when that of the statement begins.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import generators
from psycopg.client_cursor import ClientCursorMixin
from psycopg.pq import ExecStatus, TransactionStatus

from .positions import error_after

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from .face import BridgedConnection

RV = TypeVar("RV")

_OK = frozenset({ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK})

# The settings that statements are written by. The server reports them without being asked. A reset
# that changes them comes before the statement is written.
_WRITTEN_BY = (
    b"TimeZone",
    b"DateStyle",
    b"IntervalStyle",
    b"client_encoding",
    b"standard_conforming_strings",
)


# What is one statement for certain, with one result, and takes no long time.
_SIMPLE = re.compile(
    r"""\s*(?:close|deallocate|discard|listen|reset|select|set|unlisten)\b
        (?!.*(?:;|--|/\*|\bfrom\b)).*""",
    re.IGNORECASE | re.VERBOSE,
)


class Reset:
    """What gives a session back the state that it was configured with."""

    def __init__(self, parts: list[str], *, encoding: str) -> None:
        # Statements on lines of their own: one may end with a comment.
        self.message = "\n;".join(parts).encode(encoding)
        together = ["BEGIN", *parts, "COMMIT"]
        line = "; ".join(together)
        # Errors count characters, and lines.
        simple = line.isascii() and line.isprintable() and all(map(_SIMPLE.fullmatch, parts))
        # What goes before a statement, and how many results that has; nothing if it cannot.
        self.prefix = f"{line};\n".encode() if simple else b""
        self.results = len(together)
        self._written_by: tuple[bytes | None, ...] = ()

    def remember(self, face: BridgedConnection) -> None:
        """Take what *face* is now for the state that it was configured with."""
        self._written_by = tuple(map(face.pgconn.parameter_status, _WRITTEN_BY))

    def can_wait(self, face: BridgedConnection) -> bool:
        """Return whether what is executed next may be sent behind it, in one message."""
        pgconn = face.pgconn
        return (
            bool(self.prefix)
            and pgconn.transaction_status == TransactionStatus.IDLE
            and tuple(map(pgconn.parameter_status, _WRITTEN_BY)) == self._written_by
        )


def reset(face: BridgedConnection) -> PQGen[None]:
    """Reset the session of *face* by a message of its own.

    Raise psycopg's error if any of it fails; the connection is closed then.
    """
    pgconn = face.pgconn
    pgconn.send_query(face.reset.message)
    results = yield from generators.execute(pgconn)
    if (failed := failure(results)) is not None:
        face.close()
        raise psycopg.errors.error_from_result(failed, encoding=pgconn._encoding)
    was_reset(face)


def first(face: BridgedConnection, gen: PQGen[RV]) -> PQGen[RV]:
    """Reset the session of *face*, if that is due still, before what *gen* does."""
    if face.reset_due:
        yield from reset(face)
    return (yield from gen)


def sends_text(cursor: Any) -> bool:
    """Return whether a psycopg cursor sends a statement as text, with its parameters in it."""
    return isinstance(cursor, ClientCursorMixin) and cursor._conn._pipeline is None


def take_results(face: BridgedConnection, results: list[PGresult]) -> None:
    """Take the results of the reset from *results*, those of a message that began with it.

    Raise psycopg's error of what has failed. If it is the reset, the connection is closed.
    """
    count = face.reset.results
    if len(results) <= count:
        face.close()
    else:
        was_reset(face)
    if (failed := failure(results)) is not None:
        raise error_after(len(face.reset.prefix), failed, face.pgconn._encoding)
    del results[:count]


def was_reset(face: BridgedConnection) -> None:
    """Take note that the session of *face* is as it was configured."""
    face.reset_due = False
    # The server has forgotten them.
    face._prepared.clear()


def failure(results: list[PGresult]) -> PGresult | None:
    """Return which of the *results* of a message is an error: nothing is executed after that."""
    last = results[-1]
    return None if last.status in _OK else last
