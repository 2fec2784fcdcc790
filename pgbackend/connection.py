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
from collections.abc import Coroutine
from contextvars import ContextVar
from operator import is_
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from greenlet import GreenletExit
from psycopg.abc import PQGen, PQGenConn
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from psycopg.waiting import wait_async

from .bridge import await_bridged

if TYPE_CHECKING:
    from .pool import PooledConnection

RV = TypeVar("RV")

# psycopg's own: how often a waiting connection looks whether its socket was closed, seconds.
_WAIT_INTERVAL = 0.1

# How long the server may take to hear of a cancellation, and again to obey it, seconds.
_STOP_TIMEOUT = 5.0

# The connection whose face is being made.
_over: ContextVar[PooledConnection] = ContextVar("pgbackend_over")

logger = logging.getLogger("pgbackend.connection")


class BridgedLock:
    """A lock between tasks, with the synchronous face psycopg's cursors expect.

    It is held while a statement waits for the server: a `threading.Lock` there would stop
    the event loop as soon as a second task of the same transaction wanted its turn.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def __enter__(self) -> None:
        await_bridged(self._lock.acquire())

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class BridgedConnection(psycopg.Connection[Any]):
    """A `psycopg.Connection` whose every wait goes through the bridge.

    One for each physical connection, made by `over` in its pool's ``configure``. What a borrower
    may change on it (row and cursor factories, adapters, handlers, isolation level, ...) is
    restored by `restore` to what `remember` saw.
    """

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
        # Marks it as a pool's for psycopg, which warns of unclosed connections otherwise.
        self._pool = None
        # Whether a cancellation stopped a statement of this borrower's.
        self.was_stopped = False
        # Whether this borrower had a cursor of psycopg's that is not in a wrapper of Django's.
        self.was_used_directly = False
        self.lock = BridgedLock()  # type: ignore[assignment]  # see BridgedLock

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
        return await_bridged(self._wait(gen, interval, timeout))

    async def _wait(self, gen: PQGen[RV], interval: float, seconds: float | None) -> RV:
        try:
            return await wait_async(gen, self.pgconn.socket, interval, seconds)
        except (GeneratorExit, GreenletExit):
            # The wait is given up: nothing can be awaited any more.
            raise
        except BaseException:
            # A cancellation, mostly, or what a signal handler raised.
            if self.is_executing:
                self.was_stopped = True
                await _shielded(self._stop(gen))
            raise

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Cancel the running statement in the server; close the connection if that fails."""
        try:
            await self._pooled.cancel_safe(timeout=_STOP_TIMEOUT)
            await wait_async(gen, self.pgconn.socket, _WAIT_INTERVAL, _STOP_TIMEOUT)
        except psycopg.errors.QueryCanceled:
            pass
        except Exception as error:
            logger.warning("closing %s, whose statement could not be stopped: %s", self, error)
            self.close()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor; see psycopg. What it executes, nobody looks at."""
        self.was_used_directly = True
        return super().cursor(*args, **kwargs)

    @property
    def is_executing(self) -> bool:
        """Whether a statement is running, some task's."""
        return self.pgconn.transaction_status == TransactionStatus.ACTIVE

    @property
    def is_aborted(self) -> bool:
        """Whether the transaction can only be rolled back, since a statement was stopped."""
        return self.was_stopped and self.pgconn.transaction_status == TransactionStatus.INERROR

    def stop(self) -> None:
        """Cancel the statement that another task runs; close the connection if that fails."""
        await_bridged(_shielded(self.stop_other()))

    async def stop_other(self) -> None:
        """Do what `stop` does, and wait until that task has heard of it."""
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await self._pooled.cancel_safe(timeout=_STOP_TIMEOUT)
                while self.is_executing:  # noqa: ASYNC110
                    # That task reads the answer; there is nothing to be woken by.
                    await asyncio.sleep(_WAIT_INTERVAL / 10)
        except Exception as error:
            logger.warning("closing %s, whose statement could not be stopped: %s", self, error)
            self.close()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the current operation, waiting through the bridge; see psycopg."""
        await_bridged(self._pooled.cancel_safe(timeout=timeout))

    def remember(self) -> None:
        """Take what the connection is now for its base state."""
        self._base = [(name, getattr(self, name)) for name in self._REMEMBERED]
        self._base_prepare = (self.prepare_threshold, self.prepared_max)
        self._base_handlers = (tuple(self._notice_handlers), tuple(self._notify_handlers))
        self._base_adapters = self.adapters
        self.was_used_directly = False
        # A map made from the base one: changes to it leave the base as it is.
        self._adapters = AdaptersMap(self._base_adapters)

    def restore(self) -> None:
        """Undo what a borrower changed on this object. The server's side is not touched."""
        for name, value in self._base:
            setattr(self, name, value)
        self.was_stopped = False
        self.was_used_directly = False
        self._begin_statement = b""
        self._autocommit = True
        self.prepare_threshold, self.prepared_max = self._base_prepare
        notice, notify = self._base_handlers
        self._notice_handlers[:] = notice
        self._notify_handlers[:] = notify
        if self._notifies_backlog:
            self._notifies_backlog.clear()
        if not _shares_tables(self.adapters, self._base_adapters):
            self._adapters = AdaptersMap(self._base_adapters)


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


async def _shielded(coro: Coroutine[Any, Any, None]) -> None:
    """Wait for *coro* whatever cancels the caller meanwhile; it must be bounded in time."""
    task = asyncio.ensure_future(coro)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # The caller raises the first one when this is over.
            continue
