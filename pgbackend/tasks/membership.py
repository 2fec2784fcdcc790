"""Transactions and the tasks and threads started in them, which join them.

A context knows the transactions that were open where it was copied. That is used for ancestry
only: a task's own transaction is found by the task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

from greenlet import getcurrent

from ..bridge.greenlets import ending
from .actors import running_task
from .turns import innermost

if TYPE_CHECKING:
    from ..wrapper.attributes import States
    from .lease import Lease
    from .state import ConnectionState


class Transaction:
    """What tasks started inside a transaction share, and what tells them that it has ended."""

    __slots__ = (
        "__weakref__",
        "context",
        "ended",
        "ending",
        "loop",
        "owner",
        "request",
        "settings",
        "state",
        "thread",
        "wrapper",
    )

    def __init__(self, wrapper: Any, state: ConnectionState, owner: asyncio.Task[Any]) -> None:
        self.wrapper = wrapper
        self.state = state
        self.owner = ref(owner)
        self.loop = owner.get_loop()
        self.thread = threading.get_ident()
        self.context = getcurrent().gr_context
        # Set from the moment that its end is due: nobody but its owner may use it any more.
        self.ended = False
        # See `orphans`.
        self.request: object = None
        # The settings of `in_force` that it has made for itself.
        self.settings: frozenset[str] = frozenset()
        # What its owner's request, or whatever lasts around it, calls at the end; see `ending`.
        self.ending = ending()

    @property
    def open(self) -> bool:
        """Whether tasks started in it can be part of it."""
        return self.state.transaction is self and not self.ended

    @property
    def ended_here(self) -> bool:
        """Whether the running task ends it in the place of its owner; see `abandoning`."""
        frames = self.state.frames
        return bool(frames) and frames[0].ender is not None and frames[0].ender is running_task()


# The transactions of this context, by wrapper.
transactions: ContextVar[dict[object, Transaction]] = ContextVar("pgbackend_transactions")


def enter(transaction: Transaction) -> None:
    """Let what is started in this context from now on join *transaction*."""
    transactions.set({**transactions.get({}), transaction.wrapper: transaction})


def leave(transaction: Transaction) -> None:
    """Undo `enter`."""
    entered = transactions.get({})
    if entered.get(transaction.wrapper) is transaction:
        transactions.set(
            {wrapper: each for wrapper, each in entered.items() if each is not transaction}
        )


class KeptSession:
    """A connection that a request keeps for its session: tasks started since then use it, too."""

    __slots__ = ("_context", "_lease", "_loop", "owner", "state")

    def __init__(self, lease: Lease, owner: asyncio.Task[Any] | None, context: Any) -> None:
        self.owner = ref(owner) if owner is not None else _nobody
        self.state = lease.state
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._context = context

    @property
    def open(self) -> bool:
        """Whether the session is kept."""
        return self._lease.on_loan and self._lease.keepers > 0

    @property
    def settings(self) -> frozenset[str]:
        """The settings of `in_force` that were made for it."""
        return self._lease.settings

    def is_of(self, lease: Lease) -> bool:
        """Return whether *lease* is what it keeps."""
        return self._lease is lease

    @property
    def was_joined(self) -> bool:
        """Whether the running task was started in it: by its owner, or by who was."""
        owner, context = self.owner(), self._context
        return owner is not asyncio.current_task() and context is not getcurrent().gr_context

    def check_loop(self) -> None:
        """Raise RuntimeError on another event loop, whose tasks cannot wait for the connection."""
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this task runs on another event loop than the request it was started in, which"
                " keeps a connection for its session; start that loop inside `with"
                " pgbackend.transaction.detached():`"
            )


def _nobody() -> None:
    return None


# The kept sessions of this context, by the states of their wrappers.
sessions: ContextVar[dict[States, KeptSession]] = ContextVar("pgbackend_sessions")
NO_SESSIONS: dict[States, KeptSession] = {}


def enter_session(lease: Lease, transaction: Transaction | None) -> None:
    """Let what is started from now on by the lease's owner use the session that it keeps.

    *transaction* is the one in which the running task, maybe a child, has made it be kept.
    """
    states = lease.state.states()
    if states is None:
        return
    here = getcurrent().gr_context
    if transaction is None or transaction.context is here:
        session = KeptSession(lease, asyncio.current_task(), here)
        sessions.set({**sessions.get({}), states: session})
        return
    session = KeptSession(lease, transaction.owner(), transaction.context)
    sessions.set({**sessions.get({}), states: session})
    if transaction.context is not None:
        # For what the owner starts later, too. It cannot be where this task was started eagerly, in
        # the middle of the owner's step.
        with suppress(RuntimeError):
            transaction.context.run(lambda: sessions.set({**sessions.get({}), states: session}))


def leave_session(lease: Lease) -> None:
    """Undo `enter_session`, as far as this context goes."""
    entered = sessions.get(None)
    if entered:
        sessions.set({key: each for key, each in entered.items() if not each.is_of(lease)})


def kept_session(states: States) -> KeptSession | None:
    """Return the session that the running task was started in, if it is kept still."""
    session = sessions.get({}).get(states)
    if session is None or not session.open or not session.was_joined:
        return None
    session.check_loop()
    return session


# Whether this context is inside `detached`, or was started there.
_is_detached: ContextVar[bool] = ContextVar("pgbackend_detached", default=False)


def is_detached() -> bool:
    """Return whether the running task was started inside `detached`, or is in it."""
    return _is_detached.get()


@contextmanager
def detached() -> Iterator[None]:
    """Let tasks that the block starts not join the transactions that are open around it.

    Nor do they use the connection that a request keeps for its session.

    They have connections and transactions of their own, and may outlive the open ones:

        async with transaction.atomic():
            ...
            with detached():
                task = asyncio.create_task(audit())

    The block is for starting tasks. In it the queries of the transaction's owner stay in it; those
    of a task or thread that joined it do not.
    """
    entered, frame, kept = transactions.set({}), innermost.set(None), sessions.set({})
    token = _is_detached.set(True)
    try:
        yield
    finally:
        _is_detached.reset(token)
        sessions.reset(kept)
        innermost.reset(frame)
        transactions.reset(entered)


def in_any() -> bool:
    """Return whether this context may be inside a transaction, of whatever wrapper."""
    return bool(transactions.get(None))


def joinable() -> Transaction | None:
    """Return an open transaction that threads started here join, of the running event loop's."""
    loop = asyncio.get_running_loop()
    for transaction in transactions.get({}).values():
        if transaction.open and transaction.loop is loop:
            return transaction
    return None


def in_transaction(wrapper: object) -> bool:
    """Return whether this context is inside a transaction of *wrapper*'s that is still open."""
    transaction = transactions.get({}).get(wrapper)
    return transaction is not None and transaction.open


def inherited(wrapper: Any) -> Transaction | None:
    """Return the open transaction of *wrapper*'s that the running task was started in.

    Raise RuntimeError on another event loop, whose tasks cannot wait for that connection.
    """
    transaction = _started_in(wrapper)
    if transaction is None or not (transaction.open or transaction.ended_here):
        return None
    if transaction.loop is not asyncio.get_running_loop():
        raise RuntimeError(
            "this task runs on another event loop than the transaction it was started in;"
            " start that loop inside `with pgbackend.transaction.detached():`, or await the"
            " coroutine on the transaction's own loop"
        )
    return transaction


def _started_in(wrapper: Any) -> Transaction | None:
    """Return the transaction that the running task was started in, also one that has ended."""
    entered = transactions.get(None)
    if not entered:
        return None
    transaction = entered.get(wrapper) or _moved_here(wrapper.alias)
    if (
        transaction is not None
        and transaction.context is getcurrent().gr_context
        and transaction.owner() is not asyncio.current_task()
    ):
        # A sibling in the same Context (Django 6.1 runs receivers so) began it, no ancestor.
        return None
    return transaction


def check_not_outlived(wrapper: Any) -> None:
    """Raise RuntimeError in a task that was started in a transaction which has ended."""
    entered, kept = transactions.get(None), sessions.get(None)
    if not entered and not kept:
        return
    transaction = _started_in(wrapper)
    if (
        transaction is not None
        and not transaction.open
        and transaction.owner() is not asyncio.current_task()
        and not transaction.ended_here
    ):
        raise outlived("task")
    session = kept.get(wrapper.states) if kept else None
    if session is not None and not session.open and session.was_joined:
        raise RuntimeError(
            "this task was started in a request that has made something in its session: a setting,"
            " a role, a lock. The request has ended, and that with it. Await the task in the"
            " request, or start it inside `with pgbackend.transaction.detached():`"
        )


def joined(alias: str) -> Transaction | None:
    """Return the transaction that the calling thread was started in, if it joined one.

    A thread joins where asgiref or `asyncio.to_thread` run its function in a copy of the task's
    context. A thread that merely began with its starter's context does not.

    Raise RuntimeError if that transaction has ended.
    """
    transaction = _moved_here(alias)
    if transaction is not None and not transaction.open:
        raise outlived("thread")
    return transaction


def joined_if_open(alias: str) -> Transaction | None:
    """Return what `joined` returns; None if that transaction has ended."""
    transaction = _moved_here(alias)
    return transaction if transaction is not None and transaction.open else None


def _moved_here(alias: str) -> Transaction | None:
    entered = transactions.get(None)
    if not entered:
        return None
    for transaction in entered.values():
        if transaction.wrapper.alias == alias and transaction.thread != threading.get_ident():
            # CPython 3.14 lets threads inherit contexts.
            inherited = getattr(threading.current_thread(), "_context", None)
            if inherited is None or getcurrent().gr_context is not inherited:
                return transaction
    return None


def outlived(what: str) -> RuntimeError:
    """Return the error for a task or thread whose transaction has ended, *what* it is."""
    return RuntimeError(
        f"this {what} was started inside a transaction that has ended; its queries can no longer"
        f" be part of it. Await the {what} inside the transaction, or start it from"
        " transaction.on_commit() or inside `with pgbackend.transaction.detached():`"
    )
