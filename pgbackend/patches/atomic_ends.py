"""The ends of ``atomic`` blocks when something interrupts them.

Django's ``Atomic.__exit__`` does the work, and handles database errors. Any other interruption (a
cancellation, a time-out, a turn that does not come) would leave the work of a failed block to the
outer block, which commits it. Here the block is rolled back instead; where that is impossible, the
outer block is broken, and its end reports that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psycopg
from django.db import DatabaseError, OperationalError
from psycopg.pq import TransactionStatus

from ..bridge.current import can_wait
from ..bridge.greenlets import await_bridged, run_bridged
from ..errors import NotCommitted
from ..pool import savepoints
from ..pool.face import BridgedConnection
from ..pool.stopping import shielded
from ..tasks.abandoning import end_frames_within
from ..tasks.frames import Frame, block_ended_error, step_out
from ..tasks.orphans import end_orphan_on_top
from ..tasks.state import ConnectionState

INTRANS = TransactionStatus.INTRANS


def leave_block(
    wrapper: Any,
    frame: Frame | None,
    leave: Callable[[], Any],
    *,
    failed: bool,
    error: BaseException | None,
) -> Any:
    """Leave the block of *frame* by *leave*, Django's own way, and return its result.

    A *frame* of None stands for a block that the running task is not in any more. Blocks that the
    task entered inside *frame* and has not left are rolled back first. Then the task waits until
    *frame* is on top, so that blocks of other tasks inside it are left.

    *failed* says whether the block raised, and *error* is the exception.

    Raise RuntimeError if the transaction ended meanwhile and the block did not fail. Raise
    `NotCommitted` if the block did not fail, but was broken by an error that was caught in it.
    """
    if frame is None or frame.is_removed:
        return _unwind(frame, failed=failed)
    state = frame.state
    # Whether the transaction ends with this block.
    ends = state.frames[0] is frame and state.commit_on_exit
    try:
        if state.frames[-1] is not frame:
            end_frames_within(frame)
        _begin_to_leave(wrapper, frame, failed=failed, ends=ends)
    except BaseException as interruption:
        try:
            _undo(wrapper, frame, interruption, ends=ends)
        finally:
            state.leave_frame(frame)
        raise
    # Check after the wait: the transaction may have ended meanwhile.
    if frame.is_removed:
        return _unwind(frame, failed=failed)
    broken_by = _what_broke(state)
    try:
        with _limited(state) if failed else _UNLIMITED:
            result = leave()
    except BaseException as interruption:
        if ends or failed or not isinstance(interruption, DatabaseError):
            _undo(wrapper, frame, interruption, ends=ends)
        elif state.is_lost and _is_broken(frame) and not frame.is_removed:
            # Django handles an error that the server answers with: it has the outer block rolled
            # back, but does not report why.
            state.break_block(interruption)
        raise
    else:
        if not ends and not frame.is_removed and state.needs_rollback:
            # Django forgets the reason: keep it for the outer block, which has to be rolled back,
            # too.
            why = broken_by or (error if _is_broken(frame) or state.is_lost else None)
            if why is not None:
                state.break_block(why)
    finally:
        state.leave_frame(frame)
    if broken_by is not None and not failed:
        raise _not_committed_error() from broken_by
    return result


def leave_in_thread(state: ConnectionState, leave: Callable[[], Any], *, failed: bool) -> Any:
    """Leave a block of a thread by *leave*, Django's own way; return its result.

    Raise `NotCommitted` if the block has not *failed*, but was broken by an error caught in it.
    """
    broken_by = state.broken_by
    result = leave()
    if broken_by is not None:
        if state.needs_rollback:
            state.break_block(broken_by)
        if not failed:
            raise _not_committed_error() from broken_by
    return result


def _not_committed_error() -> NotCommitted:
    return NotCommitted(
        "the block was rolled back, although no exception left it: its connection was lost, or the"
        " end of a block inside it was interrupted, and that was caught"
    )


def _what_broke(state: ConnectionState) -> BaseException | None:
    """Return why the innermost block will be rolled back, unless that was requested."""
    if state.rollback_asked or not state.needs_rollback:
        return None
    if state.is_lost:
        return state.rollback_exc or OperationalError("the connection is closed")
    return state.broken_by


def _unwind(frame: Frame | None, *, failed: bool) -> None:
    """Leave a block whose frame is gone: its transaction has ended, and the block with it."""
    if frame is not None:
        frame.is_revoked = False
        step_out(frame)
    if not failed:
        raise block_ended_error()


def _begin_to_leave(wrapper: Any, frame: Frame, *, failed: bool, ends: bool) -> None:
    """Wait until *frame* is on top; if it *ends* the transaction, keep other tasks out."""
    state = frame.state
    frame.is_leaving = True
    if failed and ends:
        state.stop_others(frame)
    if not state.frames or state.frames[-1] is not frame:
        end_orphan_on_top(state)
        state.take_turn_to_leave(frame, wrapper.turn_timeout)
    if ends and not frame.is_removed:
        state.end_for_others()


# Stands in for `_limited` at the end of a block that has not failed.
_UNLIMITED: AbstractContextManager[None] = nullcontext()


def _limited(state: ConnectionState) -> AbstractContextManager[None]:
    """Limit the end of a block that failed to ``cancel_timeout``.

    A task that was cancelled because the server does not answer is not cancelled a second time.
    """
    lease = state.lease
    return _UNLIMITED if lease is None else lease.face.limited()


def _is_broken(frame: Frame) -> bool:
    """Return whether Django could not roll back to the savepoint of the block that it left."""
    return frame.savepoint is not None and frame.state.needs_rollback


def _undo(wrapper: Any, frame: Frame, interruption: BaseException, *, ends: bool) -> None:
    """Roll back the block of *frame*, whose end was interrupted.

    If that fails, the outer block is broken. Raise CancelledError afterwards if the task was
    cancelled meanwhile.
    """
    state = frame.state
    if ends:
        if state.transaction is not None:
            # The pool rolls back the connection.
            wrapper.connection = None
        return
    if frame.is_removed:
        return
    state.forget_block(frame)
    done: list[None] = []
    try:
        if frame.savepoint is not None and can_wait():
            _roll_back_to(wrapper, state, frame.savepoint, done)
    finally:
        if frame.is_removed:
            # The outer block has failed meanwhile, and the task may be in its next transaction.
            pass
        elif done:
            state.undo_settings(frame)
            state.needs_rollback = False
            state.run_on_commit = [
                each for each in state.run_on_commit if frame.savepoint not in each[0]
            ]
        else:
            state.break_block(interruption)


def _roll_back_to(wrapper: Any, state: ConnectionState, savepoint: str, done: list[None]) -> None:
    """Roll back to *savepoint* even if the task is cancelled; append to *done* on success.

    Raise CancelledError afterwards if the task was cancelled.
    """
    lease = state.lease
    if lease is None or lease.face.closed:
        return
    if state.rolled_back_to == savepoint and lease.face.pgconn.transaction_status == INTRANS:
        # Django has already rolled back to the savepoint; only its release was interrupted.
        done.append(None)
        return
    message = (
        f"{wrapper.ops.savepoint_rollback_sql(savepoint)};"
        f" {wrapper.ops.savepoint_commit_sql(savepoint)}"
    )
    # The server closes cursors that were opened after the savepoint.
    lease.closings += 1
    lease.face.times_undone += 1
    savepoints.note_end(lease.face, savepoint)
    await_bridged(shielded(_send(lease.face, message, done)))


async def _send(face: BridgedConnection, message: str, done: list[None]) -> None:
    """Send *message*, after stopping another task's statement; append to *done* on success."""
    if face.is_executing:
        await face.stop_other()
    try:
        async with asyncio.timeout(face.cancel_timeout):
            # The server executes both statements of one message. Use psycopg's cursor, which no
            # instrumentation replaces.
            await run_bridged(psycopg.ClientCursor(face).execute, message)
    except (psycopg.Error, TimeoutError, RuntimeError):
        return
    done.append(None)
