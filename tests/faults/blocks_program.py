"""The programs of the fuzz of blocks: what their tasks do, and what they note of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any, Protocol

from django.db import DatabaseError, transaction

from tests.faults.blocks_model import Block, Report, Row, standing
from tests.models import Author
from tests.support.work import execute

# Seconds after which a transaction of a few milliseconds counts as hung.
HUNG = 60.0

# How deep blocks nest, tasks aside.
DEPTH = 4


class Planned(Exception):
    """What a block raises because its program says so."""


# What a program catches, and goes on.
ERRORS = (Planned, TimeoutError, DatabaseError, RuntimeError)


class Listener(Protocol):
    """The run that a program is part of."""

    seed: int
    report: Report
    # The rows of transactions that had to work.
    next_rows: list[str]

    def count(self, error: BaseException) -> None: ...

    def wrong(self, kind: str, words: str) -> None: ...


class Program:
    """One transaction: what its tasks do, drawn by *rng*, and what they were told."""

    def __init__(self, fuzz: Listener, number: int) -> None:
        self.fuzz = fuzz
        self.number = number
        self.rng = random.Random(fuzz.seed * 2**32 + number)
        self.rows: list[Row] = []
        self.hooks: list[Row] = []
        self.ran: Counter[str] = Counter()
        self.blocks: list[Block] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.root: Block | None = None

    async def run(self) -> None:
        """Run it to its end, all of its tasks included, and then a transaction that must work."""
        rng = self.rng
        task = asyncio.current_task()
        assert task is not None
        seconds = rng.random() * 0.02 if rng.random() < 0.1 else HUNG
        cancelling = asyncio.get_running_loop().call_later(seconds, task.cancel)
        try:
            await self.caught(None, 0)
        except asyncio.CancelledError:
            while task.uncancel():
                pass
        finally:
            cancelling.cancel()
        while left := [each for each in self.tasks if not each.done()]:
            await asyncio.wait(left)
        for each in self.tasks:
            # Told to their tasks already.
            _ = each.cancelled() or each.exception()
        await self.next_transaction()

    async def next_transaction(self) -> None:
        """The task's next transaction commits, whatever became of the one before."""
        for attempt in range(5):
            name = f"{self.number}-next-{attempt}"
            try:
                async with transaction.atomic():
                    await Author.objects.acreate(name=name)
            except (DatabaseError, asyncio.CancelledError) as error:
                # Its connection may have been killed, too; a cancellation may come late.
                self.fuzz.count(error)
                task = asyncio.current_task()
                assert task is not None
                while task.uncancel():
                    pass
            else:
                self.fuzz.next_rows.append(name)
                return
        self.fuzz.wrong("other", f"{self.number}: no next transaction")

    async def block(self, here: Block | None, depth: int) -> None:
        """Enter a block, do something in it, and leave it."""
        block = Block(here, savepoint=here is None or self.rng.random() > 0.1)
        self.blocks.append(block)
        if here is None:
            self.root = block
        try:
            async with transaction.atomic(savepoint=block.savepoint):
                block.entered()
                try:
                    await self.body(block, depth)
                    block.body_ended = True
                finally:
                    block.leaving = True
        except BaseException as error:
            block.raised = True
            self.fuzz.count(error)
            raise
        finally:
            block.leaving = block.left = True
            if not block.savepoint and (block.raised or block.broken):
                block.breaks()

    async def caught(self, here: Block | None, depth: int) -> None:
        """Run a block, with a time-out perhaps, and catch what it raises."""
        seconds = self.rng.expovariate(1 / 0.01) if self.rng.random() < 0.35 else None
        try:
            async with asyncio.timeout(seconds):
                await self.block(here, depth + 1)
        except ERRORS:
            pass

    async def body(self, block: Block, depth: int) -> None:
        rng = self.rng
        awaited: list[asyncio.Task[Any]] = []
        for _ in range(rng.randint(1, 5)):
            drawn = rng.random()
            if drawn < 0.4:
                await self.tolerated(self.write(block))
            elif drawn < 0.6 and depth < DEPTH:
                await self.caught(block, depth)
            elif drawn < 0.8:
                child = self.start(self.child(block, depth))
                if rng.random() < 0.6:
                    awaited.append(child)
            elif drawn < 0.85:
                await self.tolerated(execute("SELECT pg_sleep(0.002)"))
            elif drawn < 0.9:
                self.hook(block)
            elif drawn < 0.93:
                await self.tolerated(self.in_thread(block))
            elif drawn < 0.97:
                raise Planned
            else:
                await asyncio.sleep(0)
        if awaited:
            await asyncio.wait(awaited)

    async def tolerated(self, work: Awaitable[Any]) -> None:
        """Await *work*; go on after most of its errors."""
        try:
            await work
        except ERRORS:
            if self.rng.random() < 0.3:
                raise

    def start(self, work: Any) -> asyncio.Task[Any]:
        """Start a child, which may be cancelled some time."""
        task = asyncio.create_task(work)
        self.tasks.append(task)
        if self.rng.random() < 0.25:
            asyncio.get_running_loop().call_later(self.rng.random() * 0.02, task.cancel)
        return task

    async def child(self, here: Block, depth: int) -> None:
        """Do something in the transaction, with and without blocks, longer than *here* perhaps."""
        for _ in range(self.rng.randint(1, 4)):
            drawn = self.rng.random()
            try:
                if drawn < 0.5:
                    await self.write(here)
                elif drawn < 0.85 and depth < DEPTH:
                    await self.caught(here, depth)
                elif drawn < 0.95:
                    await execute("SELECT pg_sleep(0.002)")
                else:
                    await asyncio.sleep(0)
            except ERRORS:
                continue

    async def write(self, here: Block) -> None:
        row = self.row(here)
        try:
            await Author.objects.acreate(name=row.name)
        except BaseException as error:
            self.failed(row, here, error)
            raise
        self.acknowledged(row, here)

    async def in_thread(self, here: Block) -> None:
        """Write in a thread, which goes on when its caller is cancelled."""
        task = asyncio.ensure_future(asyncio.to_thread(self.write_in_thread, here))
        self.tasks.append(task)
        await asyncio.shield(task)

    def write_in_thread(self, here: Block) -> None:
        block = Block(here, savepoint=True)
        self.blocks.append(block)
        try:
            with transaction.atomic():
                block.entered()
                row = self.row(block)
                try:
                    Author.objects.create(name=row.name)
                    self.acknowledged(row, block)
                    block.body_ended = True
                except BaseException as error:
                    self.failed(row, block, error)
                    raise
                finally:
                    block.leaving = True
        except BaseException as error:
            block.raised = True
            self.fuzz.count(error)
            raise
        finally:
            block.leaving = block.left = True

    def row(self, here: Block) -> Row:
        row = Row(f"{self.number}-{len(self.rows)}", standing(here))
        self.rows.append(row)
        return row

    def acknowledged(self, row: Row, here: Block) -> None:
        row.outer = standing(here, left_soon=True) or row.inner
        row.outcome = "acknowledged"
        if row.inner is None:
            self.fuzz.wrong("other", f"{row.name} was written after its transaction had ended")

    def failed(self, row: Row, here: Block, error: BaseException) -> None:
        row.outer = standing(here, left_soon=True) or row.inner
        row.outcome = "cancelled" if isinstance(error, asyncio.CancelledError) else "refused"
        row.error = repr(error)

    def hook(self, block: Block) -> None:
        row = Row(f"hook {len(self.hooks)}", block, block, "acknowledged")
        transaction.on_commit(lambda: self.ran.update([row.name]))
        self.hooks.append(row)

    def check(self, there: set[str]) -> None:
        """Compare what is *there* with what the tasks were told."""
        fuzz = self.fuzz
        fuzz.report.counts["transactions"] += 1
        fuzz.report.counts["rows"] += len(self.rows)
        fuzz.report.counts["blocks"] += len(self.blocks)
        fuzz.report.counts["blocks raised"] += sum(each.raised for each in self.blocks)
        doubt = self.root is not None and self.root.in_doubt
        fuzz.report.counts["in doubt"] += doubt
        must = {row.name for row in self.rows if row.must_be()}
        if doubt and must and not must & there:
            # It was rolled back.
            must = set()
            for row in self.rows:
                if row.name in there:
                    fuzz.wrong("committed", f"{row} is there, others are not")
        for row in self.rows:
            if row.name in there and row.may_not_be():
                fuzz.wrong("committed", f"{row.name}, {row.outcome}, is there: {self.told(row)}")
            if row.name not in there and row.name in must:
                fuzz.wrong("lost", f"{row.name} is not there: {self.told(row)}")
        for row in self.hooks:
            ran = self.ran[row.name]
            if ran > (not row.may_not_be()) or (row.must_be() and not doubt and not ran):
                fuzz.wrong(
                    "other", f"{row.name} of {self.number} ran {ran} times: {self.told(row)}"
                )

    def told(self, row: Row) -> str:
        """Return what became of the blocks around *row*."""
        words = [
            f"{'raised' if each.raised else 'ok'}{' broken' * each.broken}"
            f"{' body ended' * each.body_ended}{' no savepoint' * (not each.savepoint)}"
            for each in (row.inner.up() if row.inner else ())
        ]
        places = {id(block): number for number, block in enumerate(self.blocks)}
        return " < ".join(words) + "".join(
            f"\n      {each.name} in {places.get(id(each.inner))}, {each.outcome} {each.error}"
            for each in self.rows
        )
