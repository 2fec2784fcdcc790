"""A stored channel's part in the worker: when to claim, how many rows, and what after a failure."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from asyncio import Future
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from django.db import connections

from ..extending import own_cursor
from ..pool.dedicated import backoff_delay
from . import batches, claiming, leases
from .batches import MOST, Batch, BatchLost, BatchSize, Failure, TransactionEnded
from .channels import BaseChannel
from .claiming import Claimed, ToLease
from .conditions import Condition, heard_here
from .encoding import codec_of
from .excerpts import excerpt
from .part import Part
from .positions import Position

logger = logging.getLogger("pgbackend.pubsub")

# After how many lost connections, one for each attempt to handle a row, the row is to blame.
# Those that its listener did not notice count half.
_SUSPICIOUS = 3

# How many keys of an ordered channel one batch takes.
_KEYS = 16


class StoredConsumer(ABC):
    """Claims and handles the rows of one stored channel, in `concurrency` tasks."""

    def __init__(self, part: Part, channel: type[BaseChannel]) -> None:
        self.part = part
        self.progress = part.progress
        self.channel = channel
        self.alias = part.alias
        self.running = part.running
        self.condition = part.condition.together(heard_here(channel))
        self.name, *self.old_names = channel.stored_names()
        self._encoding: str | None = None
        self.active = 0
        # The names under which rows may be there that nobody has looked for yet, oldest first.
        self._due: dict[str, None] = {}
        self._idle: list[Future[None]] = []
        # How often in a row no row could be claimed.
        self._misses = 0
        self._last_key: str | None = None
        self._positions: defaultdict[str, Position] = defaultdict(Position)
        # When rows under these names are to be claimed from the beginning.
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.channel.name()} active={self.active}"
            f" due={bool(self._due)}>"
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being handled, and nothing more is known to be there."""
        return not (self.active or self._due)

    def receive(self, name: str, payload: str) -> None:
        """Take a notification: rows are there."""
        self._misses = 0
        # Processes that still run django-pgpubsub store under either of two names.
        for each in [name] if name == self.name else self.old_names:
            self.wake(each)

    def wake(self, name: str) -> None:
        """Have a task that is idle, if there is one, look for rows under *name*."""
        self._due[name] = None
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return

    async def serve(self) -> None:
        """Handle rows until the worker stops; several tasks may run this."""
        self._loop = asyncio.get_running_loop()
        failures = 0
        while not self.progress.stopping.is_set():
            if not self._due:
                await self._wait()
                continue
            name = next(iter(self._due))
            del self._due[name]
            self.active += 1
            try:
                async with self.progress.slots:
                    went_well = await self._serve_once(name)
            finally:
                self.active -= 1
            if went_well:
                failures = 0
            else:
                failures += 1
                self._due[name] = None
                await self.progress.pause(backoff_delay(failures))
            self.progress.changed.set()

    async def _serve_once(self, name: str) -> bool:
        """Handle the next rows; return False if the database is in trouble."""
        limit = self.progress.reserve(self.limit)
        if not limit:
            return True
        count = 0
        try:
            count, full = await self.handle_some(name, limit)
        except Exception as error:
            name, told = self.channel.name(), excerpt(error)
            logger.error("notifications of %s cannot be handled now", name, exc_info=told)
            self.progress.error = told
            return False
        finally:
            self.progress.refund(limit - count)
        if full:
            # More rows may be there, for the other tasks, too.
            self.wake(name)
        elif self._positions[name].is_unsure:
            self._begin_again(name)
        if count:
            self._misses = 0
        if not full:
            # Nobody tells of rows that were passed over when their locks end in a rollback: of a
            # worker that died, or of a sender that had found one waiting.
            self._misses += 1
            self.part.schedule.recheck(self._misses)
        return True

    def _begin_again(self, name: str) -> None:
        """Have rows claimed from the beginning: as soon as that may be, or now, to end."""
        position = self._positions[name]
        if self.progress.batch:
            position.forget()
            self.wake(name)
        elif name not in self._timers and not self.progress.stopping.is_set():
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_later(position.wait(), self._timer_ends, name)

    def _timer_ends(self, name: str) -> None:
        self.wake(name)
        del self._timers[name]

    def release(self) -> None:
        """Let the tasks that are idle go on: the worker stops."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        idle, self._idle = self._idle, []
        for each in idle:
            if not each.done():
                each.set_result(None)

    async def _wait(self) -> None:
        idle = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        self.progress.changed.set()
        await idle

    def cursor(self) -> Any:
        """Return a cursor for claims."""
        if self.part.condition.sql:
            return connections[self.alias].cursor()
        return own_cursor(self.alias)

    def claim_rows(
        self, cursor: Any, name: str, limit: int, to_lease: ToLease | None = None
    ) -> Sequence[Claimed]:
        """Lock the next rows in the transaction of *cursor*, or lease them."""
        if self._encoding is None:
            self._encoding = codec_of(self.alias) or "utf-8"
            self.condition = replace(self.condition, escaped=self._encoding == "ascii")
        rows = self._claim_rows(cursor, name, limit, to_lease)
        if len(rows) >= limit and rows[-1].more and self._loop is not None:
            # Further rows are for the other tasks, already now. This may run in a thread.
            self._loop.call_soon_threadsafe(self.wake, name)
        return rows

    def _claim_rows(
        self, cursor: Any, name: str, limit: int, to_lease: ToLease | None
    ) -> Sequence[Claimed]:
        if self.channel.ordered_by is None:
            return self._positions[name].claim(cursor, name, limit, self.condition, to_lease)
        keys = min(_KEYS, limit)
        claim = partial(claiming.claim_in_order, cursor, name, limit, self.condition, keys=keys)
        after = self._last_key
        rows, self._last_key = claim(after=after)
        if not rows and after is not None:
            # From the first key on again.
            rows, self._last_key = claim(after=None)
        while not rows and self._last_key is not None:
            # Senders had locked the first row of each of these keys.
            rows, self._last_key = claim(after=self._last_key)
        return rows or claiming.claim(cursor, name, limit, self.without_key)

    @property
    def without_key(self) -> Condition:
        """The condition for rows of an ordered channel that have no key, and so no order."""
        return self.condition.together(Condition("AND order_key IS NULL"))

    @property
    @abstractmethod
    def limit(self) -> int:
        """How many rows to claim at once."""

    @abstractmethod
    async def handle_some(self, name: str, limit: int) -> tuple[int, bool]:
        """Claim and handle up to *limit* rows; return their number, and whether more may be there.

        Raise what keeps rows from being claimed.
        """

    def expire(self, cursor: Any) -> None:
        """Take back rows whose workers have died; the channel may have had a `lease` before."""
        if states := leases.expire(cursor, self.channel.stored_names(), self.channel.retries):
            logger.warning("the leases of %d rows of %s ended", len(states), self.channel.name())
            self.progress.counts["expired"] += len(states)

    def note_failure(self, failure: Failure) -> None:
        """Log a failed attempt, and have the row looked at again in time."""
        dead = failure.state == "dead"
        self.progress.counts["dead" if dead else "failed"] += 1
        if failure.state is None:
            return
        logger.log(
            logging.ERROR if dead else logging.WARNING,
            "notification %d of %s failed, attempt %d: %s",
            failure.row.id,
            self.channel.name(),
            failure.row.attempts + 1,
            failure.outcome,
            exc_info=excerpt(failure.error),
        )
        if not dead:
            self.part.schedule.note(failure.delay)


class TransactionalConsumer(StoredConsumer):
    """Handles rows in the transaction that claims and removes them; see `batches`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.size = BatchSize(MOST)
        # How many rows to handle one in each transaction, after a batch was lost.
        self._careful = 0
        # How often the connection was lost while a row was handled alone.
        self._suspects: Counter[int] = Counter()

    async def _wait(self) -> None:
        self.part.apart.prepare()
        await super()._wait()

    @property
    def limit(self) -> int:
        """How many rows to claim at once."""
        return 1 if self._careful else self.size.rows

    async def handle_some(self, name: str, limit: int) -> tuple[int, bool]:
        """Claim and handle up to *limit* rows in one transaction."""
        batch = Batch(
            self.running,
            self.channel,
            self.alias,
            lambda cursor: self.claim_rows(cursor, name, limit),
            self.cursor,
            self.progress.stopping.is_set,
            self.progress.marks,
        )
        try:
            await self.part.apart.run(batch.run)
        except Exception as error:
            self._positions[name].forget()
            self.condition.names.clear()
            if not await self._look_into(batch, error):
                raise
        count = len(batch.handled) + len(batch.failures)
        if count < len(batch.rows):
            self._positions[name].forget()
        self.size.note(count, monotonic() - batch.claimed_at)
        self.progress.counts["handled"] += len(batch.handled)
        for row in batch.handled if self._suspects else ():
            self._suspects.pop(row.id, None)
        self._careful = max(0, self._careful - 1)
        for failure in batch.failures:
            self.note_failure(failure)
        ordered = self.channel.ordered_by is not None
        return count, len(batch.rows) >= limit or count < len(batch.rows) or (ordered and count > 0)

    async def _look_into(self, batch: Batch, error: Exception) -> bool:
        """Find what is to blame for a transaction that failed; return False if no row is.

        Several rows are handled again, each by itself. All of their work was rolled back.
        """
        if isinstance(error, TransactionEnded):
            await self.running.run(batch.fail_alone, error.row, error)
            return True
        lost = batches.was_lost(error)
        if len(batch.rows) > 1:
            logger.warning(
                "a transaction with %d notifications of %s failed; each is handled by itself now",
                len(batch.rows),
                self.channel.name(),
                exc_info=excerpt(error),
            )
            self._careful = len(batch.rows) + 1
            batch.handled, batch.failures = [], []
            return not lost
        if not batch.rows:
            return False
        if lost:
            row_id = batch.rows[0].id
            if isinstance(error, BatchLost):
                self._suspects[row_id] += 2
            elif batch.handled:
                # The listener has not noticed; it may have lost the connection and said nothing.
                self._suspects[row_id] += 1
            if self._suspects[row_id] < 2 * _SUSPICIOUS:
                return False
            del self._suspects[row_id]
        await self.running.run(batch.fail_alone, batch.rows[0], error)
        return True
