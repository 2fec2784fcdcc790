"""Running programs on both backends and comparing what they come to, and their tables after."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.db import connections
from psycopg import sql

from tests.differential.databases import OURS, STOCK, Databases
from tests.differential.models import Models, make_models
from tests.differential.operations import Block, Operation, Place, Programs

# How many operations a program has by default, and how many programs run at once.
LENGTH = 40
AT_ONCE = 20


@dataclass
class Report:
    """What was run, and each difference: the seed, where, and what it was on either backend."""

    operations: Counter[str] = field(default_factory=Counter)
    programs: int = 0
    exceptions: int = 0
    rows: int = 0
    differences: list[str] = field(default_factory=list)

    def count(self, program: list[Operation], outcomes: list[Any]) -> None:
        self.programs += 1
        # A block that could not be entered has one outcome, an error, which is that of no part.
        for operation, outcome in zip(program, outcomes, strict=False):
            self.operations[operation.name.split()[0].rstrip(",")] += 1
            if isinstance(operation, Block) and isinstance(outcome, list):
                self.count(operation.parts or [], outcome[: len(operation.parts or [])])
                self.programs -= 1
            elif isinstance(outcome, tuple) and "." in str(outcome[0]):
                self.exceptions += 1

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {count}" for name, count in self.operations.most_common())
        return (
            f"{self.operations.total()} operations in {self.programs} programs ({kinds});"
            f" {self.exceptions} exceptions; {self.rows} rows of tables;"
            f" {len(self.differences)} differences"
        )


class Comparison(Databases):
    """Two databases with the same tables, one for each backend."""

    def __init__(self, dsn: str, *, options: dict[str, Any] | None = None) -> None:
        super().__init__(dsn, options=options or {"pool": {"max_size": 8}}, common={})
        self._sets = [make_models(f"w{number}") for number in range(AT_ONCE)]
        self.report = Report()

    def create_tables(self, alias: str) -> None:
        """Make the tables of all sets."""
        for models in self._sets:
            models.create_tables(alias)

    async def run(
        self, seed: int, operations: int, *, length: int = LENGTH, seconds: float = float("inf")
    ) -> Report:
        """Run programs of *length* operations until there were so many *operations* or *seconds*.

        By turns, one alone and `AT_ONCE` that share the pool.
        """
        programs = Programs(seed)
        until = time.monotonic() + seconds
        self.report = Report()
        try:
            while self.report.operations.total() < operations and time.monotonic() < until:
                await self._compare(seed, [programs.program(length)])
                if self.report.operations.total() < operations and time.monotonic() < until:
                    await self._compare(seed, [programs.program(length) for _ in range(AT_ONCE)])
        finally:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.thread, connections.close_all)
        return self.report

    async def _compare(self, seed: int, programs: list[list[Operation]]) -> None:
        sets = self._sets[: len(programs)]
        self._empty(sets)
        loop = asyncio.get_running_loop()
        expected = await loop.run_in_executor(self.thread, self._run_stock, programs)
        found = await asyncio.gather(
            *(
                self._run_ours(program, Place(models, OURS))
                for program, models in zip(programs, sets, strict=True)
            )
        )
        for number, (program, ours, stock) in enumerate(
            zip(programs, found, expected, strict=True)
        ):
            self.report.count(program, ours)
            where = f"seed {seed}, program {self.report.programs} ({number} of {len(programs)})"
            for index, operation in enumerate(program):
                if ours[index] != stock[index]:
                    path, one, other = _first_difference(stock[index], ours[index])
                    self.report.differences.append(
                        f"{where}, operation {index}, {operation.name}{path}:"
                        f"\n  stock {one}\n  ours  {other}"
                    )
            before, after = (self._rows(conn, sets[number]) for conn in self.tables)
            self.report.rows += len(after)
            if before != after:
                self.report.differences.append(
                    f"{where}, tables:\n  stock {before - after}\n  ours  {after - before}"
                )

    def _run_stock(self, programs: list[list[Operation]]) -> list[list[Any]]:
        return [
            [operation.run(Place(models, STOCK)) for operation in program]
            for program, models in zip(programs, self._sets, strict=False)
        ]

    async def _run_ours(self, program: list[Operation], place: Place) -> list[Any]:
        return [await operation.arun(place) for operation in program]

    def _tables_of(self, models: Models) -> list[str]:
        through = models.thing._meta.get_field("labels").remote_field.through
        return [each._meta.db_table for each in (*models, through)]

    def _empty(self, sets: list[Models]) -> None:
        names = [name for models in sets for name in self._tables_of(models)]
        tables = sql.SQL(", ").join(map(sql.Identifier, names))
        for conn in self.tables:
            conn.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))

    def _rows(self, conn: psycopg.Connection[Any], models: Models) -> Counter[str]:
        rows: Counter[str] = Counter()
        for name in self._tables_of(models):
            query = sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(name))
            rows.update(f"{name}: {row}" for (row,) in conn.execute(query))
        return rows


def _first_difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any]:
    """Return where two outcomes differ first, and what is there."""
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            if left != right:
                return _first_difference(left, right, f"{path}[{index}]")
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key, left in one.items():
            if left != other[key]:
                return _first_difference(left, other[key], f"{path}[{key}]")
    return path, one, other
