"""Transactions in asynchronous code, in addition to ``django.db.transaction``.

``async with transaction.atomic()``, ``@transaction.atomic`` on coroutine functions and
``transaction.on_commit`` with them are Django's own names. This module has what Django has no name
for: asynchronous counterparts of its lower-level functions, `atomic` with more arguments,
`retrying`, `pinned`, `detached` and `deferred_savepoint`. In the bridge Django's synchronous
functions work as well.

https://docs.djangoproject.com/en/stable/topics/db/transactions/
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS, connections, transaction
from psycopg.pq import TransactionStatus

from .errors import NotCommitted
from .isolation import atomic
from .pool import savepoints
from .retries import retrying
from .tasks.actors import running_task
from .tasks.lease import Lease, unpin_for_task
from .tasks.membership import detached
from .tasks.transaction import begin_part, end_part
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import run_for_alias

__all__ = [
    "acommit",
    "aon_commit",
    "arollback",
    "asavepoint",
    "asavepoint_commit",
    "asavepoint_rollback",
    "aset_autocommit",
    "atomic",
    "deferred_savepoint",
    "detached",
    "pinned",
    "retrying",
]


async def aset_autocommit(autocommit: bool, using: str | None = None) -> None:
    """Turn autocommit off, which binds a connection to the running task, or on again."""
    await _call(using, transaction.set_autocommit, autocommit, using)


async def acommit(using: str | None = None) -> None:
    """Commit the transaction of a task with autocommit off; see ``transaction.commit``."""
    await _call(using, transaction.commit, using)


async def arollback(using: str | None = None) -> None:
    """Roll back the transaction of a task with autocommit off; see ``transaction.rollback``."""
    await _call(using, transaction.rollback, using)


async def asavepoint(using: str | None = None) -> str | None:
    """Create a savepoint and return its id; None outside a transaction."""
    sid: str | None = await _call(using, _savepoint, using)
    return sid


def _savepoint(using: str | None) -> Any:
    # Django 6.1 renames transaction.savepoint(), but not this method.
    return transaction.get_connection(using).savepoint()


async def asavepoint_commit(sid: str, using: str | None = None) -> None:
    """Release the savepoint *sid*."""
    await _call(using, transaction.savepoint_commit, sid, using)


async def asavepoint_rollback(sid: str, using: str | None = None) -> None:
    """Roll back to the savepoint *sid*."""
    await _call(using, transaction.savepoint_rollback, sid, using)


async def aon_commit(
    func: Callable[[], Any], using: str | None = None, robust: bool = False
) -> None:
    """Call *func* after the commit; outside a transaction call it, and await it, at once."""
    await _call(using, transaction.on_commit, func, using, robust)


async def _call(using: str | None, function: Callable[..., Any], *args: Any) -> Any:
    return await run_for_alias(using or DEFAULT_DB_ALIAS, function, *args)


class pinned:
    """Keep one connection for the running task as long as the block lasts.

    Use it for what lives in a session: ``SET``, temporary tables, advisory locks, ``LISTEN``.

        async with pinned() as connection:
            with connection.cursor() as cursor:   # in a request, or in a bridged function
                cursor.execute("SELECT pg_advisory_lock(42)")
            await Order.objects.aupdate(...)

    In bridged code ``with pinned()`` does the same. The value is the `DatabaseWrapper` of *using*.
    Transactions begun in the block run on the connection; tasks started in the block have
    connections of their own. At the end the session is reset before another borrower gets it. On
    Django's own path, where a thread keeps its connection anyway, the block changes nothing.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = using or DEFAULT_DB_ALIAS
        # One object may serve many tasks, as `atomic` may; each task leaves the block it entered
        # last.
        self._leases: WeakKeyDictionary[asyncio.Task[Any], list[Lease | None]] = WeakKeyDictionary()
        # How often the object was ever entered.
        self._entered = 0

    def __enter__(self) -> Any:
        wrapper = connections[self.using]
        if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled:
            wrapper.check_not_on_loop()
        if isinstance(wrapper, BackendWrapper) and wrapper.bridged:
            lease, task = wrapper.pin_for_task(), running_task()
            assert task is not None
            self._leases.setdefault(task, []).append(lease)
            self._entered += 1
        return wrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, lease = self._pop()
        if task is not None and lease is not None:
            # Release on the loop's own thread: the collector may close a generator in any thread.
            lease.pool.on_loop(functools.partial(unpin_for_task, lease, task))

    def _pop(self) -> tuple[asyncio.Task[Any] | None, Lease | None]:
        """Return the block to leave: the running task's, or the only one that was ever entered.

        A generator that is left early may be closed by another task, or outside any task.
        """
        running = running_task()
        own = self._leases.get(running) if running is not None else None
        if running is not None and own:
            return running, own.pop()
        entered = [(task, leases) for task, leases in self._leases.items() if leases]
        if self._entered != 1 or len(entered) != 1:
            return None, None
        task, leases = entered[0]
        return task, leases.pop()

    async def __aenter__(self) -> Any:
        return await run_for_alias(self.using, self.__enter__)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc_value, traceback)


class deferred_savepoint:
    """Undo what a block did in the open transaction if the block raises, in bridged code.

    A nested ``atomic`` does so, too, and counts as a block of its own. This is for many short
    pieces of work in one transaction, most of which have nothing to undo.

        with transaction.atomic():
            saved = deferred_savepoint()
            for line in lines:
                with suppress(ValueError), saved:
                    handle(line)

    The blocks of one object follow each other; they are not nested. A task that a block starts is
    in the transaction until the block ends, and gets a RuntimeError after that. Hooks of
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
        self._id = self._name = ""  # of the block's savepoint, here and in the server
        self._was_broken = False  # whether what is around the block is to be rolled back
        self._hooks = 0
        self._part: Any = None  # the transaction as tasks see it that the block starts
        self._noted: tuple[Any, ...] = ()  # what the lease had noted before the block
        self._due_before: tuple[bytes, ...] = ()
        self._times_sent = 0

    def __enter__(self) -> None:
        state = self._state_in_turn()
        if state is None or state.lease is None or not state.in_atomic_block:
            raise RuntimeError(
                f"deferred_savepoint({self.using!r}) needs an open transaction.atomic() in bridged"
                " code: use a nested atomic() elsewhere"
            )
        self._lease, face = state.lease, state.lease.face
        if face is not self._face:
            self._face, self._exists, self.before_commit = face, False, ""
        self._was_broken = state.needs_rollback
        self._hooks = len(state.run_on_commit)
        self._part = begin_part(state.transaction)
        # What is around this one may be due as well.
        self._due_before, self._times_sent = face.savepoint_due, face.times_due_sent
        again = self._exists and self._place == face.place
        self._id, self._name = savepoints.begin_deferred(face)
        save, release = f"SAVEPOINT {self._name}".encode(), self._release
        # The block before has succeeded: its savepoint goes, so that savepoints do not pile up.
        commands = (release, save) if again else (save,)
        if self.strict:
            if not self.before_commit:
                commands = (HOLD_OPEN.encode(), *commands)
            self._noted = self._lease.take_notes()
        face.savepoint_due += commands

    def _state_in_turn(self) -> Any:
        """Return the task's state in its turn, when nothing runs; None outside the bridge."""
        wrapper = self._wrapper
        state = wrapper.bridged_state() if isinstance(wrapper, BackendWrapper) else None
        while state is not None:
            state = wrapper.state_in_turn(state)
            if state.lease is None or not state.lease.face.lock.held:
                break
            # What other tasks have begun to send is not part of the block.
            state.lease.face.go_behind_others()
        return state

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        face, wrapper = self._face, self._wrapper
        end_part(self._part, stop=exc_type is not None)
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
        marked = state.needs_rollback and not self._was_broken
        failed = exc_type is None and (marked or face.is_broken)
        if face.closed:
            return
        if exc_type is None and not failed:
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
                wrapper._savepoint_rollback(self._name)
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

    @property
    def _release(self) -> bytes:
        return f"RELEASE SAVEPOINT {self._name}".encode()

    def _look(self, state: Any) -> None:
        """Find whether the block ended the transaction, and give the session its settings back."""
        face, wrapper = self._face, self._wrapper
        commands = face.reset.in_transaction
        if self._exists:
            commands = (self._release, *commands)
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

_ENDED = (
    "the block ended the transaction that it was called in. COMMIT and ROLLBACK are for the code"
    " that began it; use atomic() for what is to be undone"
)
# The codes of invalid_savepoint_specification and no_active_sql_transaction.
_NO_SAVEPOINT = ("3B001", "25P01")
