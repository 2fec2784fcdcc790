"""The DB-API 2 face of a pooled asynchronous connection.

psycopg's synchronous and asynchronous connections run the same generators over the same
``PGconn``; only ``wait()`` differs. `BridgedConnection` is psycopg's own synchronous
`~psycopg.Connection` on the ``PGconn`` of a pooled `~psycopg.AsyncConnection`, waiting through
the bridge: psycopg's and Django's cursors, COPY, pipelines and ``TypeInfo.fetch`` work on it
as they are.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import current_task
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from operator import is_
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

import psycopg
from greenlet import GreenletExit, getcurrent
from psycopg import abc, sql
from psycopg._preparing import PrepareManager
from psycopg.abc import PQGen, PQGenConn
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.errors import _WaitTimeout
from psycopg.pq import Format, PGconn, TransactionStatus
from psycopg.waiting import Wait

from ..bridge.greenlets import CallClosedError, await_bridged, can_wait, check_bridged
from ..session.guard import guard
from ..tasks.membership import outlived
from . import session_reset
from .socket_wait import SocketWait, continued

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from ..session.text import Effect
    from ..tasks.lease import Lease
    from .physical import PooledConnection

RV = TypeVar("RV")

WAIT_R = Wait.R

# psycopg's own: how often a waiting connection looks whether its socket was closed, seconds.
_WAIT_INTERVAL = 0.1

# How long the server may take over what is only to clean up, seconds; OPTIONS["cancel_timeout"].
CANCEL_TIMEOUT = 5.0

# After how long a cancellation that had no effect is sent again, seconds; then twice that, ...
_RESEND_INTERVAL = 0.1

# Why a COMMIT has failed that the server answered with ROLLBACK, which is no error for psycopg.
ROLLED_BACK = (
    "the transaction cannot be committed: a statement in it failed, or was stopped by a"
    " cancellation or a time-out. Let that leave the atomic block, or put the statement into a"
    " nested one"
)

# The settings that loaders and dumpers read, by names that the server reports them under.
_ADAPTED_TO = (b"TimeZone", b"DateStyle", b"IntervalStyle", b"client_encoding")

# The connection whose face is being made.
_over: ContextVar[PooledConnection] = ContextVar("pgbackend_over")

logger = logging.getLogger("pgbackend.connection")


def _always() -> bool:
    return True


def _do_nothing() -> None:
    """Stand for what is called where nothing is."""


class BridgedLock:
    """A lock between tasks, with the synchronous face psycopg's cursors expect.

    It is held while a statement waits for the server: a `threading.Lock` there would stop
    the event loop as soon as a second task of the same transaction wanted its turn. Taking a
    free one costs nothing.
    """

    def __init__(self, given_up: Callable[[], None] = _do_nothing) -> None:
        self.held = False
        # The task that took it, and what is called where that will not release it any more.
        self.holder: asyncio.Task[Any] | None = None
        self._given_up = given_up
        # How often it was taken.
        self.uses = 0
        # A turn's future says whether the lock was handed over, or refused.
        self._waiting: deque[asyncio.Future[bool]] = deque()
        # How often those who waited were refused.
        self._refusals = 0

    def __enter__(self) -> None:
        if self.held:
            await_bridged(self._wait())
        self.held = True
        self.holder = current_task()
        self.uses += 1

    async def acquire(self) -> None:
        """Do what ``with`` does at its beginning, in asynchronous code."""
        if self.held:
            await self._wait()
        self.held = True
        self.holder = current_task()
        self.uses += 1

    def release(self) -> None:
        """Do what ``with`` does at its end."""
        self.holder = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done() and _answer(turn, True):
                return
        self.held = False

    def refuse_waiting(self) -> None:
        """Have all who wait raise RuntimeError: what they wait for has ended.

        Also those who were handed the lock and have not gone on yet.
        """
        self._refusals += 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                _answer(turn, False)

    async def _wait(self) -> None:
        """Wait until the lock is handed over."""
        holder = self.holder
        if holder is not None and (holder is current_task() or holder.done()):
            # The holder waits in a coroutine that was closed: before CPython 3.13 an asynchronous
            # generator that it is in does not learn that, and never goes on.
            self._given_up()
            raise psycopg.OperationalError(
                "the connection was closed: the coroutine that used it was closed while it waited"
                " for the server, and nobody reads the answer"
            )
        refusals = self._refusals
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            handed = await turn
        except BaseException:
            if not _give_up(turn) and turn.result():
                # The lock was handed over together with the cancellation, or the closing.
                self.release()
            raise
        if self._refusals != refusals:
            if handed:
                self.release()
            raise outlived("task")

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


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


def _give_up(turn: asyncio.Future[bool]) -> bool:
    """Mark *turn* as one that nobody waits for; return False if it was there already.

    A closed coroutine leaves its future as it is, unlike a cancelled one.
    """
    if turn.done() and not turn.cancelled():
        return False
    # The loop of a coroutine that is only now collected may be closed.
    with suppress(RuntimeError):
        turn.cancel()
    return True


def _answer(turn: asyncio.Future[bool], handed: bool) -> bool:
    """Tell who waits for *turn*; return False if its event loop is closed."""
    if turn.get_loop().is_closed():
        return False
    turn.set_result(handed)
    return True


class BridgedConnection(psycopg.Connection[Any]):
    """A `psycopg.Connection` whose every wait goes through the bridge.

    One at a time for each physical connection, made by `over` in its pool's ``configure``. What a
    borrower may change on it (row and cursor factories, adapters, handlers, isolation level, ...)
    is restored by `restore` to what `remember` saw; and a borrower who may have kept it finds it
    closed, since the next one gets another, by `succeed`.
    """

    lock: BridgedLock  # type: ignore[assignment]  # see there

    _REMEMBERED = (
        "cursor_factory",
        "server_cursor_factory",
        "row_factory",
        "_isolation_level",
        "_read_only",
        "_deferrable",
    )

    def __init__(self, pooled: PooledConnection) -> None:
        super().__init__(pooled.pgconn)
        self._pooled = pooled
        self.cancel_timeout = CANCEL_TIMEOUT
        # See `limited`.
        self._limit: float | None = None
        self._limits: list[float] = []
        # See `finishing`.
        self._finishing = 0
        # Marks it as a pool's for psycopg, which warns of unclosed connections otherwise.
        self._pool = None
        # Whether a cancellation stopped a statement of this borrower's.
        self.was_stopped = False
        # See `take_transformer`.
        self.transformer: abc.Transformer | None = None
        self.asked = False
        self._adapted_to: tuple[bytes | None, ...] = ()
        self._socket_wait = SocketWait(pooled.pgconn)
        # False behind a pooler, which may send each transaction to another session.
        self.has_session = True
        # To whom it is on loan; None in the pool's own hands.
        self.lease: Lease | None = None
        # While it is configured: what is executed, each text with its effect on the session.
        self.made: list[tuple[str, Effect]] | None = None
        # Whether this borrower has executed what was not looked at, by a cursor of its own making,
        # and in which greenlets what they execute is looked at; see `session.guard`.
        self.unseen = False
        self.looked_at: set[int] = set()
        # Whether the session is to be reset before anything is executed in it, how, and in which
        # greenlets a statement sees to that itself; see `session_reset`.
        self.reset_due = False
        self.reset: Any = None
        self.resetting: set[int] = set()
        self.lock = BridgedLock(pooled.give_up)

    @classmethod
    def over(cls, pooled: PooledConnection, **arguments: Any) -> BridgedConnection:
        """Return the face of *pooled*, made by psycopg's ``connect`` with its *arguments*.

        Who instruments psycopg wraps that: OpenTelemetry replaces *cursor_factory* there.
        """
        token = _over.set(pooled)
        try:
            face = cls.connect(autocommit=True, **arguments)
        finally:
            _over.reset(token)
        # The pool's own rollback waits for who is at work, and keeps others out.
        pooled.lock = _AsyncLock(pooled)  # type: ignore[assignment]  # as the face's own
        face.remember()
        return face

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> PQGenConn[BridgedConnection]:
        """Return the face of a connection that is there already: psycopg's step that connects."""
        return cls(_over.get())
        yield

    def wait(
        self, gen: PQGen[RV], interval: float = _WAIT_INTERVAL, timeout: float | None = None
    ) -> RV:
        """Consume a generator of psycopg's, waiting on the event loop.

        A cancelled task stops the statement in the server before CancelledError leaves.
        """
        if self.reset_due and not (self._autocommit and id(getcurrent()) in self.resetting):
            self._reset_first()
        rest = gen
        if timeout is None and self._limit is None:
            try:
                check_bridged()
            except CallClosedError:
                self.given_up()
                raise
            try:
                state = next(gen)
                while state == WAIT_R:
                    state = gen.send(self._socket_wait.until_readable())
            except StopIteration as stop:
                result: RV = stop.value
                return result
            except (GeneratorExit, GreenletExit):
                self.given_up()
                raise
            except psycopg.Error as error:
                self._note(error)
                raise
            except BaseException:
                await_bridged(self._interrupted(gen))
                raise
            rest = continued(gen, state)
        return await_bridged(self.wait_unbridged(rest, interval, timeout))

    async def wait_unbridged(self, gen: PQGen[RV], interval: float, seconds: float | None) -> RV:
        """Do what `wait` does, in asynchronous code."""
        limit = self._limit
        try:
            seconds = seconds if limit is None else limit
            return await self._socket_wait.elsewhere(gen, interval, seconds)
        except (GeneratorExit, GreenletExit):
            self.given_up()
            raise
        except _WaitTimeout:
            if limit is None:
                raise
            self.close()
            raise psycopg.OperationalError(
                f"the server did not answer within {limit:g} s, and the connection was closed."
                " See 'cancel_timeout' in OPTIONS, and 'timeout' of its pool"
            ) from None
        except psycopg.Error as error:
            self._note(error)
            raise
        except BaseException:
            await self._interrupted(gen)
            raise

    def given_up(self) -> None:
        """Close the connection if nobody will read the answer to what it runs.

        Whoever waited for that was closed, and can await nothing any more.
        """
        if self.is_executing:
            self._pooled.abandon()

    def _note(self, error: psycopg.Error) -> None:
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            self._pooled.found_read_only()

    async def _interrupted(self, gen: PQGen[Any]) -> None:
        """Stop what is running: a wait was cancelled, mostly, or a signal handler has raised."""
        if self.is_executing:
            # Not where the pool itself uses it.
            self.was_stopped = self._pooled.borrower is not None
            # The caller raises what has interrupted it first.
            with suppress(asyncio.CancelledError):
                await shielded(self._stop(gen))

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Cancel the running statement in the server; close the connection if that fails."""
        try:
            async with asyncio.timeout(self.cancel_timeout):
                await self._cancel_until_ended(gen)
        except psycopg.errors.QueryCanceled:
            pass
        except Exception as error:
            self._give_up(error)

    async def _cancel_until_ended(self, gen: PQGen[Any]) -> None:
        interval, waits = _RESEND_INTERVAL, self._finishing > 0
        while True:
            if not waits:
                await self._pooled.cancel_safe(timeout=self.cancel_timeout)
            waits = False
            try:
                await self._socket_wait.elsewhere(gen, _WAIT_INTERVAL, interval)
            except _WaitTimeout:
                # A server that had not yet read the statement has ignored it.
                interval *= 2
            else:
                return

    def _give_up(self, error: Exception) -> None:
        words = str(error) or f"no answer within {self.cancel_timeout:g} s"
        logger.warning("closing %s, whose statement could not be stopped: %s", self, words)
        self.close()

    @contextmanager
    def limited(self, seconds: float | None = None) -> Iterator[None]:
        """Close the connection if a statement in the block takes longer than *seconds*.

        `cancel_timeout` unless given. For what cleans up: to wait for a server that does not
        answer would be of no use, and no second cancellation may come.
        """
        limit = self.cancel_timeout if seconds is None else seconds
        self._limits.append(limit)
        self._limit = limit
        try:
            yield
        finally:
            # Blocks of several tasks end in any order.
            self._limits.remove(limit)
            self._limit = self._limits[-1] if self._limits else None

    def _exec_command(
        self, command: Any, result_format: Format = Format.TEXT
    ) -> PQGen[PGresult | None]:
        """Run a command of psycopg's own; a COMMIT that the server rolls back is an error."""
        result = yield from super()._exec_command(command, result_format)
        if command == b"COMMIT" and result is not None and result.command_status == b"ROLLBACK":
            # A statement of another task's, since it was looked whether one had failed.
            raise psycopg.errors.InFailedSqlTransaction(ROLLED_BACK)
        return result

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let a statement in the block, if it is interrupted, end by itself when it is short.

        For savepoints: one that is stopped in the server aborts the whole transaction.
        """
        self._finishing += 1
        try:
            yield
        finally:
            self._finishing -= 1

    def _set_autocommit(self, value: bool) -> None:
        if (
            self.pgconn.transaction_status == TransactionStatus.IDLE
            and self._pipeline is None
            and not self.lock.held
        ):
            # There is nothing to wait for.
            self._autocommit = bool(value)
        else:
            super()._set_autocommit(value)

    def reset_now(self) -> None:
        """Reset the session if that is due, waiting through the bridge."""
        if self.reset_due:
            with self.lock:
                self._reset_first()

    def _reset_first(self) -> None:
        """Reset the session, which is due, where the lock is held."""
        if self.reset_due:
            with self.limited():
                await_bridged(self.wait_unbridged(session_reset.reset(self), _WAIT_INTERVAL, None))

    @property
    def info(self) -> psycopg.ConnectionInfo:
        """Information about the connection; see psycopg. It is that of a session that was reset."""
        if self.reset_due and not self.lock.held and can_wait():
            self.reset_now()
        return super().info

    @property
    def has_handlers(self) -> bool:
        """Whether somebody hears what the server says beside its answers."""
        return bool(self._notice_handlers or self._notify_handlers)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Have the statements of the block sent together; see psycopg."""
        self.reset_now()
        with super().pipeline() as pipeline:
            yield pipeline

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor; see psycopg. What it executes is looked at."""
        return guard(super().cursor(*args, **kwargs))

    def _start_query(self) -> PQGen[None]:
        if id(getcurrent()) not in self.looked_at:
            self.unseen = True
        return super()._start_query()

    @property
    def is_executing(self) -> bool:
        """Whether a statement is running, some task's."""
        return self.pgconn.transaction_status == TransactionStatus.ACTIVE

    def lacks_answer(self, error: BaseException | None) -> bool:
        """Return whether *error* is not the server's answer, but came in its place."""
        if self.closed or not isinstance(error, psycopg.Error):
            return self.closed
        # A pooler that loses its server says so, and may keep the client's connection.
        code, severity = error.sqlstate or "", error.diag.severity_nonlocalized
        return severity in ("FATAL", "PANIC") or code.startswith("08")

    @property
    def is_broken(self) -> bool:
        """Whether the transaction can only be rolled back, since a statement has failed."""
        return self.pgconn.transaction_status == TransactionStatus.INERROR

    def close_cursors(
        self, names: Sequence[str], *, sure: bool = False, still: Callable[[], bool] = _always
    ) -> None:
        """Close server-side cursors, waiting through the bridge, if they exist.

        A CLOSE of one that does not would abort the transaction, so it is looked first, unless it
        is *sure*. Nothing is done in a transaction that is broken, nor where *still* returns False
        when it is the caller's turn on the connection.
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

    def stop(self) -> None:
        """Cancel the statement that another task runs; close the connection if that fails."""
        await_bridged(self._stop_shielded())

    async def _stop_shielded(self) -> None:
        await shielded(self.stop_other())

    async def stop_other(self) -> None:
        """Do what `stop` does, and wait until that task has heard of it."""
        loop = asyncio.get_running_loop()
        interval = _RESEND_INTERVAL
        try:
            async with asyncio.timeout(self.cancel_timeout):
                while self.is_executing:
                    await self._pooled.cancel_safe(timeout=self.cancel_timeout)
                    again = loop.time() + interval
                    while self.is_executing and loop.time() < again:  # noqa: ASYNC110
                        # That task reads the answer; there is nothing to be woken by.
                        await asyncio.sleep(_WAIT_INTERVAL / 10)
                    interval *= 2
        except Exception as error:
            self._give_up(error)

    def finish(self) -> None:
        """Close the connection at once, without a word to the server; wake who waits for it."""
        self._socket_wait.close()
        self.pgconn.finish()

    def close(self) -> None:
        """Close the connection, as psycopg's ``close``; wake who waits for it."""
        self._socket_wait.close()
        super().close()

    def stop_listening(self) -> None:
        """Wake who waits for the connection, and have the event loop forget its socket."""
        self._socket_wait.close()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the current operation, waiting through the bridge; see psycopg."""
        if self.closed:
            return
        await_bridged(self._pooled.cancel_safe(timeout=timeout))

    def remember(self) -> None:
        """Take what the connection is now for its base state."""
        self._base = [(name, getattr(self, name)) for name in self._REMEMBERED]
        self._base_prepare = (self.prepare_threshold, self.prepared_max)
        self._base_handlers = (tuple(self._notice_handlers), tuple(self._notify_handlers))
        self._base_adapters = super().adapters
        self.unseen = False
        # A map made from the base one: changes to it leave the base as it is.
        self._adapters = AdaptersMap(self._base_adapters)
        self.transformer = None

    @property
    def adapters(self) -> AdaptersMap:
        """The map of adapters; see psycopg. Who asks may be about to change it."""
        self.transformer = None
        self.asked = True
        return super().adapters

    def take_transformer(self) -> abc.Transformer:
        """Return what adapts parameters or rows of a statement that needs no cursor, for one use.

        To use it again, put it back: unless somebody has `asked` for the adapters, set
        `transformer` to it. A statement that runs meanwhile, a loader's own say, gets another.
        """
        # What psycopg's adapters have read from these when they were made may be wrong by now: of a
        # transaction that was rolled back, or before the server's configuration was reloaded.
        settings = tuple(map(self.pgconn.parameter_status, _ADAPTED_TO))
        transformer, self.transformer = self.transformer, None
        if transformer is None or settings != self._adapted_to:
            transformer = Transformer(self)
            self._adapted_to = settings
        self.asked = False
        return transformer

    def restore(self) -> None:
        """Undo what a borrower changed on this object. The server's side is not touched."""
        for name, value in self._base:
            setattr(self, name, value)
        self.was_stopped = False
        self.unseen = False
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

    def succeed(self) -> BridgedConnection:
        """Return another face of the same connection, in the base state, and close this one.

        Only this object is closed, and the cursors that were made from it.
        """
        face = object.__new__(type(self))
        face.__dict__.update(self.__dict__)
        pgconn = self.pgconn
        myself: ref[psycopg.BaseConnection[Any]] = ref(face)
        # As psycopg does: the server's words are for the face that is in use.
        pgconn.notice_handler = partial(psycopg.BaseConnection._notice_handler, myself)
        pgconn.notify_handler = partial(psycopg.BaseConnection._notify_handler, myself)
        face._adapters = AdaptersMap(self._base_adapters)
        face.transformer = None
        self._retire()
        face.restore()
        return face

    def _retire(self) -> None:
        """Close this object, which shares nothing with its successor any more."""
        self.pgconn = PGconn()
        self._socket_wait = SocketWait(self.pgconn)
        self._notice_handlers, self._notify_handlers = [], []
        self._notifies_backlog = deque()
        self._prepared = PrepareManager()
        self.lock = BridgedLock()
        # Of cursors, which have the PGconn themselves.
        vars(self)["wait"] = _refuse_to_wait


def _refuse_to_wait(*args: Any, **kwargs: Any) -> Any:
    raise psycopg.OperationalError(
        "the connection is closed: it was given back to its pool. Use `connection.connection`, and"
        " what is made from it, in the transaction or the bridged call that asked for it"
    )


def _shares_tables(adapters: AdaptersMap, base: AdaptersMap) -> bool:
    """Return whether nothing was registered in a map made from *base*.

    psycopg shares each table of the two until one of them is written to.
    """
    return (
        adapters.types._registry is base.types._registry
        and all(map(is_, adapters._loaders, base._loaders))
        and all(map(is_, adapters._dumpers.values(), base._dumpers.values()))
        and all(map(is_, adapters._dumpers_by_oid, base._dumpers_by_oid))
    )


async def shielded(coro: Coroutine[Any, Any, None]) -> None:
    """Wait for *coro* whatever cancels the caller meanwhile; it must be bounded in time.

    Raise CancelledError, afterwards, if something did.
    """
    task = asyncio.ensure_future(coro)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
