"""The part of a `DatabaseWrapper` that tells tasks and threads apart.

A wrapper is inherited by the tasks started where it was made, and some are shared by threads:
each has a `ConnectionState` of its own, or that of the transaction it joined.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from django.core.exceptions import SynchronousOnlyOperation
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresDatabaseWrapper
from greenlet import getcurrent

from ..bridge.greenlets import is_bridged, keep_here
from ..tasks import membership
from ..tasks.abandoning import end_abandoned
from ..tasks.handover import ahand_over, hand_over
from ..tasks.membership import Transaction, joined
from ..tasks.orphans import end_orphan_on_top
from ..tasks.state import ConnectionState

if TYPE_CHECKING:
    from ..tasks.lease import Lease


# In place of the transactions that a context was copied in.
NOTHING: dict[object, Transaction] = {}


def state_attribute(name: str) -> Any:
    """Return a property of a wrapper that reads and writes *name* on the current state."""

    def read(wrapper: Any) -> Any:
        bridge: Any = getcurrent()
        here = getattr(bridge, "here", None)
        if here is not None and here[0] is wrapper and here[1] is bridge.gr_context:
            return getattr(here[2], name)
        return getattr(wrapper._states.current(wrapper), name)

    def write(wrapper: Any, value: Any) -> None:
        bridge: Any = getcurrent()
        here = getattr(bridge, "here", None)
        if here is not None and here[0] is wrapper and here[1] is bridge.gr_context:
            setattr(here[2], name, value)
            return
        states = wrapper._states
        # What Django's constructor sets, the thread's state has already.
        if states.opened:
            setattr(states.current(wrapper), name, value)

    return property(read, write, doc=f"`{name}` of the running task, or of the thread.")


class StatePerTask(PostgresDatabaseWrapper):
    """Django's attributes, read from and written to the state of whoever asks."""

    bridge_enabled: bool
    # Seconds a task waits for its turn in a transaction it shares.
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
        here = getattr(bridge, "here", None)
        if here is not None and here[0] is self and here[1] is bridge.gr_context:
            found: ConnectionState = here[2]
            return found
        return self._states.current(self)

    def here(self) -> ConnectionState | None:
        """Return the running task's state if its statements run on leased connections, or None."""
        bridge: Any = getcurrent()
        here = getattr(bridge, "here", None)
        if here is not None and here[0] is self and here[1] is bridge.gr_context:
            found: ConnectionState = here[2]
            return found
        states = self._states
        if self.bridge_enabled and states.thread == get_ident() and is_bridged():
            return states.current(self)
        return None

    def state_in_turn(self, *, entering: bool = False) -> ConnectionState:
        """Return the running task's state when it is the task's turn to use it.

        *entering* a block, it goes behind those who wait already.
        """
        waited = None
        while True:
            state = self.state
            if state.frames and state.frames[-1].abandoned:
                end_abandoned(state)
                state = self.state
            if state.has_turn() and (not entering or state is waited or state.is_next()):
                return state
            end_orphan_on_top(state)
            # Meanwhile the transaction may end, and the task with a state of its own.
            state.take_turn(self.turn_timeout)
            waited = state

    @property
    def bridged(self) -> bool:
        """Whether the caller's statements run on leased connections."""
        bridge: Any = getcurrent()
        here = getattr(bridge, "here", None)
        if here is not None and here[0] is self and here[1] is bridge.gr_context:
            return True
        return self.bridge_enabled and self._states.thread == get_ident() and is_bridged()

    @property
    def joined(self) -> Transaction | None:
        """The loop's transaction that the calling thread joined; see `membership.joined`."""
        if not self.bridge_enabled or self.bridged:
            return None
        return joined(self.alias) if _get_running_loop() is None else None

    def leases(self) -> list[Lease]:
        """Return what tasks have on loan by this wrapper, the running one and others."""
        return self._states.leases()

    def hand_over(self, transaction: Transaction, function: Callable[..., Any], *args: Any) -> Any:
        """Run *function*, of a joined *transaction*, on the loop and return its result."""
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
        raise SynchronousOnlyOperation(
            f"The synchronous ORM was used on the running event loop (alias {self.alias!r})."
            " Await the asynchronous form, as in `await queryset.aget()`,"
            " `async for row in queryset` or `await instance.asave()`; or decorate the function"
            " with @pgbackend.bridged and await it."
        )


class States:
    """The states of one wrapper."""

    def __init__(self, *, autocommit: bool) -> None:
        self._autocommit = autocommit
        # The thread that the wrapper was made in. Another thread's may be shared (Django's test
        # servers do): its connection is that thread's, also when it is used by a task here.
        self.thread = get_ident()
        self._of_thread = ConnectionState()
        self.opened = False
        # Of all tasks but the one that asked last; None until there is another one.
        self._of_tasks: WeakKeyDictionary[asyncio.Task[Any], ConnectionState] | None = None
        # The task that asked last, and its state.
        self._last: tuple[Callable[[], Any], ConnectionState] = (_nobody, self._of_thread)

    def open(self) -> None:
        """End the wrapper's constructor: what Django initialized there was the thread's."""
        self.opened = True

    def leases(self) -> list[Lease]:
        """Return what is on loan to the tasks."""
        states = [self._last[1], *(self._of_tasks or {}).values()]
        return [state.lease for state in states if state.lease is not None]

    def close_shared(self) -> None:
        """Close the connection of a thread with which the wrapper was shared, if there is one."""
        connection = self._of_thread.connection
        if connection is not None:
            self._of_thread.connection = None
            connection.close()

    def current(self, wrapper: Any) -> ConnectionState:
        """Return the state of the running task; the thread's where no task runs."""
        if not self.opened:
            return self._of_thread
        loop = _get_running_loop()
        task = None if loop is None else current_task(loop)
        last, state = self._last
        if state.transaction is not None and task is not None and last() is task:
            entered = membership.transactions.get(NOTHING)
            if len(entered) == 1 and entered.get(wrapper) is state.transaction:
                self._keep(wrapper, state)
            return state
        if task is None:
            transaction = membership.joined_if_open(wrapper.alias)
            return self._of_thread if transaction is None else transaction.state
        if self.thread != get_ident():
            return self._of_thread
        state = self._of(task)
        entered = membership.transactions.get(NOTHING)
        if not entered:
            self._keep(wrapper, state)
        elif state.transaction is None:
            transaction = membership.inherited(wrapper)
            if transaction is not None:
                return transaction.state
        if state.lease is None and membership.sessions.get(membership.NO_SESSIONS):
            session = membership.kept_session(self)
            if session is not None:
                return session.state
        return state

    def _keep(self, wrapper: Any, state: ConnectionState) -> None:
        """Keep *state* on the bridge's greenlet for *wrapper*: it is the running task's own.

        It stays that as long as the call runs in this context: whatever the task may join was there
        when it was started, and what it begins itself is on this state.
        """
        if wrapper.bridge_enabled and not membership.sessions.get(membership.NO_SESSIONS):
            keep_here((wrapper, getcurrent().gr_context, state))

    def are_of_a_session(self) -> bool:
        """Return whether the running task uses the connection of the request it was started in."""
        return membership.kept_session(self) is not None

    def _of(self, task: asyncio.Task[Any]) -> ConnectionState:
        # A task asks often in a row; most wrappers are one task's only.
        last, state = self._last
        before = last()
        if before is task:
            return state
        if self._of_tasks is None:
            self._of_tasks = WeakKeyDictionary()
        if before is not None:
            self._of_tasks[before] = state
        found = self._of_tasks.get(task)
        if found is None:
            found = ConnectionState(autocommit=self._autocommit)
            found.states = ref(self)
        self._last = (ref(task), found)
        return found


def _nobody() -> None:
    """Stand for a reference to a task where there is none yet."""
