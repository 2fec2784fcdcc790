"""Actors: the users of a transaction, tasks or calls in threads, and the tasks that act for them.

An *acting task* does something in place of another user of the transaction, who waits for it: the
loop executes the statements of a thread, or ends a block for the task that left it. What the acting
task does counts as done by that user.
"""

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


class ActingTask(NamedTuple):
    """A task that works for an actor elsewhere, who waits for it."""

    # The acting task itself: tasks that it starts inherit the context variable, but act for nobody.
    task: asyncio.Task[Any] | None
    actor: Actor
    # The actor's wrapper, for its query log and execute_wrappers.
    wrapper: Any
    # Called with True when the task begins to wait for a turn, and with False when it has waited.
    on_wait: Callable[[bool], None]


# The acting task that this context was made for; see `acting_task`.
acting_tasks: ContextVar[ActingTask | None] = ContextVar("pgbackend_acting_task", default=None)


@contextmanager
def acting_for(actor: Actor, wrapper: Any, on_wait: Callable[[bool], None]) -> Iterator[None]:
    """Count what the running task does in the block as done by *actor*; see `ActingTask`."""
    token = acting_tasks.set(ActingTask(asyncio.current_task(), actor, wrapper, on_wait))
    try:
        yield
    finally:
        acting_tasks.reset(token)


def acting_task() -> ActingTask | None:
    """Return the running task's role if it is itself in an `acting_for` block, or None."""
    found = acting_tasks.get()
    return found if found is not None and found.task is running_task() else None


def current_actor() -> Actor:
    """Return the actor that the running code counts as."""
    if acting_tasks.get() is None or (found := acting_task()) is None:
        return Actor()
    return found.actor
