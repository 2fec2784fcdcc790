"""Turns: which of the tasks that share a transaction may use it now.

Every entry of an ``atomic`` is a `Frame`. A task may run a statement, or enter, only while the
top frame is its own or one of its ancestors'; otherwise it waits. So savepoints nest, and never
interleave.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from greenlet import getcurrent

from .bridge import await_bridged

if TYPE_CHECKING:
    from .state import ConnectionState


class Actor:
    """Whose turn it may be: a task, or a call that was moved to a thread with its context.

    Such a call has a context of its own; a task may share one with others.
    """

    __slots__ = ("_thread", "context", "task")

    def __init__(self) -> None:
        self.task = task = _running_task()
        self.context = getcurrent().gr_context
        self._thread = threading.current_thread() if task is None else None

    @property
    def name(self) -> str:
        """The task's name, or the thread's."""
        if self.task is not None:
            return self.task.get_name()
        assert self._thread is not None
        return self._thread.name

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Actor) or self.task is not other.task:
            return False
        return self.task is not None or self.context is other.context

    __hash__ = None  # type: ignore[assignment]  # nothing looks actors up


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


class Deputy(NamedTuple):
    """A task that works for an actor elsewhere, who waits for it."""

    # Tasks that it starts inherit the variable.
    task: asyncio.Task[Any] | None
    actor: Actor
    # The actor's wrapper, for its query log and execute_wrappers.
    wrapper: Any


_deputy: ContextVar[Deputy | None] = ContextVar("pgbackend_deputy", default=None)


@contextmanager
def work_for(actor: Actor, wrapper: Any) -> Iterator[None]:
    """Let what the running task does in the block count as done by *actor*."""
    token = _deputy.set(Deputy(asyncio.current_task(), actor, wrapper))
    try:
        yield
    finally:
        _deputy.reset(token)


def deputy() -> Deputy | None:
    """Return what the running task is in a `work_for` block of its own."""
    found = _deputy.get()
    return found if found is not None and found.task is _running_task() else None


def current_actor() -> Actor:
    """Return whose turn it would be."""
    found = deputy()
    return Actor() if found is None else found.actor


class Frame:
    """One entered ``atomic``: what decides whose turn it is in a transaction."""

    __slots__ = ("actor", "left", "outer", "pending_rollback", "state", "wrapper")

    def __init__(self, state: ConnectionState, wrapper: object, outer: Frame | None) -> None:
        self.state = state
        self.wrapper = wrapper
        self.outer = outer
        self.actor = current_actor()
        self.left = False
        # Set where another task's frame was on top when this one's block broke.
        self.pending_rollback = False

    @property
    def is_outermost(self) -> bool:
        """Whether leaving it ends the transaction."""
        return self.state.frames[:1] == [self]


# The innermost frame entered in this context. Tasks inherit it from the one that starts them.
innermost: ContextVar[Frame | None] = ContextVar("pgbackend_frame", default=None)


def innermost_frame(wrapper: object) -> Frame | None:
    """Return the running task's innermost frame on *wrapper*, also one that is gone."""
    actor = current_actor()
    frame = innermost.get()
    while frame is not None and (frame.actor != actor or frame.wrapper is not wrapper):
        frame = frame.outer
    return frame


class Turns:
    """The frames of one state, outermost first, and those who wait for their turn."""

    needs_rollback: bool

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._queue: list[asyncio.Future[None]] = []

    def has_turn(self) -> bool:
        """Return whether the top frame is the running task's or an ancestor's."""
        return not self.frames or self._is_within(self.frames[-1])

    def _is_within(self, top: Frame) -> bool:
        task = top.actor.task
        if task is not None and task is _running_task() and _deputy.get() is None:
            return True
        actor = current_actor()
        if top.actor == actor:
            return True
        frame = innermost.get()
        while frame is not None and frame is not top:
            frame = frame.outer
        # Tasks that share one Context see each other's frames without being ancestors.
        return frame is not None and frame.actor.context is not actor.context

    def take_turn(self, timeout: float) -> None:
        """Wait until the running task may use the transaction.

        Raise RuntimeError that names the holder after *timeout* seconds.
        """
        if not self.has_turn():
            await_bridged(self._wait_until(self.has_turn, timeout))

    def take_turn_to_leave(self, frame: Frame, timeout: float) -> None:
        """Wait until *frame* is on top: until tasks that entered inside it have left."""

        def on_top() -> bool:
            return frame.left or self.frames[-1] is frame

        if not on_top():
            await_bridged(self._wait_until(on_top, timeout))

    async def _wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    turn = asyncio.get_running_loop().create_future()
                    self._queue.append(turn)
                    await turn
        except TimeoutError:
            holder = self.frames[-1].actor if self.frames else None
            name = holder.name if holder is not None else "a task that ended"
            raise RuntimeError(
                f"waited {seconds:g} s for a turn in the transaction: {name} is inside an"
                " atomic() and has not left it. See 'turn_timeout' in OPTIONS"
            ) from None

    def enter_frame(self, wrapper: object) -> Frame:
        """Push a frame for an ``atomic`` that the running task enters."""
        # One that enters by turns is never inside another's frame, save an ancestor's.
        frame = Frame(self, wrapper, innermost.get())  # type: ignore[arg-type]  # see ConnectionState
        self.frames.append(frame)
        innermost.set(frame)
        return frame

    def leave_frame(self, frame: Frame) -> None:
        """Remove a frame pushed by `enter_frame` and let the next task have its turn."""
        frame.left = True
        if frame in self.frames:
            self.frames.remove(frame)
        if innermost.get() is frame:
            innermost.set(frame.outer)
        if self.frames and self.frames[-1].pending_rollback:
            self.frames[-1].pending_rollback = False
            self.needs_rollback = True
        self.wake()

    def frame_below_top(self) -> Frame | None:
        """Return the running task's frame if another task's is on top, None if not."""
        if self.has_turn():
            return None
        frame = innermost.get()
        while frame is not None and (frame.state is not self or frame.left):
            frame = frame.outer
        return frame or self.frames[0]

    def leave_frames_within(self, frame: Frame) -> None:
        """Forget the frames of other tasks inside *frame*, which is going to fail."""
        while self.frames[-1] is not frame:
            self.frames.pop().left = True
        self.wake()

    def leave_all_frames(self) -> None:
        """Forget all frames: their transaction is gone."""
        for frame in self.frames:
            frame.left = True
        self.frames.clear()
        self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        queue, self._queue = self._queue, []
        for turn in queue:
            if not turn.done():
                turn.set_result(None)
