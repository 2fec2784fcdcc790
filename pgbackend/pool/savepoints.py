"""Savepoints that go to the server in one message with the statement that follows them.

A SAVEPOINT, or its RELEASE, that is *due* is sent before the next statement, whatever sends that.
So is what a package has sent so; see `sql.direct.Due`. Each command is one statement, on one line.
What nothing was sent after needs not be sent at all: COMMIT and ROLLBACK end all savepoints, and
the end of a block without statements takes its SAVEPOINT back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import generators
from psycopg.pq import TransactionStatus

from .physical import PooledConnection
from .session_reset import failure
from .stopping import StoppableConnection

if TYPE_CHECKING:
    from psycopg.abc import PQGen

IDLE = TransactionStatus.IDLE
INTRANS = TransactionStatus.INTRANS
INERROR = TransactionStatus.INERROR

_ENDS = (b"COMMIT", b"ROLLBACK")

_DEFERRED = "pgbackend_deferred"


class SavingConnection(StoppableConnection):
    """A connection that sends what is due before each of its statements."""

    def __init__(self, pooled: PooledConnection) -> None:
        super().__init__(pooled)
        # The commands that are due, in their order.
        self.savepoint_due: tuple[bytes, ...] = ()
        # How often commands that were due have been sent.
        self.times_due_sent = 0
        # The ids of Django's savepoints that are there, sent or due, from the outermost on.
        self.savepoint_ids: list[str] = []
        # Whether the transaction had a savepoint and its BEGIN was not sent.
        self.owes_begin = False
        # How many blocks of `transaction.deferred_savepoint` have begun.
        self.times_deferred = 0
        # How often the server has rolled back to a savepoint.
        self.times_undone = 0
        # What another transaction begins with, if a COMMIT is to be sent behind the next statement;
        # None: none is. See `sql.direct.Due`.
        self.commit_due: tuple[bytes, ...] | None = None

    @property
    def place(self) -> tuple[object, ...]:
        """What changes when a savepoint begins or ends, or is rolled back to.

        As long as it is the same, a savepoint of other code is still there, and the innermost one.
        """
        return (*self.savepoint_ids[-1:], self.times_undone)

    def forget_savepoints(self) -> None:
        """Forget what is due, and which savepoints are there: their transaction ends."""
        # A new list: faces of one connection share their attributes.
        self.savepoint_due, self.savepoint_ids, self.owes_begin = (), [], False

    def due_was_sent(self) -> None:
        """Note that the server has executed the commands that were due."""
        self.savepoint_due = ()
        self.times_due_sent += 1

    def drop_due_if_broken(self) -> None:
        """Forget what is due in a broken transaction, which accepts nothing but a rollback."""
        if self.pgconn.transaction_status == INERROR:
            self.savepoint_due = ()

    def begin_and_save(self) -> PQGen[None]:
        """Send a BEGIN and what is due, before a statement that was inspected.

        In a pipeline they wait for its next synchronization, as everything there does.
        """
        due, self.owes_begin = self.savepoint_due, False
        if not due:
            yield from super()._start_query()
            return
        try:
            if self._pipeline is not None:
                self.savepoint_due = ()
                yield from super()._start_query()
                for command in due:
                    yield from self._exec_command(command)
            elif not self._autocommit and self.pgconn.transaction_status == IDLE:
                yield from _send(self, (self._get_tx_start_command(), *due))
            else:
                yield from _send(self, due)
        except BaseException:
            self.savepoint_due = due
            self.drop_due_if_broken()
            raise
        self.due_was_sent()

    @property
    def must_send_due(self) -> bool:
        """Whether commands are due that no pipeline sends by itself."""
        return bool(self.savepoint_due) and self._pipeline is None

    def send_due(self) -> None:
        """Send what is due, waiting through the bridge; a pipeline does so by itself."""
        if self.must_send_due:
            with self.lock:
                self.send_due_now()

    def send_due_now(self) -> None:
        """Do what `send_due` does, in a message that a cancellation does not stop.

        The caller holds the lock. If a statement follows, it must keep it: other tasks that wait
        for the lock may begin savepoints, which this statement is not part of.
        """
        with self.finishing():
            self.wait(self._send_due())

    def _send_due(self) -> PQGen[None]:
        # Another task may have sent it while this one waited for the lock.
        if self.savepoint_due:
            yield from self.begin_and_save()

    def go_behind_others(self) -> None:
        """Wait for the statements of other tasks that stand in line: they come before what is due.

        This waits through the bridge, if there are any.
        """
        lock: Any = self.lock
        while lock.held:
            with lock:
                pass

    def before_command(self, command: Any) -> PQGen[None]:
        """Send what is due before a command of psycopg's own that does not end it."""
        if command in _ENDS:
            self.savepoint_due = ()
        else:
            yield from self.begin_and_save()

    @contextmanager
    def transaction(self, *args: Any, **kwargs: Any) -> Iterator[psycopg.Transaction]:
        """Begin a transaction or a savepoint of psycopg's; see psycopg."""
        self.send_due()
        if self.owes_begin and not self._autocommit and self._pipeline is None:
            # Unless there is a BEGIN, psycopg takes its transaction for the outermost, and commits.
            with self.lock:
                self.wait(super()._start_query())
        outside = len(self.savepoint_ids)
        try:
            with super().transaction(*args, **kwargs) as transaction:
                yield transaction
        finally:
            del self.savepoint_ids[outside:]
            self.times_undone += 1


def can_wait(face: Any) -> bool:
    """Return whether a savepoint is certain to be at its place if it goes with the next statement.

    A statement that runs, or waits for the connection, came before the savepoint. The transaction
    may not have begun yet.
    """
    return (
        not face.lock.held
        and not face._autocommit
        and face._pipeline is None
        and face.pgconn.transaction_status in (IDLE, INTRANS)
    )


def can_release(face: Any) -> bool:
    """Return whether releasing a savepoint that was there certainly succeeds.

    It would not, and Django would say so at once, if raw SQL had ended the transaction.
    """
    return (
        face.pgconn.transaction_status == INTRANS and not face.lease.sets and not face.uninspected
    )


def begin(face: SavingConnection, savepoint: bytes) -> None:
    """Have *savepoint*, a SAVEPOINT command, sent with the next statement."""
    face.savepoint_due += (savepoint,)


def end(face: SavingConnection, savepoint: bytes, release: bytes) -> None:
    """Have *savepoint* released by *release* with the next statement; forget it if it is due."""
    place = _place(face, savepoint)
    face.savepoint_due = (
        (*face.savepoint_due, release) if place is None else face.savepoint_due[:place]
    )


def undo(face: SavingConnection, savepoint: bytes) -> bool:
    """Forget what is due inside *savepoint* if that is due; return whether it is."""
    place = _place(face, savepoint)
    if place is not None:
        face.savepoint_due = face.savepoint_due[: place + 1]
    return place is not None


def note_begin(face: SavingConnection, sid: str) -> None:
    """Note that the savepoint *sid* is there, sent or due."""
    face.savepoint_ids.append(sid)
    if face.pgconn.transaction_status == IDLE:
        face.owes_begin = True


def note_end(face: SavingConnection, sid: str) -> bool:
    """Note that the savepoint *sid* ends, with those inside it; return whether it was there."""
    ids = face.savepoint_ids
    if sid not in ids:
        return False
    del ids[ids.index(sid) :]
    return True


def note_rollback(face: SavingConnection, sid: str) -> bool:
    """Note that those inside the savepoint *sid* end; return whether it was there."""
    if was_there := note_end(face, sid):
        face.savepoint_ids.append(sid)
    return was_there


class Deferred(NamedTuple):
    """The savepoint of a block of `transaction.deferred_savepoint`."""

    name: str
    save: bytes
    release: bytes


@cache
def _deferred(depth: int) -> Deferred:
    name = f"{_DEFERRED}_{depth}" if depth else _DEFERRED
    return Deferred(name, f"SAVEPOINT {name}".encode(), f"RELEASE SAVEPOINT {name}".encode())


def begin_deferred(face: SavingConnection) -> tuple[str, Deferred]:
    """Note that a block of `transaction.deferred_savepoint` begins.

    Return an id for `note_end`, and its savepoint: none of the blocks around it has its name.
    """
    face.times_deferred += 1
    ids = face.savepoint_ids
    depth = sum([each.startswith(_DEFERRED) for each in ids]) if ids else 0
    sid = f"{_DEFERRED} {face.times_deferred}"
    ids.append(sid)
    return sid, _deferred(depth)


def is_due(face: SavingConnection, savepoint: bytes) -> bool:
    """Return whether *savepoint* has not been sent yet."""
    return savepoint in face.savepoint_due


def _place(face: SavingConnection, savepoint: bytes) -> int | None:
    due = face.savepoint_due
    # A name may be in use more than once: it stands for the latest.
    return next((place for place in reversed(range(len(due))) if due[place] == savepoint), None)


def _send(face: Any, commands: Sequence[bytes]) -> PQGen[None]:
    # One message, whatever the number of commands.
    face.pgconn.send_query(b"; ".join(commands))
    results = yield from generators.execute(face.pgconn)
    failed = failure(results)
    if failed is not None:
        raise psycopg.errors.error_from_result(failed, encoding=face.pgconn._encoding)


def send(face: Any, commands: Sequence[bytes]) -> None:
    """Send *commands* in one message, waiting through the bridge; raise if one fails."""
    with face.lock:
        face.wait(_send(face, commands))
