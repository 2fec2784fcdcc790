"""Channels that the clock sends to: for each time of a schedule once, however many workers run.

Up to when was sent is a row of `PeriodicRecord`. The worker that moves it on stores the
notification in the same transaction, so no other one does. What counts is the server's clock.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.utils import timezone

from .channels import Channel
from .sending import send

logger = logging.getLogger("pgbackend.pubsub")

# The shortest and the longest time between two notifications of a channel.
SHORTEST = datetime.timedelta(seconds=1)
LONGEST = datetime.timedelta(days=3660)

# How far the clock of the server may be set back before the channels begin to count anew. After a
# smaller step, as at Debian's cron, nothing is sent until the time is what it was.
SET_BACK = datetime.timedelta(hours=3)

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_LAST = """
SELECT channel, extract(epoch FROM due)::float8, extract(epoch FROM clock_timestamp())::float8
FROM unnest(%s::text[]) AS names (channel) LEFT JOIN pgpubsub_periodicrecord USING (channel)
"""

_BEGIN = "INSERT INTO pgpubsub_periodicrecord (channel, due) VALUES (%s, %s) ON CONFLICT DO NOTHING"

_BEGIN_ANEW = "UPDATE pgpubsub_periodicrecord SET due = %s WHERE channel = %s AND due > %s"

_MOVE = "UPDATE pgpubsub_periodicrecord SET due = %s WHERE channel = %s AND due < %s"


@dataclass
class PeriodicChannel(Channel):
    """The base of channels that the clock sends to, as long as a worker with a listener runs.

    Set ``schedule``: a cron expression in the default time zone, or a timedelta, whose multiples
    are counted from 1970-01-01 UTC. *due* is the time that the notification is for. Of the times
    that passed while no worker ran only the last one is made up for.
    """

    lock_notifications = True
    schedule: ClassVar[str | datetime.timedelta | None] = None

    due: datetime.datetime


def send_due(alias: str, channels: Sequence[type[PeriodicChannel]]) -> float | None:
    """Store a notification for each of *channels* that one is due for.

    Return in how many seconds the next one is due; None: there are none. The first time that a
    channel is looked at, it begins to count. What keeps one from being sent is logged, and keeps
    no others. Raise Django's database errors.
    """
    by_name = {channel.listen_name(): channel for channel in channels}
    if not by_name:
        return None
    with connections[alias].cursor() as cursor:
        cursor.execute(_LAST, [list(by_name)])
        found = cursor.fetchall()
    waits = []
    for name, last, now in found:
        try:
            before = None if last is None else _time(last)
            waits.append(_send_due(alias, by_name[name], before, _time(now)))
        except (DatabaseError, InterfaceError):
            raise
        except Exception:
            logger.exception("the clock cannot send to %s", by_name[name].name())
    return min(waits, default=None)


def _send_due(
    alias: str,
    channel: type[PeriodicChannel],
    last: datetime.datetime | None,
    now: datetime.datetime,
) -> float:
    name, schedule = channel.listen_name(), channel.schedule
    if last is None or last > now + SET_BACK:
        _execute(alias, _BEGIN, [name, now])
        _execute(alias, _BEGIN_ANEW, [now, name, now + SET_BACK])
        last = now
    due = next_time(schedule, last)
    if due <= now:
        due = max(due, last_time(schedule, now))
        with transaction.atomic(using=alias, savepoint=False):
            if _execute(alias, _MOVE, [due, name, due]):
                send(channel(due=_local(due)), using=alias)
        due = next_time(schedule, now)
    return (due - now).total_seconds()


def _execute(alias: str, sql: str, parameters: Sequence[Any]) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)
        return int(cursor.rowcount)


def next_time(schedule: Any, after: datetime.datetime) -> datetime.datetime:
    """Return the first time of *schedule* after another, in UTC.

    Raise ValueError for a wrong schedule, and ImportError without cronsim.
    """
    if isinstance(schedule, datetime.timedelta):
        return last_time(schedule, after) + schedule
    # Of an hour that comes twice cronsim begins with the first, even after the second has begun.
    return next(each for each in _cron(schedule, after) if each > after)


def last_time(schedule: Any, until: datetime.datetime) -> datetime.datetime:
    """Return the last time of *schedule* that is not after *until*, in UTC."""
    if isinstance(schedule, datetime.timedelta):
        return _EPOCH + (until - _EPOCH) // schedule * schedule
    behind = until.replace(microsecond=0) + datetime.timedelta(seconds=1)
    return next(each for each in _cron(schedule, behind, reverse=True) if each <= until)


def wrong_schedule(channel: type[PeriodicChannel]) -> Iterator[str]:
    """Yield what is wrong with the schedule of *channel*, and with its fields, for E003."""
    schedule = channel.schedule
    if isinstance(schedule, datetime.timedelta):
        if not SHORTEST <= schedule <= LONGEST:
            yield f"schedule is at least a second and at most ten years, not {schedule!r}."
    elif not isinstance(schedule, str):
        yield f"schedule is a cron expression or a timedelta, not {schedule!r}."
    else:
        try:
            next_time(schedule, _EPOCH)
        except ImportError as error:
            yield f"{error}."
        except ValueError as error:
            yield f"schedule is no cron expression: {schedule!r}: {error}."
    for each in fields(channel):
        if each.name != "due" and each.default is MISSING and each.default_factory is MISSING:
            yield f"{each.name} needs a default: the clock sends the field due alone."
    if not channel.lock_notifications:
        yield "lock_notifications is True for what the clock sends."


def _cron(
    expression: str, start: datetime.datetime, *, reverse: bool = False
) -> Iterator[datetime.datetime]:
    """Yield the times of a cron expression from *start* on, or back from it.

    They are in UTC: Python compares two times of one zone by what clocks show.
    """
    try:
        from cronsim import CronSim, CronSimError
    except ImportError as error:
        raise ImportError(
            f"schedule = {expression!r} needs cronsim: pip install 'pgbackend[cron]'"
        ) from error
    try:
        found = CronSim(expression, start.astimezone(timezone.get_default_timezone()), reverse)
    except CronSimError as error:
        raise ValueError(str(error)) from error
    for each in found:
        yield each.astimezone(datetime.UTC)
    raise ValueError("it names no time in 50 years")


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _local(due: datetime.datetime) -> datetime.datetime:
    """Return a time as those of the project are: aware, or not."""
    local = due.astimezone(timezone.get_default_timezone())
    return local if settings.USE_TZ else local.replace(tzinfo=None)
