"""The states of one connection wrapper: of its thread, and of the tasks that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

from greenlet import getcurrent

from ..bridge.current import Bridge, is_bridged
from . import kept_sessions, membership
from .actors import running_task
from .lease import Lease
from .state import ConnectionState
from .transaction import Transaction, transactions

# Stands in for the context variable's value where it is not set.
_NONE: dict[object, Transaction] = {}


class States:
    """The states of one wrapper."""

    def __init__(self, *, autocommit: bool) -> None:
        self._autocommit = autocommit
        # The thread that made the wrapper. A wrapper of another thread may be shared (Django's test
        # servers do that): its connection is that thread's, even when a task here uses it.
        self.thread = get_ident()
        self._of_thread = ConnectionState()
        self.opened = False
        # The states of all tasks but the latest one that asked; None until a second task asks.
        self._of_tasks: WeakKeyDictionary[asyncio.Task[Any], ConnectionState] | None = None
        # The latest task that asked, and its state.
        self._latest: tuple[Callable[[], Any], ConnectionState] = (_nobody, self._of_thread)

    def open(self) -> None:
        """End the wrapper's constructor: until then Django initialized the thread's state."""
        self.opened = True

    def leases(self) -> list[Lease]:
        """Return the leases of all tasks."""
        states = [self._latest[1], *(self._of_tasks or {}).values()]
        return [state.lease for state in states if state.lease is not None]

    def close_shared(self) -> None:
        """Close the connection of a thread that the wrapper was shared with, if there is one."""
        connection = self._of_thread.connection
        if connection is not None:
            self._of_thread.connection = None
            connection.close()

    def current(self, wrapper: Any, bridge: Bridge | None = None) -> ConnectionState:
        """Return the state of the running task, or the thread's state where no task runs.

        *bridge* is the running greenlet if the caller knows that it is bridged.
        """
        if not self.opened:
            return self._of_thread
        if bridge is None and is_bridged():
            running: Any = getcurrent()
            bridge = running
        task = running_task() if bridge is None else bridge.owner
        latest, state = self._latest
        entered = transactions.get(_NONE)
        if state.transaction is not None and task is not None and latest() is task:
            found = entered.get(wrapper)
            may_keep = len(entered) == 1 and (
                found is state.transaction or getattr(found, "whole", None) is state.transaction
            )
        elif task is None:
            transaction = membership.joined_open_transaction(wrapper.alias)
            return self._of_thread if transaction is None else transaction.state
        elif self.thread != get_ident():
            return self._of_thread
        else:
            if latest() is not task:
                state = self._of(task)
            may_keep = not entered
            if entered and state.transaction is None:
                transaction = membership.inherited_transaction(wrapper)
                if transaction is not None:
                    joined: ConnectionState = transaction.state
                    return joined
            if state.lease is None and kept_sessions.sessions_of_context.get(
                kept_sessions.NO_SESSIONS
            ):
                session = kept_sessions.kept_session(self)
                if session is not None:
                    kept: ConnectionState = session.state
                    return kept
        if (
            may_keep
            and bridge is not None
            and wrapper.bridge_enabled
            and not kept_sessions.sessions_of_context.get(kept_sessions.NO_SESSIONS)
        ):
            # Keep the task's own state for *wrapper*. It stays valid while the call runs in this
            # context: any transaction that the task may join existed when the task was started, and
            # a transaction that the task begins is on this state.
            bridge.cached_state = (wrapper, bridge.gr_context, state)
        return state

    def use_kept_session(self) -> bool:
        """Return whether the running task uses the connection that its request keeps."""
        return kept_sessions.kept_session(self) is not None

    def _of(self, task: asyncio.Task[Any]) -> ConnectionState:
        """Return the state of *task*, which is not the latest task that asked."""
        # A task usually asks several times in a row, and most wrappers are used by one task only.
        latest, state = self._latest
        before = latest()
        if self._of_tasks is None:
            self._of_tasks = WeakKeyDictionary()
        if before is not None:
            self._of_tasks[before] = state
        found = self._of_tasks.get(task)
        if found is None:
            found = ConnectionState(autocommit=self._autocommit)
            found.states = ref(self)
        self._latest = (ref(task), found)
        return found


def _nobody() -> None:
    """Stand in for a weak reference to a task where there is none yet."""
