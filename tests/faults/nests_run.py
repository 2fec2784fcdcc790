"""The comparison of nests: programs of nested blocks, here and on Django's own backend.

After each transaction of a program what its steps returned and raised is compared, and the rows of
the table. One difference is meant: Django takes it for success if the server answers COMMIT with
ROLLBACK, where this backend raises `NotCommitted`. The rows are the same then.
"""

from __future__ import annotations

import asyncio
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db import connections

from pgbackend import bridged
from tests.differential.databases import OURS, STOCK, Databases
from tests.faults.nests_acts import KEPT
from tests.faults.nests_program import Block, Ended, Program
from tests.models import Author, Book, Tag

# Seconds after which a transaction of a few milliseconds counts as hung.
HUNG = 20.0

# How many differences end a run.
ENOUGH = 20


@dataclass
class Report:
    """What was run, and each difference."""

    seed: int
    programs: int = 0
    transactions: int = 0
    refused: int = 0
    steps: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"comparison of nests, seed {self.seed}, {self.seconds:.1f} s:"
                f" {self.programs} programs, {self.transactions} transactions,"
                f" {self.steps} steps, {self.refused} commits refused:"
                f" {len(self.differences)} differences",
                *self.differences,
            ]
        )


# How a block ends with Django's backend that cannot release its savepoint.
DEFERRED = ("deferred", ("InternalError", "25P02", None))


class Nests(Databases):
    """Two databases, and the programs that are compared on them."""

    def __init__(self, dsn: str, *, binding: bool = False) -> None:
        common = {"server_side_binding": True} if binding else {}
        super().__init__(dsn, options={"pool": {"max_size": 4}}, common=common)
        self.report = Report(0)

    def create_tables(self, alias: str) -> None:
        """Make the table of authors, and those that Django looks into when it deletes one."""
        with connections[alias].schema_editor() as editor:
            for model in (ContentType, Author, Book, Tag):
                editor.create_model(model)

    def run(
        self,
        loop_factory: Callable[[], asyncio.AbstractEventLoop],
        seed: int,
        *,
        programs: int = 10**9,
        seconds: float = float("inf"),
        only: int | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> Report:
        """Compare so many *programs*, or as many as *seconds* hold, or *only* that of a number."""
        self.report = Report(seed)
        with warnings.catch_warnings(), asyncio.Runner(loop_factory=loop_factory) as runner:
            # A transaction that raw SQL has ended makes the server warn, and psycopg.
            warnings.simplefilter("ignore")
            runner.run(self._run(programs, seconds, only, progress))
        return self.report

    async def _run(
        self,
        programs: int,
        seconds: float,
        only: int | None,
        progress: Callable[[str], None] | None,
    ) -> None:
        report, began, said = self.report, time.monotonic(), 0.0
        try:
            for number in range(programs) if only is None else [only]:
                report.seconds = time.monotonic() - began
                if report.seconds > seconds or len(report.differences) >= ENOUGH:
                    return
                if progress is not None and report.seconds - said > 10:
                    said = report.seconds
                    progress(f"{report.programs} programs, {len(report.differences)} differences")
                await self._compare(number)
                report.programs += 1
        finally:
            report.seconds = time.monotonic() - began
            await self._in_thread(connections.close_all)
            await bridged(connections[OURS].close_pool)()

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, function, *args)

    async def _compare(self, number: int) -> None:
        for conn in self.tables:
            conn.execute("SET lock_timeout = '5s'; TRUNCATE tests_author CASCADE")
            conn.execute("INSERT INTO tests_author (name) SELECT unnest(%s::text[])", [KEPT])
        drawn_by = self.report.seed * 2**32 + number
        stock = Program(STOCK, drawn_by, ours=False)
        ours = Program(OURS, drawn_by, ours=True)
        as_a_whole = number % 3 == 0
        for index, block in enumerate(ours.transactions):
            ours.begin()
            stock.begin()
            await self._run_ours(ours, block, as_a_whole=as_a_whole)
            stock.ends_at = ours.ends_at
            await self._in_thread(_run_stock, stock, block)
            self.report.transactions += 1
            if ours.ends_at >= 0:
                self.report.refused += 1
                _forget_success(stock.log, ours.log)
            rows = [
                conn.execute("SELECT name FROM tests_author ORDER BY name").fetchall()
                for conn in self.tables
            ]
            if stock.log != ours.log or rows[0] != rows[1]:
                self.report.differences.append(
                    f"--- seed {self.report.seed}, program {number}, transaction {index}:\n"
                    f"{_described(stock.log, ours.log, rows)}"
                )
                break
        self.report.steps += ours.steps

    async def _run_ours(self, program: Program, block: Block, *, as_a_whole: bool) -> None:
        async def run() -> None:
            with suppress(Ended):
                if as_a_whole or block.kind == "by_hand":
                    await bridged(program.run)(block)
                else:
                    await program.arun(block)
            await bridged(program.forget)()

        try:
            async with asyncio.timeout(HUNG):
                # A task of its own has a state of its own.
                await asyncio.create_task(run())
        except Exception as error:
            program.log.append(("end", program.doing, "".join(traceback.format_exception(error))))


def _run_stock(program: Program, block: Block) -> None:
    try:
        with suppress(Ended):
            program.run(block)
        program.forget()
    finally:
        wrapper = connections[STOCK]
        raw = wrapper.connection
        if wrapper.in_atomic_block or raw is None or raw.closed or raw.pgconn.transaction_status:
            # The next one begins with a state of its own, as tasks do here.
            wrapper.close()
            del connections[STOCK]


def _forget_success(stock: list[Any], ours: list[Any]) -> None:
    """Remove what differs where this backend raises, and Django's does not."""
    ours.pop()
    if stock[-1][0] == "left" or stock[-1] == DEFERRED:
        stock.pop()
    while stock[-1:] and stock[-1][0] == "hook":
        # Of a transaction that was rolled back.
        stock.pop()


def _described(stock: list[Any], ours: list[Any], rows: list[list[Any]]) -> str:
    same = 0
    for one, other in zip(stock, ours, strict=False):
        if one != other:
            break
        same += 1
    lines = [f"  both  {each}" for each in ours[max(0, same - 12) : same]]
    lines += [f"  stock {each}" for each in stock[same : same + 3]]
    lines += [f"  ours  {each}" for each in ours[same : same + 3]]
    missing, more = (
        sorted({name for (name,) in one} - {name for (name,) in other})
        for one, other in (rows, rows[::-1])
    )
    return "\n".join([*lines, f"  rows that are missing here: {missing}; that are more: {more}"])
