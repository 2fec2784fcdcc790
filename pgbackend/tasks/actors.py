"""Actors: the users of a transaction, tasks or calls in threads, and their deputies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from greenlet import getcurrent


class _Nobody(NamedTuple):
    """A stand-in for the thread of an actor that has ended."""

    name: str


class Actor:
    """A user of a transaction: a task, or a call that was moved to a thread with its context.

    A call in a thread has a context of its own; a task may share its context with other tasks.
    """

    __slots__ = ("_thread", "context", "task")

    def __init__(self) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        self.task = task
        self.context = getcurrent().gr_context
        self._thread: threading.Thread | _Nobody | None = (
            threading.current_thread() if task is None else None
        )

    @property
    def name(self) -> str:
        """The name of the task or of the thread."""
        if self.task is not None:
            return self.task.get_name()
        assert self._thread is not None
        return self._thread.name

    def without_task(self) -> Actor:
        """Return an actor with this name that keeps no task alive and equals no other actor."""
        gone = object.__new__(Actor)
        gone.task, gone.context, gone._thread = None, None, _Nobody(self.name)
        return gone

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Actor) or self.task is not other.task:
            return False
        return self.task is not None or (self.context is not None and self.context is other.context)

    __hash__ = None  # type: ignore[assignment]  # nothing looks actors up


def running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Deputy(NamedTuple):
    """A task that works for an actor elsewhere, who waits for it."""

    # The deputy itself: tasks that it starts inherit the context variable, but are no deputies.
    task: asyncio.Task[Any] | None
    actor: Actor
    # The actor's wrapper, for its query log and execute_wrappers.
    wrapper: Any
    # Called with True when the task begins to wait for a turn, and with False when it has waited.
    waits: Callable[[bool], None]


# The deputy that this context was made for; see `deputy`.
deputies: ContextVar[Deputy | None] = ContextVar("pgbackend_deputy", default=None)


@contextmanager
def work_for(actor: Actor, wrapper: Any, waits: Callable[[bool], None]) -> Iterator[None]:
    """Count what the running task does in the block as done by *actor*; see `Deputy`."""
    token = deputies.set(Deputy(asyncio.current_task(), actor, wrapper, waits))
    try:
        yield
    finally:
        deputies.reset(token)


def deputy() -> Deputy | None:
    """Return the running task's role if it is itself in a `work_for` block, or None."""
    found = deputies.get()
    return found if found is not None and found.task is running_task() else None


def current_actor() -> Actor:
    """Return the actor that the running code counts as."""
    if deputies.get() is None or (found := deputy()) is None:
        return Actor()
    return found.actor
