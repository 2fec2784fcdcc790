"""What operators ask of the table of stored notifications: what waits, what failed, what may go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any

from django.db import connections

from .channels import registered
from .claiming import TABLE
from .errors import ChannelNotFound
from .wire import WAKE

# The age of a health file above which its process counts as hanging, seconds.
MAX_AGE = 15.0

_STATS = f"""
SELECT channel, state, count(*), max(attempts),
    extract(epoch FROM clock_timestamp() - min(created_at))::float8
FROM {TABLE} GROUP BY channel, state ORDER BY channel, state
"""

_REQUEUE = f"""
UPDATE {TABLE} SET state = 'ready', attempts = 0, run_after = NULL
WHERE state = 'dead' AND (channel = ANY(%(names)s) OR %(names)s IS NULL)
    AND (id = ANY(%(ids)s) OR %(ids)s IS NULL) RETURNING channel
"""

_WAKE = "SELECT pg_notify(name, %s) FROM unnest(%s::text[]) AS names (name)"

_PRUNE = f"""
DELETE FROM {TABLE} WHERE state = 'dead' AND (channel = ANY(%(names)s) OR %(names)s IS NULL)
    AND created_at < clock_timestamp() - %(age)s
"""

_LAG = f"""
SELECT (SELECT extract(epoch FROM clock_timestamp() - min(coalesce(run_after, created_at)))::float8
    FROM {TABLE} WHERE state = 'ready'), (SELECT count(*) FROM {TABLE} WHERE state = 'dead')
"""


@dataclass
class Line:
    """The rows of one channel in one state; *oldest* is an age in seconds."""

    channel: str
    state: str
    count: int
    attempts: int
    oldest: float | None
    # Whether a listener is registered here.
    heard: bool


def stats(alias: str) -> list[dict[str, Any]]:
    """Return what is stored for each channel in each state: the fields of `Line`."""
    known = {name: channel.name() for channel in registered() for name in channel.stored_names()}
    with connections[alias].cursor() as cursor:
        cursor.execute(_STATS)
        return [
            asdict(Line(known.get(name, name), state, count, attempts, oldest, name in known))
            for name, state, count, attempts, oldest in cursor.fetchall()
        ]


def requeue(alias: str, channels: Sequence[str] | None, ids: Sequence[int] | None) -> int:
    """Make dead rows ready, with all attempts, and wake their listeners; return their number."""
    names = None if channels is None else _names(channels)
    with connections[alias].cursor() as cursor:
        cursor.execute(_REQUEUE, {"names": names, "ids": None if ids is None else list(ids)})
        found = [name for (name,) in cursor.fetchall()]
        cursor.execute(_WAKE, [WAKE, sorted({_wire(name) for name in found})])
    return len(found)


def prune(alias: str, channels: Sequence[str] | None, age: timedelta) -> int:
    """Delete dead rows that are older than *age*; return their number."""
    names = None if channels is None else _names(channels)
    with connections[alias].cursor() as cursor:
        cursor.execute(_PRUNE, {"names": names, "age": age})
        return int(cursor.rowcount)


def health(alias: str, max_lag: float | None, max_dead: int | None) -> dict[str, Any]:
    """Return the lag of what is ready, in seconds, the number of dead rows, and the problems."""
    with connections[alias].cursor() as cursor:
        cursor.execute(_LAG)
        lag, dead = cursor.fetchone()
    problems = []
    if max_lag is not None and lag is not None and lag > max_lag:
        problems.append(f"a notification has been ready for {lag:.1f} s")
    if max_dead is not None and dead > max_dead:
        problems.append(f"{dead} notifications are dead")
    return {"lag": lag, "dead": dead, "problems": problems}


def file_health(path: str, max_age: float) -> dict[str, Any]:
    """Return what a worker has written to its health file, and the problems."""
    try:
        found: dict[str, Any] = json.loads(Path(path).read_text())
        age = time() - found["time"]
    except (OSError, ValueError, KeyError) as error:
        return {"problems": [f"no health file can be read: {error}"]}
    problems = []
    if age > max_age:
        problems.append(f"the worker has written nothing for {age:.1f} s")
    elif age < -max_age:
        # The clock was set back. A worker that runs writes again soon, by the clock as it is now.
        problems.append(f"the worker has written nothing since a time in {-age:.1f} s")
    if found.get("state") != "listening":
        problems.append(f"the worker is {found.get('state')}: {_reason(found)}")
    return {**found, "age": age, "problems": problems}


def _reason(found: dict[str, Any]) -> str:
    errors = [hub.get("error") for hub in found.get("hubs", ())]
    return "; ".join(filter(None, [*errors, found.get("error")])) or "no reason is known"


def _names(channels: Sequence[str]) -> list[str]:
    """Return the names of rows of channels; those of unknown channels are taken as they are."""
    from .channels import locate_channel

    names: list[str] = []
    for each in channels:
        try:
            names += locate_channel(each).stored_names()
        except ChannelNotFound:
            if "." in each:
                raise
            names.append(each)
    return names


def _wire(name: str) -> str:
    """Return the name to notify for rows that are stored under *name*."""
    for channel in registered():
        if name in channel.stored_names():
            return channel.listen_name()
    return name
