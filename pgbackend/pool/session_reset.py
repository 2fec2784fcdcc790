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
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators
from psycopg.client_cursor import ClientCursorMixin
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

from .positions import error_after

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

_FAILED = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})

# The settings that statements are written by. The server reports them without being asked. A reset
# that changes them comes before the statement is written.
_WRITTEN_BY = (
    b"TimeZone",
    b"DateStyle",
    b"IntervalStyle",
    b"client_encoding",
    b"standard_conforming_strings",
)

# A longer statement may take so long to be read that a time-out of the old session ends it, in
# bytes. One with a backslash may be read by a setting that is not reported.
_LONG = 8192

# What is one statement for certain, with one result, and takes no long time.
_SIMPLE = re.compile(
    r"""\s*(?:close|deallocate|discard\s+(?!all\b)|listen|reset|select|set|unlisten)\b
        (?!.*(?:;|--|/\*|\bfrom\b)).*""",
    re.IGNORECASE | re.VERBOSE,
)

# Whatever a function has made the default: it waits for no other transaction.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE"


class Reset:
    """What gives a session back the state that it was configured with.

    *resets* are the statements that make it an empty one, and *made* those that make it again.
    """

    def __init__(self, resets: Sequence[str], made: Sequence[str]) -> None:
        together = [_BEGIN, *resets, *made, "COMMIT"]
        line = "; ".join(together)
        # Errors count characters, and lines.
        simple = line.isascii() and line.isprintable() and all(map(_SIMPLE.match, together[1:-1]))
        simple = simple and "\\" not in line
        # What goes before a statement, and how many results that has; nothing if it cannot.
        self.prefix = f"{line};\n".encode() if simple else b""
        self.results = len(together)
        # Without a statement: the server reads what is made as the session is by then. Statements
        # on lines of their own: one may end with a comment.
        emptying = "; ".join([_BEGIN, *resets, "COMMIT"])
        self.messages = (line,) if simple else (emptying, "\n;".join(made))
        self._written_by: tuple[bytes | None, ...] = ()

    def remember(self, face: Any) -> None:
        """Take what *face* is now for the state that it was configured with."""
        self._written_by = tuple(map(face.pgconn.parameter_status, _WRITTEN_BY))

    def can_wait(self, face: Any) -> bool:
        """Return whether what is executed next may be sent behind it, in one message."""
        pgconn = face.pgconn
        return (
            bool(self.prefix)
            and pgconn.transaction_status == TransactionStatus.IDLE
            and tuple(map(pgconn.parameter_status, _WRITTEN_BY)) == self._written_by
        )


def reset(face: Any) -> PQGen[None]:
    """Reset the session of *face* by messages of its own, one mostly.

    Raise psycopg's error if any of it fails; the connection is closed then. What the server says
    meanwhile is for nobody.
    """
    pgconn = face.pgconn
    handlers = pgconn.notice_handler, pgconn.notify_handler
    pgconn.notice_handler = pgconn.notify_handler = None
    failed = None
    try:
        for message in face.reset.messages:
            if failed is None:
                pgconn.send_query(message.encode(pgconn._encoding))
                failed = failure((yield from generators.execute(pgconn)))
    finally:
        pgconn.notice_handler, pgconn.notify_handler = handlers
    if failed is not None:
        error = psycopg.errors.error_from_result(failed, encoding=pgconn._encoding)
        face.close()
        raise error
    _was_reset(face)


def reset_and_execute(face: Any, query: bytes) -> PQGen[list[PGresult]]:
    """Reset the session of *face*, execute *query*, and return the results of that.

    In one message, if the server can take both. Raise psycopg's error of what has failed.
    """
    pgconn = face.pgconn
    prefix: bytes = face.reset.prefix
    if len(query) <= _LONG and b"\\" not in query and not face.has_handlers:
        pgconn.send_query(prefix + query)
        results: list[PGresult] = yield from generators.execute(pgconn)
        failed = failure(results)
        if failed is None or len(results) > face.reset.results:
            _was_reset(face)
            if failed is not None:
                raise error_after(len(prefix), failed, pgconn._encoding)
            return results[face.reset.results :]
        if pgconn.transaction_status != TransactionStatus.IDLE or _was_interrupted(failed):
            error = psycopg.errors.error_from_result(failed, encoding=pgconn._encoding)
            face.close()
            raise error
        # The server cannot parse it, and has refused it whole.
    yield from reset(face)
    pgconn.send_query(query)
    results = yield from generators.execute(pgconn)
    if (failed := failure(results)) is not None:
        raise psycopg.errors.error_from_result(failed, encoding=pgconn._encoding)
    return results


def sends_text(cursor: Any) -> bool:
    """Return whether a psycopg cursor sends a statement as text, with its parameters in it."""
    return (
        isinstance(cursor, ClientCursorMixin)
        and not isinstance(cursor, psycopg.ServerCursor)
        and cursor._conn._pipeline is None
    )


def _was_reset(face: Any) -> None:
    """Take note that the session of *face* is as it was configured."""
    face.reset_due = False
    # The server has forgotten them.
    face._prepared.clear()
    if face._notifies_backlog:
        # Of channels that the session listened to before.
        face._notifies_backlog.clear()


def failure(results: list[PGresult]) -> PGresult | None:
    """Return which of the *results* of a message is an error: nothing is executed after that."""
    last = results[-1]
    return last if last.status in _FAILED else None


def _was_interrupted(failed: PGresult) -> bool:
    return (failed.error_field(DiagnosticField.SQLSTATE) or b"57").startswith(b"57")
