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
from .claiming import TABLE
from .periodic import PeriodicChannel, send_due
from .running import Running

logger = logging.getLogger("pgbackend.pubsub")

# How often the table is looked at, seconds, whatever is known to be due.
INTERVAL = 30.0

# How soon after a look the next one may be, seconds.
SHORTEST = 0.05

# How soon to look again for what others have locked, seconds: the first wait, and the longest.
# Nobody tells when they roll back.
RECHECK = 0.5
LONGEST_RECHECK = 5.0

# How long a row with the payload of a plain notification is kept, seconds, and how often those
# that are older are deleted.
KEEP_PLAIN = 3600
PRUNE_INTERVAL = 300.0

_PRUNE = f"""
DELETE FROM {TABLE} WHERE id = ANY(ARRAY(
    SELECT id FROM {TABLE} WHERE state = 'plain'
        AND created_at < statement_timestamp() - make_interval(secs => %s)
    ORDER BY created_at LIMIT 10000 FOR UPDATE SKIP LOCKED
))
"""

# Whether something is overdue: delayed rows, or leases of some channels; and seconds until the next
# is due that is not.
_NEXT_DUE = f"""
SELECT EXISTS (SELECT FROM {TABLE} WHERE state = 'delayed' AND run_after <= statement_timestamp())
    OR EXISTS (SELECT FROM {TABLE} WHERE state = 'leased' AND channel = ANY(%s)
        AND lease_until <= statement_timestamp()),
extract(epoch FROM least(
    (SELECT min(run_after) FROM {TABLE} WHERE state = 'delayed'
        AND run_after > statement_timestamp()),
    (SELECT min(lease_until) FROM {TABLE} WHERE state = 'leased' AND channel = ANY(%s)
        AND lease_until > statement_timestamp())
) - clock_timestamp())
"""

# A walk along the index, one step a channel.
_NAMES = f"""
WITH RECURSIVE walk (name) AS (
    (SELECT channel FROM {TABLE} WHERE state = 'ready' ORDER BY channel LIMIT 1)
    UNION ALL
    SELECT (SELECT channel FROM {TABLE} WHERE state = 'ready' AND channel > name
        ORDER BY channel LIMIT 1)
    FROM walk WHERE name IS NOT NULL
)
SELECT name FROM walk WHERE name IS NOT NULL
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
        # How many looks in a row have left what was due.
        self._misses = 0

    def __repr__(self) -> str:
        return f"<Schedule {self.alias!r} next in {max(0.0, self._at - monotonic()):.3f} s>"

    def note(self, seconds: float) -> None:
        """Look at the table in so many *seconds*, if not sooner anyway."""
        at = monotonic() + seconds
        if at < self._at:
            self._at = at
            self._sooner.set()

    def recheck(self, misses: int, first: float = RECHECK) -> None:
        """Look again for what others have locked, after so many looks that found it so."""
        self.note(backoff_delay(misses, first, LONGEST_RECHECK))

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
        names, overdue, due = await self.running.run(self._look)
        self.note(max(SHORTEST, due - (monotonic() - began)))
        self._misses = self._misses + 1 if overdue else 0
        if overdue:
            self.recheck(self._misses, 2 * SHORTEST)
        if names:
            self._ready(names)

    def _look(self) -> tuple[list[str], bool, float]:
        period = send_due(self.alias, self.periodic)
        with connections[self.alias].cursor() as cursor:
            claiming.promote(cursor)
            for expire in self.expire:
                expire(cursor)
            if is_due := monotonic() - self._pruned_at > PRUNE_INTERVAL:
                cursor.execute(_PRUNE, [KEEP_PLAIN])
                self._pruned_at = monotonic()
            names = _names_with_ready(cursor)
            overdue, due = _next_due(cursor, self.names)
        for prune in self.prune if is_due else ():
            prune()
        waits = (self.interval, period, due)
        return names, overdue, min(each for each in waits if each is not None)


def _next_due(cursor: Any, names: Sequence[str]) -> tuple[bool, float | None]:
    """Return whether a delayed row or a lease of the channels *names* is overdue, as those are that
    others have locked, and in how many seconds the next one is due.

    None: there is none. Leases of other channels are ended by those who handle them.
    """
    cursor.execute(_NEXT_DUE, [list(names), list(names)])
    overdue, seconds = cursor.fetchone()
    return overdue, None if seconds is None else float(seconds)


def _names_with_ready(cursor: Any) -> list[str]:
    """Return the names of the channels that have ready rows, locked or not."""
    cursor.execute(_NAMES)
    return [name for (name,) in cursor.fetchall()]
