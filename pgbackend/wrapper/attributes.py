"""The part of a `DatabaseWrapper` that separates tasks and threads.

Tasks inherit the wrapper of the context they are started in, and threads may share a wrapper. Each
task and thread has its own `ConnectionState`, or uses that of the transaction it joined.
"""

from __future__ import annotations

import os
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from threading import get_ident
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresDatabaseWrapper
from greenlet import getcurrent

from ..bridge.current import Bridge, is_bridged
from ..tasks.abandoning import end_abandoned_frames
from ..tasks.handover import ahand_over, hand_over
from ..tasks.lease import Lease
from ..tasks.membership import joined_transaction
from ..tasks.orphans import end_orphan_on_top
from ..tasks.state import ConnectionState
from ..tasks.states import States
from ..tasks.transaction import Transaction
from .refusals import refusal

# Django reads a dozen attributes of a wrapper for each block. So a bridged call looks its state up
# once, and keeps (wrapper, context, state) on its greenlet; see `States.current`. The
# look at it is repeated in the properties below, since a function for it would cost as much again.


def state_attribute(name: str) -> Any:
    """Return a property of a wrapper that reads and writes *name* on the current state."""

    def read(wrapper: Any) -> Any:
        bridge: Any = getcurrent()
        cached = getattr(bridge, "cached_state", None)
        if cached is not None and cached[0] is wrapper and cached[1] is bridge.gr_context:
            return getattr(cached[2], name)
        return getattr(wrapper._states.current(wrapper), name)

    def write(wrapper: Any, value: Any) -> None:
        bridge: Any = getcurrent()
        cached = getattr(bridge, "cached_state", None)
        if cached is not None and cached[0] is wrapper and cached[1] is bridge.gr_context:
            setattr(cached[2], name, value)
            return
        states = wrapper._states
        # Ignore the values that Django's constructor sets: the thread's state already has them.
        if states.opened:
            setattr(states.current(wrapper), name, value)

    return property(read, write, doc=f"`{name}` of the running task, or of the thread.")


class BackendWrapper(PostgresDatabaseWrapper):
    """Django's attributes, read from and written to the state of the running task or thread.

    All wrappers of this backend are instances: the rest of the package recognizes them by this
    class.
    """

    bridge_enabled: bool
    # How long a task waits for its turn in a transaction that it shares, seconds.
    turn_timeout: float
    _states: States

    connection = state_attribute("connection")
    autocommit = state_attribute("autocommit")
    in_atomic_block = state_attribute("in_atomic_block")
    savepoint_state = state_attribute("savepoint_state")
    savepoint_ids = state_attribute("savepoint_ids")
    atomic_blocks = state_attribute("atomic_blocks")
    commit_on_exit = state_attribute("commit_on_exit")
    needs_rollback = state_attribute("needs_rollback")
    rollback_exc = state_attribute("rollback_exc")
    close_at = state_attribute("close_at")
    closed_in_transaction = state_attribute("closed_in_transaction")
    errors_occurred = state_attribute("errors_occurred")
    health_check_enabled = state_attribute("health_check_enabled")
    health_check_done = state_attribute("health_check_done")
    run_on_commit = state_attribute("run_on_commit")
    run_commit_hooks_on_set_autocommit_on = state_attribute("run_commit_hooks_on_set_autocommit_on")

    @property
    def states(self) -> States:
        """The states of all tasks."""
        return self._states

    @property
    def state(self) -> ConnectionState:
        """The state of the running task, or of the thread."""
        bridge: Any = getcurrent()
        cached = getattr(bridge, "cached_state", None)
        if cached is not None and cached[0] is self and cached[1] is bridge.gr_context:
            found: ConnectionState = cached[2]
            return found
        return self._states.current(self)

    def bridged_state(self) -> ConnectionState | None:
        """Return the running task's state if its statements run on leased connections, or None."""
        bridge: Any = getcurrent()
        cached = getattr(bridge, "cached_state", None)
        if cached is not None and cached[0] is self and cached[1] is bridge.gr_context:
            found: ConnectionState = cached[2]
            return found
        states = self._states
        # The last three conditions are `is_bridged()`, which the shortest way asks here.
        if (
            self.bridge_enabled
            and states.thread == get_ident()
            and isinstance(bridge, Bridge)
            and (loop := _get_running_loop()) is not None
            and bridge.owner is current_task(loop)
        ):
            return states.current(self, bridge)
        return None

    def state_in_turn(
        self, state: ConnectionState | None = None, *, entering: bool = False
    ) -> ConnectionState:
        """Return the running task's state once it is the task's turn to use it.

        *state* is the task's state if the caller has just asked for it. When *entering* a block,
        the task goes behind those that already wait.
        """
        waited = None
        if state is None:
            state = self.state
        while True:
            if state.frames and state.frames[-1].is_abandoned:
                end_abandoned_frames(state)
                state = self.state
            if state.has_turn() and (not entering or state is waited or state.nobody_waits):
                return state
            end_orphan_on_top(state)
            # While the task waits, the transaction may end, so look up the state again.
            state.take_turn(self.turn_timeout)
            waited, state = state, self.state

    def state_alone(self, state: ConnectionState) -> ConnectionState:
        """Do what `state_in_turn` does, and wait for the statements of other tasks.

        What has begun before is not part of what the running task is about to begin.
        """
        while True:
            state = self.state_in_turn(state)
            if state.lease is None or not state.lease.face.lock.held:
                return state
            state.lease.face.go_behind_others()

    @property
    def bridged(self) -> bool:
        """Whether the caller's statements run on leased connections."""
        bridge: Any = getcurrent()
        cached = getattr(bridge, "cached_state", None)
        if cached is not None and cached[0] is self and cached[1] is bridge.gr_context:
            return True
        return self.bridge_enabled and self._states.thread == get_ident() and is_bridged()

    @property
    def joined_transaction(self) -> Transaction | None:
        """The loop's transaction that the calling thread joined; see `membership`."""
        if not self.bridge_enabled or self.bridged:
            return None
        return joined_transaction(self.alias) if _get_running_loop() is None else None

    def leases(self) -> list[Lease]:
        """Return the leases of all tasks that use this wrapper."""
        return self._states.leases()

    def hand_over(self, transaction: Transaction, function: Callable[..., Any], *args: Any) -> Any:
        """Run *function* on the loop of the joined *transaction*, and return its result."""
        return hand_over(self, transaction, self.turn_timeout, function, *args)

    async def ahand_over(
        self, transaction: Transaction, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Do what `hand_over` does, for a coroutine on another loop."""
        return await ahand_over(self, transaction, self.turn_timeout, function, *args)

    def check_not_on_loop(self) -> None:
        """Raise SynchronousOnlyOperation on a running event loop outside the bridge."""
        if (
            is_bridged()
            or _get_running_loop() is None
            or os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
        ):
            return
        raise SynchronousOnlyOperation(refusal(self.alias))
