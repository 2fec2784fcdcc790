"""The worker: what is stored is handled once; what fails neither stops others nor is lost."""

import asyncio
import datetime
import logging
import time
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from pgbackend import bridged
from pgbackend.pubsub import Channel, Notification, anotify, anotify_many, asend, listener
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site import jobs
from tests.support.fix_loops import Main
from tests.support.pubsub import effects, until, working
from tests.support.server import Server

# The wrappers that a listener found, and the functions around their statements.
wrappers: list[tuple[Any, int]] = []


@dataclass
class Wrapped(Channel):
    """Its listener leaves a function around the statements of its connection."""

    lock_notifications = True


@listener(Wrapped)
async def leave_function() -> None:
    wrapper = connections["default"]
    wrappers.append((wrapper, len(wrapper.execute_wrappers)))
    wrapper.execute_wrappers.append(lambda execute, *args: execute(*args))


async def rows(**conditions: Any) -> list[Any]:
    return [each async for each in Notification.objects.filter(**conditions).order_by("id")]


def counted(worker: Worker, **counts: int) -> Any:
    return lambda: all(worker.progress.counts[name] == count for name, count in counts.items())


async def nothing_is_left() -> bool:
    return not await Notification.objects.aexists()


def test_handled_once(run_main: Main) -> None:
    """What is sent while the worker listens, and before, is handled once, on each kind of loop."""

    async def main() -> None:
        await anotify_many([jobs.Stored(number) for number in range(50)])
        async with working(jobs.Stored, jobs.StoredSync):
            await anotify_many([jobs.Stored(number) for number in range(50, 100)])
            for number in range(100, 110):
                await anotify(jobs.StoredSync, number=number)
            await until(nothing_is_left)
        assert await effects() == list(range(110))
        assert sorted(jobs.called) == list(range(110))

    run_main(main())


async def test_wrappers() -> None:
    """Each transaction has a wrapper of its own, though one is made before it is needed."""
    wrappers.clear()
    async with working(Wrapped):
        for count in range(1, 4):
            await asend(Wrapped())
            await until(lambda count=count: len(wrappers) == count)
            await until(nothing_is_left)
    assert len({id(wrapper) for wrapper, _ in wrappers}) == 3
    assert [count for _, count in wrappers] == [0, 0, 0]


async def test_one_transaction(server: Server) -> None:
    """The effects and the removal of what caused them are committed by the same transaction."""
    row = await asend(jobs.Stored(1, "sql SELECT pg_advisory_xact_lock_shared(7)"))
    locked = server.conn.cursor()
    locked.execute("BEGIN")
    try:
        # The handler waits for the lock, after its effect: neither is to be seen by others.
        locked.execute("SELECT pg_advisory_lock(7)")
        async with working(jobs.Stored):
            await until(lambda: 1 in jobs.running)
            await asyncio.sleep(0.05)
            assert await effects() == []
            assert [each.pk for each in await rows()] == [row]
            server.all("SELECT pg_advisory_unlock(7)")
            await until(nothing_is_left)
            assert await effects() == [1]
    finally:
        locked.execute("ROLLBACK")
        server.all("SELECT pg_advisory_unlock_all()")


async def test_one_bad_row(caplog: pytest.LogCaptureFixture) -> None:
    """A row that fails is tried again and dies with its error; its work is undone, no other's."""
    await anotify_many([jobs.Stored(n, "fail" if n == 5 else "") for n in range(10)])
    async with working(jobs.Stored) as worker:
        await until(counted(worker, handled=9, failed=2, dead=1))
    assert await effects() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert jobs.called.count(5) == 3
    assert all(jobs.called.count(number) == 1 for number in range(10) if number != 5)
    (dead,) = await rows()
    assert (dead.state, dead.attempts, dead.run_after) == ("dead", 3, None)
    assert dead.last_error.endswith("ValueError: number 5")
    assert [each.levelno for each in caplog.records if each.name == "pgbackend.pubsub"] == [
        logging.WARNING,
        logging.WARNING,
        logging.ERROR,
    ]


async def test_tried_again() -> None:
    """A row that fails twice and succeeds then is handled once."""
    await anotify(jobs.Stored, number=1, do="fail-until 3")
    began = time.monotonic()
    async with working(jobs.Stored):
        await until(nothing_is_left)
    # backoff is 0.05 s, then 0.1 s, each with jitter.
    assert time.monotonic() - began > 0.05 / 2 + 0.1 / 2
    assert (jobs.called, await effects()) == ([1, 1, 1], [1])


@pytest.mark.parametrize("how", ["exit", "cancel", "fail", "sql SELECT 1/0"])
async def test_ways_to_fail(how: str, server: Server) -> None:
    """Whatever a handler raises is its failure, not the worker's end."""
    await anotify_many([jobs.Once(1), jobs.Once(2, how), jobs.Once(3)])
    async with working(jobs.Once) as worker:
        await until(counted(worker, dead=1, handled=2))
    assert await effects() == [1, 3]
    assert [each.state for each in await rows()] == ["dead"]


async def test_one_after_the_other(server: Server) -> None:
    """Of notifications that come one by one each is handled once, however its claim is sent."""
    numbers = list(range(12))
    async with working(jobs.Stored) as worker:
        for number in numbers:
            await asend(jobs.Stored(number))
            await until(counted(worker, handled=number + 1))
    assert await effects() == numbers
    assert await rows() == []


async def test_task_that_waits_is_cancelled() -> None:
    """Whoever cancels the task that waits for the next notification takes none from the worker."""
    async with working(jobs.Stored) as worker:
        for number in range(4):
            # A look for further rows may be under way, in another.
            await until(lambda: len(waiting_tasks()) == 1)
            (task,) = waiting = waiting_tasks()
            if number != 2:
                task.cancel()
            if number == 1:
                await asyncio.wait(waiting)
            await asend(jobs.Stored(number))
            await until(counted(worker, handled=number + 1))
    assert await effects() == [0, 1, 2, 3]
    await until(lambda: not waiting_tasks())


def waiting_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks that wait for a batch."""
    return [each for each in asyncio.all_tasks() if each.get_name() == "pubsub-next-default"]


async def test_caught_error() -> None:
    """A handler that catches a failed statement, and so lost its work, has failed."""
    await anotify_many([jobs.StoredSync(1), jobs.StoredSync(2, "swallow"), jobs.StoredSync(3)])
    async with working(jobs.StoredSync) as worker:
        await until(counted(worker, dead=1))
    assert await effects() == [1, 3]


@pytest.mark.parametrize("how", ["sleep 60", "query 60"])
async def test_timeout(how: str, server: Server) -> None:
    """A handler that takes too long is stopped, in the server, too, and the others go on."""
    await anotify_many([jobs.Brief(1), jobs.Brief(2, how), jobs.Brief(3)])
    async with working(jobs.Brief) as worker:
        await until(counted(worker, dead=1, handled=2))
        assert not server.one("SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sl'")
    assert await effects() == [1, 3]
    (dead,) = await rows()
    assert dead.last_error.endswith("TimeoutError")


async def test_handler_that_kills_its_connection() -> None:
    """Such a row dies by itself; those that were claimed with it are handled, once."""
    kill = "sql SELECT pg_terminate_backend(pg_backend_pid())"
    await anotify_many([jobs.Once(n, kill if n == 2 else "") for n in range(5)])
    async with working(jobs.Once) as worker:
        await until(counted(worker, dead=1, handled=4))
    assert await effects() == [0, 1, 3, 4]


async def test_failing_commit(server: Server) -> None:
    """What can only fail at COMMIT is laid to the row that caused it."""
    server.all("CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        twice = "sql INSERT INTO deferred VALUES (1), (1)"
        await anotify_many([jobs.Once(n, twice if n == 2 else "") for n in range(5)])
        async with working(jobs.Once) as worker:
            await until(counted(worker, dead=1, handled=4))
        assert await effects() == [0, 1, 3, 4]
    finally:
        server.all("DROP TABLE deferred")


async def test_lost_while_claimed(server: Server) -> None:
    """The server ends all connections while a batch is handled: nothing is lost, dead or twice."""
    await anotify_many([jobs.Once(n, "sleep 0.02") for n in range(20)])
    async with working(jobs.Once, reconcile_interval=0.2) as worker:
        # A third time the row would be to blame, if it was the same one each time.
        for _ in range(2):
            await until(lambda: jobs.running)
            server.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pgbackend-tests'"
            )
            await asyncio.sleep(0.1)
        await until(counted(worker, handled=20))
    assert await effects() == list(range(20))
    assert await rows() == []


async def test_own_channel() -> None:
    """A handler may notify its own channel: that is sent with its commit."""
    await anotify(jobs.Stored, number=0, do="notify 5")
    await anotify(jobs.StoredSync, number=10, do="notify 5")
    async with working(jobs.Stored, jobs.StoredSync) as worker:
        await until(counted(worker, handled=12))
    assert await effects() == [*range(6), *range(10, 16)]


async def test_poll() -> None:
    """A channel that sends no NOTIFY is handled within its interval."""
    async with working(jobs.Polled):
        await anotify(jobs.Polled, number=1)
        await until(nothing_is_left)
    assert await effects() == [1]


async def test_delayed() -> None:
    """A row is handled when its time has come, not before."""
    async with working(jobs.Stored):
        later = timezone.now() + datetime.timedelta(seconds=0.6)
        await asend(jobs.Stored(1), run_after=later)
        await asend(jobs.Stored(2))
        await until(lambda: jobs.called == [2])
        await until(nothing_is_left)
    assert timezone.now() >= later
    assert jobs.called == [2, 1]


async def test_priority() -> None:
    """Higher priorities come first, then the order of the rows."""
    for number, priority in enumerate([0, 5, -5, 5]):
        await asend(jobs.Stored(number), priority=priority)
    async with working(jobs.Stored):
        await until(nothing_is_left)
    assert jobs.called == [1, 3, 0, 2]


async def test_concurrency() -> None:
    """A channel with `concurrency` has so many transactions at once, and the worker no more."""
    await anotify_many([jobs.Wide(n, "sleep 0.3") for n in range(8)])
    most = 0
    async with working(jobs.Wide, concurrency=3):

        async def handled() -> bool:
            nonlocal most
            most = max(most, len(jobs.running))
            return await nothing_is_left()

        await until(handled)
    assert most == 3
    assert await effects() == list(range(8))


async def test_order() -> None:
    """One at a time and in order for each key, with several transactions and workers, after a
    failure as well."""
    sent = [jobs.Ordered(n, "fail-until 2" if n % 40 == 7 else "", str(n % 8)) for n in range(200)]
    await anotify_many(sent)
    async with working(jobs.Ordered), working(jobs.Ordered):
        await until(nothing_is_left)
    assert await effects() == list(range(200))
    for key in range(8):
        calls = [number for number in jobs.called if number % 8 == key]
        # What fails is called again before what comes after it.
        assert list(dict.fromkeys(calls)) == sorted(set(calls))
        assert calls == sorted(calls)


async def test_dead_row_of_a_key() -> None:
    """A dead row no longer holds up what comes after it with the same key."""
    await anotify_many([jobs.Ordered(1, "fail", "a"), jobs.Ordered(2, "", "a")])
    await Notification.objects.aupdate(attempts=5)
    async with working(jobs.Ordered) as worker:
        await until(counted(worker, dead=1, handled=1))
    assert await effects() == [2]


async def test_lease(server: Server) -> None:
    """A leased row is handled outside of a transaction, for longer than the lease, and once."""
    await anotify(jobs.Short, number=1, do="sleep 2.5")
    async with working(jobs.Short), working(jobs.Short):
        await until(lambda: jobs.running)
        (row,) = await rows()
        assert (row.state, row.attempts) == ("leased", 1)
        assert not server.one(
            "SELECT count(*) FROM pg_stat_activity WHERE state ~ '^idle in transaction'"
        )
        await until(nothing_is_left)
    assert (jobs.called, await effects()) == ([1], [1])


async def test_failing_leases() -> None:
    """A leased row that fails is tried again and dies as any other."""
    await anotify_many([jobs.Leased(1, "fail"), jobs.Leased(2, "fail-until 2"), jobs.Leased(3)])
    async with working(jobs.Leased) as worker:
        await until(counted(worker, dead=1, handled=2))
    (dead,) = await rows()
    assert (dead.state, dead.attempts, dead.worker) == ("dead", 3, None)


async def test_ended_lease() -> None:
    """The row of a worker that died comes back when its lease ends; without attempts it dies."""
    for number in (1, 2):
        await anotify(jobs.Leased, number=number)
    past = timezone.now() - datetime.timedelta(seconds=1)
    await Notification.objects.aupdate(state="leased", worker="gone", lease_until=past, attempts=1)
    await Notification.objects.filter(payload__kwargs__number=2).aupdate(attempts=3)
    async with working(jobs.Leased) as worker:
        await until(counted(worker, handled=1, expired=2))
    (dead,) = await rows()
    assert (dead.state, dead.last_error) == (
        "dead",
        "the lease of gone ended before its handler did",
    )


async def test_stolen_lease() -> None:
    """A handler whose row another worker has taken over is cancelled, and settles nothing."""
    await anotify(jobs.Short, number=1, do="sleep 60")
    async with working(jobs.Short):
        await until(lambda: jobs.running)
        later = timezone.now() + datetime.timedelta(seconds=60)
        await Notification.objects.aupdate(worker="another", lease_until=later)
        await until(lambda: not jobs.running)
        (row,) = await rows()
    assert (row.state, row.worker) == ("leased", "another")


async def test_old_names() -> None:
    """Rows that processes with django-pgpubsub store, under two names, are handled."""
    names = jobs.Stored.stored_names()
    assert len(names) == 3
    async with working(jobs.Stored) as worker:
        for number, name in enumerate(names):
            payload = {"kwargs": {"number": number}}
            await Notification.objects.acreate(channel=name, payload=payload)
        await bridged(notify_as_before)(jobs.Stored.listen_names()[1])
        # The worker's first look at the table may find the row under the own name, too.
        await until(lambda: worker.progress.counts["handled"] >= 2)
        await anotify(jobs.Stored, number=3)
        await until(counted(worker, handled=4))
    assert await effects() == [0, 1, 2, 3]


def notify_as_before(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, 'whatever it said')", [name])


async def test_payload_that_does_not_fit() -> None:
    """A row that the running code cannot read is kept, with the reason."""
    channel = jobs.Once.listen_name()
    await Notification.objects.acreate(channel=channel, payload={"kwargs": {"number": "x"}})
    await anotify(jobs.Once, number=1)
    async with working(jobs.Once) as worker:
        await until(counted(worker, handled=1, dead=1))
    (dead,) = await rows()
    assert "PayloadError" in dead.last_error


async def test_batch_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run(batch=True)` handles what is there and ends, without a listening connection."""
    monkeypatch.setattr(jobs.Stored, "backoff", 60.0)
    await anotify_many([jobs.Stored(n, "fail" if n == 3 else "") for n in range(30)])
    worker = Worker([jobs.Stored, jobs.Plain])
    await asyncio.wait_for(worker.run(batch=True), 10)
    assert await worker.stop(5)
    assert worker.parts[0].hub.state == "stopped"
    assert await effects() == [n for n in range(30) if n != 3]
    assert [each.state for each in await rows()] == ["delayed"]


async def test_max_notifications() -> None:
    """A worker with `max_notifications` handles so many, whatever is left, and ends."""
    await anotify_many([jobs.Wide(n) for n in range(30)])
    worker = Worker([jobs.Wide], max_notifications=12)
    await asyncio.wait_for(worker.run(), 10)
    assert await worker.stop(5)
    assert len(await effects()) == 12
    assert len(await rows(state="ready")) == 18


async def test_graceful_stop() -> None:
    """At the end what is being handled may end; what is not begun stays for others."""
    await anotify_many([jobs.Stored(n, "sleep 0.3") for n in range(5)])
    worker = Worker([jobs.Stored])
    task = asyncio.create_task(worker.run())
    await until(lambda: jobs.running)
    assert await worker.stop(5)
    await task
    assert len(await effects()) == 1
    assert len(await rows(state="ready", attempts=0)) == 4


async def test_stop_at_once() -> None:
    """What does not end in time is cancelled: rolled back, or given back, and ready again."""
    await anotify(jobs.Stored, number=1, do="sleep 60")
    await anotify(jobs.Leased, number=2, do="sleep 60")
    worker = Worker([jobs.Stored, jobs.Leased])
    task = asyncio.create_task(worker.run())
    await until(lambda: len(jobs.running) == 2)
    # The effect of the leased one.
    await until(lambda: effects())
    assert not await worker.stop(0.05)
    await task
    assert [(each.state, each.attempts) for each in await rows()] == [("ready", 0)] * 2
    # The leased one has no transaction, so its effect stands.
    assert await effects() == [2]


async def test_started_in_a_transaction() -> None:
    """A worker that somebody starts inside a transaction is not part of it."""
    await anotify(jobs.Stored, number=1)
    async with transaction.atomic():
        worker = Worker([jobs.Stored])
        task = asyncio.create_task(worker.run(), context=None)
        await asyncio.sleep(0)
        await until(lambda: worker.progress.counts["handled"] == 1)
        transaction.set_rollback(True)
    assert await worker.stop(5)
    await task
    assert await effects() == [1]


async def test_channel_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """Rows of a channel whose class was renamed or deleted wait, and the log says so, once."""
    for _ in range(2):
        await Notification.objects.acreate(channel="gone_5f0c", payload={"kwargs": {}})
    await anotify(jobs.Once, number=1)
    async with working(jobs.Stored) as worker:
        await until(lambda: "'gone_5f0c' wait, and no channel here has that name" in caplog.text)
        await worker.parts[0].part.schedule.look()
        await anotify(jobs.Stored, number=2)
        # Its channel is derived from the other one, so both are handled.
        await until(counted(worker, handled=2), worker)
    assert caplog.text.count("no channel here") == 1
    assert [row.channel for row in await rows()][:2] == ["gone_5f0c"] * 2
