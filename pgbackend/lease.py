"""A lease: a pooled connection on loan to the state of a task."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from .connection import BridgedConnection
    from .cursor import LeaseHolder
    from .pool import ConnectionPool
    from .pooled import PooledConnection
    from .state import ConnectionState


def _nobody() -> None:
    return None


class Lease:
    """A pooled connection on loan to a state, given back when its last holder lets go.

    A statement or a cursor holds it while it is open, but not beyond the outermost bridged
    call. A transaction or a server-side cursor *pins* it: it may outlast the call.
    """

    __slots__ = (
        "dirty",
        "exposed",
        "face",
        "holds",
        "newest_holder",
        "on_loan",
        "pins",
        "pool",
        "pooled",
        "state",
    )

    def __init__(
        self, state: ConnectionState, pool: ConnectionPool, pooled: PooledConnection
    ) -> None:
        self.state = state
        self.pool = pool
        self.pooled = pooled
        self.face: BridgedConnection = pooled.face
        self.holds = 0
        self.pins = 0
        self.on_loan = True
        # The cursor wrapper that took a hold on it last, by a weak reference.
        self.newest_holder: Callable[[], LeaseHolder | None] = _nobody
        # Whether the borrower may have changed something on the connection itself.
        self.exposed = False
        # Whether the session has to be reset before another borrower gets the connection.
        self.dirty = False

    def __repr__(self) -> str:
        where = "on loan" if self.on_loan else "given back"
        return (
            f"<{type(self).__name__} {where} from {self.pool.name!r},"
            f" holds={self.holds}, pins={self.pins}>"
        )

    def hold(self, *, pinned: bool = False) -> None:
        """Keep the connection on loan until `let_go` with the same *pinned*."""
        self.holds += 1
        self.pins += pinned

    def let_go(self, *, pinned: bool = False) -> None:
        """Undo one `hold`; the last one gives the connection back."""
        self.holds -= 1
        self.pins -= pinned
        if self.holds <= 0:
            self.give_back()

    def refuse_others(self) -> None:
        """Refuse the statements that wait for the one that runs: they have come too late."""
        self.face.lock.refuse_waiting()

    def give_back(self) -> None:
        """Return the connection to its pool, whoever holds it; a second call does nothing.

        It never waits. The pool rolls an open transaction back; a connection in the middle
        of a statement is closed, and the pool replaces it.
        """
        if not self.on_loan:
            return
        self.on_loan = False
        self.state.lease = None
        if self.face.lock.held:
            self.refuse_others()
        dirty = self.dirty or self.face.was_used_directly
        if self.face.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self.pool.abandon(self.pooled)
        elif self.exposed or self.face.was_stopped or not self.face.autocommit:
            self.face.restore()
        self.pool.give_back(self.pooled, dirty=dirty)

    def owner_ended(self, task: asyncio.Task[Any]) -> None:
        """Give back what a task that has ended had pinned."""
        if self.on_loan:
            warnings.warn(
                f"{task.get_name()} ended inside `pinned()`: leave it in the task that entered it",
                ResourceWarning,
                stacklevel=1,
            )
            self.give_back()

    def stop_and_give_back(self) -> None:
        """Return the connection once the statement that another task runs on it was stopped.

        If the loop ends meanwhile, that task is cancelled, stops it, and is the last holder.
        """
        self.refuse_others()
        if self.holds > 1:
            self.let_go(pinned=True)
        self.pool.spawn(self._stop_and_give_back())

    async def _stop_and_give_back(self) -> None:
        await self.face.stop_other()
        self.give_back()
