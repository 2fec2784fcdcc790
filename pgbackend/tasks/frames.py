"""Frames: the entered blocks of ``atomic``, and the blocks that a context is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from .actors import current_actor
from .line import Line, Place


class Before(NamedTuple):
    """Django's record of blocks before one was entered; lists by their lengths."""

    in_atomic_block: bool
    commit_on_exit: bool
    savepoint_ids: int
    atomic_blocks: int
    # The settings of `in_force` for the session and for the transaction.
    settings: tuple[frozenset[str], frozenset[str]]


class Frame:
    """One entered ``atomic`` block; the frames decide whose turn it is in a transaction."""

    __slots__ = (
        "abandoned",
        "actor",
        "atomic",
        "before",
        "body",
        "ender",
        "entered_in",
        "forgotten",
        "generators",
        "leaver",
        "leaving",
        "left",
        "line",
        "outer",
        "pending_rollback",
        "savepoint",
        "state",
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
        self.left = False
        # The block, an `Atomic` of Django.
        self.atomic: Any = None
        # `abandoned`: whether the block was left where its end cannot be awaited; see `abandoning`.
        # `when_on_top`: called when the frame is on top. `ender`: the task that ends the block now.
        # `generators`: weak references to the asynchronous generators that the block is in.
        self.abandoned = False
        self.when_on_top: Callable[[], None] | None = None
        self.ender: asyncio.Task[Any] | None = None
        self.generators: list[Any] = []
        # `entered_in`: the id of the Python frame that entered the block. `body`: that Python frame
        # itself if it is a generator's; see `abandoning.watch`.
        self.entered_in = 0
        self.body: FrameType | None = None
        # Whether the block was taken away from a task that is still inside it.
        self.forgotten = False
        # The tasks that wait until this frame is on top.
        self.line = Line()
        # Whether the frame's task is about to leave, and the task's place while it waits for that.
        self.leaving = False
        self.leaver: Place | None = None
        # Whether this frame's block has to be rolled back: it broke while another task's frame was
        # on top.
        self.pending_rollback = False

    @property
    def is_outermost(self) -> bool:
        """Whether leaving the block ends the transaction."""
        frames: list[Frame] = self.state.frames
        return frames[:1] == [self]


# The innermost frame entered in this context. A task inherits it from the task that starts it.
innermost: ContextVar[Frame | None] = ContextVar("pgbackend_frame", default=None)


def innermost_frame(wrapper: object) -> Frame | None:
    """Return the running task's innermost frame on *wrapper*, even if it was removed.

    Frames that the task has abandoned do not count: the task is no longer inside them.
    """
    actor = current_actor()
    frame = innermost.get()
    while frame is not None and (
        frame.actor != actor or frame.wrapper is not wrapper or frame.abandoned
    ):
        frame = frame.outer
    return frame


def entered(but: Frame | None = None) -> Frame | None:
    """Return the innermost frame of this context; skip abandoned frames that have ended.

    *but* is not skipped.
    """
    frame = innermost.get()
    while frame is not None and frame is not but and frame.abandoned and frame.left:
        frame = frame.outer
    return frame


def step_out(frame: Frame) -> None:
    """Move this context out of *frame* if *frame* is the innermost."""
    if innermost.get() is frame or entered(frame) is frame:
        innermost.set(frame.outer)


def block_has_ended() -> RuntimeError:
    """Return the error for a task inside a block that ended without it."""
    return RuntimeError(
        "the transaction of this atomic block has ended already, since the block of the task"
        " that began it failed, or that task ended: nothing of it was committed"
    )


def check_inside(wrapper: object) -> None:
    """Raise RuntimeError in a task whose block on *wrapper* was taken away."""
    frame = innermost_frame(wrapper)
    if frame is not None and frame.forgotten:
        raise block_has_ended()
