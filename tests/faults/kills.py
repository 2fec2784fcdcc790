"""Backends are terminated and the server is restarted under load: row 41.

    python -m tests.faults.kills --loop uvloop --kills 500 --restarts 10

30 tasks share a pool of 5 on a server of their own. Then nobody hangs, each row that was
acknowledged is there, each other one is in doubt, and the pool lends `max_size` again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.loops import NAMES, new_loop

if TYPE_CHECKING:
    from tests.faults.own_server import OwnServer

TASKS = 30
POOL = 5

# How long an operation may take, and how long a connection is waited for, seconds.
BOUND = 60.0

# Between two kills, at most, and between two operations of a task whose last one failed, seconds.
KILL_PAUSE = 0.1
PAUSE = 0.02


@dataclass
class Report:
    """What happened in a run, and what did not hold."""

    loop: str
    kills: int = 0
    restarts: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{name} {n}" for name, n in counts.most_common()) or "none"

        return "\n".join(
            [
                f"{self.loop}: {self.kills} backends terminated, {self.restarts} restarts,"
                f" {self.operations.total()} operations in {self.seconds:.1f} s,"
                f" the longest {self.longest:.1f} s",
                f"operations: {listed(self.operations)}",
                f"failed: {listed(self.errors)}",
                f"rows: {listed(self.rows)}",
                f"broken: {len(self.broken)}",
                *self.broken[:20],
            ]
        )


class _Breaker(threading.Thread):
    """Terminates backends of ours at random, and restarts the server in between."""

    def __init__(self, server: OwnServer, report: Report, kills: int, restarts: int) -> None:
        super().__init__(name="breaker")
        self.server = server
        self.report = report
        self.kills = kills
        self.restarts = restarts
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            parts = self.restarts + 1
            for number in range(parts):
                self._kill((number + 1) * self.kills // parts)
                if number < self.restarts:
                    self.server.restart()
                    self.report.restarts += 1
        except BaseException as error:
            self.failed = error

    def _kill(self, until: int) -> None:
        from tests.settings import APPLICATION_NAME

        with self.server.connect() as conn:
            while self.report.kills < until:
                ended = conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = %s ORDER BY random() LIMIT 1",
                    [APPLICATION_NAME],
                ).fetchall()
                self.report.kills += sum(each for (each,) in ended)
                time.sleep(random.uniform(0, KILL_PAUSE))


class Kills:
    """One run: `run` does everything, on the running loop."""

    def __init__(self, server: OwnServer, kills: int, restarts: int, loop: str = "asyncio") -> None:
        self.server = server
        self.report = Report(loop)
        self.breaker = _Breaker(server, self.report, kills, restarts)
        self._numbers = itertools.count()
        self._acknowledged: set[str] = set()
        self._in_doubt: set[str] = set()
        # Since when each task is at work on which operation.
        self._at_work: dict[asyncio.Task[Any], tuple[float, str]] = {}

    async def run(self) -> Report:
        """Work under fire until the breaker has done its part, then check what must hold."""
        from tests.support.wrapper import use_wrapper

        wrapper = use_wrapper(
            options={"pool": {"max_size": POOL, "timeout": BOUND}}, **self.server.settings
        )
        self.server.all("DELETE FROM tests_author")
        began = time.monotonic()
        self.breaker.start()
        tasks = [asyncio.create_task(self._work()) for _ in range(TASKS)]
        await self._watch(tasks)
        self.report.seconds = time.monotonic() - began
        if self.breaker.failed is not None:
            raise self.breaker.failed
        await self._check_pool(wrapper)
        self._check_rows()
        await wrapper.async_pool.close()
        return self.report

    async def _watch(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait until all tasks have ended; those that do not are what the run is about."""
        while True:
            pending = (await asyncio.wait(tasks, timeout=1.0))[1]
            now = time.monotonic()
            late = {
                task: f"{what} has not ended after {now - since:.0f} s"
                for task, (since, what) in self._at_work.items()
                if now - since > 2 * BOUND
            }
            if not pending:
                break
            for task, words in late.items():
                self.report.broken.append(words)
                task.cancel()
                del self._at_work[task]
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _work(self) -> None:
        from django.db import Error

        from pgbackend import CommitInDoubt

        works: list[Callable[[str], Awaitable[Any]]] = [
            _read, _read, _raw, _write, _write, _nested, _gathered, _streamed, _left, _given_up,
        ]  # fmt: skip
        task = asyncio.current_task()
        assert task is not None
        while self.breaker.is_alive():
            number = next(self._numbers)
            name = f"row {number}"
            work = random.choice(works)
            writes = work in (_write, _nested, _gathered)
            began = time.monotonic()
            self._at_work[task] = began, f"operation {number} ({work.__name__})"
            failed = True
            try:
                await work(name)
                failed = False
            except CommitInDoubt:
                self._in_doubt.add(name)
                self.report.errors["CommitInDoubt"] += 1
            except Error as error:
                self.report.errors[_words(error)] += 1
            else:
                if writes:
                    self._acknowledged.add(name)
            self._at_work.pop(task, None)
            self.report.longest = max(self.report.longest, time.monotonic() - began)
            self.report.operations[work.__name__.strip("_")] += 1
            # A server that is down refuses at once.
            await asyncio.sleep(PAUSE if failed else 0)

    async def _check_pool(self, wrapper: Any) -> None:
        from tests.support.work import fill, settled

        try:
            stats = await settled(wrapper)
            if stats["pool_size"] > POOL:
                self.report.broken.append(f"the pool has {stats}")
            await fill(POOL)
        except (TimeoutError, AssertionError):
            self.report.broken.append(f"the pool does not lend {POOL}: {wrapper.async_pool!r}")

    def _check_rows(self) -> None:
        there = {name for (name,) in self.server.all("SELECT name FROM tests_author")}
        lost = self._acknowledged - there
        unknown = there - self._acknowledged - self._in_doubt
        self.report.rows = Counter(
            {
                "acknowledged": len(self._acknowledged),
                "in doubt": len(self._in_doubt),
                "of those there": len(self._in_doubt & there),
                "lost": len(lost),
                "of blocks that failed": len(unknown),
            }
        )
        if lost:
            self.report.broken.append(f"{len(lost)} acknowledged rows are not there")
        if unknown:
            self.report.broken.append(f"{len(unknown)} rows are there whose block had failed")


# Operations


async def _read(name: str) -> None:
    from tests.models import Author

    await Author.objects.acount()


async def _raw(name: str) -> None:
    from tests.support.work import execute

    await execute("SELECT pg_sleep(%s)", [random.choice([0, 0.001, 0.01])])


async def _write(name: str) -> None:
    from django.db import transaction

    from tests.models import Author

    async with transaction.atomic():
        await Author.objects.acreate(name=name)
        for _ in range(random.randrange(4)):
            await Author.objects.filter(name=name).afirst()


async def _nested(name: str) -> None:
    from django.db import transaction

    from tests.models import Author

    async with transaction.atomic():
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
        await Author.objects.aexists()


async def _gathered(name: str) -> None:
    from django.db import transaction

    from tests.models import Author

    async with transaction.atomic():
        await asyncio.gather(
            Author.objects.acreate(name=name), *(Author.objects.aexists() for _ in range(3))
        )


async def _streamed(name: str) -> None:
    from tests.models import Author

    async for _ in Author.objects.order_by("-pk")[:200].aiterator(chunk_size=20):
        pass


async def _left(name: str) -> None:
    from tests.models import Author

    rows = Author.objects.order_by("-pk").aiterator(chunk_size=20)
    try:
        async for _ in rows:
            break
    finally:
        await rows.aclose()


async def _given_up(name: str) -> None:
    from tests.support.work import execute

    try:
        async with asyncio.timeout(0.01):
            await execute("SELECT pg_sleep(1)")
    except TimeoutError:
        pass


def _words(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).partition(chr(10))[0][:40]}"


def main() -> int:
    """Run it on a server of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loop", choices=NAMES, default=NAMES[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    given = parser.parse_args()
    random.seed(given.seed)
    print(f"seed {given.seed}", flush=True)
    # Django's settings want one; the server is another.
    os.environ.setdefault("PGBACKEND_TEST_DSN", "postgresql://postgres@127.0.0.1/postgres")
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import logging

    import django

    django.setup()
    # The pool's warnings, of each connection that is lost.
    logging.disable(logging.WARNING)
    from tests.faults.own_server import OwnServer

    folder = Path(tempfile.mkdtemp(prefix="pgbackend-kills-"))
    server = OwnServer(folder)
    try:
        with asyncio.Runner(loop_factory=lambda: new_loop(given.loop)) as runner:
            report = runner.run(Kills(server, given.kills, given.restarts, given.loop).run())
    finally:
        server.stop()
        shutil.rmtree(folder)
    print(report)
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())
