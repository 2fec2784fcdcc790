"""The clock of the worker: rows whose time has come, and leases that have ended."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Event
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from ..pool.dedicated import backoff_delay
from . import claiming
from .periodic import PeriodicChannel, send_due
from .running import Running

logger = logging.getLogger("pgbackend.pubsub")

# How often the table is looked at, seconds, whatever is known to be due.
INTERVAL = 30.0

# How soon after a look the next one may be, seconds.
SHORTEST = 0.05

# How long a row with the payload of a plain notification is kept, seconds, and how often those
# that are older are deleted.
KEEP_PLAIN = 3600
PRUNE_INTERVAL = 300.0

_PRUNE = f"""
DELETE FROM {claiming.TABLE} WHERE id = ANY(ARRAY(
    SELECT id FROM {claiming.TABLE} WHERE state = 'plain'
        AND created_at < clock_timestamp() - make_interval(secs => %s)
    ORDER BY created_at LIMIT 10000 FOR UPDATE SKIP LOCKED
))
"""


class Schedule:
    """Makes delayed rows of an alias ready in time, and takes rows back from dead workers.

    *ready* is called with the names of the channels that have ready rows, at least every *interval*
    seconds.
    """

    def __init__(
        self,
        alias: str,
        running: Running,
        ready: Callable[[Sequence[str]], None],
        interval: float = INTERVAL,
    ) -> None:
        self.alias = alias
        self.running = running
        self.interval = interval
        # Functions that take expired rows of one channel back, with a cursor.
        self.expire: list[Callable[[Any], None]] = []
        # Functions that delete what is kept for a time only; they are called at PRUNE_INTERVAL.
        self.prune: list[Callable[[], object]] = []
        # The names under which rows of the worker's channels stand.
        self.names: list[str] = []
        # The channels that the clock sends to.
        self.periodic: list[type[PeriodicChannel]] = []
        self._ready = ready
        # When something is due, by `time.monotonic`.
        self._at = 0.0
        self._pruned_at = -PRUNE_INTERVAL
        self._sooner = Event()

    def __repr__(self) -> str:
        return f"<Schedule {self.alias!r} next in {max(0.0, self._at - monotonic()):.3f} s>"

    def note(self, seconds: float) -> None:
        """Look at the table in so many *seconds*, if not sooner anyway."""
        at = monotonic() + seconds
        if at < self._at:
            self._at = at
            self._sooner.set()

    async def run(self) -> None:
        """Look at the table whenever something is due, until the task is cancelled."""
        failures = 0
        while True:
            self._sooner.clear()
            delay = self._at - monotonic()
            if delay > 0:
                try:
                    # Not asyncio.wait_for(): on CPython 3.11 it may swallow a cancellation.
                    async with asyncio.timeout(delay):
                        await self._sooner.wait()
                except TimeoutError:
                    pass
                else:
                    continue
            try:
                await self.look()
            except (DatabaseError, InterfaceError) as error:
                failures += 1
                logger.warning("delayed notifications cannot be looked for: %s", error)
                self._at = monotonic() + backoff_delay(failures)
                continue
            failures = 0

    async def look(self) -> None:
        """Look at the table now. Raise Django's database errors."""
        began = monotonic()
        self._at = began + self.interval
        names, due = await self.running.run(self._look)
        self.note(max(SHORTEST, due - (monotonic() - began)))
        if names:
            self._ready(names)

    def _look(self) -> tuple[list[str], float]:
        period = send_due(self.alias, self.periodic)
        with connections[self.alias].cursor() as cursor:
            claiming.promote(cursor)
            for expire in self.expire:
                expire(cursor)
            if is_due := monotonic() - self._pruned_at > PRUNE_INTERVAL:
                cursor.execute(_PRUNE, [KEEP_PLAIN])
                self._pruned_at = monotonic()
            names = claiming.names_with_ready(cursor)
            due = claiming.next_due(cursor, self.names)
        for prune in self.prune if is_due else ():
            prune()
        return names, min(each for each in (self.interval, period, due) if each is not None)
