"""Channels that the clock sends to: once for each time, whichever workers look."""

import asyncio
import datetime
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from itertools import pairwise
from typing import Any

import pytest
from django.core import checks
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from pgbackend import bridged
from pgbackend.pubsub import Notification, PeriodicChannel, listener, notify, registry
from pgbackend.pubsub.models import PeriodicRecord
from pgbackend.pubsub.periodic import last_time, next_time, send_due
from pgbackend.pubsub.test import deliver
from tests.support.pubsub import until, working

needs_cronsim = pytest.mark.skipif(
    importlib.util.find_spec("cronsim") is None,
    reason="left out: cronsim, of the extra cron, is not installed",
)

DAY = datetime.timedelta(days=1)
NOON = datetime.datetime(2026, 1, 5, 12, tzinfo=datetime.UTC)

called: list[datetime.datetime] = []


@dataclass
class Daily(PeriodicChannel):
    schedule = DAY


@dataclass
class Slow(PeriodicChannel):
    """One runs and one waits at most, however long they take."""

    schedule = DAY
    ordered_by = unique_by = "job"

    job: str = "slow"


@dataclass
class EachSecond(PeriodicChannel):
    schedule = datetime.timedelta(seconds=1)


def note(due: datetime.datetime, **more: str) -> None:
    called.append(due)


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Listen in these tests alone: the clock would send to workers of other tests."""
    called.clear()
    for channel in (Daily, EachSecond):
        listener(channel)(note)
    yield
    for channel in (Daily, EachSecond):
        del registry.listeners[channel]


def look(*channels: Any) -> float | None:
    return send_due("default", channels or (Daily,))


def dues() -> list[Any]:
    return [row.payload["kwargs"]["due"] for row in Notification.objects.order_by("id")]


def test_once() -> None:
    """The first look begins to count; each time is sent once, of missed ones the last."""
    wait = look()
    assert wait is not None
    assert 0 < wait <= DAY.total_seconds()
    begun = PeriodicRecord.objects.get(channel=Daily.listen_name()).due
    assert look() is not None
    assert dues() == []
    PeriodicRecord.objects.update(due=begun - 3 * DAY)
    look()
    look()
    (due,) = dues()
    assert datetime.datetime.fromisoformat(due) == last_time(DAY, begun)
    (delivered,) = deliver(Daily)
    assert called == [delivered.due]
    assert called[0].tzinfo is not None


async def test_two_at_once() -> None:
    """Of several workers that look at the same time one sends."""
    await bridged(look)()
    await PeriodicRecord.objects.aupdate(due=NOON)
    await asyncio.gather(*(bridged(look)() for _ in range(8)))
    assert await Notification.objects.acount() == 1


async def test_worker() -> None:
    """Two workers handle each second once, at its time."""
    async with working(EachSecond), working(EachSecond):
        await until(lambda: len(called) >= 2)
    seconds = [(after - before).total_seconds() for before, after in pairwise(called)]
    assert min(seconds) >= 1.0
    assert all(due.microsecond == 0 for due in called)


def test_options() -> None:
    """What the clock sends has the keys of the channel, as what is sent by hand."""
    look(Slow)
    for _ in range(3):
        PeriodicRecord.objects.update(due=NOON)
        look(Slow)
    (row,) = Notification.objects.all()
    assert (row.order_key, row.unique_key) == ("slow", '["slow"]')


def test_not_sent() -> None:
    """What cannot be sent is tried again, and keeps no others from being sent."""
    look(Slow, Daily)
    PeriodicRecord.objects.update(due=NOON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slow, "ordered_by", "gone")
        look(Slow, Daily)
    assert [row.channel for row in Notification.objects.all()] == [Daily.listen_name()]
    look(Slow, Daily)
    assert Notification.objects.count() == 2


@pytest.mark.parametrize(("hours", "anew"), [(2, False), (4, True)])
def test_clock_set_back(hours: int, anew: bool) -> None:
    """After a long step back of the server's clock a channel counts anew; after none twice."""
    look()
    ahead = timezone.now() + datetime.timedelta(hours=hours)
    PeriodicRecord.objects.update(due=ahead)
    look()
    look()
    assert (PeriodicRecord.objects.get().due < ahead) == anew
    assert dues() == []


def test_schedule_changed() -> None:
    """With another schedule the last time of that one is made up for."""
    look()
    PeriodicRecord.objects.update(due=NOON)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Daily, "schedule", datetime.timedelta(hours=1))
        wait = look()
    assert wait is not None
    assert wait <= 3600
    assert len(dues()) == 1


async def test_rolled_back() -> None:
    """A time whose notification was not stored is not taken for sent."""
    await bridged(look)()
    await PeriodicRecord.objects.aupdate(due=NOON)

    def fail() -> None:
        with transaction.atomic():
            look()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bridged(fail)()
    assert not await Notification.objects.aexists()
    await bridged(look)()
    assert await Notification.objects.acount() == 1


def test_by_hand() -> None:
    """What the clock sends can be sent by hand, too."""
    notify(Daily, due=NOON)
    deliver(Daily)
    assert called == [NOON]


@override_settings(USE_TZ=False)
def test_without_time_zones() -> None:
    """Where the project's times are naive, so is the time that is due."""
    look()
    PeriodicRecord.objects.update(due=datetime.datetime(2026, 1, 1))
    look()
    deliver(Daily)
    assert called[0].tzinfo is None


def test_timedelta() -> None:
    """The multiples of a timedelta are counted in UTC from 1970 on."""
    hours = datetime.timedelta(hours=5)
    assert last_time(DAY, NOON) == NOON - DAY / 2
    assert next_time(DAY, NOON) == NOON + DAY / 2
    assert last_time(DAY, NOON + DAY / 2) == NOON + DAY / 2
    assert next_time(hours, last_time(hours, NOON)) == last_time(hours, NOON) + hours


@needs_cronsim
@override_settings(TIME_ZONE="Europe/Berlin")
def test_cron() -> None:
    """A cron expression is in the default time zone, over its changes of time, too."""
    berlin = datetime.timedelta(hours=1)
    assert next_time("0 4 * * *", NOON) == NOON + datetime.timedelta(hours=16) - berlin
    assert last_time("0 13 * * *", NOON) == NOON
    assert next_time("0 13 * * *", NOON) == NOON + DAY
    assert last_time("*/5 * * * *", NOON + datetime.timedelta(seconds=7, microseconds=5)) == NOON
    summer = datetime.datetime(2026, 3, 29, 12, tzinfo=datetime.UTC)
    assert next_time("0 13 * * *", summer) == summer + DAY - datetime.timedelta(hours=1)


@needs_cronsim
@override_settings(TIME_ZONE="Europe/Berlin")
def test_changes_of_time() -> None:
    """What a day has twice or not at all is sent once, as Debian's cron does it."""
    for first, expression, expected in [
        # 02:30 is not there: three o'clock takes its place.
        ("2026-03-28T22:00", "30 2 * * *", ["29T01:00", "30T00:30"]),
        # 02:30 is there twice.
        ("2026-10-24T22:00", "30 2 * * *", ["25T00:30", "26T01:30"]),
        # By the hour, each hour counts.
        ("2026-10-24T23:30", "0 * * * *", ["25T00:00", "25T01:00", "25T02:00"]),
    ]:
        time, found = datetime.datetime.fromisoformat(f"{first}+00:00"), []
        for _ in expected:
            time = next_time(expression, time)
            found.append(f"{time:%dT%H:%M}")
        assert found == expected


@needs_cronsim
@override_settings(TIME_ZONE="Europe/Berlin")
@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "*/25 * * * *", "0 1-5 * * *", "15 */2 * * *", "0 0 * * 0"]
)
def test_any_time(expression: str) -> None:
    """Around changes of time the next one is later, and the last one is not."""
    for month, day in [(3, 28), (10, 24)]:
        begin = datetime.datetime(2026, month, day, 20, tzinfo=datetime.UTC)
        for minutes in range(0, 12 * 60, 7):
            time = begin + datetime.timedelta(minutes=minutes, microseconds=minutes % 3)
            assert last_time(expression, time) <= time < next_time(expression, time)


def test_without_cronsim(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without the extra a cron expression is an error that says so, and intervals go on."""
    monkeypatch.setitem(sys.modules, "cronsim", None)
    monkeypatch.setattr(Slow, "schedule", "0 4 * * *")
    look(Daily)
    PeriodicRecord.objects.update(due=NOON)
    assert look(Slow, Daily) is not None
    assert len(dues()) == 1
    assert "needs cronsim: pip install 'pgbackend[cron]'" in caplog.text
    listener(Slow)(note)
    try:
        found = checks.run_checks(tags=["pubsub"])
    finally:
        del registry.listeners[Slow]
    assert [each.id for each in found] == ["pgpubsub.E003"]
    assert "needs cronsim: pip install 'pgbackend[cron]'" in found[0].msg


@pytest.mark.parametrize(
    ("options", "fields", "message"),
    [
        ({}, [], "schedule is a cron expression or a timedelta, not None."),
        ({"schedule": 60}, [], "schedule is a cron expression or a timedelta, not 60."),
        ({"schedule": 0 * DAY}, [], "schedule is at least a second and at most ten years, not"),
        ({"schedule": datetime.timedelta.max}, [], "schedule is at least a second and at most"),
        ({"schedule": DAY}, [("more", int)], "more needs a default: the clock sends"),
        ({"schedule": DAY, "lock_notifications": False}, [], "lock_notifications is True for"),
        pytest.param(
            {"schedule": "0 25 * * *"}, [], "schedule is no cron expression", marks=needs_cronsim
        ),
        pytest.param({"schedule": "* * */20 * 1L"}, [], "it names no time", marks=needs_cronsim),
    ],
)
def test_checks(options: dict[str, Any], fields: list[Any], message: str) -> None:
    """A wrong schedule is an error of the checks."""
    made = make_dataclass("Made", fields, bases=(PeriodicChannel,), namespace=options)
    listener(made)(lambda **kwargs: None)
    try:
        found = [each for each in checks.run_checks() if str(each.id).startswith("pgpubsub")]
    finally:
        del registry.listeners[made]
    assert {each.id for each in found} == {"pgpubsub.E003"}
    assert any(message in each.msg for each in found), found
