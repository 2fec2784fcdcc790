"""Frames: the entered blocks of ``atomic``, and the blocks that a context is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from .actors import current_actor
from .waiting_line import Waiter, WaitingLine


class Before(NamedTuple):
    """Django's record of blocks before one was entered; lists by their lengths."""

    in_atomic_block: bool
    commit_on_exit: bool
    savepoint_ids: int
    atomic_blocks: int
    # The settings of `row_settings` for the session and for the transaction.
    settings: tuple[frozenset[str], frozenset[str]]


class Frame:
    """One entered ``atomic`` block; the frames decide whose turn it is in a transaction."""

    __slots__ = (
        "actor",
        "atomic",
        "before",
        "body",
        "ending_task",
        "entered_in",
        "generators",
        "is_abandoned",
        "is_leaving",
        "is_removed",
        "is_revoked",
        "leaving_waiter",
        "outer",
        "pending_rollback",
        "savepoint",
        "state",
        "waiting_line",
        "when_on_top",
        "wrapper",
    )

    def __init__(self, state: Any, wrapper: object, outer: Frame | None, before: Before) -> None:
        # The `state.ConnectionState` whose transaction the frame is in.
        self.state = state
        self.wrapper = wrapper
        self.outer = outer
        self.before = before
        self.actor = current_actor()
        # The savepoint that Django made for the block, if any.
        self.savepoint: str | None = None
        # Whether the frame is no longer among the frames of the state: left, or revoked.
        self.is_removed = False
        # The block, an `Atomic` of Django.
        self.atomic: Any = None
        # `is_abandoned`: whether the block was left where its end cannot be awaited; see
        # `abandoning`. `when_on_top`: called when the frame is on top. `ending_task`: the task that
        # ends the block now. `generators`: weak references to the asynchronous generators that the
        # block is in.
        self.is_abandoned = False
        self.when_on_top: Callable[[], None] | None = None
        self.ending_task: asyncio.Task[Any] | None = None
        self.generators: list[Any] = []
        # `entered_in`: the id of the Python frame that entered the block. `body`: that Python frame
        # itself if it is a generator's; see `abandoning.watch`.
        self.entered_in = 0
        self.body: FrameType | None = None
        # Whether the block has ended while its task is still inside it.
        self.is_revoked = False
        # The tasks that wait until this frame is on top.
        self.waiting_line = WaitingLine()
        # Whether the frame's task is about to leave, and the task itself while it waits for that.
        self.is_leaving = False
        self.leaving_waiter: Waiter | None = None
        # Whether this frame's block has to be rolled back: it broke while another task's frame was
        # on top.
        self.pending_rollback = False


# The innermost frame entered in this context. A task inherits it from the task that starts it.
innermost: ContextVar[Frame | None] = ContextVar("pgbackend_frame", default=None)


def innermost_frame(wrapper: object) -> Frame | None:
    """Return the running task's innermost frame on *wrapper*, even if it was removed.

    Frames that the task has abandoned do not count: the task is no longer inside them.
    """
    actor = current_actor()
    frame = innermost.get()
    while frame is not None and (
        frame.actor != actor or frame.wrapper is not wrapper or frame.is_abandoned
    ):
        frame = frame.outer
    return frame


def innermost_live_frame(also: Frame | None = None) -> Frame | None:
    """Return the innermost frame of this context; skip abandoned frames that have ended.

    *also* is not skipped.
    """
    frame = innermost.get()
    while frame is not None and frame is not also and frame.is_abandoned and frame.is_removed:
        frame = frame.outer
    return frame


def step_out(frame: Frame) -> None:
    """Move this context out of *frame* if *frame* is the innermost."""
    if innermost.get() is frame or innermost_live_frame(frame) is frame:
        innermost.set(frame.outer)


def block_ended_error() -> RuntimeError:
    """Return the error for a task inside a block that ended without it."""
    return RuntimeError(
        "the transaction of this atomic block has ended already, since the block of the task"
        " that began it failed, or that task ended: nothing of it was committed"
    )


def check_inside(wrapper: object) -> None:
    """Raise RuntimeError in a task whose block on *wrapper* was revoked."""
    frame = innermost_frame(wrapper)
    if frame is not None and frame.is_revoked:
        raise block_ended_error()
