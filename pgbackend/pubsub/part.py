"""What the consumers of a worker share."""

from __future__ import annotations

import asyncio
from asyncio import Event
from collections import Counter
from dataclasses import dataclass

from .batches import Apart
from .conditions import Condition
from .marks import Marks
from .running import Running
from .schedule import Schedule


class Progress:
    """How far a worker has come: what it may still begin, and what it has done.

    *concurrency* is how many transactions and leases there may be at once, and *left* how many
    notifications may still be handled; None: any number. *marks* shows the parent process what is
    being handled.
    """

    def __init__(self, concurrency: int, left: int | None, marks: Marks | None = None) -> None:
        self.marks = marks
        # Set from the beginning of the end: nothing more is begun.
        self.stopping = Event()
        self.slots = asyncio.Semaphore(concurrency)
        # Whether the worker ends when nothing is left.
        self.batch = False
        # Set when something has ended.
        self.changed = Event()
        # How many were "handled", "failed", "dead", "expired" and "dropped".
        self.counts: Counter[str] = Counter()
        self.left = left
        # The last error that kept notifications from being handled.
        self.error: BaseException | None = None

    def reserve(self, count: int) -> int:
        """Return how many of *count* notifications may be handled; `refund` those that were not."""
        if self.left is None:
            return count
        count = min(count, self.left)
        self.left -= count
        return count

    def refund(self, count: int) -> None:
        """Take back what was reserved in vain."""
        if self.left is not None:
            self.left += count

    async def pause(self, seconds: float) -> None:
        """Wait so many *seconds*, or until the worker stops."""
        try:
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        except TimeoutError:
            return


@dataclass
class Part:
    """A worker's part for one alias."""

    alias: str
    running: Running
    condition: Condition
    schedule: Schedule
    progress: Progress
    # What runs the batches of all channels.
    apart: Apart
