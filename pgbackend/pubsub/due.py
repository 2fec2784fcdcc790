"""When a stored notification is to be handled: at once, at a time, or so long from now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.db.models import DateTimeField

from .errors import PayloadError

RunAfter = datetime | timedelta | None


class Due(NamedTuple):
    """The state of a new row, and the SQL of its `run_after` with the parameter of that."""

    state: str
    sql: str
    value: Any


NOW = Due("ready", "%s", None)


def due(name: str, run_after: RunAfter) -> Due:
    """Return when a row is due that is not to be handled before *run_after*; None: it is ready.

    A duration is one from now, by the clock of the server, which is that of the workers, too. A
    naive time is taken as Django's fields do. Raise PayloadError, which begins with *name*, for
    what is no time, and for one in a year that Python could not read again.
    """
    try:
        if run_after is None:
            return NOW
        if isinstance(run_after, timedelta):
            # Only to see that there is such a time.
            datetime.now(UTC) + run_after
            return Due("delayed", "clock_timestamp() + %s", run_after)
        time = DateTimeField("run_after").get_prep_value(run_after)
        if not isinstance(time, datetime):
            raise TypeError("it is no time")
        # For a naive one, where USE_TZ is off, the server has the zone.
        (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (OverflowError, TypeError, ValueError, ValidationError) as error:
        raise PayloadError(f"{name}: run_after is {run_after!r}: {error}") from error
    return Due("delayed", "%s", time)
