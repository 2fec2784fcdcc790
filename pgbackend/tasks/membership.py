"""Find the transaction that a task or a thread is part of: the one it was started in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from greenlet import getcurrent

from .frames import innermost
from .kept_sessions import sessions_of_context
from .transaction import Transaction, transactions

# Whether this context is inside `detached`, or was started there.
_is_detached: ContextVar[bool] = ContextVar("pgbackend_detached", default=False)


def is_detached() -> bool:
    """Return whether the running task is inside `detached`, or was started there."""
    return _is_detached.get()


@contextmanager
def detached() -> Iterator[None]:
    """Keep tasks that the block starts out of the transactions that are open around it.

    The tasks do not use the connection that a request keeps for its session, either. They have
    connections and transactions of their own, and may outlive the open ones:

        async with transaction.atomic():
            ...
            with detached():
                task = asyncio.create_task(audit())

    Use the block only to start tasks. Inside the block, queries of the transaction's owner still
    run in the transaction; queries of a task or thread that joined it do not.
    """
    entered, frame, kept = transactions.set({}), innermost.set(None), sessions_of_context.set({})
    token = _is_detached.set(True)
    try:
        yield
    finally:
        _is_detached.reset(token)
        sessions_of_context.reset(kept)
        innermost.reset(frame)
        transactions.reset(entered)


def in_any_transaction() -> bool:
    """Return whether this context may be inside a transaction of any wrapper."""
    return bool(transactions.get(None))


def joinable_transaction() -> Transaction | None:
    """Return an open transaction of the running loop that threads started here join, or None."""
    loop = asyncio.get_running_loop()
    for transaction in transactions.get({}).values():
        if transaction.open and transaction.loop is loop:
            return transaction
    return None


def in_transaction(wrapper: object) -> bool:
    """Return whether this context is inside an open transaction of *wrapper*."""
    transaction = transactions.get({}).get(wrapper)
    return transaction is not None and transaction.open


def inherited_transaction(wrapper: Any) -> Transaction | None:
    """Return the open transaction of *wrapper* that the running task was started in, or None.

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
    """Return the transaction that the running task was started in, even if it has ended."""
    entered = transactions.get(None)
    if not entered:
        return None
    transaction = entered.get(wrapper) or _moved_here(wrapper.alias)
    if (
        transaction is not None
        and transaction.context is getcurrent().gr_context
        and transaction.owner() is not asyncio.current_task()
    ):
        # Django 6.1 runs signal receivers as tasks that share one Context: this transaction is a
        # sibling's, not an ancestor's.
        return None
    return transaction


def check_not_outlived(wrapper: Any) -> None:
    """Raise RuntimeError in a task whose transaction, or kept session, has ended."""
    entered, kept = transactions.get(None), sessions_of_context.get(None)
    if not entered and not kept:
        return
    transaction = _started_in(wrapper)
    if (
        transaction is not None
        and not transaction.open
        and transaction.owner() is not asyncio.current_task()
        and not transaction.ended_here
    ):
        raise outlived_error("task")
    session = kept.get(wrapper.states) if kept else None
    if session is not None and not session.is_kept and session.is_inherited:
        raise RuntimeError(
            "this task was started in a request that has made something in its session: a setting,"
            " a role, a lock. The request has ended, and that with it. Await the task in the"
            " request, or start it inside `with pgbackend.transaction.detached():`"
        )


def joined_transaction(alias: str) -> Transaction | None:
    """Return the transaction that the calling thread joined, or None.

    A thread joins a transaction where asgiref or `asyncio.to_thread` runs its function in a copy of
    the task's context. A thread that merely inherits the context of its starter does not join.

    Raise RuntimeError if that transaction has ended.
    """
    transaction = _moved_here(alias)
    if transaction is not None and not transaction.open:
        raise outlived_error("thread")
    return transaction


def joined_open_transaction(alias: str) -> Transaction | None:
    """Return the transaction that the calling thread joined; None if it has ended."""
    transaction = _moved_here(alias)
    return transaction if transaction is not None and transaction.open else None


def _moved_here(alias: str) -> Transaction | None:
    entered = transactions.get(None)
    if not entered:
        return None
    for transaction in entered.values():
        if transaction.wrapper.alias == alias and transaction.thread != threading.get_ident():
            # From CPython 3.14 on a thread may inherit its starter's context (private name
            # `_context`); such a thread has not joined.
            inherited = getattr(threading.current_thread(), "_context", None)
            if inherited is None or getcurrent().gr_context is not inherited:
                return transaction
    return None


def outlived_error(what: str) -> RuntimeError:
    """Return the error for a "task" or "thread" (*what*) whose transaction has ended."""
    return RuntimeError(
        f"this {what} was started inside a transaction that has ended; its queries can no longer"
        f" be part of it. Await the {what} inside the transaction, or start it from"
        " transaction.on_commit() or inside `with pgbackend.transaction.detached():`"
    )
