"""Where claims go on while a claim from the beginning takes long.

The index of ready rows is read from its beginning, the oldest row of the highest priority. There
stand the entries of rows that were handled, too, until vacuum may remove them: not before each
transaction has ended that began when they were there, a forgotten session's or a backup's. Until
then a claim from the beginning takes longer with each row that is handled. So it is done seldom
then, and the claims between go on behind the last row that was claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from . import claiming
from .claiming import Claimed, ToLease
from .conditions import Condition

# The time of a claim from the beginning, seconds, up to which all claims are of that kind. Two in a
# row have to take longer: the machine may just have been busy.
QUICK = 0.01

# How many times as long as the last claim from the beginning took, no other one is begun.
PAUSE = 10.0

# The longest that rows may wait which are not behind the last claimed one, seconds: of a higher or
# a lower priority, committed later than others with higher ids, or ready again.
LONGEST = 30.0

# How long each claim is planned anew after two in a row that were not quick, seconds: a plan that
# was made when the table was empty may read all of it. By then the server has analyzed the table.
PLAN_AGAIN = 60.0


class Position:
    """How far the claims of the rows under one name have come.

    *last* is the priority and the id of the last row that was claimed.
    """

    def __init__(self) -> None:
        self.last: tuple[int, int] | None = None
        # Whether rows may be there that no claim behind the last row finds.
        self.is_unsure = False
        # How long the last two claims from the beginning took, and when the next one may be begun.
        self._took = (0.0, 0.0)
        self._not_before = 0.0
        # Whether the last claim from the beginning found as many rows as it might take; how many by
        # a plan that was kept, in a row, were not quick; before when no such plan is to be used.
        self._was_full = False
        self._slow_plans = 0
        self._plan_before = 0.0

    def __repr__(self) -> str:
        return f"<Position {self.last} beginning={self._took[1]:.3f}s in {self.wait():.3f}s>"

    def goes_on(self) -> tuple[int, int] | None:
        """Return the row to go on behind; None: claim from the beginning."""
        return None if min(self._took) <= QUICK or not self.wait() else self.last

    def may_keep_plan(self) -> bool:
        """Return whether a claim from the beginning may use a plan that the connection has kept.

        Of the first row that comes the listener is called sooner then. While rows wait, to plan
        costs little beside them, and the plan is one for the table as it is.
        """
        return not self._was_full and monotonic() >= self._plan_before

    def wait(self) -> float:
        """Return in how many seconds a claim from the beginning may be begun again."""
        return max(0.0, self._not_before - monotonic())

    def began(
        self,
        seconds: float,
        last: tuple[int, int] | None,
        *,
        full: bool = False,
        kept: bool = False,
    ) -> None:
        """Note a claim from the beginning: how long it took, and the last row that it found.

        *full*: it found as many as it might take. *kept*: its plan may have been kept.
        """
        self._was_full = full
        if kept:
            self._slow_plans = self._slow_plans + 1 if seconds > QUICK else 0
            if self._slow_plans > 1:
                self._slow_plans, self._plan_before = 0, monotonic() + PLAN_AGAIN
        self._took = (self._took[1], seconds)
        self._not_before = monotonic() + min(PAUSE * seconds, LONGEST)
        self.last = last or self.last
        self.is_unsure = False

    def went_on(self, last: tuple[int, int] | None) -> None:
        """Note a claim behind the last row."""
        self.last = last or self.last
        self.is_unsure = True

    def claim(
        self,
        cursor: Any,
        name: str,
        limit: int,
        condition: Condition,
        to_lease: ToLease | None = None,
    ) -> Sequence[Claimed]:
        """Claim rows as `claiming.claim` does, from the beginning or behind the last row."""
        behind = self.goes_on()
        if behind is not None:
            rows = claiming.claim_behind(cursor, name, limit, condition, behind, to_lease)
            self.went_on((rows[-1].priority, rows[-1].id) if rows else None)
            return rows
        began = monotonic()
        keep = to_lease is None and self.may_keep_plan()
        rows = claiming.claim(cursor, name, limit, condition, to_lease, keep=keep)
        last = (rows[-1].priority, rows[-1].id) if rows else None
        self.began(monotonic() - began, last, full=len(rows) >= limit, kept=keep)
        return rows

    def forget(self) -> None:
        """Begin from the beginning: rows that were claimed are ready again."""
        self._not_before = 0.0
