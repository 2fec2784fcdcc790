"""The part of a `DatabaseWrapper` that begins, commits and rolls back.

Bridged, turning autocommit off binds the task's lease, and turning it on gives the lease back. In a
thread that joined a transaction of the loop, all of this runs on the loop.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psycopg
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, Error
from django.db.backends.utils import debug_transaction
from django.db.transaction import TransactionManagementError
from psycopg.pq import TransactionStatus

from ..bridge.current import can_wait
from ..errors import CommitInDoubt, NotCommitted
from ..pool import savepoints
from ..pool.face import ROLLED_BACK, BridgedConnection
from ..sql.instrumented import may_skip_cursors
from ..tasks import kept_sessions
from ..tasks.frames import check_inside
from ..tasks.lease import Lease
from ..tasks.membership import check_not_outlived, joined_open_transaction
from ..tasks.orphans import check_in_no_orphan
from ..tasks.state import ConnectionState
from .characteristics import Asking
from .dispatch import runs_bridged, thread_transactions
from .on_commit import Hook

INERROR = TransactionStatus.INERROR


class TransactionControl(Asking):
    """Django's methods of the same names, bridged on leased connections."""

    def get_autocommit(self) -> bool:
        """Return the autocommit state; on the event loop, without connecting."""
        if (state := self.bridged_state()) is not None:
            return bool(state.autocommit)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return bool(super().get_autocommit())
        if not self.bridge_enabled:
            return bool(super().get_autocommit())
        if runs_bridged(self.alias):
            return bool(self.autocommit)
        # The coroutine uses the connection of a thread that waits for it.
        if (
            self.alias in thread_transactions.get()
            or joined_open_transaction(self.alias) is not None
        ):
            return False
        return bool(self.settings_dict["AUTOCOMMIT"])

    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Enable or disable autocommit; bridged, off binds a lease and on gives it back.

        The hooks of `on_commit` run after the connection was given back: they may wait for tasks
        that need one.
        """
        state = self.bridged_state()
        if state is None:
            if (transaction := self.joined_transaction) is not None:
                self.hand_over(transaction, transaction.wrapper.set_autocommit, autocommit)
            else:
                super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
            return
        self.validate_no_atomic_block()
        if not autocommit:
            self._begin(state)
            return
        if state.lease is not None or state.connection is not None:
            self._set_autocommit(True)
        state.unbind()
        state.autocommit = True
        if state.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            state.run_commit_hooks_on_set_autocommit_on = False

    def commit(self) -> None:
        """Commit, and run the hooks of `on_commit`."""
        if (state := self.bridged_state()) is not None:
            self.state_in_turn(state)
        elif (transaction := self.joined_transaction) is not None:
            self.hand_over(transaction, transaction.wrapper.commit)
            return
        super().commit()

    def rollback(self) -> None:
        """Roll back, and forget the hooks of `on_commit`."""
        if (state := self.bridged_state()) is not None:
            self.state_in_turn(state)
        elif (transaction := self.joined_transaction) is not None:
            self.hand_over(transaction, transaction.wrapper.rollback)
            return
        super().rollback()

    def on_commit(self, func: Callable[[], Any], robust: bool = False) -> None:
        """Call *func* after the commit, and wait for the coroutine if it returns one.

        Raise RuntimeError if the transaction that *func* would belong to has ended.
        """
        self._end_abandoned()
        if _get_running_loop() is None:
            _ = self.joined_transaction
        else:
            check_inside(self)
            check_not_outlived(self)
            check_in_no_orphan(self.alias, self.state)
        if kept_sessions.sessions_of_context.get(kept_sessions.NO_SESSIONS) and self.bridged:
            # Another task may have a transaction open on this session: wait, since *func* is not
            # for it.
            self.state_in_turn()
        try:
            super().on_commit(Hook(func) if callable(func) else func, robust)
        except SynchronousOnlyOperation:
            raise SynchronousOnlyOperation(
                "on_commit() was called on a running event loop, outside the bridge and outside"
                " a transaction of this task: `await pgbackend.transaction.aon_commit(...)`"
            ) from None
        state = self.state
        if state.run_on_commit and (frame := state.frame_below_top()) is not None:
            # Django notes the savepoints of all blocks, but another task's savepoints do not
            # concern this hook.
            own = state.frames[: state.frames.index(frame) + 1]
            state.run_on_commit[-1] = (
                {each.savepoint for each in own},
                *state.run_on_commit[-1][1:],
            )

    def _end_abandoned(self) -> None:
        """End the blocks that the task has abandoned, so that nothing new is added to them.

        Raise TransactionManagementError where their end cannot be awaited.
        """
        state = self.state
        if not state.frames or not state.frames[-1].is_abandoned:
            return
        if not self.bridged or not can_wait():
            raise TransactionManagementError(
                "an atomic block in a generator was left, and has not ended yet: `await"
                " pgbackend.transaction.aon_commit(...)`, or await a query before"
            )
        self.state_in_turn()

    def set_rollback(self, rollback: bool) -> None:
        """Set whether the innermost block is rolled back at its end, at the caller's request."""
        self._end_abandoned()
        super().set_rollback(rollback)
        state = self.state
        state.broken_by, state.rollback_asked = None, rollback

    def _savepoint(self, sid: str) -> None:
        if self._handed_over("_savepoint", sid):
            return
        if (face := self._face_to_save_later()) is not None:
            savepoints.begin(face, self._saving(sid))
        else:
            with self._finishing():
                super()._savepoint(sid)
        if (lease := self._own_lease()) is not None:
            savepoints.note_begin(lease.face, sid)

    def _savepoint_rollback(self, sid: str) -> None:
        if self._handed_over("_savepoint_rollback", sid):
            return
        face = self._face_to_save_later()
        if (lease := self._own_lease()) is not None:
            # The server closes cursors that were opened after the savepoint.
            lease.closings += 1
        if (
            lease is None
            or not savepoints.note_rollback(lease.face, sid)
            or not savepoints.undo(lease.face, self._saving(sid))
            or face is None
        ):
            with self._finishing():
                super()._savepoint_rollback(sid)
            if lease is not None:
                lease.face.times_undone += 1
        state = self.state
        state.rolled_back_to = sid
        frame = next((each for each in state.frames if each.savepoint == sid), None)
        if frame is not None:
            state.undo_settings(frame)

    def _savepoint_commit(self, sid: str) -> None:
        if self._handed_over("_savepoint_commit", sid):
            return
        face = self._face_to_save_later()
        lease = self._own_lease()
        saving = self._saving(sid)
        # The server is asked at once for one that is not there, and raises the error.
        was_there = lease is not None and savepoints.note_end(lease.face, sid)
        if face and was_there and (savepoints.is_due(face, saving) or savepoints.can_release(face)):
            savepoints.end(face, saving, self.ops.savepoint_commit_sql(sid).encode())
            return
        with self._finishing():
            super()._savepoint_commit(sid)

    def _handed_over(self, method: str, sid: str) -> bool:
        """Run *method* on the loop if this is a thread that joined a transaction there."""
        if self.bridged_state() is not None or (joined := self.joined_transaction) is None:
            return False
        self.hand_over(joined, getattr(joined.wrapper, method), sid)
        return True

    def _saving(self, sid: str) -> bytes:
        return str(self.ops.savepoint_create_sql(sid)).encode()

    def _face_to_save_later(self) -> BridgedConnection | None:
        """Return the connection if its savepoints may go with the next statement, or None.

        Where other code looks at statements, each is sent at its time, as Django does. So it is
        while the connection is used: a statement that waits for it is not in the savepoint.
        """
        state = self.bridged_state()
        if (
            state is None
            or self.queries_logged
            or self.execute_wrappers
            or self.set_in_threads
            or self.kept_lease is not None
            or not may_skip_cursors(self)
        ):
            return None
        state = self.state_in_turn(state)
        lease = state.lease
        if lease is None or state.needs_rollback or lease.pooled.execute_wrappers is not None:
            return None
        return lease.face if savepoints.can_wait(lease.face) else None

    def send_due(self, face: BridgedConnection) -> None:
        """Send the reset and the savepoints that are due; a cancellation stops no savepoint."""
        with self.wrap_database_errors:
            face.reset_now()
            face.send_due()

    def _finishing(self) -> AbstractContextManager[None]:
        lease = self._own_lease()
        return nullcontext() if lease is None else lease.face.finishing()

    def _commit(self) -> None:
        state = self.bridged_state()
        lease = None if state is None else state.lease
        if lease is not None and (broken_by := lease.state.broken_by) is not None:
            raise NotCommitted(
                "the transaction cannot be committed: its connection was lost, or the end of a"
                " block in it was interrupted, and that was caught. Roll it back"
            ) from broken_by
        if lease is not None and lease.face.reset_due:
            # The transaction has sent nothing. Reset the session before the COMMIT: if that fails,
            # nothing is in doubt.
            with self.wrap_database_errors:
                lease.face.reset_now()
        connection = self.connection if lease is None else lease.face
        # A face's `info` would ask once more whether a reset is due.
        info = (
            None if connection is None else connection.info if lease is None else connection.pgconn
        )
        if info is not None and info.transaction_status == INERROR:
            # The server would answer COMMIT with ROLLBACK, which psycopg takes for success.
            with self.wrap_database_errors:
                raise psycopg.errors.InFailedSqlTransaction(ROLLED_BACK)
        if lease is None:
            super()._commit()
            return
        was_lost = bool(lease.face.closed)
        try:
            self._end_transaction(super()._commit, state)
        except Error as error:
            if not was_lost and lease.face.lacks_answer(error.__cause__):
                raise CommitInDoubt(*error.args) from error.__cause__
            raise

    def _rollback(self) -> None:
        state = self.bridged_state()
        self._end_transaction(super()._rollback, state)
        if state is not None:
            self.state.undo_settings(None)

    def _end_transaction(self, end: Callable[[], None], state: ConnectionState | None) -> None:
        """Run COMMIT or ROLLBACK (*end*); if it is interrupted, drop the connection and its state.

        *state* is the running task's state, or None outside the bridge. `Atomic` handles database
        errors only: after a cancelled COMMIT it would keep a state in which the next transaction
        reports success and commits nothing.
        """
        lease = None if state is None else state.lease
        exposed = lease is not None and lease.exposed
        face = None if lease is None else lease.face
        if face and (face.savepoint_due or face.savepoint_ids or face.owes_begin):
            face.forget_savepoints()
        try:
            end()
        except BaseException as error:
            if state is not None and not isinstance(error, DatabaseError):
                state.connection = None
            raise
        if lease is not None:
            # Django asked for the connection here, and changes nothing on it.
            lease.exposed = exposed

    def _own_lease(self) -> Lease | None:
        """Return the running task's lease in the bridge, or None.

        Reading `connection` would mark the connection as possibly changed, to be restored later.
        """
        state = self.bridged_state()
        return None if state is None else state.lease

    def _begin(self, state: ConnectionState) -> None:
        """Turn autocommit off and bind the lease; BEGIN is sent with the next statement.

        *state* is the running task's state.
        """
        lease = self.hold_for_statement(state) if may_skip_cursors(self) else self._hold()
        try:
            with debug_transaction(self, "BEGIN"):
                self._set_autocommit(False)
            if lease is not None:
                state = lease.state
            if lease is not None and state.transaction is None:
                state.bind(self)
            state.autocommit = False
        finally:
            if lease is not None:
                lease.release()
