"""How connections come back to their pool, and their sessions to what they were."""

from __future__ import annotations

import asyncio
import functools
import logging
from asyncio import _get_running_loop
from collections.abc import Callable
from contextvars import Context
from time import monotonic

from psycopg import capabilities
from psycopg.pq import TransactionStatus

from ..bridge.greenlets import run_bridged
from .connecting import ConnectingPool
from .physical import PooledConnection, cancel
from .waiters import Client

logger = logging.getLogger("pgbackend.pool")

# How long the reset of an idle connection's session is put off, seconds: locks, say, go with it.
_RESET_AFTER = 0.05


class ReturningPool(ConnectingPool):
    """A pool that takes connections back without waiting, and hands them to those who wait."""

    # Gives a session back the state that it was configured with; see `pool.ConnectionPool`.
    _reset_session: Callable[[PooledConnection], None]
    # How many sessions are being reset.
    _resetting: int

    def _put(self, conn: PooledConnection) -> bool:
        """Put a connection back that is idle and alive, or hand it to whoever waits; say if it was.

        For anything else psycopg_pool's way is needed.
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
            # It is taken first: its reset costs a statement little, and one of its own much.
            self._pool.appendleft(conn)
        else:
            self._pool.append(conn)
        return True

    def give_back(
        self, conn: PooledConnection, *, dirty: bool = False, suspect: bool = False
    ) -> None:
        """Return *conn* without waiting, from any code on the loop's thread.

        The session of a *dirty* one is reset at once, that of a *suspect* one before the next
        statement in it; see `session_reset`.

        What cannot be done at once (a rollback, a contended lock) is left to a task of the
        pool, so that neither cancelling the borrower nor closing its coroutine loses the
        connection. Elsewhere than on its loop see `_give_back_elsewhere`.
        """
        if _get_running_loop() is not self.loop:
            self._give_back_elsewhere(conn, dirty or suspect)
            return
        conn.borrower = None
        if suspect and not dirty:
            dirty = not self._put_off(conn)
        if conn.face.reset_due and self._reset_timer is None and self.loop is not None:
            # Not in the context of a task, which it would keep.
            self._reset_timer = self.loop.call_later(
                _RESET_AFTER, self._reset_idle, context=self._context
            )
        if dirty and not conn.closed and not self.closed:
            # Not begun here, in the middle of the borrower's bridge.
            self._begin_reset(conn)
        elif not self._put(conn):
            self._detach(self._return(conn), conn)

    def _put_off(self, conn: PooledConnection) -> bool:
        """Have the next statement on *conn* reset its session, if it can."""
        face = conn.face
        # Those who check or reset connections by means of their own want them as they were.
        if self._check is not None or self._reset is not None or not face.reset.can_wait(face):
            return False
        face.reset_due = True
        return True

    def _begin_reset(self, conn: PooledConnection) -> None:
        self._resetting += 1
        self.spawn(self._renew(conn), conn)

    def _reset_idle(self) -> None:
        """Reset the sessions of idle connections that nobody has used since it was put off."""
        self._reset_timer = None
        for conn in [each for each in self._pool if each.face.reset_due]:
            self._pool.remove(conn)
            conn._pool = self
            self._begin_reset(conn)
        self._nconns_min = min(self._nconns_min, len(self._pool))

    def _give_back_elsewhere(self, conn: PooledConnection, dirty: bool) -> None:
        """Do what `give_back` does where the pool's loop does not run, or runs in another thread.

        If it does not run, nobody can say whether it will again: the connection is closed at once,
        and its place is free when the loop runs again.
        """
        assert self.loop is not None
        if not self.loop.is_running():
            conn.borrower = None
            conn.finish()
        if not self.loop.is_closed():
            back = functools.partial(self.give_back, conn, dirty=dirty)
            self.loop.call_soon_threadsafe(back, context=Context())

    def abandon(self, conn: PooledConnection) -> None:
        """Close *conn* at once, in the middle of a statement, and have the server stop that."""
        if _get_running_loop() is self.loop and capabilities.has_cancel_safe():
            self.spawn(cancel(conn.pgconn.cancel_conn(), conn.face.cancel_timeout))
        conn.finish()

    async def _return(self, conn: PooledConnection) -> None:
        returned = False
        try:
            await self.putconn(conn)
            returned = not self.closed
        finally:
            if not returned:
                # Cancelled with the loop, or the pool was closed meanwhile: nobody else would.
                conn.finish()

    async def _renew(self, conn: PooledConnection) -> None:
        """Return *conn* with its session as it was after connecting; close it if that fails."""
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
            if not self._put(conn):
                await self._return(conn)
