"""Workers where something around them fails: the server is away, clocks jump, a standby takes over.

The worker's own clock is set by libfaketime, in its process alone. Rows are due, and leases end, by
the server's clock; a worker waits by `time.monotonic`, which no setting of a clock changes.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.db import connections

from pgbackend import bridged
from pgbackend.pubsub import Channel, Notification, anotify_many, asend, listener, registry
from pgbackend.pubsub.worker import Worker
from tests.faults.fix_servers import Pair, leave_out
from tests.pubsub.site import jobs
from tests.pubsub.site.models import Effect
from tests.support.limits import AT_ONCE
from tests.support.proxy import Proxy
from tests.support.pubsub import Listen, effects, until, working
from tests.support.script import ROOT
from tests.support.wrapper import AddAlias

LEASED = ("--channels", "tests.pubsub.site.jobs.Leased")


async def test_two_loops() -> None:
    """Two event loops of one process, each with a worker, share what comes: each row is once."""
    ends = threading.Event()
    count = 60

    async def work() -> None:
        async with working(jobs.Wide):
            while not ends.is_set():
                await asyncio.sleep(0.01)

    threads = [threading.Thread(target=asyncio.run, args=[work()]) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        await anotify_many([jobs.Wide(number, "sleep 0.01") for number in range(count // 2)])
        for number in range(count // 2, count):
            await asend(jobs.Wide(number))

        async def nothing_is_left() -> bool:
            return not await Notification.objects.aexists()

        await until(nothing_is_left)
    finally:
        ends.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert await effects() == list(range(count))


@asynccontextmanager
async def behind_proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """Have the processes of `Listen` connect to a proxy before the server."""
    dsn = urlsplit(os.environ["PGBACKEND_TEST_DSN"])
    async with Proxy(dsn.hostname, dsn.port) as made:
        user = dsn.netloc.rpartition("@")[0]
        address = dsn._replace(netloc=f"{user}@127.0.0.1:{made.port}").geturl()
        monkeypatch.setenv("PGBACKEND_TEST_DSN", address)
        yield made


def leave(proxy: Proxy) -> None:
    """Be as a server that is gone: end all connections, and take no more."""
    proxy.accepting = False
    proxy.reset()


@pytest.mark.process
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGINT]],
    ids=["term", "int", "twice"],
)
async def test_signals_while_the_server_is_away(
    numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a server, too, a worker ends at a signal: at once, since it handles nothing."""
    # The second one may come when the worker has ended already.
    codes = [0] if len(numbers) == 1 else [0, 4]
    async with behind_proxy(monkeypatch) as proxy:
        with Listen(*LEASED, settings="tests.settings") as listen:
            await until(lambda: "listening to" in listen.text())
            leave(proxy)
            await until(lambda: "was lost" in listen.text())
            for number in numbers:
                listen.process.send_signal(number)
                await asyncio.sleep(0.05)
            assert await asyncio.to_thread(listen.code) in codes
            assert "Traceback" not in listen.text()


@pytest.mark.process
async def test_ends_while_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be given back to a server that is away comes back when its lease ends."""
    await asend(jobs.Leased(1, "sleep 60"))
    arguments = (*LEASED, "--graceful-timeout", "0.2")
    async with behind_proxy(monkeypatch) as proxy:
        with Listen(*arguments, settings="tests.settings") as listen:
            await until(effects)
            leave(proxy)
            await until(lambda: "was lost" in listen.text())
            listen.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(listen.code) == 3
            assert "waits for the end of its lease" in listen.text()
    (row,) = [each async for each in Notification.objects.all()]
    assert (row.state, row.attempts) == ("leased", 1)
    payload = {"kwargs": {"number": 2}}
    await Notification.objects.aupdate(lease_until=row.created_at, payload=payload)
    async with working(jobs.Leased):
        await until(lambda: has_rows({}))
    assert await effects() == [1, 2]


APPLICATION = """
import django

django.setup()
from django.core.asgi import get_asgi_application

from pgbackend.asgi import LifespanApplication

application = LifespanApplication(get_asgi_application(), listen=["tests.pubsub.site.jobs.Wide"])
"""


def serve(arguments: tuple[str, ...], folder: Path) -> subprocess.Popen[bytes]:
    """Return a process of uvicorn that imports what it serves from *folder*."""
    return subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": f"{ROOT}:{folder}",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.process
async def test_reload(tmp_path: Path) -> None:
    """`uvicorn --reload` with the worker in the lifespan: the next process takes the rows over."""
    (tmp_path / "served.py").write_text(APPLICATION)
    arguments = ("served:application", "--reload", "--reload-dir", f"{tmp_path}", "--port", "0")
    process = serve(arguments, tmp_path)
    numbers = itertools.count()
    try:
        # The first process, and two that follow it.
        for processes in range(1, 4):
            if processes > 1:
                (tmp_path / "served.py").write_text(f"{APPLICATION}# {processes}\n")

            async def is_served(processes: int = processes) -> bool:
                await asend(jobs.Wide(next(numbers), "sleep 0.05"))
                await asyncio.sleep(0.1)
                pids = Effect.objects.values_list("pid", flat=True).distinct()
                return await pids.acount() >= processes

            await until(is_served)
        await until(lambda: has_rows({}))
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, AT_ONCE)
    assert await effects() == list(range(next(numbers)))


LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the hours that the clock of a process of `Listen` is ahead."""
    if LIBRARY is None:
        leave_out("there is no libfaketime")
    path = tmp_path / "clock"
    path.write_text("+0")
    monkeypatch.setenv("LD_PRELOAD", str(LIBRARY))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(path))
    # Only what the clock on the wall shows is set; it is looked up each time.
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    return path


def set_clock(path: Path, hours: str) -> None:
    path.write_text(hours)


@pytest.mark.process
@pytest.mark.parametrize("hours", ["+1h", pytest.param("-1h", marks=pytest.mark.load)])
async def test_the_clock_of_a_worker_jumps(hours: str, clock: Path, tmp_path: Path) -> None:
    """A worker whose clock is set handles delayed and leased rows once, and in their time."""
    health = tmp_path / "health"
    channels = (
        "--health-file",
        f"{health}",
        "--channels",
        "tests.pubsub.site.jobs.Short",
        "tests.pubsub.site.jobs.Once",
    )
    with Listen(*channels, settings="tests.settings") as listen:
        await until(lambda: "listening to" in listen.text())
        # A lease of a second, which is prolonged meanwhile.
        await asend(jobs.Short(1, "sleep 3"))
        await asend(jobs.Once(2), run_after=timedelta(seconds=2))
        await asend(jobs.Once(3), run_after=timedelta(hours=1))
        began = time.monotonic()
        await until(effects)
        set_clock(clock, hours)
        await asend(jobs.Once(4))
        await until(lambda: has_effects([1, 4]))
        await until(lambda: abs(json.loads(health.read_text())["time"] - time.time()) > 3000)
        await until(lambda: has_effects([1, 2, 4]))
        assert time.monotonic() - began > 1.9
        set_clock(clock, "+0")
        await asend(jobs.Once(5))
        await until(lambda: has_effects([1, 2, 4, 5]))
        await until(lambda: has_rows({"delayed": 1}))
        listen.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(listen.code) == 0
    assert await effects() == [1, 2, 4, 5]


async def has_effects(numbers: list[int]) -> bool:
    return await effects() == numbers


async def has_rows(states: dict[str, int]) -> bool:
    found = [each async for each in Notification.objects.values_list("state", flat=True)]
    return Counter(found) == states


@pytest.mark.process
async def test_a_standby_takes_over(pair: Pair, add_alias: AddAlias) -> None:
    """A worker that listens to a primary goes on at the standby that was promoted: none is twice.

    The primary waits for the standby at each commit, so none is lost either.
    """
    for statement in (
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "ALTER SYSTEM SET synchronous_commit = 'remote_apply'",
        "SELECT pg_reload_conf()",
    ):
        pair.primary.all(statement)
    alias = add_alias(
        {"target_session_attrs": "read-write", "pool": {"max_size": 4, "timeout": 5.0}},
        HOST="127.0.0.1,127.0.0.1",
        PORT=f"{pair.primary.server.port},{pair.standby.server.port}",
        NAME="postgres",
        USER=pair.primary.server.user,
        PASSWORD=pair.primary.server.password,
    )
    await bridged(call_command)("migrate", run_syncdb=True, database=alias, verbosity=0)
    pair.primary.all("CREATE TABLE handled (number int)")
    channel = make_channel(alias)
    for number in range(40):
        await asend(channel(number=number))
    worker = Worker([channel], reconcile_interval=0.5)
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    try:
        await until(lambda: worker.progress.counts["handled"] > 10)
        await asyncio.to_thread(pair.fail_over)

        async def send(number: int) -> bool:
            try:
                await asend(channel(number=number))
            except Exception as error:
                print(number, error)
                return False
            return True

        await until(lambda: send(40))
        await until(lambda: pair.standby.one("SELECT count(*) FROM pgpubsub_notification") == 0)
        await worker.listening(AT_ONCE)
    finally:
        assert await worker.stop(AT_ONCE)
        await task
        del registry.listeners[channel]
    found = Counter(n for (n,) in pair.standby.all("SELECT number FROM handled"))
    assert sorted(found) == list(range(41))
    # The last one may have been sent twice: of the first try nobody knows the end.
    assert {number for number, count in found.items() if count > 1} <= {40}


def make_channel(alias: str) -> type[Channel]:
    """Return a channel of *alias* whose listener notes what it has handled there."""

    @dataclass
    class OnPair(Channel):
        lock_notifications = True
        using = alias
        retries = 0

        number: int

    @listener(OnPair)
    async def note(number: int) -> None:
        def write() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO handled VALUES (%s)", [number])

        await asyncio.sleep(0.02)
        await bridged(write)()

    return OnPair
