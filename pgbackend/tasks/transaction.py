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


class PartOfTransaction(Transaction):
    """A transaction as the tasks see it that are started in a part of it, which ends before it.

    They join the transaction as long as its owner is in that part, and not what comes after it.
    """

    __slots__ = ("around", "before", "entered", "whole")

    def __init__(self, whole: Transaction, before: dict[object, Transaction]) -> None:
        self.whole = whole
        # What tasks join that are started just before the part: the whole, or a part around it.
        self.around = before.get(whole.wrapper, whole)
        # The transactions of the context before the part, and in it.
        self.before, self.entered = before, {**before, whole.wrapper: self}
        self.wrapper, self.state, self.owner = whole.wrapper, whole.state, whole.owner
        self.loop, self.thread, self.context = whole.loop, whole.thread, whole.context
        self.request = whole.request
        self.settings, self.add_scope_end = whole.settings, whole.add_scope_end
        self.ended = False

    @property
    def open(self) -> bool:
        """Whether tasks started in the part can be part of the transaction."""
        return not self.ended and self.whole.open


# The transactions of this context, by wrapper.
transactions: ContextVar[dict[object, Transaction]] = ContextVar("pgbackend_transactions")

_NONE: dict[object, Transaction] = {}


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


def begin_part(whole: Transaction | None) -> PartOfTransaction:
    """Let what is started in this context from now on join *whole* until `end_part`."""
    assert whole is not None
    part = PartOfTransaction(whole, transactions.get(_NONE))
    transactions.set(part.entered)
    return part


def end_part(part: PartOfTransaction, *, stop: bool) -> None:
    """End *part* for the tasks that were started in it, waiting through the bridge.

    A statement of theirs that runs now ends in the part, or is stopped in the server if *stop*; any
    other is refused.
    """
    part.ended = True
    before = part.before
    if transactions.get(_NONE) is part.entered and part.wrapper in before and part.around.open:
        transactions.set(before)
    elif part.whole.open:
        # It takes the place of the part.
        add_to_context(part.around if part.around.open else part.whole)
    else:
        remove_from_context(part)
    lease = part.state.lease
    if lease is None or not lease.face.lock.held:
        return
    lease.refuse_others()
    if not stop:
        with lease.face.lock:
            return
    if lease.face.is_executing:
        lease.face.stop()
