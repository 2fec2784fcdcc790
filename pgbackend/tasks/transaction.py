"""Transactions, and the contexts in which they were open.

A context knows the transactions that were open when it was copied. This serves only to find
ancestors: a task's own transaction is found through the task.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any
from weakref import ref

from greenlet import getcurrent

from ..bridge.ends import scope_end_adder
from .actors import running_task


class Transaction:
    """A transaction as the tasks started in it share it: its state, its settings, and its end."""

    __slots__ = (
        "__weakref__",
        "add_scope_end",
        "context",
        "ended",
        "loop",
        "owner",
        "request",
        "settings",
        "state",
        "thread",
        "wrapper",
    )

    def __init__(self, wrapper: Any, state: Any, owner: asyncio.Task[Any]) -> None:
        self.wrapper = wrapper
        # The `state.ConnectionState` that the transaction is open on.
        self.state = state
        self.owner = ref(owner)
        self.loop = owner.get_loop()
        self.thread = threading.get_ident()
        self.context = getcurrent().gr_context
        # True from the moment that the end is due: only the owner may use the transaction then.
        self.ended = False
        # The request in which the transaction began; see `orphans`.
        self.request: object = None
        # The settings of `row_settings` that were made for this transaction only.
        self.settings: frozenset[str] = frozenset()
        # Registers callbacks for the end of the owner's request, or of another scope; see
        # `ends.scope_end_adder`.
        self.add_scope_end = scope_end_adder()

    @property
    def open(self) -> bool:
        """Whether tasks started in the transaction can be part of it."""
        return self.state.transaction is self and not self.ended

    @property
    def ended_here(self) -> bool:
        """Whether the running task ends the transaction in place of its owner; see `abandoning`."""
        frames = self.state.frames
        return (
            bool(frames)
            and frames[0].ending_task is not None
            and frames[0].ending_task is running_task()
        )


# The transactions of this context, by wrapper.
transactions: ContextVar[dict[object, Transaction]] = ContextVar("pgbackend_transactions")


def add_to_context(transaction: Transaction) -> None:
    """Let what is started in this context from now on join *transaction*."""
    transactions.set({**transactions.get({}), transaction.wrapper: transaction})


def remove_from_context(transaction: Transaction) -> None:
    """Undo `add_to_context` in this context."""
    entered = transactions.get({})
    if entered.get(transaction.wrapper) is transaction:
        rest = entered.copy()
        del rest[transaction.wrapper]
        transactions.set(rest)
