"""Blocks of ``atomic`` in turns on the event loop.

``Atomic`` itself stays Django's and does all the work. This module decides when and where.
"""

from __future__ import annotations

import functools
import sys
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from django.db import transaction
from greenlet import getcurrent

from ..bridge.calls import CALL
from ..session.row_settings import noted_of_thread, restore_of_thread
from ..tasks.abandoning import (
    FRAMES,
    BlockLeftError,
    abandon,
    abandoned_frame,
    end_abandoned_frames,
    left_elsewhere_error,
    own_frame,
    watch,
)
from ..tasks.actors import acting_tasks, current_actor
from ..tasks.frames import Frame, block_ended_error
from ..tasks.orphans import remove_orphan_of
from ..tasks.revoked import leaves_revoked, revoked_blocks
from ..wrapper.attributes import BackendWrapper
from ..wrapper.characteristics import ASKED, begins
from ..wrapper.dispatch import thread_transactions
from .atomic_ends import leave_block, leave_in_thread


def entering(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__enter__`` that waits for its turn and pushes a frame of the task."""
    asking = functools.partial(_enter_asking, plain)

    @functools.wraps(plain)
    def __enter__(self: Any) -> Any:
        wrapper = transaction.get_connection(self.using)
        enter = plain if ASKED not in self.__dict__ else asking
        if not isinstance(wrapper, BackendWrapper):
            return enter(self)
        state = wrapper.bridged_state()
        if state is None:
            if (joined := wrapper.joined_transaction) is not None:
                return wrapper.hand_over(joined, self.__enter__)
            before = noted_of_thread(wrapper)
            enter(self)
            wrapper.state.settings_before.append(before)
            thread_transactions.set(thread_transactions.get() | {wrapper.alias})
            return None
        state = wrapper.state_in_turn(state, entering=True)
        if state.broken_by is not None and not state.in_atomic_block:
            # A transaction begun by hand was broken by a block in it: Django would let another
            # block begin.
            wrapper.validate_no_broken_transaction()
        frame = state.enter_block(wrapper)
        try:
            enter(self)
            if frame.is_removed:
                # The outer block was rolled back while this task waited for SAVEPOINT.
                _undo_entering(wrapper, self)
                raise block_ended_error()
        except BaseException:
            if not frame.is_removed:
                # Django leaves the block half entered if anything but a database error interrupts
                # it.
                state.forget_block(frame)
            state.leave_frame(frame)
            raise
        frame.atomic = self
        self.__dict__.setdefault(FRAMES, []).append(frame)
        caller = sys._getframe(1)
        # `async with` enters the block in a bridged call of its own, and looks at its own caller.
        if caller.f_code is not CALL:
            watch(frame, caller)
        if len(state.savepoint_ids) > frame.before.savepoint_ids:
            frame.savepoint = state.savepoint_ids[-1]
        return None

    return __enter__


def _enter_asking(enter: Callable[..., Any], atomic: Any) -> None:
    """Enter *atomic*, which asks for more than Django's, by *enter*, Django's own way."""
    asked = atomic.__dict__[ASKED]
    begins_here = begins(atomic, asked)
    enter(atomic)
    if begins_here:
        transaction.get_connection(atomic.using).begin_as(asked)


def _undo_entering(wrapper: BackendWrapper, atomic: Any) -> None:
    """Undo Django's record of entering *atomic*, a nested block."""
    wrapper.savepoint_ids.pop()
    if wrapper.atomic_blocks[-1:] == [atomic]:
        wrapper.atomic_blocks.pop()


def leaving(leave: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__exit__`` that waits until the blocks inside are left."""

    @functools.wraps(leave)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        left = _block_left(self, exc_type, exc_value, sys._getframe(1))
        if left.is_revoked:
            if exc_type is None:
                raise block_ended_error()
            return None
        if left.abandoned_frame is not None:
            abandon(left.abandoned_frame)
            if exc_type is None:
                raise left_elsewhere_error(left.abandoned_frame)
            return None
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, BackendWrapper):
            return leave(self, exc_type, exc_value, traceback)
        state = wrapper.bridged_state()
        if state is None:
            try:
                joined = wrapper.joined_transaction
            except RuntimeError:
                # The transaction has ended, and the block with it.
                if exc_type is None:
                    raise
                return None
            if joined is not None:
                return wrapper.hand_over(joined, self.__exit__, exc_type, exc_value, traceback)
            settings = wrapper.state.settings_before
            before = settings.pop() if settings else frozenset()
            undone = exc_type is not None or wrapper.needs_rollback
            try:
                return leave_in_thread(
                    wrapper.state,
                    lambda: leave(self, exc_type, exc_value, traceback),
                    failed=exc_type is not None,
                )
            finally:
                if undone:
                    restore_of_thread(wrapper, before)
                if not wrapper.in_atomic_block:
                    thread_transactions.set(thread_transactions.get() - {wrapper.alias})
        if state.frames and state.frames[-1].is_abandoned:
            end_abandoned_frames(state)
        if left.frame is None:
            remove_orphan_of(self)
        try:
            return leave_block(
                wrapper,
                left.frame,
                lambda: leave(self, exc_type, exc_value, traceback),
                failed=exc_type is not None,
                error=exc_value,
            )
        finally:
            entered: list[Frame] = self.__dict__.get(FRAMES, [])
            if len(entered) == 1 and entered[0].is_removed:
                entered.clear()
            else:
                entered[:] = [frame for frame in entered if not frame.is_removed]

    return __exit__


class Leaving(NamedTuple):
    """Which block of an ``atomic`` is being left."""

    atomic: Any
    # The running task's frame in *atomic*, if it has one.
    frame: Frame | None
    # The frame whose end cannot be awaited.
    abandoned_frame: Frame | None
    # Whether the block was revoked, and has ended already; see `tasks.revoked`.
    is_revoked: bool = False


# The block that ``__exit__``, called next in this context, leaves: ``__aexit__`` sets it, since
# ``__exit__`` cannot see the caller's frame.
leaving_next: ContextVar[Leaving | None] = ContextVar("pgbackend_leaving", default=None)


def which_block(atomic: Any, exc_type: Any, caller: FrameType | None) -> Leaving:
    """Return which block of *atomic* the *caller* leaves."""
    if revoked_blocks and leaves_revoked(atomic, caller):
        return Leaving(atomic, None, None, is_revoked=True)
    if exc_type is None and (only := _only_frame(atomic, caller)) is not None:
        return Leaving(atomic, only, None)
    actor = current_actor()
    own = own_frame(atomic, caller, actor)
    return Leaving(atomic, own, abandoned_frame(atomic, exc_type, caller, actor))


def _only_frame(atomic: Any, caller: FrameType | None) -> Frame | None:
    """Return the frame of *atomic* in the frequent case: one, entered by this task in *caller*.

    Return None in all other cases, also where nothing can be awaited any more.
    """
    entered: list[Frame] = atomic.__dict__.get(FRAMES, ())
    if len(entered) != 1 or acting_tasks.get() is not None or _get_running_loop() is None:
        return None
    frame = entered[0]
    if (
        frame.entered_in == id(caller)
        and frame.actor.task is not None
        and frame.actor.task is current_task()
        and not frame.is_removed
        and not frame.is_abandoned
        and not getattr(getcurrent(), "call_closed", False)
    ):
        return frame
    return None


def _block_left(atomic: Any, exc_type: Any, exc_value: Any, caller: FrameType) -> Leaving:
    if isinstance(exc_value, BlockLeftError):
        return Leaving(atomic, exc_value.frame, None)
    left = leaving_next.get()
    if left is not None and left.atomic is atomic:
        leaving_next.set(None)
        return left
    return which_block(atomic, exc_type, caller)
