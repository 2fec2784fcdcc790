"""A pool's physical connection, and what its socket and its server say without being asked."""

from __future__ import annotations

import logging
import select
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import psycopg
from psycopg import generators
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.waiting import wait_conn_async

from .session_reset import reset

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from psycopg.abc import PQGen, PQGenConn
    from psycopg.pq.abc import PGcancelConn

RV = TypeVar("RV")

logger = logging.getLogger("pgbackend.pool")


class _Owner(Protocol):
    """What a connection asks of its pool."""

    _drained_at: float

    def abandon(self, conn: PooledConnection) -> None: ...

    def drain_now(self) -> None: ...


class PooledConnection(psycopg.AsyncConnection[Any]):
    """A pool's physical connection, with the DB-API face that borrowers see."""

    # A `face.BridgedConnection` on the same PGconn, made before the first use.
    face: Any = None
    # What each cursor of the face's is put through, and returns it: its statements are looked at.
    guard: Callable[[Any], Any]
    # Whether receivers of connection_created made temporary tables: a borrower may write into them
    # by statements that leave the session as it was otherwise.
    has_temporary = False
    # What receivers of connection_created added to ``execute_wrappers`` for it.
    execute_wrappers: list[Callable[..., Any]] | None = None
    # The task it is on loan to; None in the pool's own hands.
    borrower: asyncio.Task[Any] | None = None
    # When the pool had made it ready, as of `time.monotonic`: psycopg_pool's, set last.
    _created_at = 0.0

    def finish(self) -> None:
        """Close the connection at once, without a word to the server."""
        if self.face is not None:
            self.face.stop_listening()
        self.pgconn.finish()

    def abandon(self) -> None:
        """Close the connection at once, in the middle of a statement of its borrower's."""
        pool = cast("_Owner | None", self._pool)
        if pool is None:
            self.finish()
        else:
            pool.abandon(self)

    def lost(self) -> psycopg.OperationalError:
        """Do what `abandon` does if a statement runs, whose answer nobody reads; return why.

        The coroutine that waited for it was closed.
        """
        self.face.given_up()
        if self.face.lease is not None:
            self.face.lease.state.coroutine_was_closed()
        return unread()

    async def close(self) -> None:
        """Close the connection, as psycopg's ``close``."""
        if self.face is not None:
            self.face.stop_listening()
        await super().close()

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's signature
    ) -> RV:
        """Wait for the server as borrowers do: cancelled, in the bounds of ``cancel_timeout``."""
        face = self.face
        if face.reset_due and self.pgconn.transaction_status == TransactionStatus.IDLE:
            # Somebody has it from the pool itself.
            await face.wait_unbridged(reset(face), interval, face.cancel_timeout)
        result: RV = await face.wait_unbridged(gen, interval, timeout)
        return result

    def says_goodbye(self) -> bool:
        """Return whether the server has closed the idle connection, without asking it.

        The socket of one that it closed is readable; so is one with a notification, which is read.
        """
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        # Until nothing is left: the server says why it closes, and the end is behind that.
        while poll.poll(0):
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                return True
            if self.pgconn.status != ConnStatus.OK:
                return True
        return False

    def found_read_only(self) -> None:
        """Have the pool connect anew if this server was to take writes and no longer does."""
        pool = cast("_Owner | None", self._pool)
        # Once, not for each connection that was on loan then.
        if (
            pool is not None
            and not self.closed
            and self._was_demoted()
            and self._created_at > pool._drained_at
        ):
            pool.drain_now()

    def _was_demoted(self) -> bool:
        """Return whether libpq would not take this server any more, by ``target_session_attrs``."""
        wanted = {each.val for each in self.pgconn.info if each.keyword == b"target_session_attrs"}
        standby, read_only = (
            self.pgconn.parameter_status(name) == b"on"
            for name in (b"in_hot_standby", b"default_transaction_read_only")
        )
        return (standby and b"primary" in wanted) or (
            (standby or read_only) and b"read-write" in wanted
        )


def unread() -> psycopg.OperationalError:
    """Return the error for who waits behind a statement whose answer nobody reads."""
    return psycopg.OperationalError(
        "the connection was closed: the coroutine that used it was closed while it waited"
        " for the server, and nobody reads the answer"
    )


async def cancel(cancel_conn: PGcancelConn, seconds: float) -> None:
    """Ask the server, within *seconds*, to stop the statement of a connection that was closed."""

    def steps() -> PQGenConn[None]:
        cancel_conn.start()
        yield from generators.cancel(cancel_conn)

    try:
        await wait_conn_async(steps(), 0.1, seconds)
    except psycopg.Error as error:
        logger.warning("a statement that was left could not be stopped: %s", error)
