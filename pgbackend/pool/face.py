"""The DB-API 2 face of a pooled asynchronous connection.

psycopg's synchronous and asynchronous connections run the same generators over the same
``PGconn``; only ``wait()`` differs. `BridgedConnection` is psycopg's own synchronous
`~psycopg.Connection` on the ``PGconn`` of a pooled `~psycopg.AsyncConnection`, waiting through
the bridge: psycopg's and Django's cursors, COPY, pipelines and ``TypeInfo.fetch`` work on it
as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from operator import is_
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import ref

import psycopg
from greenlet import getcurrent
from psycopg import abc, sql
from psycopg._preparing import PrepareManager
from psycopg.abc import PQGen, PQGenConn
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.pq import Format, PGconn, TransactionStatus

from ..bridge.current import can_wait
from ..bridge.lock import BridgedLock
from .physical import PooledConnection, unread_error
from .savepoints import SavingConnection
from .socket_wait import SocketWait

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


# Why a COMMIT failed that the server answered with ROLLBACK; psycopg raises no error then.
ROLLED_BACK = (
    "the transaction cannot be committed: a statement in it failed, or was stopped by a"
    " cancellation or a time-out. Let that leave the atomic block, or put the statement into a"
    " nested one"
)

# The settings that loaders and dumpers read, by the names that the server reports.
_ADAPTED_TO = (b"TimeZone", b"DateStyle", b"IntervalStyle", b"client_encoding")

# The connection whose face is being made.
_new_face_of: ContextVar[PooledConnection] = ContextVar("pgbackend_new_face_of")


def _always() -> bool:
    return True


class _AsyncLock:
    """The lock of a connection's face, as psycopg's asynchronous connection uses its own."""

    def __init__(self, pooled: PooledConnection) -> None:
        self._pooled = pooled

    async def __aenter__(self) -> None:
        await self._pooled.face.lock.acquire()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pooled.face.lock.release()


class BridgedConnection(SavingConnection):
    """A `psycopg.Connection` whose every wait goes through the bridge.

    Each physical connection has one face at a time, made by `make_for` in the pool's ``configure``.
    A borrower may change the face (row and cursor factories, adapters, handlers, isolation level,
    ...): `restore` sets it back to the state that `remember` saved. A borrower who keeps the face
    finds it closed, since `make_successor` makes another one for the next borrower.
    """

    lock: BridgedLock  # type: ignore[assignment]  # psycopg has a threading.Lock here

    _REMEMBERED = (
        "cursor_factory",
        "server_cursor_factory",
        "row_factory",
        "_isolation_level",
        "_read_only",
        "_deferrable",
    )

    def __init__(self, pooled: PooledConnection) -> None:
        super().__init__(pooled)
        # Marks the connection as a pool's: psycopg warns of other connections that are not closed.
        self._pool = None
        # `transformer`: the one that the next statement reuses. `adapters_exposed`: whether a
        # caller has got the adapters since it was taken; see `take_transformer`.
        self.transformer: abc.Transformer | None = None
        self.adapters_exposed = False
        self._adapted_to: tuple[bytes | None, ...] = ()
        # False behind a pooler, which may send each transaction to another session.
        self.has_session = True
        # The `tasks.lease.Lease` that the connection is on loan to; None in the pool's own hands.
        self.lease: Any = None
        # The texts executed while the connection is configured, each with its effect on the
        # session.
        self.setup_statements: list[tuple[str, Any]] | None = None
        # `uninspected`: whether this borrower executed something that was not inspected, by a
        # cursor of its own making. `inspected_in`: the greenlets whose statements are being
        # inspected; see `session.guard`.
        self.uninspected = False
        self.inspected_in: set[int] = set()
        self.lock = BridgedLock(pooled.discard_unread)

    @classmethod
    def make_for(cls, pooled: PooledConnection, **arguments: Any) -> BridgedConnection:
        """Return the face of *pooled*, made by psycopg's ``connect`` with its *arguments*.

        Instrumentations of psycopg wrap ``connect``: OpenTelemetry replaces *cursor_factory* there.
        """
        token = _new_face_of.set(pooled)
        try:
            face = cls.connect(autocommit=True, **arguments)
        finally:
            _new_face_of.reset(token)
        # Give the asynchronous connection the face's lock: the pool's rollback then waits for
        # running statements and keeps others out.
        pooled.lock = _AsyncLock(pooled)  # type: ignore[assignment]  # as the face's own
        face.remember()
        return face

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> PQGenConn[BridgedConnection]:
        """Return the face of an existing connection; psycopg connects in this step."""
        return cls(_new_face_of.get())
        yield

    def _exec_command(
        self, command: Any, result_format: Format = Format.TEXT
    ) -> PQGen[PGresult | None]:
        """Run a command of psycopg's own; raise if the server rolls back instead of COMMIT."""
        if self.savepoint_due:
            yield from self.before_command(command)
        result = yield from super()._exec_command(command, result_format)
        if command == b"COMMIT" and result is not None and result.command_status == b"ROLLBACK":
            # Another task's statement failed after the check for failed statements.
            raise psycopg.errors.InFailedSqlTransaction(ROLLED_BACK)
        return result

    def _set_autocommit(self, value: bool) -> None:
        if (
            self.pgconn.transaction_status == TransactionStatus.IDLE
            and self._pipeline is None
            and not self.lock.held
        ):
            # An idle connection can change autocommit without a round trip.
            self._autocommit = bool(value)
        else:
            super()._set_autocommit(value)

    def reset_now(self) -> None:
        """Reset the session if that is due, waiting through the bridge."""
        if self.reset_due:
            with self.lock:
                self._reset_first()

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Information about the connection, after a reset that is due; see psycopg."""
        if self.reset_due and not self.lock.held and can_wait():
            self.reset_now()
        return super().info

    @property
    def has_handlers(self) -> bool:
        """Whether a handler receives the server's notices or notifications."""
        return bool(self._notice_handlers or self._notify_handlers)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Have the statements of the block sent together; see psycopg."""
        self.reset_now()
        with super().pipeline() as pipeline:
            yield pipeline

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor whose statements are inspected; see psycopg."""
        return self._pooled.guard(super().cursor(*args, **kwargs))

    def _start_query(self) -> PQGen[None]:
        if id(getcurrent()) not in self.inspected_in:
            self.uninspected = True
        if self.savepoint_due:
            return self.begin_and_save()
        self.owes_begin = False
        return super()._start_query()

    def lacks_answer(self, error: BaseException | None) -> bool:
        """Return whether *error* came instead of an answer of the server."""
        if self.closed or not isinstance(error, psycopg.Error):
            return self.closed
        # A pooler that loses its server reports it, and may keep the client's connection open.
        code, severity = error.sqlstate or "", error.diag.severity_nonlocalized
        return severity in ("FATAL", "PANIC") or code.startswith("08")

    @property
    def is_broken(self) -> bool:
        """Whether the transaction can only be rolled back, since a statement has failed."""
        return self.pgconn.transaction_status == TransactionStatus.INERROR

    def close_cursors(
        self, names: Sequence[str], *, sure: bool = False, still: Callable[[], bool] = _always
    ) -> None:
        """Close server-side cursors, if they exist, waiting through the bridge.

        A CLOSE of a missing cursor would abort the transaction, so look first which cursors exist,
        unless *sure*. Do nothing in a broken transaction, nor if *still* returns False when the
        caller has its turn on the connection.
        """
        with self.lock:
            if not self.closed and still():
                self.wait(self._close_cursors(names, sure))

    def _close_cursors(self, names: Sequence[str], sure: bool) -> PQGen[None]:
        if self.pgconn.transaction_status not in (
            TransactionStatus.IDLE,
            TransactionStatus.INTRANS,
        ):
            return
        if not sure:
            literals = sql.SQL(", ").join(map(sql.Literal, names))
            query = sql.SQL("SELECT name FROM pg_catalog.pg_cursors WHERE name IN ({})")
            found = yield from self._exec_command(query.format(literals))
            assert found is not None
            rows = (found.get_value(row, 0) or b"" for row in range(found.ntuples))
            names = [row.decode(self.pgconn._encoding) for row in rows]
        for name in names:
            yield from self._exec_command(sql.SQL("CLOSE {}").format(sql.Identifier(name)))

    def remember(self) -> None:
        """Save the current state of this object as its base state."""
        self._base = [(name, getattr(self, name)) for name in self._REMEMBERED]
        self._base_prepare = (self.prepare_threshold, self.prepared_max)
        self._base_handlers = (tuple(self._notice_handlers), tuple(self._notify_handlers))
        self._base_adapters = super().adapters
        self.uninspected = False
        # A map derived from the base map: changes to it leave the base as it is.
        self._adapters = AdaptersMap(self._base_adapters)
        self.transformer = None

    @property
    def adapters(self) -> AdaptersMap:
        """The map of adapters; see psycopg. A caller that reads it may be about to change it."""
        self.transformer = None
        self.adapters_exposed = True
        return super().adapters

    def take_transformer(self) -> abc.Transformer:
        """Return a transformer for parameters or rows of a statement without a cursor, for one use.

        To reuse the transformer, set `transformer` to it afterwards, unless `adapters_exposed` has
        become true meanwhile. A statement that runs meanwhile, such as a loader's own, gets another
        one.
        """
        # psycopg's adapters read these settings when they are made. The values may have changed
        # since: by a rollback, or because the server's configuration was reloaded.
        settings = tuple(map(self.pgconn.parameter_status, _ADAPTED_TO))
        transformer, self.transformer = self.transformer, None
        if transformer is None or settings != self._adapted_to:
            transformer = Transformer(self)
            self._adapted_to = settings
        self.adapters_exposed = False
        return transformer

    def restore(self) -> None:
        """Undo the borrower's changes to this object. The session in the server is not touched."""
        for name, value in self._base:
            setattr(self, name, value)
        self.was_stopped = False
        self.uninspected = False
        self.forget_savepoints()
        self.commit_due = None
        self._begin_statement = b""
        self._autocommit = True
        self.prepare_threshold, self.prepared_max = self._base_prepare
        notice, notify = self._base_handlers
        self._notice_handlers[:] = notice
        self._notify_handlers[:] = notify
        if self._notifies_backlog:
            self._notifies_backlog.clear()
        if not _shares_tables(super().adapters, self._base_adapters):
            self._adapters = AdaptersMap(self._base_adapters)
            self.transformer = None

    def make_successor(self) -> BridgedConnection:
        """Return another face of the same connection, in the base state, and close this one.

        This closes only the face and the cursors made from it, not the physical connection.
        """
        face = object.__new__(type(self))
        face.__dict__.update(self.__dict__)
        pgconn = self.pgconn
        myself: ref[psycopg.BaseConnection[Any]] = ref(face)
        # As in psycopg: the server's notices and notifications go to the face that is in use.
        pgconn.notice_handler = partial(psycopg.BaseConnection._notice_handler, myself)
        pgconn.notify_handler = partial(psycopg.BaseConnection._notify_handler, myself)
        face._adapters = AdaptersMap(self._base_adapters)
        face.transformer = None
        self._retire()
        face.restore()
        return face

    def _retire(self) -> None:
        """Close this object, so that it shares nothing with its successor any more."""
        self.pgconn = PGconn()
        self._socket_wait = SocketWait(self.pgconn)
        self._notice_handlers, self._notify_handlers = [], []
        self._notifies_backlog = deque()
        self._prepared = PrepareManager()
        self.lock = BridgedLock(unread_error)
        # Cursors hold the PGconn themselves, so their waits have to be refused, too.
        vars(self)["wait"] = _refuse_to_wait


def _refuse_to_wait(*args: Any, **kwargs: Any) -> Any:
    raise psycopg.OperationalError(
        "the connection is closed: it was given back to its pool. Use `connection.connection`, and"
        " what is made from it, in the transaction or the bridged call that asked for it"
    )


def _shares_tables(adapters: AdaptersMap, base: AdaptersMap) -> bool:
    """Return whether nothing was registered in a map that was derived from *base*.

    psycopg shares each table of the two maps until one of them is written to.
    """
    return (
        adapters.types._registry is base.types._registry
        and all(map(is_, adapters._loaders, base._loaders))
        and all(map(is_, adapters._dumpers.values(), base._dumpers.values()))
        and all(map(is_, adapters._dumpers_by_oid, base._dumpers_by_oid))
    )
