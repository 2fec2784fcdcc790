"""Stored notifications handled outside of the transaction that claims them, on a lease.

For listeners that take long: a claim held open in a transaction would hold back vacuum in the whole
database. The claim is committed, a heartbeat prolongs it, and the end of the listeners settles it.
The rows of a worker that died come back when their leases end, so a row may be handled more than
once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    transaction,
)

from ..extending import own_cursor
from ..pool.dedicated import backoff_delay
from . import claiming, leases
from .batches import Failure, ListenerEnded
from .claiming import Claimed, ToLease
from .consuming import StoredConsumer
from .encoding import storable
from .excerpts import error_text
from .handling import call_listeners, delay_after, is_failure, no_open_blocks
from .settling import Statement, settling

T = TypeVar("T")

logger = logging.getLogger("pgbackend.pubsub")

# How often a lease is prolonged while it lasts.
_BEATS = 3


class LeaseConsumer(StoredConsumer):
    """Handles each row in a task of its own, without a transaction."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert self.channel.lease is not None
        self.seconds = self.channel.lease
        # Who has the leases: this consumer, and no other that runs or ever ran. Each claim has a
        # number besides, so that what a claim has leased is known where its answer is not.
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        self._claims = itertools.count(1)
        # The tasks that handle leased rows, and the ids of these, by whom they are leased to. A row
        # whose lease has ended may be there twice, until the task that has lost it ends.
        self._tasks: dict[str, tuple[asyncio.Task[BaseException | None], int]] = {}
        # The tasks that `beat` has cancelled.
        self._late: WeakSet[asyncio.Task[BaseException | None]] = WeakSet()

    @property
    def limit(self) -> int:
        """How many rows to claim at once: each task handles one."""
        return 1

    async def handle_some(self, name: str, limit: int) -> tuple[int, bool]:
        """Lease a row, handle it, and settle it."""
        worker = f"{self._name}:{next(self._claims)}"
        try:
            rows = await self.running.run(self._lease, name, limit, worker)
        except (asyncio.CancelledError, DatabaseError, InterfaceError):
            # The row may be leased, though nobody has heard of it.
            await self._give_back(worker)
            raise
        if not rows:
            return 0, False
        (row,) = rows
        more: list[Statement] = []
        task = asyncio.create_task(self._call(row, more))
        self._tasks[worker] = task, row.id
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            # The worker stops at once: the row is ready again, for another worker.
            task.cancel()
            await asyncio.wait([task])
            await self._give_back(worker)
            raise
        finally:
            del self._tasks[worker]
        error: BaseException | None
        if not task.cancelled():
            error = task.result()
        elif task in self._late:
            logger.error("the lease of notification %d was lost while it was handled", row.id)
            return 1, True
        else:
            error = ListenerEnded("a listener cancelled the task that it was called in")
        try:
            await self._until_settled(row, worker, error, more)
        except asyncio.CancelledError:
            # The worker stops at once: what was handled shall not be handled again.
            await self._settle_at_last(row, worker, error, more)
            raise
        return 1, row.more

    async def _call(self, row: Claimed, more: list[Statement]) -> BaseException | None:
        """Call the listeners; return what they raise."""
        marks = self.progress.marks
        try:
            with nullcontext() if marks is None else marks.one() as place:
                if marks is not None:
                    marks.set(place, self.alias, row.id)
                await self.running.run(self._call_listeners, row, more)
        except BaseException as error:
            if not is_failure(self.running, error):
                raise
            return error
        return None

    def _call_listeners(self, row: Claimed, more: list[Statement]) -> None:
        with no_open_blocks(), settling(self.alias, more):
            call_listeners(self.running, self.channel, row)

    def _lease(self, name: str, limit: int, worker: str) -> Sequence[Claimed]:
        to_lease = ToLease(worker, self.seconds)
        if self.channel.ordered_by is None:
            with self.cursor() as cursor:
                return self.claim_rows(cursor, name, limit, to_lease)
        # The locks of keys last until the rows are leased.
        with transaction.atomic(self.alias), self.cursor() as cursor:
            rows = self.claim_rows(cursor, name, limit)
            if rows:
                leases.lease(cursor, [row.id for row in rows], to_lease)
            return rows

    async def _until_settled(
        self, row: Claimed, worker: str, error: BaseException | None, more: list[Statement]
    ) -> None:
        """Settle a row; through an outage of the server, too, as long as its lease may last."""
        deadline = asyncio.get_running_loop().time() + self.seconds
        failures = 0
        while True:
            try:
                await self.running.run(self._settle, row, worker, error, more)
                return
            except (DatabaseError, InterfaceError) as trouble:
                if more and isinstance(trouble, DataError | IntegrityError | ProgrammingError):
                    # What the listener has handed over fails, as it would there.
                    error, more = trouble, []
                    continue
                failures += 1
                delay = backoff_delay(failures)
                if asyncio.get_running_loop().time() + delay > deadline:
                    raise
                logger.warning("notification %d cannot be settled now: %s", row.id, trouble)
                await asyncio.sleep(delay)

    def _settle(
        self, row: Claimed, worker: str, error: BaseException | None, more: list[Statement]
    ) -> None:
        with own_cursor(self.alias) as cursor:
            if error is None:
                if leases.remove_leased(cursor, row.id, worker, more):
                    self.progress.counts["handled"] += 1
                else:
                    logger.error(
                        "notification %d of %s was handled after its lease had ended: it may be"
                        " handled again. Make `lease` longer, or do not block the loop",
                        row.id,
                        self.channel.name(),
                    )
                return
            failure = Failure(row, error, delay_after(self.channel, row.attempts + 1))
            failure.state = claiming.fail(
                cursor,
                row,
                storable(self.alias, error_text(error)),
                retries=self.channel.retries,
                delay=failure.delay,
                worker=worker,
            )
        self.note_failure(failure)

    async def _settle_at_last(
        self, row: Claimed, worker: str, error: BaseException | None, more: list[Statement]
    ) -> None:
        try:
            await self._in_own_task(partial(self._settle, row, worker, error, more))
        except (DatabaseError, InterfaceError) as trouble:
            logger.warning("notification %d waits for the end of its lease: %s", row.id, trouble)

    async def _give_back(self, worker: str) -> None:
        def give_back() -> None:
            with own_cursor(self.alias) as cursor:
                leases.give_back(cursor, worker)

        try:
            await self._in_own_task(give_back)
        except (DatabaseError, InterfaceError) as error:
            name = self.channel.name()
            logger.warning("a notification of %s waits for the end of its lease: %s", name, error)

    async def _in_own_task(self, function: Callable[[], T]) -> T:
        """Run *function* in a task that no cancellation of this one reaches."""
        return await asyncio.shield(asyncio.create_task(self.running.run(function)))

    async def beat(self) -> None:
        """Prolong the leases of what is being handled, and cancel what has lost its lease."""
        while True:
            await asyncio.sleep(self.seconds / _BEATS)
            if not self._tasks:
                continue
            handled = dict(self._tasks)
            try:
                kept = await self.running.run(self._prolong, handled)
            except (DatabaseError, InterfaceError) as error:
                logger.warning("leases of %s cannot be prolonged: %s", self.channel.name(), error)
                continue
            for worker, (task, _) in handled.items():
                if worker not in kept and worker in self._tasks:
                    self._late.add(task)
                    task.cancel()

    def _prolong(self, handled: dict[str, tuple[Any, int]]) -> set[str]:
        ids = [row_id for _, row_id in handled.values()]
        with own_cursor(self.alias) as cursor:
            return leases.prolong(cursor, ids, handled, self.seconds)
