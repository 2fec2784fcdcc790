"""Frames: the blocks of ``atomic`` that were entered, and those that a context is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from .actors import current_actor
from .line import Line, Place


class Before(NamedTuple):
    """What Django kept of blocks before one was entered; lists by their lengths."""

    in_atomic_block: bool
    commit_on_exit: bool
    savepoint_ids: int
    atomic_blocks: int
    # The settings of `in_force`: of the session, and of the transaction.
    settings: tuple[frozenset[str], frozenset[str]]


class Frame:
    """One entered ``atomic``: what decides whose turn it is in a transaction."""

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
        # The `state.ConnectionState` whose transaction it is in.
        self.state = state
        self.wrapper = wrapper
        self.outer = outer
        self.before = before
        self.actor = current_actor()
        # The one that Django made for the block, if any.
        self.savepoint: str | None = None
        self.left = False
        # The block, an `Atomic` of Django's.
        self.atomic: Any = None
        # Whether it was left where its end could not be waited for, and who ends it now; see
        # `abandoning`. Called when it is on top. The asynchronous generators that it is in, by weak
        # references.
        self.abandoned = False
        self.when_on_top: Callable[[], None] | None = None
        self.ender: asyncio.Task[Any] | None = None
        self.generators: list[Any] = []
        # The id of the Python frame that has entered it, and that frame itself if a generator's;
        # see `abandoning.watch`.
        self.entered_in = 0
        self.body: FrameType | None = None
        # Whether it was taken away from a task that is still inside the block.
        self.forgotten = False
        # Who waits until this frame is on top, and until the others have left who entered in it.
        self.line = Line()
        # Whether its task is about to leave, and that one's place while it waits to.
        self.leaving = False
        self.leaver: Place | None = None
        # Set where another task's frame was on top when this one's block broke.
        self.pending_rollback = False

    @property
    def is_outermost(self) -> bool:
        """Whether leaving it ends the transaction."""
        frames: list[Frame] = self.state.frames
        return frames[:1] == [self]


# The innermost frame entered in this context. Tasks inherit it from the one that starts them.
innermost: ContextVar[Frame | None] = ContextVar("pgbackend_frame", default=None)


def innermost_frame(wrapper: object) -> Frame | None:
    """Return the running task's innermost frame on *wrapper*, also one that is gone.

    The task is no longer inside those that it has abandoned.
    """
    actor = current_actor()
    frame = innermost.get()
    while frame is not None and (
        frame.actor != actor or frame.wrapper is not wrapper or frame.abandoned
    ):
        frame = frame.outer
    return frame


def entered(but: Frame | None = None) -> Frame | None:
    """Return the innermost frame of this context, without abandoned ones that are gone.

    Of these, *but* is returned.
    """
    frame = innermost.get()
    while frame is not None and frame is not but and frame.abandoned and frame.left:
        frame = frame.outer
    return frame


def step_out(frame: Frame) -> None:
    """Have this context be outside *frame* if it is the innermost."""
    if entered(frame) is frame:
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
