"""The fuzz of blocks: nests of ``atomic`` with child tasks, time-outs and killed connections.

Each transaction is a program drawn by the seed. Its tasks note what they are told: which row was
acknowledged, how each block was left. Afterwards the table is compared with that by the model, and
the pool and the server are to be as they were.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import psycopg
from django.db import connection

from tests.faults.blocks_model import Report
from tests.faults.blocks_program import HUNG, Program
from tests.faults.load_checks import Baseline, Complaints, at_rest
from tests.models import Author
from tests.settings import APPLICATION_NAME
from tests.support.limits import PATIENCE
from tests.support.server import DATABASES
from tests.support.wrapper import use_wrapper

# Transactions at a time, and the connections that they share.
WORKERS, POOL = 10, 6


class Fuzz:
    """Programs one after the other, some at a time, until *blocks* blocks have raised."""

    def __init__(
        self,
        seed: int,
        blocks: int,
        *,
        seconds: float | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.blocks = blocks
        self.seconds = seconds
        self.progress = progress
        self.report = Report(seed)
        self.next_rows: list[str] = []
        self._number = 0
        self._stopped = False
        self._since: dict[int, float] = {}

    def run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Report:
        """Run the programs on a loop of their own, and check what must hold afterwards."""
        complaints = Complaints()
        with complaints.collected(), asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.get_loop().set_exception_handler(complaints.of_loop)
            runner.run(self._run())
        for each in complaints:
            self.wrong("other", each)
        return self.report

    def count(self, error: BaseException) -> None:
        """Count how a block was left."""
        self.report.errors[type(error).__name__] += 1

    def wrong(self, kind: str, words: str) -> None:
        """Note what does not hold."""
        self.report.counts[f"wrong: {kind}"] += 1
        self.report.broken.append(f"{kind}: {words}")

    async def _run(self) -> None:
        use_wrapper(options={"pool": {"min_size": POOL, "max_size": POOL, "timeout": HUNG}})
        self.server = await psycopg.AsyncConnection.connect(
            os.environ["PGBACKEND_TEST_DSN"], dbname=DATABASES[0], autocommit=True
        )
        async with self.server:
            await asyncio.gather(*(Author.objects.aexists() for _ in range(POOL)))
            for broken in await at_rest(self.server, APPLICATION_NAME, POOL):
                self.wrong("other", broken)
            # Threads and sockets that stay.
            await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(40)))
            before, began = Baseline(), time.monotonic()
            workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
            await self._watch(workers)
            self.report.seconds = time.monotonic() - began
            if self.report.counts["wrong: hung"]:
                return
            # The first borrower finds what broke while it was idle.
            for _ in range(POOL):
                await asyncio.gather(
                    *(Author.objects.aexists() for _ in range(POOL)), return_exceptions=True
                )
            for broken in await at_rest(self.server, APPLICATION_NAME, POOL):
                self.wrong("other", broken)
            there = await self._there("%-next-%")
            for name in set(self.next_rows) - there:
                self.wrong("lost", f"{name} is not there")
            for broken in await self._leftovers(before):
                self.wrong("other", broken)
            await connection.async_pool.close()

    async def _leftovers(self, before: Baseline) -> list[str]:
        """Return what there is more of than *before*; the loop closes sockets some time later."""
        deadline = time.monotonic() + PATIENCE
        while True:
            after = Baseline()
            found = [
                f"{name}: {getattr(after, name)}, not {getattr(before, name)}"
                for name in ("tasks", "greenlets", "descriptors")
                if getattr(after, name) != getattr(before, name)
            ]
            if not found or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)

    async def _watch(self, workers: list[asyncio.Task[None]]) -> None:
        began, said = time.monotonic(), 0.0
        while pending := [each for each in workers if not each.done()]:
            await asyncio.wait(pending, timeout=0.5)
            now = time.monotonic()
            for number, since in self._since.items():
                if now - since > HUNG:
                    self.wrong("hung", f"program {number}")
            if self.report.counts["wrong: hung"]:
                for each in asyncio.all_tasks():
                    self.report.broken.append(f"{each!r}: {each.get_stack()}")
                return
            raised = self.report.counts["blocks raised"]
            over = self.seconds is not None and now - began > self.seconds
            self._stopped = over or raised >= self.blocks
            if self.progress is not None and now - said > 10:
                said = now
                self.progress(f"{raised} blocks raised, {len(self.report.broken)} broken")
        for worker in workers:
            worker.result()

    async def _work(self) -> None:
        while not self._stopped:
            number, self._number = self._number, self._number + 1
            program = Program(self, number)
            self._since[number] = time.monotonic()
            killing = None
            if program.rng.random() < 0.1:
                killing = asyncio.create_task(self._kill(program.rng.random() * 0.02))
            await asyncio.create_task(program.run())
            if killing is not None:
                await killing
            program.check(await self._there(f"{number}-%"))
            del self._since[number]

    async def _there(self, pattern: str) -> set[str]:
        """Return, and delete, the names like *pattern*."""
        rows = await self.server.execute(
            "DELETE FROM tests_author WHERE name LIKE %s AND (name LIKE '%%-next-%%') = %s"
            " RETURNING name",
            [pattern, "next" in pattern],
        )
        return {name for (name,) in await rows.fetchall()}

    async def _kill(self, seconds: float) -> None:
        """End a backend of ours that is in a transaction, after *seconds*."""
        await asyncio.sleep(seconds)
        cursor = await self.server.execute(
            "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE application_name = %s AND xact_start IS NOT NULL ORDER BY random() LIMIT 1) _",
            [APPLICATION_NAME],
        )
        self.report.counts["kills"] += len(await cursor.fetchall())
