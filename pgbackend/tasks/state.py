"""The attributes that Django keeps on a `DatabaseWrapper` but tasks must not share.

Each task that uses a wrapper has its own `ConnectionState`, and so has the wrapper's thread. While
a transaction is open on a task's state, tasks started in it share that state: their statements run
on its connection, in turns.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent

from ..bridge.current import is_bridged
from ..bridge.ends import on_exit
from ..bridge.greenlets import await_bridged
from ..pool.pool import ConnectionPool
from . import orphans
from .abandoning import abandon_lost
from .frames import Before, Frame
from .lease import Lease
from .own_threads import TransactionThreads
from .transaction import Transaction, add_to_context, remove_from_context
from .turns import Turns


def _of_nobody() -> None:
    """Stand in for a weak reference to a wrapper's states where there are none."""


class ConnectionState(Turns):
    """The attributes of a `DatabaseWrapper` that belong to one task, or to its thread.

    Names and meanings are those of `django.db.backends.base.base.BaseDatabaseWrapper`.
    """

    def __init__(self, *, autocommit: bool | None = None) -> None:
        # The setting AUTOCOMMIT for a task, whose state needs the value before there is a
        # connection; None for a thread, whose connection Django opens, initializes and keeps
        # itself.
        self._initial_autocommit = autocommit
        # The synchronous path's own psycopg connection; see the property `connection`.
        self._own_connection: Any = None
        # A weak reference to the `states.States` that a task's state belongs to: a cycle would keep
        # the wrapper's memory.
        self.states: Callable[[], object] = _of_nobody
        self.lease: Lease | None = None
        # True while a holder waits for Django's `ensure_connection` to make the lease.
        self.connecting = False
        # The open transaction; it pins the lease while autocommit is off.
        self.transaction: Transaction | None = None
        # The transaction's own threads; see `own_threads`.
        self._threads: TransactionThreads | None = None
        # For a thread: the settings that `row_settings` knew at the beginning of each open block.
        self.settings_before: list[frozenset[str]] = []
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Set Django's attributes to their values before the first connection."""
        self.autocommit = bool(self._initial_autocommit)
        self.in_atomic_block = False
        self.savepoint_state = 0
        self.savepoint_ids: list[str | None] = []
        self.atomic_blocks: list[Any] = []
        self.commit_on_exit = True
        self._needs_rollback = False
        # The error that broke the innermost block, if the block's owner may not know; see
        # `atomic_ends`.
        self.broken_by: BaseException | None = None
        # Whether the rollback was requested by `transaction.set_rollback`.
        self.rollback_asked = False
        # The savepoint of the latest rollback.
        self.rolled_back_to: str | None = None
        self.rollback_exc: BaseException | None = None
        self.close_at: float | None = None
        self.closed_in_transaction = False
        self.errors_occurred = False
        self.health_check_enabled = False
        self.health_check_done = False
        self.run_on_commit: list[Any] = []
        self.run_commit_hooks_on_set_autocommit_on = False
        # psycopg's connection whose BEGIN asks for more; see `wrapper.characteristics`.
        self.begun_on: Any = None

    @property
    def progress(self) -> object:
        """A value that changes whenever a turn is taken, and with each statement."""
        if self.lease is None:
            return super().progress
        lock: Any = self.lease.face.lock
        return super().progress, lock.uses

    @property
    def needs_rollback(self) -> bool:
        """Whether the innermost block is broken; each frame has its own flag in a shared state."""
        if not self.frames or self.has_turn() or (frame := self.frame_below_top()) is None:
            return self._needs_rollback
        return frame.pending_rollback

    @needs_rollback.setter
    def needs_rollback(self, value: bool) -> None:
        if not self.frames or self.has_turn() or (frame := self.frame_below_top()) is None:
            self._needs_rollback = value
            if not value:
                self.broken_by, self.rollback_asked = None, False
        else:
            frame.pending_rollback = value

    @property
    def is_marked(self) -> bool:
        """Whether the innermost block is broken; for its own task, in its turn."""
        return self._needs_rollback

    def break_block(self, error: BaseException) -> None:
        """Have the innermost block rolled back, and its end report *error* as the reason.

        Do nothing if a task's transaction has ended meanwhile, and the block with it.
        """
        if self._initial_autocommit is not None and self.transaction is None:
            return
        self.needs_rollback = True
        self.broken_by = self.rollback_exc = error

    @property
    def connection(self) -> Any:
        """The current DB-API connection, or None."""
        lease = self.lease
        if lease is None:
            return self._own_connection
        lease.exposed = True
        return lease.face

    @connection.setter
    def connection(self, value: Any) -> None:
        self._own_connection = value
        if value is None and self._initial_autocommit is not None:
            # Django assigns None to forget a connection together with its transaction.
            self.give_back()
            self.unbind()
            self.revoke_all_frames()
            self.reset()

    def borrow(self, pool: ConnectionPool) -> Lease:
        """Check a connection out of *pool*, waiting through the bridge.

        While `connecting`, hold the new lease at once.
        """
        pooled = await_bridged(pool.checkout())
        self.lease = Lease(self, pool, pooled)
        if self.connecting:
            self.lease.hold()
        on_exit(self.call_ended)
        return self.lease

    @property
    def is_lost(self) -> bool:
        """Whether the current connection broke."""
        return self.lease is not None and bool(self.lease.face.closed)

    def call_ended(self) -> None:
        """Give the lease back if only cursors that the ended bridged call left open still hold it.

        When a call was closed, the task may have another lease by now; that one stays.
        """
        lease = self.lease
        if lease is not None and not lease.pins and lease.bridge == id(getcurrent()):
            lease.give_back()

    def give_back(self) -> None:
        """Give the lease back, whatever holds it."""
        if self.lease is not None:
            self.lease.give_back()

    # Transactions

    def bind(self, wrapper: Any) -> None:
        """Pin the lease until `unbind`; tasks started from now on share this state."""
        task = asyncio.current_task()
        assert self.lease is not None
        assert task is not None
        self.lease.hold(pinned=True)
        self.transaction = Transaction(wrapper, self, task)
        task.add_done_callback(self._owner_ended)
        orphans.register(self.transaction)
        add_to_context(self.transaction)

    def own_threads(self) -> TransactionThreads:
        """Return the transaction's own threads; make them on first use."""
        if self._threads is None:
            self._threads = TransactionThreads(self)
        return self._threads

    def _end_threads(self) -> None:
        """Let the transaction's own threads end as soon as their calls have ended."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)

    def unbind(self) -> None:
        """Release the lease that `bind` pinned; do nothing if none is."""
        transaction, self.transaction = self.transaction, None
        if self._threads is not None:
            self._end_threads()
        # The errors' tracebacks refer to the task, the task to its state, and the state to the
        # errors: drop the errors to break the cycle.
        self.rollback_exc = self.broken_by = None
        if transaction is None:
            return
        transaction.ended = True
        orphans.unregister(transaction)
        if self.lease is not None and self.lease.face.lock.held:
            self.lease.refuse_others()
        if (owner := transaction.owner()) is not None:
            owner.remove_done_callback(self._owner_ended)
        remove_from_context(transaction)
        if self.lease is not None:
            self.lease.transaction_ended(transaction)
        if self.lease is not None:
            self.lease.release(pinned=True)
        if self.lease is not None and is_bridged():
            # A call that has ended, or a thread, left a cursor open: end the lease with this call.
            self.lease.bridge = id(getcurrent())
            on_exit(self.call_ended)

    def enter_block(self, wrapper: object) -> Frame:
        """Push a frame as `enter_frame` does, with Django's record of blocks so far."""
        lease, transaction = self.lease, self.transaction
        before = Before(
            self.in_atomic_block,
            self.commit_on_exit,
            len(self.savepoint_ids),
            len(self.atomic_blocks),
            (
                frozenset() if lease is None else lease.settings,
                frozenset() if transaction is None else transaction.settings,
            ),
        )
        return self.enter_frame(wrapper, before)

    def undo_settings(self, frame: Frame | None) -> None:
        """Undo the settings made in the block of *frame*, or in the outermost block for None."""
        frame = frame or (self.frames[0] if self.frames else None)
        if frame is not None and self.lease is not None:
            self.lease.settings, local = frame.before.settings
            if self.transaction is not None:
                self.transaction.settings = local

    def forget_block(self, frame: Frame) -> None:
        """Remove Django's record of *frame* and of all blocks inside it."""
        self.revoke_frames_within(frame)
        before = frame.before
        self.in_atomic_block = before.in_atomic_block
        self.commit_on_exit = before.commit_on_exit
        del self.savepoint_ids[before.savepoint_ids :]
        del self.atomic_blocks[before.atomic_blocks :]

    def end_blocks_within(self, frame: Frame, seconds: float, *, failed: bool) -> None:
        """Wait until other tasks have left their blocks in *frame*; revoke those if it *failed*.

        *frame* stands for no block of Django's, and is left next. *seconds* bounds the wait.
        """
        frame.is_leaving = True
        if frame.is_removed or self.frames[-1] is frame:
            return
        if not failed:
            self.take_turn_to_leave(frame, seconds)
        else:
            self.forget_block(frame)

    def end_for_others(self) -> None:
        """End the transaction for tasks and threads that joined it: its owner ends it now.

        Refuse what they try next, and the statements that already wait for the connection.
        """
        if self.transaction is not None:
            self.transaction.ended = True
        if self.lease is not None:
            self.lease.refuse_others()
        self.wake()

    def stop_others(self, frame: Frame) -> None:
        """Do as `end_for_others` before a rollback, which need not wait for the other tasks.

        Revoke their blocks inside *frame*, the outermost frame, and stop their running statement in
        the server.
        """
        self.end_for_others()
        self.revoke_frames_within(frame)
        # Clear Django's record of the other tasks' blocks; the owner has already left its own.
        self.savepoint_ids.clear()
        del self.atomic_blocks[1:]
        if self.lease is not None and self.lease.face.is_executing:
            self.lease.face.stop()

    def coroutine_was_closed(self) -> None:
        """Clean up after a closed coroutine whose generators were not told of it."""
        abandon_lost(self)
        if self.transaction is None:
            # A cursor that nothing closes may still hold the lease.
            self.give_back()

    def owner_has_ended(self, task: asyncio.Task[Any]) -> None:
        """Clean up at once when *task*, which began the transaction, has ended inside it.

        The task's done callback may still be due; it then does nothing.
        """
        self._owner_ended(task)

    def _owner_ended(self, task: asyncio.Task[Any]) -> None:
        """Roll back a transaction whose task ended without ending it."""
        if self.transaction is None:
            return
        self._end_threads()
        orphans.owner_has_ended(self, task)
        self.transaction = None
        self.rollback_exc = self.broken_by = None
        # If the task has abandoned its block, the block counts as left, and no warning is due.
        left = bool(self.frames) and self.frames[0].is_abandoned
        lease = self.lease
        ending = task.cancelled() or (lease is not None and lease.pool.closed)
        if lease is not None and lease.face.is_executing and not ending:
            # A child task's statement is running: refuse it, and leave nothing running in the
            # server.
            lease.stop_and_give_back()
        else:
            self.give_back()
        self.revoke_all_frames()
        self.atomic_blocks = []
        if left:
            return
        warnings.warn(
            f"{task.get_name()} ended inside a transaction: it was rolled back."
            " Leave `atomic`, or call commit() or rollback(), in the task that began it",
            ResourceWarning,
            stacklevel=1,
        )
