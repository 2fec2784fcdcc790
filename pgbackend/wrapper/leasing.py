"""The part of a `DatabaseWrapper` that has a task borrow a connection, and hold it.

It comes from the running loop's pool for the wrapper's settings.
"""

from __future__ import annotations

import asyncio

from ..bridge.greenlets import await_bridged
from ..pool.passwords import without_passwords
from ..pool.pool import ConnectionPool
from ..tasks.lease import Lease
from ..tasks.membership import check_not_outlived
from ..tasks.orphans import check_in_no_orphan, opened, orphans
from ..tasks.taken import taken
from .attributes import BackendWrapper
from .opening import FoundPool, find_pool
from .options import check as check_options


class Leasing(BackendWrapper):
    """How statements get a connection: by a lease of the task's."""

    # When a session is reset; see `options.Options`.
    reset: str
    _found_pool: FoundPool | None

    @property
    def async_pool(self) -> ConnectionPool:
        """The running loop's pool for this wrapper's settings, opened on first use."""
        found = self._found_pool
        if found is None or not found.serves(self):
            found = self._found_pool = self._find_pool()
        return found.pool

    @without_passwords
    def _find_pool(self) -> FoundPool:
        check_options(self.alias, self.settings_dict["OPTIONS"])
        return find_pool(self)

    def hold_for_statement(self) -> Lease:
        """Hold the task's lease, as `_hold`, by a shorter way if the pool has connections."""
        state = self.state_in_turn()
        if taken or (state.transaction is None and (opened or orphans)):
            check_in_no_orphan(self.alias, state)
        lease = state.lease
        if (
            lease is not None
            and not lease.pins
            and lease.face.is_executing
            and lease.newest_holder() is None
        ):
            # The running task's own statement, in a coroutine that was closed: before CPython 3.13
            # an asynchronous generator that it was in does not learn that. Nobody will read it.
            lease.give_back()
            lease = None
        if lease is None and not state.in_atomic_block and self.settings_dict["AUTOCOMMIT"]:
            check_not_outlived(self)
            pool = self.async_pool
            pooled = pool.take()
            if pooled is None and pool.is_full:
                # Nothing about settings can be wrong: wait without Django's way to connect.
                with self.wrap_database_errors:
                    pooled = await_bridged(pool.checkout())
            if pooled is not None:
                lease = state.lease = Lease(state, pool, pooled)
                lease.suspect = self.reset == "always" or pooled.has_temporary
                if pooled.execute_wrappers is not None:
                    self.install(pooled.execute_wrappers)
        if lease is None:
            lease = self._hold()
            assert lease is not None
        else:
            if lease.pins:
                check_not_outlived(self)
            lease.hold()
            if lease.left is not None:
                self._close_left(lease, pinned=False)
        return lease

    def _close_left(self, lease: Lease, *, pinned: bool) -> None:
        """Close the server-side cursors that were left on a *lease* that is held."""
        try:
            with self.wrap_database_errors:
                lease.close_left()
        except BaseException:
            lease.let_go(pinned=pinned)
            raise

    def _hold(self, *, pinned: bool = False) -> Lease | None:
        """Hold the task's lease, taking its turn and borrowing a connection if need be.

        Return None for the connection that is being configured: no lease is needed there.
        """
        state = self.state_in_turn()
        if taken or (state.transaction is None and (opened or orphans)):
            check_in_no_orphan(self.alias, state)
        if state.lease is not None:
            state.lease.hold(pinned=pinned)
            if state.lease.left is not None:
                self._close_left(state.lease, pinned=pinned)
        elif state.connection is None:
            state.connecting = True
            try:
                # Ends in Django's own, which its test cases replace, and that in `connect`.
                self.ensure_connection()
            finally:
                state.connecting = False
            if pinned and state.lease is not None:
                state.lease.pins += 1
        return state.lease

    def pin(self) -> Lease | None:
        """Hold the task's lease beyond the bridged call; its session is reset in the end."""
        lease = self._hold(pinned=True)
        if lease is not None:
            try:
                with self.wrap_database_errors:
                    # What uses the PGconn itself would come before it.
                    lease.face.reset_now()
            except BaseException:
                lease.let_go(pinned=True)
                raise
            lease.keepers += 1
            lease.dirty = True
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lease.owner_ended)
        return lease
