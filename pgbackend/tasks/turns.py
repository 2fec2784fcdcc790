"""Turns: which of the tasks that share a transaction may use it now.

Each entered ``atomic`` block is a `Frame`. A task may run a statement, or enter a block, only while
the top frame belongs to the task or to one of its ancestors; otherwise the task waits. So
savepoints nest, and never interleave.

A waiting task stands in the line of the frame that has to be on top for it. When that frame is on
top, the first task in the line is called. As soon as it has gone on without entering a frame of its
own, the next task is called: one task is woken at a time, and none in vain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context

from ..bridge.greenlets import await_bridged
from .actors import current_actor, deputies, deputy, running_task
from .frames import Before, Frame, block_has_ended, entered, innermost, step_out
from .line import Line, Place
from .transaction import Transaction

# Added to the number of a place that has to stand behind all others.
_BEHIND = 2**62


class Turns:
    """The frames of one state, outermost first, and the tasks that wait for their turn."""

    # Attributes of the `state.ConnectionState` that this class is a part of.
    needs_rollback: bool
    in_atomic_block: bool
    transaction: Transaction | None

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        # Whether tasks may still be inside blocks that were forgotten.
        self.has_forgotten = False
        # The tasks that wait until there is no frame any more.
        self._line = Line()
        # How many tasks ever came to wait, and how many wait now.
        self._came = self._waiting = 0
        # The place of the task that was called and has not resumed yet.
        self._called: Place | None = None
        # How often a frame was pushed or removed, or a task had its turn.
        self._moves = 0
        # `_timer` looks for tasks that have waited too long. `_seen` is the progress that it saw
        # last, and `_moved` the time of the latest change.
        self._timer: asyncio.TimerHandle | None = None
        self._seen: object = None
        self._moved = 0.0

    @property
    def progress(self) -> object:
        """A value that changes whenever a task does something in the transaction."""
        return self._moves

    def has_turn(self) -> bool:
        """Return whether the top frame belongs to the running task or to an ancestor.

        Raise RuntimeError in a task inside a block whose frame was taken away.
        """
        if self.has_forgotten:
            self._check_not_forgotten()
        if not self.frames:
            return True
        top = self.frames[-1]
        task = top.actor.task
        if task is not None and top.ender is None and deputies.get() is None:
            try:
                if task is asyncio.current_task():
                    return True
            except RuntimeError:
                # No event loop runs.
                pass
        return self._is_within(top)

    def _check_not_forgotten(self) -> None:
        frame = innermost.get()
        while frame is not None:
            if frame.forgotten and frame.state is self and not frame.abandoned:
                raise block_has_ended()
            frame = frame.outer

    def _is_within(self, top: Frame) -> bool:
        if top.ender is not None:
            return top.ender is running_task()
        actor = current_actor()
        if top.actor == actor:
            return True
        if top.leaving or top.abandoned:
            # Tasks started in the frame wait until it is left: whether they are part of it would be
            # chance.
            return False
        frame = innermost.get()
        while frame is not None and frame is not top:
            frame = frame.outer
        # Tasks that share one Context see each other's frames without being ancestors.
        return frame is not None and frame.actor.context is not actor.context

    @property
    def nobody_waits(self) -> bool:
        """Whether no other task waits for the turn that the running task has."""
        return self._called is None and not (self.frames[-1].line if self.frames else self._line)

    @property
    def _top_line(self) -> Line:
        return self.frames[-1].line if self.frames else self._line

    def take_turn(self, timeout: float) -> None:
        """Wait, behind tasks that came before, until the running task may use the transaction.

        Raise RuntimeError that names the holder if no task did anything in it for *timeout*
        seconds.
        """
        await_bridged(self._wait(self._join_line, self.has_turn, timeout))

    async def wait_for_turn_to_begin(self, timeout: float) -> None:  # noqa: ASYNC109  # for a turn
        """Wait as `take_turn` does, but behind all tasks that already have something to do."""
        await self._wait(self._join_line, self.has_turn, timeout, begun=False)

    def _join_line(self, place: Place) -> None:
        if not self.frames or self.has_turn():
            self._top_line.add(place)
            return
        actor = current_actor()
        frame = innermost.get()
        while frame is not None and (
            frame.left
            or frame.state is not self
            or (frame.actor != actor and frame.actor.context is actor.context)
        ):
            frame = frame.outer
        (self._line if frame is None else frame.line).add(place)

    def take_turn_to_leave(self, frame: Frame, timeout: float) -> None:
        """Wait until *frame* is on top, so that tasks that entered inside it have left."""
        frame.leaving = True

        def on_top() -> bool:
            return frame.left or self.frames[-1] is frame

        def join_line(place: Place) -> None:
            frame.leaver = place

        if not on_top():
            await_bridged(self._wait(join_line, on_top, timeout))

    async def _wait(
        self,
        join_line: Callable[[Place], None],
        ready: Callable[[], bool],
        seconds: float,
        *,
        begun: bool = True,
    ) -> None:
        self._came += 1
        self._waiting += 1
        if self._timer is None:
            self._start_timer(seconds)
        working = deputy()
        if working is not None:
            working.waits(True)
        try:
            place = Place(self._came if begun else self._came + _BEHIND, seconds)
            while not await self._called_to(place, join_line, ready):
                place = place.again()
        finally:
            if working is not None:
                working.waits(False)
            self._waiting -= 1
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._moves += 1

    async def _called_to(
        self, place: Place, join_line: Callable[[Place], None], ready: Callable[[], bool]
    ) -> bool:
        """Wait at *place* until it is called; return whether it is then the task's turn."""
        try:
            join_line(place)
            self.wake()
            await place.wait()
            if place.expired:
                raise self._too_long(place.seconds)
            served = ready()
        except BaseException:
            # This task may have been cancelled or closed at the moment of its turn: pass the turn
            # on.
            place.gone = True
            if self._called is place:
                self._called = None
            self.wake()
            raise
        place.gone = True
        if self._called is place:
            self._called = None
            # Call the next task after the running one has had the opportunity to enter a block.
            asyncio.get_running_loop().call_soon(self.wake, context=Context())
        return served

    def _too_long(self, seconds: float) -> RuntimeError:
        holder = self.frames[-1].actor if self.frames else None
        name = holder.name if holder is not None else "a task that ended"
        return RuntimeError(
            f"waited {seconds:g} s for a turn in the transaction: {name} is inside an"
            " atomic() and has not left it. See 'turn_timeout' in OPTIONS"
        )

    def _start_timer(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._seen, self._moved = self.progress, loop.time()
        # Look four times in *seconds*, to know when the last progress was. Use an empty context: a
        # task's own context would keep the task alive.
        self._timer = loop.call_later(seconds / 4, self._look, seconds / 4, context=Context())

    def _look(self, interval: float) -> None:
        """Wake the tasks that have waited too long for a holder that makes no progress."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now, seen = loop.time(), self.progress
        if seen != self._seen:
            self._seen, self._moved = seen, now
        for place in self._places():
            if max(place.since, self._moved) + place.seconds <= now:
                place.expire()
        self._timer = loop.call_later(interval, self._look, interval, context=Context())

    def _places(self) -> Iterator[Place]:
        yield from self._line
        for frame in self.frames:
            yield from frame.line
            if frame.leaver is not None:
                yield frame.leaver

    def enter_frame(self, wrapper: object, before: Before) -> Frame:
        """Push a frame for an ``atomic`` block that the running task enters."""
        # Entering needs the turn, so the top frame can only be the task's own or an ancestor's.
        frame = Frame(self, wrapper, entered(), before)
        self.frames.append(frame)
        self._moves += 1
        innermost.set(frame)
        return frame

    def leave_frame(self, frame: Frame) -> None:
        """Remove a frame pushed by `enter_frame`, and let the next task have its turn."""
        self._remove(frame)
        frame.forgotten = False
        step_out(frame)
        if self.frames and self.frames[-1].pending_rollback:
            self.frames[-1].pending_rollback = False
            self.needs_rollback = True
        if self.frames and self.frames[-1].when_on_top is not None:
            asyncio.get_running_loop().call_soon(self.frames[-1].when_on_top, context=Context())
        self.wake()

    def frame_below_top(self) -> Frame | None:
        """Return the running task's frame if another task's is on top, or None."""
        if self.has_turn():
            return None
        frame = innermost.get()
        while frame is not None and (frame.state is not self or frame.left):
            frame = frame.outer
        return frame or self.frames[0]

    def forget_frames_within(self, frame: Frame) -> None:
        """Forget the frames of other tasks inside *frame*, whose block is going to fail."""
        while self.frames[-1] is not frame:
            self._forget(self.frames[-1])
        self.wake()

    def forget_all_frames(self) -> None:
        """Forget all frames: their transaction is gone."""
        while self.frames:
            self._forget(self.frames[-1])
        self.wake()

    def _forget(self, frame: Frame) -> None:
        frame.forgotten = self.has_forgotten = True
        self._remove(frame)

    def _remove(self, frame: Frame) -> None:
        """Remove *frame*; the tasks in its line wait for the frame below."""
        frame.left = True
        frame.atomic = frame.body = None
        frame.generators.clear()
        self._moves += 1
        if frame.leaver is not None:
            # The frame is gone, so its task need not wait to leave it.
            frame.leaver.call()
        if frame in self.frames:
            index = self.frames.index(frame)
            if frame.line:
                (self.frames[index - 1].line if index else self._line).take_over(frame.line)
            del self.frames[index]

    def wake(self) -> None:
        """Call the first task whose turn it is, unless a called task has not resumed yet."""
        if self._called is not None:
            return
        top = self.frames[-1] if self.frames else None
        if top is None or not (top.leaving or top.abandoned):
            if line := self._line if top is None else top.line:
                self._called = line.call_next()
        elif top.leaver is not None and top.leaver.call():
            # Tasks started in a frame that is being left have their turn afterwards.
            self._called = top.leaver
