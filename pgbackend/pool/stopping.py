"""Wait for the server through the bridge, and stop its statement when the task is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from greenlet import GreenletExit, getcurrent
from psycopg import generators
from psycopg.abc import PQGen
from psycopg.errors import _WaitTimeout
from psycopg.pq import TransactionStatus
from psycopg.waiting import Wait

from ..bridge.current import can_wait
from ..bridge.greenlets import CallClosedError, await_bridged, check_bridged
from . import session_reset
from .physical import PooledConnection
from .socket_wait import SocketWait, continued

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

RV = TypeVar("RV")

WAIT_R = Wait.R

# How often a waiting connection checks whether its socket was closed, seconds; as in psycopg.
_WAIT_INTERVAL = 0.1

# How long the server may take for clean-up, seconds; the default of OPTIONS["cancel_timeout"].
CANCEL_TIMEOUT = 5.0

# How long to wait before an ineffective cancellation is sent again, seconds; doubled each time.
_RESEND_INTERVAL = 0.1

logger = logging.getLogger("pgbackend.connection")


class StoppableConnection(psycopg.Connection[Any]):
    """A `psycopg.Connection` whose every wait goes through the bridge, and can be stopped."""

    def __init__(self, pooled: PooledConnection) -> None:
        super().__init__(pooled.pgconn)
        self._pooled = pooled
        self.counts = pooled.counts
        self.cancel_timeout = CANCEL_TIMEOUT
        # See `limited`.
        self._limit: float | None = None
        self._limits: list[float] = []
        # See `finishing`.
        self._finishing = 0
        # Whether a cancellation has stopped one of this borrower's statements.
        self.was_stopped = False
        self._socket_wait = SocketWait(pooled.pgconn)
        # `reset_due`: whether the session must be reset before the next statement. `reset`: the
        # `session_reset.Reset` that does so. `resetting`: the greenlets whose statement sends the
        # reset itself; see `session_reset`.
        self.reset_due = False
        self.reset: Any = None
        self.resetting: set[int] = set()
        # How often statements ran since the session was last reset, by their names; None: the
        # connection keeps none. See `sql.kept_statements`.
        self.kept_statements: dict[str, int] | None = {}

    def wait(
        self, gen: PQGen[RV], interval: float = _WAIT_INTERVAL, timeout: float | None = None
    ) -> RV:
        """Consume one of psycopg's generators, waiting on the event loop.

        If the task is cancelled, stop the statement in the server before CancelledError is raised.
        """
        if self.reset_due and not (self._autocommit and id(getcurrent()) in self.resetting):
            self._reset_first()
        rest = gen
        if timeout is None and self._limit is None:
            if not can_wait():
                self._refuse_to_wait()
            try:
                state = next(gen)
                while state == WAIT_R:
                    state = gen.send(self._socket_wait.until_readable())
            except StopIteration as stop:
                result: RV = stop.value
                return result
            except (GeneratorExit, GreenletExit):
                self.discard_if_unread()
                raise
            except psycopg.Error as error:
                self.note_read_only(error)
                raise
            except BaseException:
                await_bridged(self._interrupted(gen))
                raise
            rest = continued(gen, state)
        return await_bridged(self.wait_unbridged(rest, interval, timeout))

    def _refuse_to_wait(self) -> None:
        """Raise the error for a caller who cannot wait for a statement."""
        try:
            check_bridged()
        except CallClosedError:
            self.discard_if_unread()
            raise

    def _reset_first(self) -> None:
        """Reset the session if that is due; the caller holds the lock."""
        if self.reset_due:
            with self.limited():
                await_bridged(self.wait_unbridged(session_reset.reset(self), _WAIT_INTERVAL, None))

    async def wait_unbridged(self, gen: PQGen[RV], interval: float, seconds: float | None) -> RV:
        """Do what `wait` does, in asynchronous code."""
        limit = self._limit
        try:
            seconds = seconds if limit is None else limit
            return await self._socket_wait.elsewhere(gen, interval, seconds)
        except (GeneratorExit, GreenletExit):
            self.discard_if_unread()
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
            self.note_read_only(error)
            raise
        except BaseException:
            await self._interrupted(gen)
            raise

    def discard_if_unread(self) -> None:
        """Discard the connection if a statement runs whose answer nobody will read.

        The call that waited for the answer was closed, and cannot await anything any more.
        """
        if self.is_executing:
            self._pooled.discard()

    def note_read_only(self, error: BaseException) -> None:
        """Have the pool connect anew if *error* says that the server has become read-only."""
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            self._pooled.found_read_only()

    async def _interrupted(self, gen: PQGen[Any]) -> None:
        """Stop the running statement after a cancellation or a signal handler's exception."""
        if self.is_executing:
            # Only a borrower's statement counts, not one of the pool's own.
            self.was_stopped = self._pooled.borrower is not None
            # The caller raises the original interruption, which comes before this cancellation.
            with suppress(asyncio.CancelledError):
                await shielded(self._stop(gen))

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Cancel the running statement in the server; close the connection if that fails."""
        self.counts.cancelled += 1
        try:
            async with asyncio.timeout(self.cancel_timeout):
                # Raises QueryCanceled.
                await self._cancel_until_ended(gen)
        except Exception as error:
            # The statement may have failed by itself before it was stopped.
            if self.closed or self.is_executing or not isinstance(error, psycopg.Error):
                self._close_unstopped(error)

    async def _cancel_until_ended(self, gen: PQGen[Any]) -> None:
        interval, waits = _RESEND_INTERVAL, self._finishing > 0
        while True:
            if not waits:
                await self._pooled.cancel_safe(timeout=self.cancel_timeout)
            waits = False
            try:
                await self._socket_wait.elsewhere(gen, _WAIT_INTERVAL, interval)
            except _WaitTimeout:
                # The server had not read the statement yet, and has ignored the cancellation.
                interval *= 2
            else:
                break
        if self.is_executing:
            # A COPY has begun, which nobody will read or write.
            await self._pooled.cancel_safe(timeout=self.cancel_timeout)
            await self._socket_wait.elsewhere(_end_copy(self.pgconn), _WAIT_INTERVAL, None)

    def _close_unstopped(self, error: Exception) -> None:
        words = str(error) or f"no answer within {self.cancel_timeout:g} s"
        logger.warning("closing %s, whose statement could not be stopped: %s", self, words)
        self.close()

    @contextmanager
    def limited(self, seconds: float | None = None) -> Iterator[None]:
        """Close the connection if a statement in the block takes longer than *seconds*.

        The default is `cancel_timeout`. Use the block for clean-up: waiting for a server that does
        not answer is of no use there, and no second cancellation may come.
        """
        limit = self.cancel_timeout if seconds is None else seconds
        self._limits.append(limit)
        self._limit = limit
        try:
            yield
        finally:
            # The blocks of several tasks may end in any order.
            self._limits.remove(limit)
            self._limit = self._limits[-1] if self._limits else None

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let a short statement in the block end by itself if it is interrupted.

        Savepoints need this: a statement that is stopped in the server aborts the whole
        transaction.
        """
        self._finishing += 1
        try:
            yield
        finally:
            self._finishing -= 1

    @property
    def is_executing(self) -> bool:
        """Whether a statement of any task is running."""
        return self.pgconn.transaction_status == TransactionStatus.ACTIVE

    def stop(self) -> None:
        """Stop another task's statement in the server; close the connection if that fails."""
        await_bridged(self._stop_shielded())

    async def _stop_shielded(self) -> None:
        await shielded(self.stop_other())

    async def stop_other(self) -> None:
        """Do what `stop` does, and wait until the other task has received the error."""
        self.counts.cancelled += 1
        loop = asyncio.get_running_loop()
        interval = _RESEND_INTERVAL
        try:
            async with asyncio.timeout(self.cancel_timeout):
                while self.is_executing:
                    await self._pooled.cancel_safe(timeout=self.cancel_timeout)
                    again = loop.time() + interval
                    while self.is_executing and loop.time() < again:  # noqa: ASYNC110
                        # The other task reads the answer, and sends no event that this task could
                        # wait for.
                        await asyncio.sleep(_WAIT_INTERVAL / 10)
                    interval *= 2
        except Exception as error:
            self._close_unstopped(error)

    def finish(self) -> None:
        """Close the connection at once, without telling the server; wake the waiting task."""
        self._socket_wait.close()
        self.pgconn.finish()

    def close(self) -> None:
        """Close the connection politely, as psycopg's ``close`` does; wake the waiting task."""
        self._socket_wait.close()
        super().close()

    def unregister_socket(self) -> None:
        """Have the event loop forget the socket, and wake the waiting task."""
        self._socket_wait.close()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Stop the running statement, waiting through the bridge; see psycopg."""
        if self.closed:
            return
        await_bridged(self._pooled.cancel_safe(timeout=timeout))


def _end_copy(pgconn: PGconn) -> PQGen[None]:
    """End a COPY; raise the server's error, which is the rule."""
    try:
        yield from generators.copy_end(pgconn, b"cancelled")
    except psycopg.OperationalError:
        if pgconn.transaction_status != TransactionStatus.ACTIVE:
            raise
        # It is a COPY TO.
        while isinstance((yield from generators.copy_from(pgconn)), memoryview):
            pass


async def shielded(coro: Coroutine[Any, Any, None]) -> None:
    """Wait for *coro* even if the caller is cancelled meanwhile; *coro* must be bounded in time.

    Raise CancelledError afterwards if the caller was cancelled.
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
