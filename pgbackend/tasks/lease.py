"""A lease: a pooled connection on loan to the state of a task."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from greenlet import getcurrent
from psycopg.pq import TransactionStatus

from ..pool.face import BridgedConnection
from ..pool.physical import PooledConnection
from ..pool.pool import ConnectionPool
from .kept_sessions import unshare_session
from .membership import outlived_error
from .transaction import Transaction


def _nobody() -> None:
    return None


class Lease:
    """A pooled connection on loan to a state, given back when its last hold is released.

    A statement or a cursor holds the lease while it is open, but not beyond the outermost bridged
    call. A transaction or a server-side cursor *pins* the lease: it may outlast the call.
    """

    __slots__ = (
        "bridge",
        "closings",
        "dirty",
        "exposed",
        "face",
        "holds",
        "named",
        "newest_holder",
        "on_loan",
        "pins",
        "pool",
        "pooled",
        "session_pins",
        "sets",
        "settings",
        "state",
        "suspect",
        "unclosed_cursors",
    )

    def __init__(
        self, state: Any, pool: ConnectionPool, pooled: PooledConnection, holds: int = 0
    ) -> None:
        # The `state.ConnectionState` that has borrowed the connection.
        self.state = state
        self.pool = pool
        self.pooled = pooled
        self.face: BridgedConnection = pooled.face
        self.face.lease = self
        self.holds = holds
        self.pins = 0
        # How many of the pins are for the session: its settings or locks, for example, must last.
        self.session_pins = 0
        self.on_loan = True
        # A weak reference to the `cursors.LeaseHolder` that took the latest hold on the lease.
        self.newest_holder: Callable[[], Any] = _nobody
        # The holders of open server-side cursors, by weak references; None before the first.
        self.named: WeakSet[Any] | None = None
        # Server-side cursors that nobody reads now: their names, with the transaction that ends
        # them, or None if the session does. They are closed before the next statement.
        self.unclosed_cursors: list[tuple[str, Transaction | None]] | None = None
        # Whether the borrower may have changed the connection object itself.
        self.exposed = False
        # How often something ran that may close server-side cursors: raw SQL, or a rollback.
        self.closings = 0
        # Whether the session has to be reset: at once (`dirty`), or before another borrower's
        # statement (`suspect`).
        self.dirty = False
        self.suspect = False
        # Whether a statement may have changed settings, for the transaction at least, or may have
        # ended the transaction; see `transaction.deferred_savepoint`.
        self.sets = False
        # The id of the greenlet with whose bridged call the lease ends, unless it is pinned.
        self.bridge = id(getcurrent())
        # The settings of `row_settings` that the borrower has made in the session.
        self.settings: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        where = "on loan" if self.on_loan else "given back"
        return (
            f"<{type(self).__name__} {where} from {self.pool.name!r},"
            f" holds={self.holds}, pins={self.pins}>"
        )

    def hold(self, *, pinned: bool = False) -> None:
        """Hold the lease until `release` with the same *pinned*."""
        self.holds += 1
        self.pins += pinned

    def release(self, *, pinned: bool = False) -> None:
        """Release one hold; the last release gives the connection back."""
        self.holds -= 1
        self.pins -= pinned
        if self.holds <= 0:
            self.give_back()

    def refuse_others(self) -> None:
        """Refuse the statements that wait behind the running one: they have come too late."""
        if self.face.lock.held:
            self.face.lock.refuse_waiting(functools.partial(outlived_error, "task"))

    def release_threadsafe(self, *, pinned: bool = False) -> None:
        """Release one hold from any thread and loop, since the collector may run anywhere."""
        self.pool.on_loop(functools.partial(self.release, pinned=pinned))

    def close_cursor_later(
        self, name: str, transaction: Transaction | None, *, discard: bool = False
    ) -> None:
        """Have the server-side cursor *name*, which nobody will read, closed later.

        *transaction* is the one that the cursor was opened in; if it has ended, the cursor is
        closed. With *discard*, close the connection instead, unless something else holds it.
        """
        if self.on_loan and not self.face.closed:
            if transaction is None and discard and self.holds <= 1:
                self.face.close()
            elif transaction is None or self.state.transaction is transaction:
                # If nothing closes a session's cursor earlier, the session's reset does.
                self.dirty = self.dirty or transaction is None
                self.unclosed_cursors = [*(self.unclosed_cursors or ()), (name, transaction)]
        self.release(pinned=True)

    def close_unclosed_cursors(self) -> None:
        """Close the cursors that `close_cursor_later` noted, waiting through the bridge."""
        unclosed_cursors = self.unclosed_cursors or []
        if unclosed_cursors and self.face.is_broken:
            # A broken transaction accepts nothing before its rollback. After the rollback,
            # `close_cursors` checks which cursors are still open.
            return
        self.unclosed_cursors = None
        self.face.close_cursors([name for name, _ in unclosed_cursors])

    def transaction_ended(self, transaction: Transaction) -> None:
        """Forget the server-side cursors of *transaction*, which ended with it."""
        self.closings += 1
        if self.unclosed_cursors is not None:
            self.unclosed_cursors = [
                each for each in self.unclosed_cursors if each[1] is not transaction
            ] or None
        for holder in list(self.named or ()):
            holder.transaction_ended(transaction)

    def pin_for_session(self) -> None:
        """Pin the connection for its session until `unpin_for_session`."""
        self.session_pins += 1
        self.hold(pinned=True)

    def unpin_for_session(self) -> None:
        """Undo one `pin_for_session`; do nothing once the connection was given back."""
        if self.on_loan:
            self.session_pins -= 1
            unshare_session(self)
            self.release(pinned=True)

    def take_notes(self) -> tuple[Any, ...]:
        """Return what is noted of the session, and begin anew; see `put_notes_back`."""
        face = self.face
        noted = self.suspect, self.dirty, self.exposed, face.uninspected, self.settings
        self.sets = self.suspect = self.dirty = self.exposed = face.uninspected = False
        return noted

    def put_notes_back(self, noted: tuple[Any, ...]) -> bool:
        """Add what was *noted* before; return whether the session may have changed since."""
        face = self.face
        suspect, dirty, exposed, uninspected, self.settings = noted
        changed = self.sets or self.suspect or self.dirty or self.exposed or face.uninspected
        self.suspect |= suspect
        self.dirty |= dirty
        self.exposed |= exposed
        face.uninspected |= uninspected
        return bool(changed)

    def give_back(self) -> None:
        """Give the connection back to its pool, whatever holds it; a second call does nothing.

        This never waits. The pool rolls back an open transaction. A connection in the middle of a
        statement is closed, and the pool replaces it.
        """
        if not self.on_loan:
            return
        self.on_loan = False
        self.state.lease = None
        if self.session_pins:
            unshare_session(self)
        if self.face.lock.held:
            self.refuse_others()
        self.face.lease = None
        dirty = self.dirty or self.face.uninspected
        if self.face.pgconn.transaction_status == TransactionStatus.ACTIVE:
            self.pool.discard(self.pooled)
        elif self.exposed:
            # The borrower may have kept the connection object, and must not reach the next borrower
            # through it.
            self.pooled.face = self.face.make_successor()
        elif self.face.was_stopped or not self.face.autocommit:
            self.face.restore()
        self.pool.give_back(self.pooled, dirty=dirty, suspect=self.suspect)

    def owner_ended(self, task: asyncio.Task[Any]) -> None:
        """Give back the connection that a task, which has ended, had pinned."""
        if self.on_loan:
            self.give_back()
            warnings.warn(
                f"{task.get_name()} ended inside `pinned()`: leave it in the task that entered it",
                ResourceWarning,
                stacklevel=1,
            )

    def stop_and_give_back(self) -> None:
        """Give the connection back once another task's statement on it was stopped.

        If the loop ends meanwhile, the other task is cancelled, stops its statement, and releases
        the last hold.
        """
        self.refuse_others()
        if self.holds > 1:
            self.release(pinned=True)
        self.pool.start_task(self._stop_and_give_back())

    async def _stop_and_give_back(self) -> None:
        await self.face.stop_other()
        self.give_back()


def unpin_for_task(lease: Lease, task: asyncio.Task[Any]) -> None:
    """Undo `DatabaseWrapper.pin_for_task` for *task*, on its event loop."""
    task.remove_done_callback(lease.owner_ended)
    lease.unpin_for_session()
