"""Savepoints that are sent with a block's first statement: `deferred_savepoint`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg.pq import TransactionStatus

from .errors import NotCommitted
from .pool import savepoints
from .tasks.frames import block_ended_error
from .tasks.transaction import begin_part, end_part
from .wrapper.attributes import BackendWrapper


class deferred_savepoint:
    """Undo what a block did in the open transaction if the block raises, in bridged code.

    A nested ``atomic`` does so, too, and counts as a block of its own. This is for many short
    pieces of work in one transaction, most of which have nothing to undo.

        with transaction.atomic():
            saved = deferred_savepoint()
            for line in lines:
                with suppress(ValueError), saved:
                    handle(line)

    The blocks of one object follow each other; they are not nested. Other tasks that share the
    transaction wait until a block ends, as they do for nested blocks of ``atomic``. A task that a
    block starts is in the transaction until then, and gets a RuntimeError after that. Hooks of
    ``on_commit`` from a block that raised are dropped. Raise `NotCommitted` at the end of a block
    in which a failed statement was caught, after undoing it, and RuntimeError outside a transaction
    of bridged code.

    With *strict* the blocks may be anybody's code. The server refuses a COMMIT in them, until
    `before_commit` is sent. Settings and temporary tables that a block makes end with it: each
    begins with those that the connection was configured with. A block that ends the transaction, as
    ROLLBACK does, raises NotCommitted at its end, and `has_ended` is true then.

    https://www.postgresql.org/docs/current/sql-savepoint.html
    """

    def __init__(self, using: str | None = None, *, strict: bool = False) -> None:
        self.using = using or DEFAULT_DB_ALIAS
        self.strict = strict
        # Whether a block has ended the transaction that all of them are in.
        self.has_ended = False
        self.before_commit = ""  # what to send before the COMMIT; "" if nothing is to be
        self._wrapper: Any = connections[self.using]
        self._face: Any = None
        self._lease: Any = None
        self._exists = False  # whether the transaction has the savepoint of this object
        self._place: tuple[object, ...] = ()  # where it is; see `SavingConnection.place`
        self._id = ""  # of the block's savepoint, here
        self._savepoint: Any = None  # in the server: its name and its commands
        self._was_broken = False  # whether what is around the block is to be rolled back
        self._hooks = 0
        self._frame: Any = None  # keeps other tasks out of the block
        self._in_series = False  # whether the frame is that of several blocks
        self._part: Any = None  # the transaction as tasks see it that the block starts
        self._noted: tuple[Any, ...] = ()  # what the lease had noted before the block
        self._due_before: tuple[bytes, ...] = ()
        self._times_sent = 0

    @contextmanager
    def series(self) -> Iterator[None]:
        """Keep other tasks out until the block ends, in which those of this object follow.

        That takes half the time of letting them in between. Nothing but these blocks may wait for
        a task that shares the transaction.
        """
        self._frame = self._enter_frame(self._state())
        self._in_series = True
        try:
            yield
        finally:
            self._in_series = False
            self._frame.state.leave_frame(self._frame)

    def _state(self) -> Any:
        """Return the running task's state, in its turn. Raise RuntimeError outside of a block."""
        wrapper = self._wrapper
        state = wrapper.bridged_state() if isinstance(wrapper, BackendWrapper) else None
        if state is not None and not self._in_series:
            state = wrapper.state_alone(state)
        if state is None or state.lease is None or not state.in_atomic_block:
            raise RuntimeError(
                f"deferred_savepoint({self.using!r}) needs an open transaction.atomic() in bridged"
                " code: use a nested atomic() elsewhere"
            )
        return state

    def _enter_frame(self, state: Any) -> Any:
        frame = state.enter_block(self._wrapper)
        frame.atomic = self
        return frame

    def __enter__(self) -> None:
        state = self._state()
        self._lease, face = state.lease, state.lease.face
        if face is not self._face:
            self._face, self._exists, self.before_commit = face, False, ""
        self._was_broken = state.is_marked
        self._hooks = len(state.run_on_commit)
        self._part = begin_part(state.transaction)
        # What is around this one may be due as well.
        self._due_before, self._times_sent = face.savepoint_due, face.times_due_sent
        again = self._exists and self._place == face.place
        self._id, self._savepoint = savepoints.begin_deferred(face)
        _, save, release = self._savepoint
        # The block before has succeeded: its savepoint goes, so that savepoints do not pile up.
        commands = (release, save) if again else (save,)
        if self.strict:
            if not self.before_commit:
                commands = (_HOLD_OPEN, *commands)
            self._noted = self._lease.take_notes()
        # Other tasks wait until the block is left: what they do is not to be undone with it.
        if self._in_series:
            self._frame.is_leaving = False
            # Tasks of the block before, which came too late, are told so.
            state.wake()
        else:
            self._frame = self._enter_frame(state)
        face.savepoint_due += commands

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        frame, failed = self._frame, exc_type is not None
        try:
            try:
                frame.state.end_blocks_within(frame, self._wrapper.turn_timeout, failed=failed)
            except BaseException:
                self._end(raised=True)
                raise
            self._end(raised=failed)
        finally:
            if not self._in_series:
                frame.state.leave_frame(frame)

    def _end(self, *, raised: bool) -> None:
        """Undo what the block did if it has *raised*, or was broken by an error caught in it."""
        face, wrapper = self._face, self._wrapper
        end_part(self._part, stop=raised)
        if self._frame.is_removed:
            # What is around the block has ended, and the block with it.
            if not raised:
                raise block_ended_error()
            return
        sent = face.times_due_sent != self._times_sent
        face.savepoint_due = () if sent else self._due_before
        savepoints.note_end(face, self._id)
        if sent:
            self._exists, self._place = True, face.place
        suspect = False
        if self.strict:
            self.before_commit = CLOSE if sent else self.before_commit
            suspect = self._lease.put_notes_back(self._noted)
        state = wrapper.state
        # Where the block has raised, blocks of other tasks may still be inside it.
        marked = (state.needs_rollback if raised else state.is_marked) and not self._was_broken
        failed = not raised and (marked or face.is_broken)
        if face.closed:
            return
        if not raised and not failed:
            if suspect:
                self._look(state)
            return
        # Another list: what was noted of this one, such as settings in force, is undone, too.
        state.run_on_commit = state.run_on_commit[: self._hooks]
        reason = state.rollback_exc
        if marked:
            wrapper.set_rollback(False)
        if sent:
            try:
                wrapper._savepoint_rollback(self._savepoint.name)
                self._place = face.place
            except BaseException as error:
                self.has_ended = _code(error) in _NO_SAVEPOINT
                wrapper.set_rollback(True)
                raise
        elif face.is_broken:
            # The SAVEPOINT itself failed: only the whole transaction can be rolled back.
            wrapper.set_rollback(True)
            return
        if failed:
            raise NotCommitted(
                "the block's work was rolled back: a statement in it failed, or its rollback was"
                " asked for, and the block ended without an exception"
            ) from reason

    def _look(self, state: Any) -> None:
        """Find whether the block ended the transaction, and give the session its settings back."""
        face, wrapper = self._face, self._wrapper
        commands = face.reset.in_transaction
        if self._exists:
            commands = (self._savepoint.release, *commands)
        try:
            if face.pgconn.transaction_status == TransactionStatus.IDLE:
                raise NotCommitted(_ENDED)
            with wrapper.wrap_database_errors:
                savepoints.send(face, commands)
        except BaseException as error:
            wrapper.set_rollback(True)
            self.has_ended = isinstance(error, NotCommitted) or _code(error) in _NO_SAVEPOINT
            if self.has_ended:
                raise NotCommitted(_ENDED) from error
            raise
        self._exists = False
        state.run_on_commit = [*state.run_on_commit]


def _code(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error of Django's cursors."""
    return getattr(error.__cause__ or error, "sqlstate", None)


# A cursor that outlasts its transaction is read to its end by the COMMIT. This one cannot be.
HOLD_OPEN = (
    "DECLARE pgbackend_open NO SCROLL CURSOR WITH HOLD FOR SELECT pg_catalog.concat("
    "'this transaction is not for this code to commit', pg_catalog.left(pg_catalog.random()::text,"
    " 0))::int"
)
CLOSE = "CLOSE pgbackend_open"
_HOLD_OPEN = HOLD_OPEN.encode()

_ENDED = (
    "the block ended the transaction that it was called in. COMMIT and ROLLBACK are for the code"
    " that began it; use atomic() for what is to be undone"
)
# The codes of invalid_savepoint_specification and no_active_sql_transaction.
_NO_SAVEPOINT = ("3B001", "25P01")
