"""The programs of the comparison of nests: blocks in blocks, drawn by a number.

A program runs on Django's own backend in a thread, and on this one bridged: as a whole, or step by
step, with some of its steps in tasks and threads that are part of the transaction.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from asgiref.sync import sync_to_async
from django.db import transaction

from pgbackend import bridged
from pgbackend.transaction import deferred_savepoint
from tests.faults.nests_acts import (
    DRAWN,
    OF_DEFERRED,
    OF_THE_TASK,
    REFUSED,
    WITH_BLOCKS,
    Acts,
    look,
)

# How deep blocks nest.
DEPTH = 5


class Planned(Exception):
    """What a block raises because its program says so."""


class Ended(Exception):
    """What ends a transaction where it has to end."""


class Act(NamedTuple):
    """One act, how it is done, and whether the block goes on after an error."""

    name: str
    x: float
    is_caught: bool


class Block(NamedTuple):
    """A block of a *kind*, a method `Program.in_...`, which may raise at its end."""

    kind: str
    parts: list[Any]
    raises: bool
    is_caught: bool

    @property
    def name(self) -> str:
        return self.kind


def draw(number: int) -> list[Block]:
    """Return the transactions of a program."""
    rng = random.Random(number)
    return [
        Block(
            "atomic" if rng.random() < 0.8 else "by_hand",
            _draw_parts(rng, 1, DRAWN),
            rng.random() < 0.15,
            True,
        )
        for _ in range(3)
    ]


def _draw_parts(rng: random.Random, depth: int, drawn_from: list[str]) -> list[Any]:
    parts: list[Any] = []
    # An error of a statement in a deferred savepoint leaves it.
    caught = 0.6 if drawn_from is DRAWN else 0.0
    for _ in range(rng.randint(0, 5)):
        if rng.random() < 0.4 and depth < DEPTH:
            kind = rng.choices(KINDS, WEIGHTS)[0]
            if drawn_from is OF_DEFERRED and kind in ("psycopg", "part"):
                kind = "atomic"
            inside = OF_DEFERRED if kind == "deferred" else drawn_from
            nested = _draw_parts(rng, depth + 1, inside)
            parts.append(Block(kind, nested, rng.random() < 0.25, rng.random() < 0.7))
        else:
            parts.append(Act(rng.choice(drawn_from), rng.random(), rng.random() < caught))
    return parts


# The kinds of blocks in a transaction, and how often each is drawn.
KINDS = ["atomic", "part", "looked_at", "logged", "deferred", "psycopg"]
WEIGHTS = [70, 10, 5, 5, 7, 3]


class Program(Acts):
    """What is drawn by *number*, as it is done by one alias; *how* draws where its steps run."""

    def __init__(self, alias: str, number: int, *, ours: bool) -> None:
        super().__init__(alias, ours=ours)
        self.transactions = draw(number)
        self.how = random.Random(number + 1)
        # What it does now.
        self.doing: Any = None
        self.steps = 0

    # The kinds of blocks

    def in_atomic(self) -> AbstractContextManager[None]:
        block: AbstractContextManager[None] = transaction.atomic(using=self.alias)
        return block

    def in_part(self) -> AbstractContextManager[None]:
        block: AbstractContextManager[None] = transaction.atomic(using=self.alias, savepoint=False)
        return block

    def in_looked_at(self) -> AbstractContextManager[None]:
        block: AbstractContextManager[None] = self.wrapper.execute_wrapper(look)
        return block

    @contextmanager
    def in_logged(self) -> Iterator[None]:
        before, self.wrapper.force_debug_cursor = self.wrapper.force_debug_cursor, True
        try:
            yield
        finally:
            self.wrapper.force_debug_cursor = before

    @contextmanager
    def in_deferred(self) -> Iterator[None]:
        if not self.ours or not self.wrapper.in_atomic_block:
            with self.in_atomic():
                yield
            return
        self.deferred += 1
        try:
            with deferred_savepoint(self.alias):
                yield
        finally:
            self.deferred -= 1

    def in_psycopg(self) -> AbstractContextManager[None]:
        block: AbstractContextManager[None] = self.raw.transaction()
        return block

    @contextmanager
    def in_by_hand(self) -> Iterator[None]:
        wrapper = self.wrapper
        wrapper.set_autocommit(False)
        try:
            yield
            wrapper.commit()
        finally:
            wrapper.rollback()
            wrapper.set_autocommit(True)

    # In a thread, and bridged as a whole

    def run(self, step: Any) -> None:
        """Do *step*, note its outcome, and raise its error unless that is caught."""
        with self._noted(step):
            if isinstance(step, Block):
                self._run_block(step)
            else:
                self._do(step)

    def _may_enter(self, block: Block) -> bool:
        """Return whether a block does the same with both backends.

        In a broken transaction Django says at once that it cannot set a savepoint, where
        `deferred_savepoint` leaves that to the first statement. With autocommit off, Django's block
        is half entered then.
        """
        if block.kind != "deferred" and self.wrapper.in_atomic_block:
            return True
        return self.wrapper.get_autocommit() or not self.is_broken

    def _may_do(self, act: Act) -> bool:
        """Return whether an act does the same; see `_may_enter`."""
        return act.name not in WITH_BLOCKS or self.wrapper.in_atomic_block or not self.is_broken

    def _do(self, act: Act) -> None:
        if not self._may_do(act):
            return
        self.log.append((act.name, getattr(self, f"act_{act.name}")(act.x)))

    def _run_block(self, block: Block) -> None:
        if not self._may_enter(block):
            return
        with getattr(self, f"in_{block.kind}")():
            for each in block.parts:
                self.run(each)
            if block.raises:
                raise Planned
        self.log.append(("left", self.act_state(0)))

    @contextmanager
    def _noted(self, step: Any) -> Iterator[None]:
        self.doing = step
        self.steps += 1
        try:
            yield
        except Ended:
            raise
        except Exception as error:
            self.log.append((step.name, outcome := self.outcome(error)))
            if outcome == REFUSED:
                self.ends_at = len(self.log)
            if not step.is_caught and self.ends_at != len(self.log):
                raise
        if len(self.log) == self.ends_at:
            raise Ended

    # Bridged step by step

    async def arun(self, step: Any) -> None:
        """Do *step* as `run` does, somewhere in the transaction."""
        how, in_transaction = self.how.random(), not self.wrapper.get_autocommit()
        with self._noted(step):
            if isinstance(step, Block):
                await self._arun_block(step, how, in_transaction=in_transaction)
            elif how < 0.7 or not in_transaction or step.name in OF_THE_TASK:
                await bridged(self._do)(step)
            elif how < 0.8:
                await sync_to_async(self._do)(step)
            elif how < 0.9:
                await asyncio.to_thread(self._do, step)
            else:
                await asyncio.create_task(bridged(self._do)(step))

    async def _arun_block(self, block: Block, how: float, *, in_transaction: bool) -> None:
        if block.kind not in ("atomic", "part") or how > 0.7:
            await bridged(self._run_block)(block)
            return
        if how < 0.1 and in_transaction:
            await asyncio.create_task(self._awith(block))
        else:
            await self._awith(block)
        self.log.append(("left", self.act_state(0)))

    async def _awith(self, block: Block) -> None:
        async with transaction.atomic(using=self.alias, savepoint=block.kind == "atomic"):
            for each in block.parts:
                await self.arun(each)
            if block.raises:
                raise Planned
