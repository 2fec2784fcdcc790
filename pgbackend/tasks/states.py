"""The states of one connection wrapper: of its thread, and of the tasks that use it."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

from greenlet import getcurrent

from ..bridge.current import keep_here
from . import kept_sessions, membership
from .lease import Lease
from .state import ConnectionState
from .transaction import Transaction, transactions

# In place of the transactions that a context was copied in.
_NOTHING: dict[object, Transaction] = {}


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
            entered = transactions.get(_NOTHING)
            if len(entered) == 1 and entered.get(wrapper) is state.transaction:
                self._keep(wrapper, state)
            return state
        if task is None:
            transaction = membership.joined_if_open(wrapper.alias)
            return self._of_thread if transaction is None else transaction.state
        if self.thread != get_ident():
            return self._of_thread
        state = self._of(task)
        entered = transactions.get(_NOTHING)
        if not entered:
            self._keep(wrapper, state)
        elif state.transaction is None:
            transaction = membership.inherited(wrapper)
            if transaction is not None:
                joined: ConnectionState = transaction.state
                return joined
        if state.lease is None and kept_sessions.sessions.get(kept_sessions.NO_SESSIONS):
            session = kept_sessions.kept_session(self)
            if session is not None:
                kept: ConnectionState = session.state
                return kept
        return state

    def _keep(self, wrapper: Any, state: ConnectionState) -> None:
        """Keep *state* on the bridge's greenlet for *wrapper*: it is the running task's own.

        It stays that as long as the call runs in this context: whatever the task may join was there
        when it was started, and what it begins itself is on this state.
        """
        if wrapper.bridge_enabled and not kept_sessions.sessions.get(kept_sessions.NO_SESSIONS):
            keep_here((wrapper, getcurrent().gr_context, state))

    def are_of_a_session(self) -> bool:
        """Return whether the running task uses the connection of the request it was started in."""
        return kept_sessions.kept_session(self) is not None

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
