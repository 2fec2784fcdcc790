"""Blocks of ``atomic`` in turns on the event loop.

``Atomic`` itself stays Django's and does all the work. This module decides when and where.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any, NamedTuple

from django.db import transaction

from ..session.in_force import noted_of_thread, restore_of_thread
from ..tasks.abandoning import (
    BlockLeftError,
    abandon,
    abandoned_frame,
    end_abandoned,
    left_elsewhere,
    own_frame,
    watch,
)
from ..tasks.actors import current_actor
from ..tasks.frames import Frame, block_has_ended
from ..tasks.orphans import was_left
from ..tasks.taken import leaves_taken, taken
from ..wrapper.attributes import BackendWrapper
from ..wrapper.dispatch import thread_transactions
from .atomic_ends import leave_block, leave_in_thread


def entering(enter: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__enter__`` that waits for its turn and pushes a frame of the task."""

    @functools.wraps(enter)
    def __enter__(self: Any) -> Any:
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, BackendWrapper):
            return enter(self)
        if wrapper.here() is None:
            if (joined := wrapper.joined) is not None:
                return wrapper.hand_over(joined, self.__enter__)
            before = noted_of_thread(wrapper)
            enter(self)
            wrapper.state.settings_before.append(before)
            thread_transactions.set(thread_transactions.get() | {wrapper.alias})
            return None
        state = wrapper.state_in_turn(entering=True)
        if state.broken_by is not None and not state.in_atomic_block:
            # A transaction begun by hand was broken by a block in it: Django would let another
            # block begin.
            wrapper.validate_no_broken_transaction()
        frame = state.enter_block(wrapper)
        try:
            enter(self)
            if frame.left:
                # The outer block was rolled back while this task waited for SAVEPOINT.
                _take_back(wrapper, self)
                raise block_has_ended()
        except BaseException:
            if not frame.left:
                # Django leaves the block half entered if anything but a database error interrupts
                # it.
                state.forget_block(frame)
            state.leave_frame(frame)
            raise
        frame.atomic = self
        frames_of(self).append(frame)
        watch(frame, sys._getframe(1))
        if len(state.savepoint_ids) > frame.before.savepoint_ids:
            frame.savepoint = state.savepoint_ids[-1]
        return None

    return __enter__


def _take_back(wrapper: BackendWrapper, atomic: Any) -> None:
    """Undo Django's record of entering *atomic*, a nested block."""
    wrapper.savepoint_ids.pop()
    if wrapper.atomic_blocks[-1:] == [atomic]:
        wrapper.atomic_blocks.pop()


def leaving(leave: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__exit__`` that waits until the blocks inside are left."""

    @functools.wraps(leave)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        left = _which(self, exc_type, exc_value, sys._getframe(1))
        if left.is_gone:
            if exc_type is None:
                raise block_has_ended()
            return None
        if left.abandoned is not None:
            abandon(left.abandoned)
            if exc_type is None:
                raise left_elsewhere(left.abandoned)
            return None
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, BackendWrapper):
            return leave(self, exc_type, exc_value, traceback)
        state = wrapper.here()
        if state is None:
            try:
                joined = wrapper.joined
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
        if state.frames and state.frames[-1].abandoned:
            end_abandoned(state)
        if left.frame is None:
            was_left(self)
        try:
            return leave_block(
                wrapper,
                left.frame,
                lambda: leave(self, exc_type, exc_value, traceback),
                failed=exc_type is not None,
                error=exc_value,
            )
        finally:
            _forget_left(self)

    return __exit__


class Leaving(NamedTuple):
    """Which block of an ``atomic`` is being left."""

    atomic: Any
    # The running task's frame in *atomic*, if it has one.
    frame: Frame | None
    # The frame whose end cannot be awaited.
    abandoned: Frame | None
    # Whether the block has ended already, since it was taken away from its generator.
    is_gone: bool = False


# The result of ``__aexit__`` for ``__exit__``, which cannot see the caller's frame.
_leaving: ContextVar[Leaving | None] = ContextVar("pgbackend_leaving", default=None)


def which_block(atomic: Any, exc_type: Any, caller: FrameType | None) -> Leaving:
    """Return which block of *atomic* the *caller* leaves."""
    if taken and leaves_taken(atomic, caller):
        return Leaving(atomic, None, None, is_gone=True)
    actor = current_actor()
    own = own_frame(atomic, caller, actor)
    return Leaving(atomic, own, abandoned_frame(atomic, exc_type, caller, actor))


@contextmanager
def leaving_it(left: Leaving) -> Iterator[None]:
    """Let ``__exit__``, called in the body, leave the block *left*."""
    _leaving.set(left)
    try:
        yield
    finally:
        # A coroutine that is only now collected may run this in another context.
        if _leaving.get() is left:
            _leaving.set(None)


def _which(atomic: Any, exc_type: Any, exc_value: Any, caller: FrameType) -> Leaving:
    if isinstance(exc_value, BlockLeftError):
        return Leaving(atomic, exc_value.frame, None)
    left = _leaving.get()
    if left is not None and left.atomic is atomic:
        _leaving.set(None)
        return left
    return which_block(atomic, exc_type, caller)


def frames_of(atomic: Any) -> list[Frame]:
    """Return the frames of the tasks that are inside *atomic*, usually one."""
    frames: list[Frame] = atomic.__dict__.setdefault("_pgbackend_frames", [])
    return frames


def _forget_left(atomic: Any) -> None:
    frames = frames_of(atomic)
    frames[:] = [frame for frame in frames if not frame.left]
