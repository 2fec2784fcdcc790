"""The part of a `DatabaseWrapper` that borrows and holds connections for tasks.

The connections come from the running loop's pool for the wrapper's settings.
"""

from __future__ import annotations

import asyncio

from ..bridge.greenlets import await_bridged
from ..pool.passwords import without_passwords
from ..pool.pool import ConnectionPool
from ..tasks.kept_sessions import sessions_of_context
from ..tasks.lease import Lease
from ..tasks.membership import check_not_outlived
from ..tasks.orphans import check_in_no_orphan, open_transactions, orphans
from ..tasks.revoked import revoked_blocks
from ..tasks.state import ConnectionState
from ..tasks.transaction import transactions
from .attributes import BackendWrapper
from .opening import PoolForSettings, find_pool
from .options import check as check_options


class Leasing(BackendWrapper):
    """Gives statements a connection by the running task's lease."""

    # When a session is reset; see `options.Options`.
    reset: str
    _pool_for_settings: PoolForSettings | None

    @property
    def async_pool(self) -> ConnectionPool:
        """The running loop's pool for this wrapper's settings, opened on first use."""
        found = self._pool_for_settings
        if found is None or not found.serves(self):
            found = self._pool_for_settings = self._find_pool()
        return found.pool

    @without_passwords
    def _find_pool(self) -> PoolForSettings:
        check_options(self.alias, self.settings_dict["OPTIONS"])
        return find_pool(self)

    def hold_for_statement(self, state: ConnectionState) -> Lease:
        """Hold the task's lease as `_hold` does, by a shorter way if the pool has connections.

        *state* is the task's state, which the caller has just asked for.
        """
        if state.frames or state.has_revoked:
            state = self.state_in_turn(state)
        if revoked_blocks or (state.transaction is None and (open_transactions or orphans)):
            check_in_no_orphan(self.alias, state)
        lease = state.lease
        if (
            lease is not None
            and not lease.pins
            and lease.face.is_executing
            and lease.newest_holder() is None
        ):
            # The running statement is this task's own, in a coroutine that was closed, so nothing
            # will read the answer. Before CPython 3.13 an asynchronous generator around it is not
            # told of the closing.
            lease.give_back()
            lease = None
        if lease is None and not state.in_atomic_block and self.settings_dict["AUTOCOMMIT"]:
            if transactions.get({}) or sessions_of_context.get({}):
                check_not_outlived(self)
            pool = self.async_pool
            pooled = pool.take()
            if pooled is None and pool.is_full:
                # The pool is full, so the settings are known to work: wait without Django's way to
                # connect.
                with self.wrap_database_errors:
                    pooled = await_bridged(pool.checkout())
            if pooled is not None:
                lease = state.lease = Lease(state, pool, pooled, holds=1)
                lease.suspect = self.reset == "always" or pooled.has_temporary
                if pooled.execute_wrappers is not None:
                    self.install_execute_wrappers(pooled.execute_wrappers)
                return lease
        if lease is None:
            lease = self._hold()
            assert lease is not None
        else:
            # A state with a transaction was found as the running task's own, or as the one that the
            # task may join.
            if lease.pins and (state.transaction is None or sessions_of_context.get({})):
                check_not_outlived(self)
            lease.hold()
            if lease.unclosed_cursors is not None:
                self._close_unclosed_cursors(lease, pinned=False)
        return lease

    def _close_unclosed_cursors(self, lease: Lease, *, pinned: bool) -> None:
        """Close the server-side cursors that nobody reads on a *lease* that the caller holds."""
        try:
            with self.wrap_database_errors:
                lease.close_unclosed_cursors()
            # This task may have waited, and another one have begun a block.
            self.state_in_turn()
            check_not_outlived(self)
        except BaseException:
            lease.release(pinned=pinned)
            raise

    def _hold(self, *, pinned: bool = False) -> Lease | None:
        """Hold the task's lease; take the task's turn and borrow a connection if necessary.

        Return None while the connection is being configured, which needs no lease.
        """
        state = self.state_in_turn()
        if revoked_blocks or (state.transaction is None and (open_transactions or orphans)):
            check_in_no_orphan(self.alias, state)
        if state.lease is not None:
            state.lease.hold(pinned=pinned)
            if state.lease.unclosed_cursors is not None:
                self._close_unclosed_cursors(state.lease, pinned=pinned)
        elif state.connection is None:
            state.connecting = True
            try:
                # Django's method, which test cases may replace, ends in this class's `connect`.
                self.ensure_connection()
            finally:
                state.connecting = False
            if pinned and state.lease is not None:
                state.lease.pins += 1
        return state.lease

    def pin_for_task(self) -> Lease | None:
        """Hold the task's lease beyond the bridged call; reset its session at the end."""
        lease = self._hold(pinned=True)
        if lease is not None:
            try:
                with self.wrap_database_errors:
                    # Reset now: code that uses the PGconn directly would run before a postponed
                    # reset.
                    lease.face.reset_now()
            except BaseException:
                lease.release(pinned=True)
                raise
            lease.session_pins += 1
            lease.dirty = True
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lease.owner_ended)
        return lease
