"""How a pool's connections are made, and checked before they are lent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection

from ..bridge.greenlets import run_bridged
from .background import PoolOfLoop
from .counts import Counts, observe
from .passwords import forget_passwords
from .physical import PooledConnection


class ConnectingPool(PoolOfLoop):
    """A pool that tells the waiting tasks why connecting failed, in the server's words."""

    # The function that gives a new connection its face; see `pool.ConnectionPool`.
    _borrowers_configure: Callable[[PooledConnection], None]
    # All configured connections.
    _physical: WeakSet[PooledConnection]
    counts: Counts

    async def _configure_bridged(self, conn: PooledConnection) -> None:
        conn.counts = self.counts
        try:
            await run_bridged(self._borrowers_configure, conn)
        except BaseException:
            await conn.close()
            raise
        self._physical.add(conn)

    async def _check_connection(self, conn: PooledConnection) -> None:
        """Raise psycopg's error for a dead connection: the pool then tries the next one."""
        if conn.closed or conn.was_closed_by_server():
            self._discard_idle(PooledConnection.was_closed_by_server)
            raise psycopg.OperationalError("the server closed the idle connection")
        if self._check is not None:
            try:
                with conn.face.limited():
                    await call_hook(self._check, conn)
            except Exception:
                if conn.closed:
                    self._discard_idle(lambda idle: True)
                raise

    def _discard_idle(self, dead: Callable[[PooledConnection], bool]) -> None:
        """Discard the idle connections that are *dead*, after one of them was found dead.

        The same event has usually ended them all, and psycopg_pool waits longer after each dead
        connection that it meets.
        """
        for conn in [each for each in self._pool if dead(each)]:
            self._pool.remove(conn)
            conn.finish()
            self.counts.dead += 1
            # The next checkout opens a connection in its place.
            self._nconns -= 1
        self._nconns_min = min(self._nconns_min, len(self._pool))
        while self._nconns < self._min_size:
            self._nconns += 1
            self.run_task(AddConnection(self))

    async def _reset_connection(self, conn: PooledConnection) -> None:
        """Roll back the borrower's open transaction, and call the option ``reset``."""
        with conn.face.limited():
            await super()._reset_connection(conn)

    async def _connect(  # psycopg_pool's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PooledConnection:
        """Connect; tell the waiting tasks of a failure, unless some connection still lives."""
        began = monotonic()
        try:
            conn = await super()._connect(timeout)
            observe(self, "create", monotonic() - began)
            return conn
        except Exception as error:
            forget_passwords(error)
            if all(conn.closed for conn in self._physical):
                while self._waiting:
                    await self._waiting.popleft().fail(_copy_of(error))
            raise

    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        if attempt is None and not self.reconnect_timeout:
            # psycopg_pool gives up at a second failure, if it is late enough; give up at the first.
            attempt = AttemptWithBackoff(timeout=0.0)
            attempt.give_up_at = monotonic()
        await super()._add_connection(attempt, growing)


async def call_hook(hook: Callable[[Any], Any], conn: PooledConnection) -> None:
    """Call a ``check`` or ``reset`` hook: an asynchronous one, or one for Django's pool."""
    if inspect.iscoroutinefunction(hook):
        await hook(conn)
    else:
        await run_bridged(hook, conn.face)


def _copy_of(error: Exception) -> Exception:
    """Return a copy of *error* for one more task: an instance raised twice mixes tracebacks."""
    if not isinstance(error, psycopg.Error):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
