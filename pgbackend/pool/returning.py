"""How connections are given back to their pool, and their sessions reset."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from asyncio import _get_running_loop
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING

from psycopg import capabilities
from psycopg.pq import TransactionStatus

from ..bridge.greenlets import run_bridged
from .connecting import ConnectingPool
from .physical import PooledConnection, stop_statement
from .waiters import Client

if TYPE_CHECKING:
    from psycopg.pq.abc import PGcancelConn

logger = logging.getLogger("pgbackend.pool")

# How long the reset of an idle connection's session is postponed, seconds. The delay is short,
# since the session may still hold locks, for example.
_RESET_AFTER = 0.05


class ReturningPool(ConnectingPool):
    """A pool that takes connections back without waiting, and hands them to waiting tasks."""

    # The function that gives a session back its configured state; see `pool.ConnectionPool`.
    _reset_session: Callable[[PooledConnection], None]
    # How many sessions are being reset now.
    _resetting: int

    def _put_idle(self, conn: PooledConnection) -> bool:
        """Put an idle, living connection back, or hand it to a waiting task; return if that worked.

        Return False where psycopg_pool's own way back is needed.
        """
        if (
            self._closed
            or self._reset is not None
            or self._pool_full_event is not None
            or self._lock.locked()
            or conn.pgconn.transaction_status != TransactionStatus.IDLE
            or conn._created_at <= self._drained_at
            or conn._expire_at <= monotonic()
        ):
            return False
        conn._pool = None
        while self._waiting:
            client = self._waiting.popleft()
            assert isinstance(client, Client)
            if client.give(conn):
                return True
        if conn.face.reset_due:
            # Lend this connection first: the reset costs little with a statement, and much on its
            # own.
            self._pool.appendleft(conn)
        else:
            self._pool.append(conn)
        return True

    def give_back(
        self, conn: PooledConnection, *, dirty: bool = False, suspect: bool = False
    ) -> None:
        """Give *conn* back without waiting, from any code on the loop's thread.

        Reset the session of a *dirty* connection at once, and that of a *suspect* one before its
        next statement; see `session_reset`.

        A task of the pool does everything that takes time (a rollback, a contended lock), so that
        neither cancelling the borrower nor closing its coroutine loses the connection. For calls
        outside the pool's loop see `_give_back_elsewhere`.
        """
        if _get_running_loop() is not self.loop:
            self._give_back_elsewhere(conn, dirty or suspect)
            return
        conn.borrower = conn.lent_for = None
        if suspect and not dirty:
            dirty = not self._postpone_reset(conn)
        if conn.face.reset_due and self._reset_timer is None and self.loop is not None:
            # Use the pool's context: the timer would keep a task's own context alive.
            self._reset_timer = self.loop.call_later(
                _RESET_AFTER, self._reset_idle, context=self._context
            )
        if dirty and not conn.closed and not self.closed:
            # A task does the reset: it must not begin here, inside the borrower's bridge.
            self._begin_reset(conn)
        elif not self._put_idle(conn):
            self._run_in_background(self._put_by_psycopg_pool(conn), conn)

    def _postpone_reset(self, conn: PooledConnection) -> bool:
        """Postpone the reset to the next statement on *conn*; return False if it cannot be."""
        face = conn.face
        # A ``check`` or ``reset`` of the project expects a session that is already reset.
        if self._check is not None or self._reset is not None or not face.reset.can_wait(face):
            return False
        face.reset_due = True
        return True

    def _begin_reset(self, conn: PooledConnection) -> None:
        self._resetting += 1
        self.start_task(self._reset_and_put(conn), conn)

    def _reset_idle(self) -> None:
        """Reset the sessions of idle connections that nobody has used since the postponement."""
        self._reset_timer = None
        for conn in [each for each in self._pool if each.face.reset_due]:
            self._pool.remove(conn)
            conn._pool = self
            self._begin_reset(conn)
        self._nconns_min = min(self._nconns_min, len(self._pool))

    def _give_back_elsewhere(self, conn: PooledConnection, dirty: bool) -> None:
        """Give back while the pool's loop does not run, or runs in another thread.

        If the loop does not run, it may never run again: close the connection at once. The pool
        frees the connection's place when the loop runs again.
        """
        assert self.loop is not None
        if not self.loop.is_running():
            conn.borrower = conn.lent_for = None
            conn.finish()
        if not self.loop.is_closed():
            back = functools.partial(self.give_back, conn, dirty=dirty)
            self.loop.call_soon_threadsafe(back, context=Context())

    def discard(self, conn: PooledConnection) -> None:
        """Close *conn* at once, and have the server stop the statement that runs in it."""
        if _get_running_loop() is self.loop and capabilities.has_cancel_safe():
            connection = socket.socket(fileno=os.dup(conn.pgconn.socket))
            connection.setblocking(False)
            self.counts.cancelled += 1
            arguments = conn.pgconn.cancel_conn(), connection, conn.face.cancel_timeout
            task = self.start_task(stop_statement(*arguments))
            task.add_done_callback(functools.partial(self._has_stopped, *arguments))
        conn.finish()

    def _has_stopped(
        self,
        cancel_conn: PGcancelConn,
        connection: socket.socket,
        seconds: float,
        task: asyncio.Task[None],
    ) -> None:
        """Close *connection* when *task*, which had a statement stopped on it, has ended.

        The loop's end cancels the task, perhaps before its first step. The keeper of the pool then
        waits for another one, which nothing cancels.
        """
        if not task.cancelled():
            connection.close()
            return
        again = self.start_task(stop_statement(cancel_conn, connection, seconds))
        again.add_done_callback(lambda task: connection.close())

    async def _put_by_psycopg_pool(self, conn: PooledConnection) -> None:
        returned = False
        try:
            await self.putconn(conn)
            returned = not self.closed
        finally:
            if not returned:
                # The loop's end cancelled this task, or the pool was closed meanwhile: nothing else
                # closes *conn*.
                conn.finish()

    async def _reset_and_put(self, conn: PooledConnection) -> None:
        """Give *conn* back with its session reset; discard it if the reset fails."""
        try:
            async with asyncio.timeout(conn.face.cancel_timeout):
                if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                    await conn.rollback()
                await run_bridged(self._reset_session, conn)
        except BaseException as error:
            conn.finish()
            if not isinstance(error, Exception):
                raise
            logger.warning("closed %s, whose session could not be reset: %s", conn, error)
        finally:
            self._resetting -= 1
            if not self._put_idle(conn):
                await self._put_by_psycopg_pool(conn)
