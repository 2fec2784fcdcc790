"""Savepoints of gathered calls: what a failed statement or call did is undone, the others go on.

Statements that are sent together have their savepoints in the same message; see `sql.together`.
What a call sends by other means has one, too, which goes with the first such statement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

from ..bridge.current import can_wait
from ..sql.together import RELEASE, SAVE, UNDO
from ..wrapper.attributes import BackendWrapper


class Savepoints:
    """The savepoints in the transactions that the running task is in."""

    def __init__(self) -> None:
        self._wrappers: list[Any] = [
            wrapper
            for wrapper in connections.all(initialized_only=True)
            if isinstance(wrapper, BackendWrapper)
            and wrapper.bridged
            and (lease := wrapper.state.lease) is not None
            and not lease.face._autocommit
        ]
        # What keeps other tasks out, for each of the transactions.
        self._frames: list[Any] = []
        # The hooks of `on_commit` that each call has registered.
        self._hooks: dict[int, list[Any]] = {}

    def begin(self) -> None:
        """Send the savepoints that are due for the code around the calls.

        Other tasks wait from now on: what they do is not to be undone with a call.
        """
        for wrapper in self._wrappers:
            state = wrapper.state_alone(wrapper.state)
            self._frames.append(state.enter_block(wrapper))
            if state.lease is not None and state.lease.face.savepoint_due:
                wrapper.send_due(state.lease.face)

    def end(self) -> None:
        """Let other tasks go on, after those that have blocks in the calls."""
        try:
            for frame in reversed(self._frames):
                closed = not can_wait()
                frame.state.end_blocks_within(frame, frame.wrapper.turn_timeout, failed=closed)
        finally:
            while self._frames:
                frame = self._frames.pop()
                frame.state.leave_frame(frame)

    @contextmanager
    def around(self, call: Any) -> Iterator[None]:
        """Undo what *call* does in the block by other means, if it fails there."""
        before = []
        for wrapper in self._wrappers:
            state = wrapper.state
            face = state.lease and state.lease.face
            if face is not None and not face.closed:
                face.savepoint_due = (SAVE,)
                hooks = len(state.run_on_commit)
                before.append((wrapper, face, face.times_due_sent, state.needs_rollback, hooks))
        try:
            yield
        finally:
            for wrapper, face, *noted in before:
                self._after(call, wrapper, face, *noted)

    def _after(
        self,
        call: Any,
        wrapper: Any,
        face: Any,
        times_sent: int,
        needed_rollback: bool,
        hook_count: int,
    ) -> None:
        # What is due after the savepoint was sent is inside it.
        sent, face.savepoint_due = face.times_due_sent != times_sent, ()
        if not can_wait():
            # The calls are being closed, and their transaction with them.
            return
        state = wrapper.state
        if face.closed or state.lease is None or state.lease.face is not face:
            return
        failed = call.exception is not None
        # Hooks are added at the end; a block that is rolled back drops its own alone.
        if new := state.run_on_commit[hook_count:]:
            self._hooks.setdefault(id(call), []).extend(new)
        if failed and (own := set(map(id, self._hooks.pop(id(call), ())))):
            state.run_on_commit = [each for each in state.run_on_commit if id(each) not in own]
        undone = sent and (failed or face.is_broken)
        if sent:
            _send(wrapper, face, UNDO if undone else (RELEASE,))
        marked = state.needs_rollback and not needed_rollback and not state.rollback_asked
        if marked and (failed or undone) and not face.is_broken:
            wrapper.set_rollback(False)


def _send(wrapper: Any, face: Any, commands: tuple[bytes, ...]) -> None:
    """Send *commands* to the server in one message, behind a BEGIN that is due."""
    with wrapper.wrap_database_errors, face.finishing(), face.lock:
        face.savepoint_due = commands
        try:
            face.wait(face.begin_and_save())
        finally:
            face.savepoint_due = ()
