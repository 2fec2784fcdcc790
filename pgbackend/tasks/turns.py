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
from .actors import acting_task, acting_tasks, current_actor, running_task
from .frames import Before, Frame, block_ended_error, innermost, innermost_live_frame, step_out
from .transaction import Transaction
from .waiting_line import Waiter, WaitingLine

# Added to the number of a waiter that has to stand behind all others.
_BEHIND = 2**62


class Turns:
    """The frames of one state, outermost first, and the tasks that wait for their turn."""

    # Attributes of the `state.ConnectionState` that this class is a part of.
    needs_rollback: bool
    in_atomic_block: bool
    transaction: Transaction | None

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        # Whether tasks may still be inside blocks that were revoked.
        self.has_revoked = False
        # The tasks that wait until there is no frame any more.
        self._waiting_line = WaitingLine()
        # How many tasks ever came to wait, and how many wait now.
        self._came = self._waiting = 0
        # The waiter that was called and has not resumed yet.
        self._called: Waiter | None = None
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

        Raise RuntimeError in a task inside a block that was revoked.
        """
        if self.has_revoked:
            self._check_not_revoked()
        if not self.frames:
            return True
        top = self.frames[-1]
        task = top.actor.task
        if task is not None and top.ending_task is None and acting_tasks.get() is None:
            try:
                if task is asyncio.current_task():
                    return True
            except RuntimeError:
                # No event loop runs.
                pass
        return self._is_within(top)

    def _check_not_revoked(self) -> None:
        frame = innermost.get()
        while frame is not None:
            if frame.is_revoked and frame.state is self and not frame.is_abandoned:
                raise block_ended_error()
            frame = frame.outer

    def _is_within(self, top: Frame) -> bool:
        if top.ending_task is not None:
            return top.ending_task is running_task()
        actor = current_actor()
        if top.actor == actor:
            return True
        if top.is_leaving or top.is_abandoned:
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
        return self._called is None and not (
            self.frames[-1].waiting_line if self.frames else self._waiting_line
        )

    @property
    def _top_waiting_line(self) -> WaitingLine:
        return self.frames[-1].waiting_line if self.frames else self._waiting_line

    def take_turn(self, timeout: float) -> None:
        """Wait, behind tasks that came before, until the running task may use the transaction.

        Raise RuntimeError that names the holder if no task did anything in it for *timeout*
        seconds.
        """
        await_bridged(self._wait(self._join_line, self.has_turn, timeout))

    async def wait_for_turn_to_begin(self, timeout: float) -> None:  # noqa: ASYNC109  # for a turn
        """Wait as `take_turn` does, but behind all tasks that already have something to do."""
        await self._wait(self._join_line, self.has_turn, timeout, begun=False)

    def _join_line(self, waiter: Waiter) -> None:
        if not self.frames or self.has_turn():
            self._top_waiting_line.add(waiter)
            return
        actor = current_actor()
        frame = innermost.get()
        while frame is not None and (
            frame.is_removed
            or frame.state is not self
            or (frame.actor != actor and frame.actor.context is actor.context)
        ):
            frame = frame.outer
        (self._waiting_line if frame is None else frame.waiting_line).add(waiter)

    def take_turn_to_leave(self, frame: Frame, timeout: float) -> None:
        """Wait until *frame* is on top, so that tasks that entered inside it have left."""
        frame.is_leaving = True

        def on_top() -> bool:
            return frame.is_removed or self.frames[-1] is frame

        def join_line(waiter: Waiter) -> None:
            frame.leaving_waiter = waiter

        if not on_top():
            await_bridged(self._wait(join_line, on_top, timeout))

    async def _wait(
        self,
        join_line: Callable[[Waiter], None],
        ready: Callable[[], bool],
        seconds: float,
        *,
        begun: bool = True,
    ) -> None:
        self._came += 1
        self._waiting += 1
        if self._timer is None:
            self._start_timer(seconds)
        working = acting_task()
        if working is not None:
            working.on_wait(True)
        try:
            waiter = Waiter(self._came if begun else self._came + _BEHIND, seconds)
            while not await self._called_to(waiter, join_line, ready):
                waiter = waiter.again()
        finally:
            if working is not None:
                working.on_wait(False)
            self._waiting -= 1
            if not self._waiting and self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._moves += 1

    async def _called_to(
        self, waiter: Waiter, join_line: Callable[[Waiter], None], ready: Callable[[], bool]
    ) -> bool:
        """Wait at *place* until it is called; return whether it is then the task's turn."""
        try:
            join_line(waiter)
            self.wake()
            await waiter.wait()
            if waiter.expired:
                raise self._too_long_error(waiter.seconds)
            served = ready()
        except BaseException:
            # This task may have been cancelled or closed at the moment of its turn: pass the turn
            # on.
            waiter.gone = True
            if self._called is waiter:
                self._called = None
            self.wake()
            raise
        waiter.gone = True
        if self._called is waiter:
            self._called = None
            # Call the next task after the running one has had the opportunity to enter a block.
            asyncio.get_running_loop().call_soon(self.wake, context=Context())
        return served

    def _too_long_error(self, seconds: float) -> RuntimeError:
        holder = self.frames[-1].actor if self.frames else None
        name = holder.name if holder is not None else "a task that ended"
        return RuntimeError(
            f"waited {seconds:g} s for a turn in the transaction: {name} is inside an"
            " atomic() and has not left it, or run a statement since. Move what else it waits for"
            " there, such as a lock or another service, out of the block; or start the task that"
            " waited inside `with pgbackend.transaction.detached():`, on a connection of its own;"
            " or raise 'turn_timeout' in OPTIONS"
        )

    def _start_timer(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._seen, self._moved = self.progress, loop.time()
        # Look four times in *seconds*, to know when the last progress was. Use an empty context: a
        # task's own context would keep the task alive.
        self._timer = loop.call_later(
            seconds / 4, self._check_waiting_times, seconds / 4, context=Context()
        )

    def _check_waiting_times(self, interval: float) -> None:
        """Wake the tasks that have waited too long for a holder that makes no progress."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now, seen = loop.time(), self.progress
        if seen != self._seen:
            self._seen, self._moved = seen, now
        for waiter in self._waiters():
            if max(waiter.since, self._moved) + waiter.seconds <= now:
                waiter.expire()
        self._timer = loop.call_later(
            interval, self._check_waiting_times, interval, context=Context()
        )

    def _waiters(self) -> Iterator[Waiter]:
        yield from self._waiting_line
        for frame in self.frames:
            yield from frame.waiting_line
            if frame.leaving_waiter is not None:
                yield frame.leaving_waiter

    def enter_frame(self, wrapper: object, before: Before) -> Frame:
        """Push a frame for an ``atomic`` block that the running task enters."""
        # Entering needs the turn, so the top frame can only be the task's own or an ancestor's.
        frame = Frame(self, wrapper, innermost_live_frame(), before)
        self.frames.append(frame)
        self._moves += 1
        innermost.set(frame)
        return frame

    def leave_frame(self, frame: Frame) -> None:
        """Remove a frame pushed by `enter_frame`, and let the next task have its turn."""
        self._remove(frame)
        frame.is_revoked = False
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
        while frame is not None and (frame.state is not self or frame.is_removed):
            frame = frame.outer
        return frame or self.frames[0]

    def revoke_frames_within(self, frame: Frame) -> None:
        """Revoke the blocks of other tasks inside *frame*, whose block is going to fail."""
        while self.frames[-1] is not frame:
            self._revoke(self.frames[-1])
        self.wake()

    def revoke_all_frames(self) -> None:
        """Revoke all blocks: their transaction is gone."""
        while self.frames:
            self._revoke(self.frames[-1])
        self.wake()

    def _revoke(self, frame: Frame) -> None:
        frame.is_revoked = self.has_revoked = True
        self._remove(frame)

    def _remove(self, frame: Frame) -> None:
        """Remove *frame*; the tasks in its line wait for the frame below."""
        frame.is_removed = True
        frame.atomic = frame.body = None
        frame.generators.clear()
        self._moves += 1
        if frame.leaving_waiter is not None:
            # The frame is gone, so its task need not wait to leave it.
            frame.leaving_waiter.call()
        if frame in self.frames:
            index = self.frames.index(frame)
            if frame.waiting_line:
                (self.frames[index - 1].waiting_line if index else self._waiting_line).take_over(
                    frame.waiting_line
                )
            del self.frames[index]

    def wake(self) -> None:
        """Call the first task whose turn it is, unless a called task has not resumed yet."""
        if self._called is not None:
            return
        top = self.frames[-1] if self.frames else None
        if top is None or not (top.is_leaving or top.is_abandoned):
            if line := self._waiting_line if top is None else top.waiting_line:
                self._called = line.call_next()
        elif top.leaving_waiter is not None and top.leaving_waiter.call():
            # Tasks started in a frame that is being left have their turn afterwards.
            self._called = top.leaving_waiter
