"""Django's cursor wrappers, holding the lease of the connection they run on.

Closing the cursor lets go of the lease; a cursor that is dropped unclosed does so when it is
collected, and at the latest when the outermost bridged call ends.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
from django.db import ProgrammingError
from django.db.backends import utils
from django.db.backends.postgresql import base as postgresql

from .bridge import is_bridged, lasts, on_end
from .joining import check_not_outlived
from .session import CleanSQL, changes_session

if TYPE_CHECKING:
    from .lease import Lease


# The modules between a cursor's user and the cursor.
_BETWEEN = frozenset({__name__, "django.db.backends.utils", "functools"})

# Server-side cursors opened in this context are added; see `collect_opened`.
_opened: ContextVar[list[LeaseHolder] | None] = ContextVar("pgbackend_opened", default=None)


@contextmanager
def collect_opened(cursors: list[LeaseHolder]) -> Iterator[None]:
    """Add the server-side cursors that the block opens to *cursors*."""
    token = _opened.set(cursors)
    try:
        yield
    finally:
        _opened.reset(token)


def _unpin(lease: Lease) -> None:
    if lease.on_loan:
        lease.let_go(pinned=True)


def _is_of_the_cache() -> bool:
    """Return whether the database's cache runs a statement: Django's own, though raw SQL."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in _BETWEEN and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_globals.get("__name__") == "django.core.cache.backends.db"


def _is_being_made(db: Any) -> bool:
    """Return whether a statement is part of the making of a cursor, by ``_cursor`` of a subclass.

    Made for each cursor anew, its effect is for what that executes: django-tenants sets the
    search path so.
    """
    own = getattr(type(db)._cursor, "__code__", None)
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code is not own:
        frame = frame.f_back
    return frame is not None


class LeaseHolder(utils.CursorWrapper):
    """What `CursorWrapper` and `CursorDebugWrapper` share.

    Instrumentations such as django-debug-toolbar replace one, as soon as it is made, by one of a
    class derived from its own for the same psycopg cursor: that takes the lease over.
    """

    # None before `hold`, on Django's own synchronous path, and once the lease was let go.
    lease: Lease | None = None
    # Whether it ever had one.
    leased = False
    pinned = False

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
        """Take over one hold on *lease*; *pinned* if it outlasts the bridged call."""
        self.lease = lease
        self.leased = True
        self.pinned = pinned
        lease.newest_holder = ref(self)
        if pinned and (opened := _opened.get()) is not None:
            opened[:] = [each for each in opened if each.cursor is not self.cursor]
            opened.append(self)

    def close(self) -> None:
        """Close the cursor and let go of the lease; closing again does nothing."""
        if self._in_server and not is_bridged():
            # A server-side cursor finalized outside the bridge, by the collector most
            # likely: the server cannot be told to close it.
            self._abandon()
            return
        try:
            if self._in_server:
                assert self.lease is not None
                with self.lease.face.limited(), self.db.wrap_database_errors:
                    self.cursor.close()
            elif not self.leased or (self.lease is not None and self.lease.on_loan):
                with self.db.wrap_database_errors:
                    self.cursor.close()
            else:
                self._forget()
        except BaseException:
            # Interrupted, most likely: the server may have it open still.
            if self._in_server:
                self._abandon(left_open=False)
            raise
        finally:
            self._let_go()

    @property
    def _in_server(self) -> bool:
        """Whether the server may have the cursor open after the lease was given back."""
        return self.pinned and self.lease is not None and self.lease.on_loan

    def __del__(self) -> None:
        if self._in_server:
            self._abandon()
        else:
            self._let_go()

    def _abandon(self, *, left_open: bool = True) -> None:
        """Let go of a server-side cursor that is still open in the server.

        *left_open* if nobody tried to close it.
        """
        lease = self.lease
        assert lease is not None
        if lease.state.transaction is None:
            if left_open:
                warnings.warn(
                    "a server-side cursor was left open: its connection is closed. Read an"
                    " aiterator() to its end or `await aclose()` it",
                    ResourceWarning,
                    stacklevel=2,
                )
            lease.face.close()
        self._forget()
        self._let_go()

    def _forget(self) -> None:
        """Do what needs no connection in psycopg's close(): its destructor would miss that."""
        self.cursor._close()

    def _let_go(self) -> None:
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.let_go(pinned=self.pinned)

    def _check_lease(self) -> None:
        """Take the task's turn; raise InterfaceError if the connection was given back."""
        if self.lease is None:
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

    def _soil(self, sql: Any, params: Any = None) -> None:
        """Have the session reset after this borrower; refuse what would be lost with that.

        Raise ProgrammingError for a statement whose effect lives in the session where nothing
        keeps the connection: no transaction, no pin and no request; nor is it for one cursor.
        """
        lease = self.lease
        if lease is None:
            if self.db.configures_pool:
                self.db.configured.append((str(sql), params))
            return
        if _is_of_the_cache():
            return
        lease.dirty = True
        if lease.pins or not changes_session(str(sql)):
            return
        if _is_being_made(self.db):
            return
        if not lasts():
            raise ProgrammingError(
                "the effect of this statement lives in the session, which is reset when the"
                " connection goes back to the pool, right after the statement. Use it inside"
                f" `with pgbackend.transaction.pinned({self.db.alias!r}):` or inside atomic()"
            )
        # As long as Django would have kept the connection.
        lease.hold(pinned=True)
        on_end(functools.partial(_unpin, lease))

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        self._check_lease()
        self._soil("")
        return super().callproc(*args, **kwargs)

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        """Start a COPY, as psycopg's ``Cursor.copy``."""
        self._check_lease()
        self._soil("")
        return getattr(super(), "copy", self.cursor.copy)(*args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Iterate over rows as they come, as psycopg's ``Cursor.stream``."""
        self._check_lease()
        self._soil("")
        return self.cursor.stream(*args, **kwargs)

    def _execute(self, sql: Any, params: Any, *args: Any) -> Any:
        self._check_lease()
        if type(sql) is not CleanSQL:
            self._soil(sql, params)
        return super()._execute(sql, params, *args)

    def _executemany(self, sql: Any, param_list: Any, *args: Any) -> Any:
        self._check_lease()
        self._soil(sql)
        return super()._executemany(sql, param_list, *args)


class CursorWrapper(LeaseHolder):
    """Django's cursor wrapper."""


class CursorDebugWrapper(LeaseHolder, postgresql.CursorDebugWrapper):
    """Django's cursor wrapper that logs queries."""
