"""A channel without stored notifications: what is heard is handled, what is not heard is gone."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import Context

from django.db import connections

from .channels import BaseChannel
from .claiming import TABLE
from .excerpts import excerpt
from .handling import call_for_plain
from .part import Part
from .wire import parse

logger = logging.getLogger("pgbackend.pubsub")

# How many notifications of one channel may wait for its listeners.
QUEUE = 10_000

_PAYLOAD = f"SELECT payload::text FROM {TABLE} WHERE id = %s AND state = 'plain'"


class PlainConsumer:
    """Calls the listeners of one channel, for so many notifications at once as `concurrency` says.

    A notification that comes while `QUEUE` others wait is dropped, which is logged: it could only
    be kept in memory without bound, or in the server's queue, which all senders share.
    """

    def __init__(self, part: Part, channel: type[BaseChannel]) -> None:
        self.progress = part.progress
        self.channel = channel
        self.alias = part.alias
        self.running = part.running
        self.dropped = 0
        self._queue: deque[str] = deque()
        self.tasks: set[asyncio.Task[None]] = set()
        self._was_full = False

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.channel.name()} active={len(self.tasks)}"
            f" waiting={len(self._queue)} dropped={self.dropped}>"
        )

    @property
    def active(self) -> int:
        """How many tasks handle notifications."""
        return len(self.tasks)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being handled, and nothing waits."""
        return not (self.tasks or self._queue)

    def receive(self, name: str, payload: str) -> None:
        """Take a notification."""
        if self.progress.stopping.is_set():
            return
        if len(self._queue) >= QUEUE:
            self.dropped += 1
            self.progress.counts["dropped"] += 1
            if not self._was_full:
                logger.error(
                    "notifications of %s are dropped: %d wait. Make its listeners faster, raise"
                    " its `concurrency`, or store them by lock_notifications",
                    self.channel.name(),
                    QUEUE,
                )
            self._was_full = True
            return
        self._queue.append(payload)
        if len(self.tasks) < self.channel.concurrency:
            self._begin()

    def _begin(self) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(), context=Context())
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            told = excerpt(error)
            logger.error("a notification of %s was lost", self.channel.name(), exc_info=told)
        if self._queue and not self.progress.stopping.is_set():
            # The task has ended before its time; a listener may have cancelled it.
            self._begin()
        self.progress.changed.set()

    async def _handle(self) -> None:
        """Handle what waits, until nothing does."""
        while self._queue:
            text = self._queue.popleft()
            if not self._queue:
                self._was_full = False
            if not self.progress.reserve(1):
                continue
            wire = parse(text)
            await self.running.run(self._call, text if wire.kind == "plain" else "", wire.id)
            self.progress.counts["handled"] += 1

    def _call(self, payload: str, row_id: int | None) -> None:
        if row_id is not None:
            with connections[self.alias].cursor() as cursor:
                cursor.execute(_PAYLOAD, [row_id])
                row = cursor.fetchone()
            if row is None:
                logger.error("row %d of %s is gone", row_id, self.channel.name())
                return
            payload = row[0]
        if not payload:
            return
        if call_for_plain(self.running, self.channel, payload, self.alias):
            self.progress.counts["failed"] += 1
