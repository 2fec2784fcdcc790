"""Claims while vacuum may remove nothing: they go on where the last one ended, and miss no row."""

import asyncio

import pytest
from django.db import connection, transaction

from pgbackend import bridged
from pgbackend.extending import own_cursor
from pgbackend.pubsub import Notification, anotify_many, asend, claiming, positions, send
from pgbackend.pubsub.conditions import Condition
from pgbackend.pubsub.positions import Position
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site import jobs
from tests.support.limits import AT_ONCE
from tests.support.pubsub import effects, until, working


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each claim from the beginning count as slow, with 0.2 s until the next one."""
    monkeypatch.setattr(positions, "QUICK", -1.0)
    monkeypatch.setattr(positions, "PAUSE", 1e9)
    monkeypatch.setattr(positions, "LONGEST", 0.2)


async def nothing_is_left() -> bool:
    return not await Notification.objects.aexists()


@bridged
def test_behind_a_row() -> None:
    """A claim behind a row takes the next ones of its priority, in their order."""
    Notification.objects.bulk_create(
        Notification(channel="c", payload={}, priority=priority) for priority in (0, 0, 0, 5)
    )
    first, second, third, _ = Notification.objects.order_by("id").values_list("pk", flat=True)
    with transaction.atomic(), own_cursor("default") as cursor:
        rows = claiming.claim_behind(cursor, "c", 10, Condition(), (0, first))
        assert [row.id for row in rows] == [second, third]
        assert {row.priority for row in rows} == {0}
        rows = claiming.claim_behind(cursor, "c", 1, Condition(), (0, first))
        assert [row.id for row in rows] == [second]
        assert claiming.claim_behind(cursor, "other", 10, Condition(), (0, first)) == []


def test_quick_claims() -> None:
    """Where a claim from the beginning takes no time, each claim is of that kind."""
    position = Position()
    assert position.goes_on() is None
    position.began(positions.QUICK / 2, (0, 17))
    assert position.goes_on() is None


def test_slow_claims() -> None:
    """After two slow claims others go on behind the last row; rows that come back end that."""
    position = Position()
    position.began(1.0, (0, 16))
    assert position.goes_on() is None
    position.began(1.0, (0, 17))
    assert position.goes_on() == (0, 17)
    assert not position.is_unsure
    position.went_on((0, 20))
    assert position.goes_on() == (0, 20)
    position.went_on(None)
    assert position.goes_on() == (0, 20)
    assert position.is_unsure
    assert 9 < position.wait() <= 10
    position.forget()
    assert position.goes_on() is None
    position.began(3600.0, None)
    assert position.wait() <= positions.LONGEST


def test_kept_plans() -> None:
    """A plan that was kept is used until rows wait, or until it was slow twice in a row."""
    position = Position()
    assert position.may_keep_plan()
    position.began(0.0, (0, 16), full=True)
    assert not position.may_keep_plan()
    position.began(0.0, (0, 17))
    assert position.may_keep_plan()
    position.began(1.0, None)
    position.began(1.0, None)
    assert position.may_keep_plan()
    position.began(1.0, None, kept=True)
    position.began(0.0, None, kept=True)
    position.began(1.0, None, kept=True)
    assert position.may_keep_plan()
    position.began(1.0, None, kept=True)
    assert not position.may_keep_plan()


@pytest.mark.usefixtures("slow")
async def test_nothing_is_missed() -> None:
    """Rows of other priorities, and rows that were failed or locked, are found in time."""
    await anotify_many([jobs.Stored(number) for number in range(20)])
    async with working(jobs.Stored):
        await until(nothing_is_left)
        await asend(jobs.Stored(20), priority=5)
        await asend(jobs.Stored(21), priority=-5)
        await asend(jobs.Stored(22))
        await until(nothing_is_left)
        # Ready again, with a lower id than the others.
        failed = await asend(jobs.Stored(23, "fail-until 2"))
        await anotify_many([jobs.Stored(number) for number in range(24, 40)])
        await until(nothing_is_left)
    assert failed is not None
    assert await effects() == list(range(40))


@pytest.mark.usefixtures("slow")
async def test_committed_late() -> None:
    """A row whose id is lower than those that were handled before it was committed is found."""
    async with working(jobs.Stored):
        await asend(jobs.Stored(1))
        await until(nothing_is_left)
        begun, others = asyncio.Event(), asyncio.Event()

        async def late() -> None:
            async with transaction.atomic():
                await asend(jobs.Stored(2))
                begun.set()
                await others.wait()

        task = asyncio.create_task(late())
        await begun.wait()
        await anotify_many([jobs.Stored(number) for number in range(3, 10)])
        await until(nothing_is_left)
        others.set()
        await task
        await until(nothing_is_left)
    assert await effects() == list(range(1, 10))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("channel", [jobs.Stored, jobs.Leased])
async def test_batch_mode(channel: type[jobs.Stored]) -> None:
    """`run(batch=True)` ends when a claim from the beginning has found nothing."""
    for priority in (0, 7, -7):
        await anotify_many([channel(priority * 100 + n) for n in range(15)], priority=priority)
    worker = Worker([channel])
    await asyncio.wait_for(worker.run(batch=True), AT_ONCE)
    assert await worker.stop(AT_ONCE)
    assert await nothing_is_left()
    assert len(await effects()) == 45


async def test_dead_rows() -> None:
    """With a transaction open elsewhere that sees rows from before, a claim reads none of those."""

    @bridged
    def buffers() -> int:
        with connection.cursor() as cursor:
            plan = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + claiming._READY_BEHIND.format(
                columns=claiming._COLUMNS, where=""
            )
            cursor.execute(plan, [jobs.Stored.listen_name(), 0, last, 10])
            read = cursor.fetchone()[0][0]["Plan"]
            return int(read["Shared Hit Blocks"] + read["Shared Read Blocks"])

    await anotify_many([jobs.Stored(number) for number in range(3000)])
    last = (await Notification.objects.order_by("id").alast()).pk
    async with transaction.atomic():
        await Notification.objects.acount()
        await asyncio.create_task(remove_all())
        assert await buffers() < 10


async def remove_all() -> None:
    await Notification.objects.all().adelete()


async def test_schema_renamed() -> None:
    """A worker whose table is called otherwise by now learns that by one transaction that fails."""
    async with working(jobs.Stored) as worker:
        await asend(jobs.Stored(1))
        await until(nothing_is_left)
        names = worker.parts[0].stored[0].condition.names
        (oid,) = names
        names[oid] = "renamed.pgpubsub_notification"
        await asend(jobs.Stored(2))
        await until(nothing_is_left)
    assert await effects() == [1, 2]


@bridged
def test_another_table() -> None:
    """Rows of a table are not removed from another one that has its name by now."""
    send(jobs.Stored(1))
    name, condition = jobs.Stored.listen_name(), Condition()
    with transaction.atomic(), connection.cursor() as cursor:
        (row,) = claiming.claim(cursor, name, 1, condition)
        assert condition.names == {row.oid: "public.pgpubsub_notification"}
        cursor.execute("CREATE SCHEMA another")
        cursor.execute("CREATE TABLE another.pgpubsub_notification AS TABLE pgpubsub_notification")
        stale = row._replace(table="another.pgpubsub_notification")
        assert not claiming.remove(cursor, [stale])
        assert claiming.fail(cursor, stale, "", retries=0, delay=0.0) is None
        cursor.execute("SELECT count(*) FROM another.pgpubsub_notification")
        assert cursor.fetchone() == (1,)
        assert claiming.remove(cursor, [row])
        cursor.execute("DROP SCHEMA another CASCADE")
