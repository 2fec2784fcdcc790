"""A pool's physical connection, and what its socket and server report without a query."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import psycopg
from psycopg import generators
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.waiting import wait_conn_async

from .counts import Counts
from .session_reset import reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen, PQGenConn
    from psycopg.pq.abc import PGcancelConn

RV = TypeVar("RV")

logger = logging.getLogger("pgbackend.pool")

# How long to wait before an ineffective cancellation is sent again, seconds; doubled each time.
_RESEND_INTERVAL = 0.1


class _Owner(Protocol):
    """The part of the pool that a connection uses."""

    _drained_at: float

    def discard(self, conn: PooledConnection) -> None: ...

    def drain_now(self) -> None: ...


class PooledConnection(psycopg.AsyncConnection[Any]):
    """A pool's physical connection, with the DB-API face that borrowers see.

    `close` is polite: it tells the server. `finish` only closes the socket; the name is libpq's.
    `discard` does so in the middle of a statement, and has the server stop that.
    """

    # The `face.BridgedConnection` on the same PGconn, made before the first use.
    face: Any = None
    # The function that each of the face's cursors is passed through, so that its statements are
    # inspected.
    guard: Callable[[Any], Any]
    # Whether receivers of connection_created made temporary tables. A borrower may write to such a
    # table by statements that do not otherwise change the session.
    has_temporary = False
    # The ``execute_wrappers`` that receivers of connection_created added for this connection.
    execute_wrappers: list[Callable[..., Any]] | None = None
    # The counts of its pool; those of a connection outside of pools are nobody's.
    counts = Counts()
    # The task that the connection is on loan to; None in the pool's own hands.
    borrower: asyncio.Task[Any] | None = None
    # Since when, by `time.monotonic`, and for which request; see `borrowers.of_request`.
    lent_at = 0.0
    lent_for: Any = None
    # When the pool had made the connection ready, by `time.monotonic`. psycopg_pool sets it last.
    _created_at = 0.0

    def finish(self) -> None:
        """Close the connection at once, without telling the server."""
        if self.face is not None:
            self.face.unregister_socket()
        self.pgconn.finish()

    def discard(self) -> None:
        """Close the connection at once, and have the server stop the statement that runs in it."""
        pool = cast("_Owner | None", self._pool)
        if pool is None:
            self.finish()
        else:
            pool.discard(self)

    def discard_unread(self) -> psycopg.OperationalError:
        """Discard the connection if a statement runs whose answer nobody reads; return the error.

        The coroutine that waited for the answer was closed.
        """
        self.face.discard_if_unread()
        if self.face.lease is not None:
            self.face.lease.state.coroutine_was_closed()
        return unread_error()

    async def close(self) -> None:
        """Close the connection politely, as psycopg's ``close`` does."""
        if self.face is not None:
            self.face.unregister_socket()
        await super().close()

    async def wait(
        self,
        gen: PQGen[RV],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's signature
    ) -> RV:
        """Wait for the server as borrowers do; ``cancel_timeout`` bounds a cancelled wait."""
        face = self.face
        if face.reset_due and self.pgconn.transaction_status == TransactionStatus.IDLE:
            # A caller took the connection directly from the pool, so nothing has reset the session
            # yet.
            await face.wait_unbridged(reset(face), interval, face.cancel_timeout)
        result: RV = await face.wait_unbridged(gen, interval, timeout)
        return result

    def was_closed_by_server(self) -> bool:
        """Return whether the server has closed the idle connection, without asking the server.

        The socket of a closed connection is readable. So is a socket with a notification, which is
        read.
        """
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        # Read until nothing is left: the server sends the reason first, and then the end.
        while poll.poll(0):
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                return True
            if self.pgconn.status != ConnStatus.OK:
                return True
        return False

    def found_read_only(self) -> None:
        """Have the pool reconnect if this server should accept writes and no longer does."""
        pool = cast("_Owner | None", self._pool)
        # Drain the pool once, not for each connection that was on loan at the time.
        if (
            pool is not None
            and not self.closed
            and self._was_demoted()
            and self._created_at > pool._drained_at
        ):
            pool.drain_now()

    def _was_demoted(self) -> bool:
        """Return whether libpq would refuse this server now, by ``target_session_attrs``."""
        wanted = {each.val for each in self.pgconn.info if each.keyword == b"target_session_attrs"}
        standby, read_only = (
            self.pgconn.parameter_status(name) == b"on"
            for name in (b"in_hot_standby", b"default_transaction_read_only")
        )
        return (standby and b"primary" in wanted) or (
            (standby or read_only) and b"read-write" in wanted
        )


def unread_error() -> psycopg.OperationalError:
    """Return the error for a task that waits behind a statement whose answer nobody reads."""
    return psycopg.OperationalError(
        "the connection was closed: the coroutine that used it was closed while it waited"
        " for the server, and nobody reads the answer"
    )


async def stop_statement(
    cancel_conn: PGcancelConn, connection: socket.socket, seconds: float
) -> None:
    """Have the server, within *seconds*, stop the statement of a closed connection.

    *connection* is a duplicate of the connection's socket. The server closes its side when the
    statement has ended. If the server has not read the statement yet, it ignores the request: ask
    again until the statement has ended.
    """

    def steps() -> PQGenConn[None]:
        cancel_conn.reset()
        cancel_conn.start()
        yield from generators.cancel(cancel_conn)

    interval = _RESEND_INTERVAL
    try:
        async with asyncio.timeout(seconds):
            while True:
                await wait_conn_async(steps(), 0.1, seconds)
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await _until_closed(connection)
                    return
                interval *= 2
    except (psycopg.Error, TimeoutError) as error:
        words = str(error) or f"no answer within {seconds:g} s"
        logger.warning("a statement that nobody waits for could not be stopped: %s", words)


async def _until_closed(connection: socket.socket) -> None:
    """Wait until the server has closed its side of a connection; drop what it sends before."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while await loop.sock_recv(connection, 65536):
            pass
