"""Django's cursor wrappers, each holding the lease of its connection.

Closing the cursor releases its hold on the lease. A cursor that is dropped unclosed releases the
hold when it is collected, or at the latest when the outermost bridged call ends.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet, ref

import psycopg
import psycopg.sql
from django.db.backends import utils
from django.db.backends.postgresql import base as postgresql
from psycopg.pq import ExecStatus, TransactionStatus

from ..bridge.current import can_wait, is_bridged
from ..pool.counts import count_in_thread
from ..session.clean import CleanSQL
from ..session.row_settings import check_in_thread, check_on_loop, may_change, note_in_thread
from ..tasks.lease import Lease
from ..tasks.membership import check_not_outlived
from ..tasks.request import request_wrapper
from ..tasks.transaction import Transaction

# The modules on the stack between a cursor's user and the cursor.
_BETWEEN = frozenset({__name__, "django.db.backends.utils", "functools"})

# A list that server-side cursors opened in this context are added to; see `collect_opened_cursors`.
_opened_cursors: ContextVar[list[LeaseHolder] | None] = ContextVar("pgbackend_opened", default=None)


@contextmanager
def collect_opened_cursors(cursors: list[LeaseHolder]) -> Iterator[None]:
    """Add the server-side cursors that the block opens to *cursors*."""
    token = _opened_cursors.set(cursors)
    try:
        yield
    finally:
        _opened_cursors.reset(token)


def _is_of_the_cache() -> bool:
    """Return whether Django's database cache runs the statement, which is raw SQL."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in _BETWEEN and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "django.core.cache.backends.db"


class LeaseHolder(utils.CursorWrapper):
    """The common part of `CursorWrapper` and `CursorDebugWrapper`.

    An instrumentation such as django-debug-toolbar may replace a cursor wrapper, as soon as it is
    made, by an instance of a derived class for the same psycopg cursor; the new one takes over the
    lease.
    """

    # None before `hold`, on Django's own synchronous path, and after the hold was released.
    lease: Lease | None = None
    # Whether the cursor ever had a lease.
    leased = False
    # Whether this is a server-side cursor, which may outlast the bridged call.
    pinned = False
    # The transaction that ends this server-side cursor; None: the session ends it.
    _transaction: Transaction | None = None
    # The value of the lease's `closings` when this cursor was opened.
    _opened_at = 0

    def __init__(self, cursor: Any, db: Any) -> None:
        super().__init__(cursor, db)
        if type(self) in (CursorWrapper, CursorDebugWrapper) or not db.bridged:
            return
        lease = db.state.lease
        holder = lease.newest_holder() if lease is not None else None
        if holder is not None and holder.cursor is cursor and holder.lease is lease:
            holder.lease = None
            self.hold(lease, pinned=holder.pinned)

    def hold(self, lease: Lease, *, pinned: bool) -> None:
        """Take over one hold on *lease*; *pinned* if the hold outlasts the bridged call."""
        self.lease = lease
        self.leased = True
        self.pinned = pinned
        lease.newest_holder = ref(self)
        if pinned:
            self._transaction = None if self.cursor.withhold else lease.state.transaction
            self._opened_at = lease.closings
            if self._transaction is None:
                # Giving it back early does not close the cursor; the session's reset does.
                lease.dirty = True
            if lease.named is None:
                lease.named = WeakSet()
            lease.named.add(self)
        if pinned and (opened := _opened_cursors.get()) is not None:
            opened[:] = [each for each in opened if each.cursor is not self.cursor]
            opened.append(self)

    def close(self) -> None:
        """Close the cursor and release its hold on the lease; closing again does nothing.

        Close a server-side cursor in the server at once if the caller may wait, else before the
        next statement. A generator that ends early does not wait: the collector may have ended it
        in the middle of anything, including a statement on the same connection.
        """
        if self._in_server:
            if not is_bridged():
                self._close_dropped()
            elif not can_wait() or isinstance(sys.exception(), GeneratorExit):
                self.close_later()
            else:
                self.close_in_server()
            return
        try:
            if not self.leased or (self.lease is not None and self.lease.on_loan):
                with self.db.wrap_database_errors:
                    self.cursor.close()
            else:
                self._forget()
        finally:
            self._release()

    def close_in_server(self) -> None:
        """Close an open server-side cursor, waiting; later, if it is another task's turn."""
        lease = self.lease
        if lease is None or not self._in_server:
            return
        if not self._may_use(lease):
            self.close_later()
            return
        # Otherwise an error, raw SQL or the end of a savepoint may have closed the cursor already.
        sure = (
            sys.exception() is None
            and self.cursor._described
            and lease.closings == self._opened_at
            and not lease.face.uninspected
        )
        try:
            with lease.face.limited(), self.db.wrap_database_errors:
                lease.face.close_cursors([self.cursor.name], sure=sure, still=self._may_be_open)
        except BaseException:
            # The CLOSE was probably interrupted: the cursor may still be open in the server.
            self.close_later()
            raise
        self._forget()
        self._release()

    def _may_use(self, lease: Lease) -> bool:
        """Return whether the running task uses *lease*, too, and has the turn."""
        try:
            return self.db.state is lease.state and bool(lease.state.has_turn())
        except RuntimeError:
            # The cursor was moved to another event loop.
            return False

    @property
    def _in_server(self) -> bool:
        """Whether the cursor may still be open in the server."""
        return self.pinned and self.lease is not None and self.lease.on_loan

    def _may_be_open(self) -> bool:
        """Return whether the cursor's connection and transaction are still the same."""
        lease, transaction = self.lease, self._transaction
        return (
            lease is not None
            and lease.on_loan
            and (transaction is None or lease.state.transaction is transaction)
        )

    def __del__(self) -> None:
        if self._in_server:
            self._close_dropped()
        else:
            self._release()

    def _close_dropped(self) -> None:
        """Have a server-side cursor that nothing closed closed later."""
        lease = self.lease
        assert lease is not None
        # A transaction ends its cursors, and another holder of the lease closes them.
        alone = self._transaction is None and lease.holds <= 1
        if alone:
            warnings.warn(
                "a server-side cursor was left open: its connection is closed. Read an"
                " aiterator() to its end or `await aclose()` it",
                ResourceWarning,
                stacklevel=2,
            )
        self.close_later(discard=alone)

    def close_later(self, *, discard: bool = False) -> None:
        """Release the hold of a server-side cursor that is open in the server, without waiting.

        This may be called from any thread. The cursor is closed before the next statement on the
        connection; with *discard* the connection is closed at once.
        """
        lease, self.lease = self.lease, None
        if lease is None:
            return
        self._forget()
        close = functools.partial(lease.close_cursor_later, self.cursor.name, self._transaction)
        lease.pool.on_loop(functools.partial(close, discard=discard))

    def _forget(self) -> None:
        """Do the part of psycopg's close() that needs no connection: its destructor would warn."""
        self.cursor._close()

    def transaction_ended(self, transaction: Transaction) -> None:
        """Release the hold of a server-side cursor that ended with *transaction*."""
        if self._transaction is transaction:
            self._forget()
            self._release()

    def _release(self) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release_threadsafe(pinned=self.pinned)

    def _check_lease(self, *, many: bool = False) -> None:
        """Take the task's turn; raise InterfaceError if the connection was given back."""
        if self.lease is None:
            if self.leased and self.cursor.closed:
                # psycopg would first report the connection, which is closed for this cursor.
                with self.db.wrap_database_errors:
                    raise psycopg.InterfaceError("the cursor is closed")
            return
        self.db.state_in_turn()
        if self.lease.pins or not self.lease.on_loan:
            check_not_outlived(self.db)
        if not self.lease.on_loan:
            with self.db.wrap_database_errors:
                raise psycopg.InterfaceError(
                    "the cursor's connection was given back when the bridged call that opened"
                    " it ended: open, use and close a cursor in one bridged function"
                )
        face = self.lease.face
        if face.must_send_due or (many and face.reset_due):
            self.db.send_due(face)
            # This task may have waited, and another one have begun a savepoint.
            self._check_lease()

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        self._check_lease()
        self._check_row_settings(f"SELECT {args[0]}" if args else "")
        return super().callproc(*args, **kwargs)

    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        """Start a COPY, as psycopg's ``Cursor.copy``."""
        self._check_lease()
        self._check_row_settings(statement)
        return _ended(getattr(super(), "copy", self.cursor.copy)(statement, *args, **kwargs))

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Iterate over rows as they come, as psycopg's ``Cursor.stream``."""
        self._check_lease()
        self._check_row_settings(query)
        self._note_settings(query, args[0] if args else None)
        return self.cursor.stream(query, *args, **kwargs)

    def _check_row_settings(self, sql: Any) -> None:
        """Raise ProgrammingError if *sql* would run without settings that its request has made."""
        if self.lease is not None:
            if self.db.set_in_threads or self.db.kept_lease is not None:
                with self.db.wrap_database_errors:
                    check_on_loop(self.db, self.lease, _text(self.cursor, sql))
        elif not self.leased:
            count_in_thread(self.db.alias)
            if self._in_thread_of_request:
                with self.db.wrap_database_errors:
                    check_in_thread(self.db, _text(self.cursor, sql))

    @property
    def _in_thread_of_request(self) -> bool:
        return not self.leased and request_wrapper(self.db.alias) is not None

    def _note_settings(self, sql: Any, params: Any) -> None:
        """Note what *sql* sets, in a thread; `session.guard` does so on the loop."""
        if self._in_thread_of_request and may_change(sql):
            note_in_thread(self.db, _text(self.cursor, sql, params))

    def _execute(self, sql: Any, params: Any, *args: Any) -> Any:
        self._check_lease()
        self._check_row_settings(sql)
        if type(sql) is str and self.lease is not None and _is_of_the_cache():
            sql = CleanSQL(sql)
        result = super()._execute(sql, params, *args)
        self._note_settings(sql, params)
        if self.pinned and self.lease is not None:
            self._opened_at = self.lease.closings
        return result

    def _executemany(self, sql: Any, param_list: Any, *args: Any) -> Any:
        self._check_lease(many=True)
        self._check_row_settings(sql)
        if not self._in_thread_of_request or not may_change(sql):
            return super()._executemany(sql, param_list, *args)
        param_list = list(param_list)
        result = super()._executemany(sql, param_list, *args)
        for params in param_list:
            self._note_settings(sql, params)
        return result


class LeftEarly(Exception):
    """The reason for which a COPY TO is stopped that its reader has left."""


@contextmanager
def _ended(copying: Any) -> Iterator[Any]:
    """Run the block of a COPY; stop what the server still sends at its end.

    psycopg stops a COPY TO only if the block raises. Otherwise the connection could be used for
    nothing else, not even for a rollback. A transaction is then one that cannot be committed.
    """
    with copying as copy:
        yield copy
        result = copy.cursor.pgresult
        if (
            copy.connection.pgconn.transaction_status == TransactionStatus.ACTIVE
            and result is not None
            and result.status == ExecStatus.COPY_OUT
        ):
            copy.finish(LeftEarly())


def _text(cursor: Any, query: Any, params: Any = None) -> str:
    """Return the text that *cursor* executes, with its parameters if they matter."""
    if params and "set_config" in str(query).lower():
        with suppress(psycopg.Error, TypeError, ValueError):
            return str(psycopg.ClientCursor(cursor.connection).mogrify(query, params))
    if isinstance(query, bytes):
        return query.decode(cursor.connection.info.encoding, "replace")
    if isinstance(query, psycopg.sql.Composable):
        return query.as_string(cursor.connection)
    return str(query)


class CursorWrapper(LeaseHolder):
    """Django's cursor wrapper."""


class CursorDebugWrapper(LeaseHolder, postgresql.CursorDebugWrapper):
    """Django's cursor wrapper that logs queries."""
