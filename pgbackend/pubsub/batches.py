"""One transaction that claims stored notifications, handles them, and removes them.

What the listeners write is committed together with the removal, or not at all: a worker that is
killed at any moment leaves the rows as they were.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Task
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction

from ..bridge import await_bridged
from ..errors import CommitInDoubt, NotCommitted
from ..extending import is_own, look_ahead, own_cursor, takes_several
from . import claiming
from .channels import BaseChannel
from .claiming import Claimed
from .encoding import storable
from .excerpts import error_text
from .handling import LEFT_OPEN, call_listeners, delay_after, is_failure
from .marks import Marks
from .running import OnLoop, Running, Savepoint
from .waiting import handling

# How long one transaction is meant to take, seconds: long enough that BEGIN and COMMIT cost little,
# short enough for others to get rows, and for vacuum.
AIM = 0.1

# No listener is begun in a transaction that has lasted this long, seconds.
LONGEST = 1.0

# The most rows of one transaction.
MOST = 500


class BatchLost(Exception):
    """The connection of a batch is gone, or its transaction is beyond repair."""


class ListenerEnded(Exception):
    """A listener ended what is not its own: the transaction of its batch, or the task."""


class TransactionEnded(ListenerEnded):
    """A listener ended the transaction of its batch, while *row* was handled.

    The server has refused to commit it. What the listener did after a ROLLBACK may be committed.
    """

    def __init__(self, row: Claimed) -> None:
        super().__init__(
            "a listener ended the transaction that it was called in. What it did after that may be"
            " committed, so it is not tried again"
        )
        self.row = row


class BatchSize:
    """How many rows to claim, by the time that the last ones took."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        # One, until it is known how long a listener takes.
        self.rows = 1

    def note(self, handled: int, seconds: float) -> None:
        """Note how long a batch took once its rows were claimed: fewer make no claim shorter."""
        if handled:
            fitting = int(AIM * handled / max(seconds, 1e-6))
            self.rows = max(1, min(fitting, 4 * self.rows, self.most))


@dataclass
class Failure:
    """An attempt that failed, and what became of the row."""

    row: Claimed
    error: BaseException
    delay: float
    state: str | None = None

    @property
    def outcome(self) -> str:
        """What becomes of the row, in words."""
        if self.state == "dead":
            return "it is dead now; see `manage.py pubsub requeue`"
        return f"tried again in {self.delay:.1f} s"


@dataclass
class Batch:
    """The rows of one transaction, and what became of them; run it once, by `Running.run`."""

    running: Running
    channel: type[BaseChannel]
    alias: str
    claim: Callable[[Any], Sequence[Claimed]]
    # What makes the cursor that is given to `claim`.
    cursor: Callable[[], Any]
    # Whether no further listener is to be begun.
    stopping: Callable[[], bool]
    marks: Marks | None = None
    rows: Sequence[Claimed] = ()
    # When the rows were claimed, by `time.monotonic`.
    claimed_at: float = 0.0
    handled: list[Claimed] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def run(self) -> None:
        """Claim, handle, settle, commit. Raise what makes the whole transaction fail.

        BatchLost says that it failed while a listener ran.
        """
        try:
            self._run()
        except Exception:
            raise
        except BaseException as error:
            if not is_failure(self.running, error):
                raise
            # A hook of on_commit; SystemExit would end the process.
            raise ListenerEnded("a hook of a listener raised") from error

    def _run(self) -> None:
        with transaction.atomic(self.alias):
            with self.cursor() as cursor:
                self.rows = self.claim(cursor)
            self.claimed_at = monotonic()
            if self.rows:
                savepoint = self.running.savepoint(self.alias)
                with handling(self.alias, [row.id for row in self.rows]), savepoint.series():
                    if self.marks is None:
                        self._handle(savepoint)
                    else:
                        with self.marks.one() as place:
                            self._handle(savepoint, partial(self.marks.set, place, self.alias))
                self._settle(savepoint.before_commit)
                # A hook that fails must not keep those of other listeners from being called.
                hooks = connections[self.alias].run_on_commit
                hooks[:] = [(*hook[:2], True) for hook in hooks]

    def _handle(self, savepoint: Savepoint, mark: Callable[[int], None] | None = None) -> None:
        began = monotonic()
        wrapper = connections[self.alias]
        # Keys of which a row has failed: later ones have to wait for it.
        waiting: set[str | None] = set()
        depth: tuple[int, int] | None = None
        for row in self.rows:
            if row.order_key is not None and row.order_key in waiting:
                continue
            if self.stopping() or monotonic() - began > LONGEST:
                break
            if mark is not None:
                mark(row.id)
            try:
                with savepoint:
                    # As the last listener left them, unless that one failed.
                    if depth is None:
                        depth = len(wrapper.savepoint_ids), len(wrapper.atomic_blocks)
                    call_listeners(self.running, self.channel, row)
                    if len(wrapper.savepoint_ids) != depth[0]:
                        if not is_own(wrapper):
                            del wrapper.savepoint_ids[depth[0] :]
                            del wrapper.atomic_blocks[depth[1] :]
                        raise ListenerEnded(LEFT_OPEN)
            except ListenerEnded:
                # The whole transaction is undone: its blocks are no longer those of this batch.
                raise
            except BaseException as error:
                depth = None
                if not is_failure(self.running, error):
                    raise
                if savepoint.has_ended:
                    raise TransactionEnded(row) from error
                if not self._is_usable():
                    raise BatchLost(f"while notification {row.id} was handled") from error
                waiting.add(row.order_key)
                self.failures.append(
                    Failure(row, error, delay_after(self.channel, row.attempts + 1))
                )
            else:
                self.handled.append(row)

    def _is_usable(self) -> bool:
        """Return whether the transaction can go on after a listener failed."""
        try:
            with connections[self.alias].cursor() as cursor:
                cursor.execute("SELECT 1")
        except (DatabaseError, InterfaceError, transaction.TransactionManagementError):
            return False
        return True

    def _settle(self, before_commit: str) -> None:
        with own_cursor(self.alias) as cursor:
            for failure in self.failures:
                self.settle_failure(cursor, failure)
            last = ""
            if before_commit and self.handled and takes_several(cursor):
                before_commit, last = "", f"; {before_commit}"
            if self.handled and not claiming.remove(cursor, self.handled, last):
                if len(self.rows) == 1:
                    raise TransactionEnded(self.rows[0])
                raise ListenerEnded("a listener ended the transaction that it was called in")
            if before_commit:
                cursor.execute(before_commit, [])

    def settle_failure(self, cursor: Any, failure: Failure) -> None:
        """Note a failed attempt in the row."""
        is_last = isinstance(failure.error, TransactionEnded)
        failure.state = claiming.fail(
            cursor,
            failure.row,
            storable(self.alias, error_text(failure.error)),
            retries=-1 if is_last else self.channel.retries,
            delay=failure.delay,
        )

    def fail_alone(self, row: Claimed, error: BaseException) -> None:
        """Note the failure of one row, after the transaction was rolled back."""
        failure = Failure(row, error, delay_after(self.channel, row.attempts + 1))
        with own_cursor(self.alias) as cursor:
            self.settle_failure(cursor, failure)
        self.failures, self.handled = [failure], []


class Apart:
    """Runs batches of an alias, each in a task of its own.

    A listener may cancel the task that it is called in. To begin a task and to make a wrapper takes
    a third of the time until a listener is called, so `prepare` does both before a notification
    comes.
    """

    def __init__(self, running: Running, alias: str) -> None:
        self.running = running
        self.alias = alias
        # The task that is begun, and what is to be set to the batch that it runs.
        self._next: tuple[Task[None], Future[Callable[[], None]]] | None = None
        # Whether a batch has run: the loop has a pool then, and its options were looked at.
        self._has_run = False

    def prepare(self) -> None:
        """Begin the task of the next batch, if there is none, in a new context."""
        if self._next is None and isinstance(self.running, OnLoop):
            batch: Future[Callable[[], None]] = asyncio.get_running_loop().create_future()
            task = asyncio.create_task(
                self.running.run(self._wait, batch),
                name=f"pubsub-next-{self.alias}",
                context=Context(),
            )
            self._next = task, batch

    def _wait(self, batch: Future[Callable[[], None]]) -> None:
        look_ahead(self.alias, pool=self._has_run)
        await_bridged(batch)()

    async def run(self, function: Callable[[], None]) -> None:
        """Run *function* in a task that no other batch has."""
        (task, batch), self._next = self._next or (None, None), None
        if task is None or batch is None or batch.done():
            # None was begun, or somebody has cancelled it.
            task = asyncio.create_task(self.running.run(function), context=copy_context())
        else:
            batch.set_result(function)
        self._has_run = True
        ended = asyncio.get_running_loop().create_future()
        task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
        try:
            await ended
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if task.cancelled():
            raise ListenerEnded("a listener cancelled the task that it was called in")
        task.result()

    def close(self) -> None:
        """End the task that waits for a batch."""
        if self._next is not None:
            self._next[0].cancel()
            self._next = None


def was_lost(error: BaseException) -> bool:
    """Return whether a batch failed with its connection, and not through what was done on it."""
    if isinstance(error, BatchLost | InterfaceError | CommitInDoubt | NotCommitted):
        return True
    if not isinstance(error, OperationalError):
        return False
    code = getattr(error.__cause__, "sqlstate", None)
    return code is None or code.startswith(("08", "57P"))
