"""The short way in a thread, for calls that are gathered in a transaction there.

Otherwise statements in threads go Django's own way. `ThreadLease` and `ThreadFace` are what
`direct` uses of a lease and its face, on Django's own connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import Cursor
from greenlet import getcurrent, greenlet
from psycopg import abc
from psycopg.adapt import Transformer

from ..pool.counts import count_in_thread
from ..session.clean import CleanSQL
from ..tasks.request import request_wrapper
from .instrumented import may_skip_cursors

if TYPE_CHECKING:
    from psycopg.abc import PQGen


class ThreadCall(greenlet):
    """The greenlet of a call that is gathered with others in a thread."""

    # As `bridge.current.Bridge` has it.
    gathered = True
    # The faces of the connections that the calls use, shared by the calls.
    faces: dict[Any, ThreadFace]


class _CountsOfThread:
    """Counts the statements of an alias in a thread, in the place of a pool's `Counts`."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @property
    def short(self) -> int:
        return 0

    @short.setter
    def short(self, value: int) -> None:
        count_in_thread(self._alias)


class ThreadFace:
    """A thread's psycopg connection, with what the short way asks of a face."""

    reset_due = False
    savepoint_due = ()
    owes_begin = False
    commit_due = None
    # No transformer is kept for the next statement.
    adapters_exposed = True
    was_stopped = False

    def __init__(self, connection: Any, alias: str) -> None:
        self.counts = _CountsOfThread(alias)
        self.connection = connection
        self.pgconn = connection.pgconn
        self.lock = connection.lock
        self.wait = connection.wait

    @property
    def _autocommit(self) -> bool:
        return bool(self.connection._autocommit)

    def take_transformer(self) -> abc.Transformer:
        """Return a transformer for one statement or its rows."""
        return Transformer(self.connection)

    def begin_and_save(self) -> PQGen[None]:
        """Send a BEGIN that is due."""
        begin: PQGen[None] = self.connection._start_query()
        return begin

    def _get_tx_start_command(self) -> bytes:
        command: bytes = self.connection._get_tx_start_command()
        return command

    def note_read_only(self, error: BaseException) -> None:
        """Do nothing: Django's connection stays with its server."""


class ThreadLease:
    """A thread's connection in the place of a lease: it is not given back."""

    on_loan = True

    def __init__(self, face: ThreadFace, state: Any) -> None:
        self.face = face
        self.state = state

    def release(self) -> None:
        """Do nothing; see `tasks.lease.Lease.release`."""


def is_gathered_in_thread() -> bool:
    """Return whether the running code is a call that is gathered with others in a thread."""
    return type(getcurrent()) is ThreadCall


def lease_of_thread(wrapper: Any, sql: Any) -> ThreadLease | None:
    """Return the thread's connection for *sql* if it may go the short way, or None."""
    if (
        type(sql) is not CleanSQL
        or wrapper.joined_transaction is not None
        or request_wrapper(wrapper.alias) is not None
        or not wrapper.in_atomic_block
        or wrapper.queries_logged
        or wrapper.execute_wrappers
        or not may_skip_cursors(wrapper)
    ):
        return None
    connection = wrapper.connection
    if connection is None or connection.cursor_factory is not Cursor or connection._pipeline:
        return None
    # One face for all statements, since those of one face are sent together.
    call: Any = getcurrent()
    face = call.faces.get(connection)
    if face is None:
        face = call.faces[connection] = ThreadFace(connection, wrapper.alias)
    return ThreadLease(face, wrapper.state)
