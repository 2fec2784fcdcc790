"""Reset sessions in one message with the next statement.

A statement may have changed its session (raw SQL that calls the application's functions, for
example). The session is then reset before anything else is executed in it. A separate reset costs
as much as a statement, so it is postponed: the connection becomes idle at once, and its next
borrower sends the reset in front of the first statement. Where the server cannot take both in one
message, the reset goes first, alone. If no borrower comes, the pool soon sends the reset.

The reset remains a transaction of its own: it stays in effect if the statement fails, and settings
that a function made for new transactions are gone when the statement's transaction begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators
from psycopg.client_cursor import ClientCursorMixin
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

from .error_positions import error_after

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

_FAILED = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})

# The settings that decide how a statement's text is written. The server reports them without being
# asked. If a reset changes one of them, it must come before the statement is written.
_WRITTEN_BY = (
    b"TimeZone",
    b"DateStyle",
    b"IntervalStyle",
    b"client_encoding",
    b"standard_conforming_strings",
)

# The longest statement that is sent behind a reset, bytes. The old session's time-outs are in force
# while the server parses the message, and could end a longer one. A statement with a backslash is
# never sent so: a setting that is not reported may change its meaning.
_LONG = 8192

# Matches text that is certainly one statement, with one result, and quick to execute.
_SIMPLE = re.compile(
    r"""\s*(?:close|deallocate|discard\s+(?!all\b)|listen|reset|select|set|unlisten)\b
        (?!.*(?:;|--|/\*|\bfrom\b)).*""",
    re.IGNORECASE | re.VERBOSE,
)

# Names the isolation explicitly, whatever default a function has set: such a transaction never
# waits for another one.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE"


class Reset:
    """The statements that give a session back the state that it was configured with.

    *resets* are the statements that empty the session; *setup_statements* configure it again.
    *in_transaction* are those that give its settings back in a transaction that goes on.
    """

    def __init__(
        self, resets: Sequence[str], setup_statements: Sequence[str], in_transaction: Sequence[str]
    ) -> None:
        self.in_transaction = tuple(each.encode() for each in in_transaction)
        together = [_BEGIN, *resets, *setup_statements, "COMMIT"]
        line = "; ".join(together)
        # Errors count characters and lines, so the prefix must be one line of ASCII.
        simple = line.isascii() and line.isprintable() and all(map(_SIMPLE.match, together[1:-1]))
        simple = simple and "\\" not in line
        # `prefix` goes before a statement, and `results` is the number of its results. An empty
        # prefix means that it cannot go before a statement.
        self.prefix = f"{line};\n".encode() if simple else b""
        self.results = len(together)
        # `messages` are for a reset without a statement. The server parses *setup_statements* by
        # the settings of the emptied session. Each starts on its own line, since the one before may
        # end with a comment.
        emptying = "; ".join([_BEGIN, *resets, "COMMIT"])
        self.messages = (line,) if simple else (emptying, "\n;".join(setup_statements))
        self._written_by: tuple[bytes | None, ...] = ()

    def remember(self, face: Any) -> None:
        """Save the current settings of *face* as those that it was configured with."""
        self._written_by = tuple(map(face.pgconn.parameter_status, _WRITTEN_BY))

    def can_wait(self, face: Any) -> bool:
        """Return whether the reset can wait for the next statement, and go in its message."""
        pgconn = face.pgconn
        return (
            bool(self.prefix)
            and pgconn.transaction_status == TransactionStatus.IDLE
            and tuple(map(pgconn.parameter_status, _WRITTEN_BY)) == self._written_by
        )


def reset(face: Any) -> PQGen[None]:
    """Reset the session of *face* by messages of its own, usually one.

    Raise psycopg's error if a statement fails, and close the connection. Notices and notifications
    of the server meanwhile are dropped.
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
    """Reset the session of *face*, execute *query*, and return the results of *query*.

    Use one message if the server can take both. Raise psycopg's error for whichever part failed.
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
        # The server could not parse the message, and has executed none of it.
    yield from reset(face)
    pgconn.send_query(query)
    results = yield from generators.execute(pgconn)
    if (failed := failure(results)) is not None:
        raise psycopg.errors.error_from_result(failed, encoding=pgconn._encoding)
    return results


def sends_text(cursor: Any) -> bool:
    """Return whether a psycopg cursor sends its statement as text that includes the parameters."""
    return (
        isinstance(cursor, ClientCursorMixin)
        and not isinstance(cursor, psycopg.ServerCursor)
        and cursor._conn._pipeline is None
    )


def _was_reset(face: Any) -> None:
    """Note that the session of *face* is in its configured state."""
    face.reset_due = False
    face.counts.resets += 1
    # The reset has made the server forget prepared statements.
    face._prepared.clear()
    if face.kept_statements:
        face.kept_statements.clear()
    if face._notifies_backlog:
        # The backlog holds notifications of channels that the old session listened to.
        face._notifies_backlog.clear()


def failure(results: list[PGresult]) -> PGresult | None:
    """Return the error among the *results* of a message, if any: it is always the last."""
    last = results[-1]
    return last if last.status in _FAILED else None


def _was_interrupted(failed: PGresult) -> bool:
    return (failed.error_field(DiagnosticField.SQLSTATE) or b"57").startswith(b"57")
