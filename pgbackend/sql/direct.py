"""The short way of the ORM's own statements: lease, send, read and give back at once.

A statement compiled from Django's own parts does not need most features of a cursor: a log,
functions around it, a position among the rows, a session to look after. `execute` and `rows` do for
it what Django's and psycopg's cursors do together. Where other code takes part in those (DEBUG,
``execute_wrapper``, an instrumentation, a subclass), Django's cursor is used; see
`lease_or_cursor`.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.postgresql.base import Cursor
from greenlet import getcurrent
from psycopg import generators
from psycopg._queries import PostgresClientQuery
from psycopg.adapt import Transformer
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus

from ..pool.error_positions import error_after
from ..pool.face import BridgedConnection
from ..pool.session_reset import failure, reset_and_execute
from ..session.clean import CleanSQL
from ..session.row_settings import check_on_loop
from ..tasks.lease import Lease
from . import together
from .in_threads import ThreadLease, is_gathered_in_thread, lease_of_thread
from .instrumented import may_skip_cursors
from .kept_statements import KeptStatement, is_kept, was_forgotten

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

TUPLES_OK = ExecStatus.TUPLES_OK
IDLE = TransactionStatus.IDLE

# The longest statement that is sent in one message with a SAVEPOINT, bytes.
_LONG = 8192


def lease_or_cursor(wrapper: Any, sql: Any) -> tuple[Lease | ThreadLease | None, Any]:
    """Return the lease to run *sql* on by the short way, held once, or else Django's cursor.

    The other of the two is None. The caller owes a `Lease.release`, or the end of the cursor.
    """
    if (
        type(sql) is CleanSQL
        and not wrapper.queries_logged
        and not wrapper.execute_wrappers
        and may_skip_cursors(wrapper)
        and (state := wrapper.bridged_state()) is not None
    ):
        lease: Lease = wrapper.hold_for_statement(state)
        if (
            lease.face.cursor_factory is Cursor
            and lease.face._pipeline is None
            and lease.pooled.execute_wrappers is None
        ):
            return lease, None
        # The cursor must take its hold before this one ends: the task has waited for a connection,
        # and would have to wait for it again.
        try:
            return None, wrapper.cursor()
        finally:
            lease.release()
    if is_gathered_in_thread() and (of_thread := lease_of_thread(wrapper, sql)) is not None:
        return of_thread, None
    return None, wrapper.cursor()


def execute(
    wrapper: Any, lease: Lease | ThreadLease, sql: str, params: Any, or_else: str | None = None
) -> PGresult:
    """Run *sql* on a held *lease* and return its result; raise the errors of Django's cursors.

    *or_else* is the text of a statement that *sql* executes; see `kept_statements`.
    """
    face: Any = lease.face
    if lease.state.needs_rollback:
        wrapper.validate_no_broken_transaction()
    if (wrapper.set_in_threads or wrapper.kept_lease is not None) and isinstance(lease, Lease):
        with wrapper.wrap_database_errors:
            check_on_loop(wrapper, lease, sql)
    face.counts.short += 1
    try:
        transformer = face.take_transformer()
        query = PostgresClientQuery(transformer)
        query.convert(sql, params)
        if not face.adapters_exposed:
            face.transformer = transformer
        if getcurrent().gathered:  # type: ignore[attr-defined]  # it is a `Bridge`
            result = together.hand_to_driver(lease, query.query)
            if result is not None:
                return result
        with face.lock:
            if face.savepoint_due and not _parses(face, sql, query.query):
                face.send_due_now()
            sent: PGresult
            if or_else is not None:
                sent = face.wait(_exchange_kept(face, query.query, or_else, params))
                return sent
            if not face.reset_due:
                sent = face.wait(_exchange(face, query.query))
                return sent
            face.resetting.add(here := id(getcurrent()))
            try:
                sent = face.wait(_exchange(face, query.query))
                return sent
            finally:
                face.resetting.discard(here)
    except psycopg.Error:
        with wrapper.wrap_database_errors:
            raise


def _parses(face: Any, sql: Any, query: bytes) -> bool:
    """Return whether the server certainly can parse *query*, or fails with nothing lost by it.

    The server refuses a message that it cannot parse as a whole, and breaks the transaction. There
    must be a savepoint then, if one was asked for.
    """
    if face.pgconn.transaction_status == IDLE or not any(
        command.startswith(b"SAVEPOINT") for command in face.savepoint_due
    ):
        return True
    # The encoding of the database may lack a character.
    return (
        getattr(sql, "parses", False)
        and len(query) <= _LONG
        and (query.isascii() or face.pgconn.parameter_status(b"server_encoding") == b"UTF8")
    )


def rows(
    wrapper: Any, lease: Lease | ThreadLease, result: PGresult, count: int | None = None
) -> list[tuple[Any, ...]]:
    """Return the rows of *result*, at most *count*; raise the errors of Django's cursors."""
    face: Any = lease.face
    transformer = face.take_transformer()
    try:
        transformer.set_pgresult(result)
        number = result.ntuples if count is None else min(count, result.ntuples)
        found: list[Any] = transformer.load_rows(0, number, tuple)
    except psycopg.Error:
        with wrapper.wrap_database_errors:
            raise
    if not face.adapters_exposed:
        face.transformer = transformer
    return found


def rowcount(result: PGresult) -> int:
    """Return how many rows a statement returned or changed; -1 if it has no such number."""
    if result.status == TUPLES_OK:
        return result.ntuples
    changed = result.command_tuples
    return -1 if changed is None else changed


def cursor_for(wrapper: Any, sql: Any) -> Any:
    """Return a cursor to run *sql*: a `DirectCursor` unless something rules it out."""
    lease, cursor = lease_or_cursor(wrapper, sql)
    return cursor if lease is None else DirectCursor(wrapper, lease)


class Due:
    """Statements that are sent in one message with the next one of the open transaction.

    They go through *face*, of *wrapper*; each is one line. They are never sent where no statement
    follows.
    """

    __slots__ = ("_again", "_face", "_times_sent", "_wrapper")

    def __init__(self, wrapper: Any, face: Any, statements: tuple[bytes, ...]) -> None:
        self._again = statements[-1:]
        self._wrapper = wrapper
        self._face = face
        self._times_sent = face.times_due_sent
        face.savepoint_due += statements

    @property
    def is_sent(self) -> bool:
        """Whether all of them were sent, and succeeded."""
        return bool(self._face.times_due_sent != self._times_sent)

    def send(self) -> None:
        """Send them now, unless they were; raise the errors of Django's cursors."""
        if not self.is_sent:
            self._wrapper.send_due(self._face)

    def commit_next(self) -> None:
        """Have a COMMIT sent behind the next statement: nothing else may follow in the transaction.

        If it fails, the statement raises that. So this is for transactions that have only read.
        Where the project's code makes a statement of its own the next one, what follows it is in
        another transaction, which begins with the last of those that were due.
        """
        self._face.commit_due = self._again

    def drop(self) -> None:
        """Forget what was not sent."""
        self._face.savepoint_due, self._face.commit_due = (), None


class DirectCursor:
    """The short way as a cursor, with the part of DB-API that Django's operations use.

    The cursor takes over one hold on *lease*.
    """

    __slots__ = ("_lease", "_result", "_wrapper")

    def __init__(self, wrapper: Any, lease: Lease | ThreadLease) -> None:
        self._wrapper = wrapper
        self._lease = lease
        self._result: PGresult | None = None

    def __enter__(self) -> DirectCursor:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lease.release()

    def execute(self, sql: str, params: Any) -> None:
        """Run *sql*; raise the errors of Django's cursors."""
        self._result = execute(self._wrapper, self._lease, sql, params)

    def execute_kept(self, kept: KeptStatement, params: Any) -> None:
        """Do what `execute` does for a statement that the connection may keep."""
        face: Any = self._lease.face
        if isinstance(self._lease, Lease) and is_kept(self._wrapper, face, kept):
            self._result = execute(self._wrapper, self._lease, kept.execute, params, kept.sql)
        else:
            self._result = execute(self._wrapper, self._lease, kept.sql, params)

    def execute_with_next(self, *statements: tuple[str, Any]) -> Due:
        """Have *statements*, in the open transaction, sent with the next one; see `Due`."""
        face: Any = self._lease.face
        face.reset_now()
        return Due(self._wrapper, face, tuple(self._text(*each) for each in statements))

    def _text(self, sql: str, params: Any) -> bytes:
        return _converted(self._lease.face, sql, params)

    @property
    def rowcount(self) -> int:
        """How many rows the statement returned or changed; -1 if it has no such number."""
        assert self._result is not None
        return rowcount(self._result)

    def fetchone(self) -> Any:
        """Return the first row, or None; raise the errors of Django's cursors."""
        if self._result is None:
            return None
        found = rows(self._wrapper, self._lease, self._result, 1)
        return found[0] if found else None

    def fetchall(self) -> list[Any]:
        """Return all rows; raise the errors of Django's cursors."""
        assert self._result is not None
        return rows(self._wrapper, self._lease, self._result)


def _exchange(face: BridgedConnection, query: bytes) -> PQGen[PGresult]:
    """Send *query* in one message with a BEGIN or a reset that is due; return its result.

    If a rule produces several results, return the first, as psycopg's cursors do.
    """
    pgconn = face.pgconn
    if face.reset_due:
        results: list[PGresult] = yield from reset_and_execute(face, query)
        return results[0]
    first: tuple[bytes, ...] = ()
    begins = False
    if not face._autocommit:
        first = face.savepoint_due
        if begins := pgconn.transaction_status == IDLE:
            first, face.owes_begin = (face._get_tx_start_command(), *first), False
    # What goes before has a line of its own, since errors show the line that they are about.
    prefix = b"; ".join(first) + b";\n" if first else b""
    end, again = b"", None
    if face.commit_due is not None and not face._autocommit:
        # The statement may end with a comment.
        again, face.commit_due, end = face.commit_due, None, b"\n;COMMIT"
    pgconn.send_query(prefix + query + end)
    results = yield from generators.execute(pgconn)
    failed = failure(results)
    if first:
        if len(results) > len(first):
            if face.savepoint_due:
                face.due_was_sent()
        elif (
            failed is not None
            and begins
            and len(results) == 1
            and pgconn.transaction_status == IDLE
            and not (failed.error_field(DiagnosticField.SQLSTATE) or b"57").startswith(b"57")
        ):
            # The server refuses a message that it cannot parse as a whole: nothing has begun, and
            # no transaction is broken. So send BEGIN and the statement separately, unless the
            # server was interrupted.
            yield from face.begin_and_save()
            first, prefix = (), b""
            pgconn.send_query(query)
            results = yield from generators.execute(pgconn)
            failed = failure(results)
        elif face.savepoint_due:
            face.drop_due_if_broken()
    if failed is not None:
        raise error_after(len(prefix), failed, pgconn._encoding)
    if again is not None and pgconn.transaction_status == IDLE:
        face.savepoint_due = again
    return results[len(first)]


def _exchange_kept(face: BridgedConnection, query: bytes, sql: str, params: Any) -> PQGen[PGresult]:
    """Send the EXECUTE *query*; where the server has forgotten its statement, send that, *sql*."""
    try:
        return (yield from _exchange(face, query))
    except psycopg.Error as error:
        if not (yield from was_forgotten(face, error)):
            raise
    return (yield from _exchange(face, _converted(face, sql, params)))


def _converted(face: Any, sql: str, params: Any) -> bytes:
    query = PostgresClientQuery(Transformer(face))
    query.convert(sql, params)
    return query.query
