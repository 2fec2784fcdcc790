"""Transactions against a model of them: Hypothesis chooses who does what, and in which order.

Each rule has one task do one thing and waits for it: enter an atomic() and leave it, write, break a
constraint, be cancelled in mid-statement, make savepoints, start tasks. The model is told as well,
and after each rule says which rows others must see and which hooks must have been called.

PGBACKEND_MACHINE_EXAMPLES sets the number of examples (60), PGBACKEND_MACHINE_STEPS that of rules
in each (40); PGBACKEND_MACHINE_SEED repeats a run whose seed was printed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgbackend import bridged
from pgbackend.transaction import aon_commit, asavepoint, asavepoint_commit, asavepoint_rollback
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import DATABASES, NAME

EXAMPLES = int(os.environ.get("PGBACKEND_MACHINE_EXAMPLES", "60"))
STEPS = int(os.environ.get("PGBACKEND_MACHINE_STEPS", "40"))

# How long anything may take, seconds.

# Blocks within each other, and tasks within the transaction.
DEPTH = 5
CHILDREN = 3


class ApplicationError(Exception):
    """The application's own, raised inside a block."""


class Actor:
    """A task that does what it is told, one thing after another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: list[Any] = []
        self.orders: asyncio.Queue[Any] = asyncio.Queue()
        self.task = asyncio.create_task(self._work(), name=name)

    def __repr__(self) -> str:
        return self.name

    async def _work(self) -> None:
        while True:
            order, answer = await self.orders.get()
            if order is None:
                answer.set_result(None)
                return
            try:
                result = await order()
            except asyncio.CancelledError as error:
                self.task.uncancel()
                answer.set_result(error)
            except Exception as error:
                answer.set_result(error)
            else:
                answer.set_result(result)

    def tell(self, order: Callable[[], Awaitable[Any]] | None) -> asyncio.Future[Any]:
        """Have the task await *order()*; the future gets its result, or its error as one."""
        answer = asyncio.get_running_loop().create_future()
        self.orders.put_nowait((order, answer))
        return answer

    async def enter(self, **options: bool) -> None:
        block = transaction.atomic(**options)
        await block.__aenter__()
        self.blocks.append(block)

    async def leave(self, error: BaseException | None = None) -> None:
        arguments = (None, None, None) if error is None else (type(error), error, None)
        await self.blocks.pop().__aexit__(*arguments)

    async def sleep_and_leave(self) -> None:
        """Be cancelled in a statement, and let that leave the innermost block."""
        try:
            await sleep()
        except asyncio.CancelledError as error:
            await self.leave(error)
            raise


@bridged
def sleep() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(600)")


@dataclass(eq=False)
class Frame:
    """The model of a block: what was done in it and is not yet part of the one around it."""

    actor: Actor
    # Whether it made a savepoint; the outermost one is the transaction itself.
    savepoint: bool
    names: list[str] = field(default_factory=list)
    # Savepoints by hand: their ids, and how many names there were.
    marks: list[tuple[str, int]] = field(default_factory=list)


class TransactionMachine(RuleBasedStateMachine):
    """One transaction at a time, of one task and those that join it; and bystanders."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = psycopg.connect(
            os.environ["PGBACKEND_TEST_DSN"], dbname=DATABASES[0], autocommit=True
        )
        # The model.
        self.committed: set[str] = set()
        self.frames: list[Frame] = []
        self.broken = False
        # Hooks, with the frames whose savepoint they fall with; and those that were called.
        self.hooks: list[tuple[int, list[Frame]]] = []
        self.due: list[int] = []
        self.called: list[int] = []
        # Tasks in the transaction, with the frames that were open when they were started; and
        # those that outlived theirs.
        self.children: dict[Actor, list[Frame]] = {}
        self.late: list[Actor] = []
        self.numbers = 0

    @initialize()
    def begin(self) -> None:
        self.owner = self.run(self._start("owner"))

    async def _start(self, name: str) -> Actor:
        return Actor(name)

    def run(self, coro: Any) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(PATIENCE):
                return await coro

        return self.runner.run(bounded())

    def do(self, actor: Actor, order: Callable[[], Awaitable[Any]]) -> Any:
        """Return what *order* returns or raises in the actor's task."""

        async def told() -> Any:
            return await actor.tell(order)

        return self.run(told())

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # The model

    def has_turn(self, actor: Actor) -> bool:
        """Whether the top frame is the actor's own or was there when it was started."""
        if actor is not self.owner and actor not in self.children:
            return False
        top = self.frames[-1] if self.frames else None
        return top is None or top.actor is actor or top in self.children.get(actor, [])

    def acting(self) -> list[Actor]:
        return [each for each in (self.owner, *self.children) if self.has_turn(each)]

    def draw(self, data: Any, actors: list[Actor]) -> Actor:
        actor: Actor = data.draw(st.sampled_from(actors), label="actor")
        return actor

    def pending(self) -> list[str]:
        return [name for frame in self.frames for name in frame.names]

    def leave_frame(self, *, failed: bool) -> None:
        """Do what Django documents for the end of the innermost block."""
        frame = self.frames.pop()
        failed, self.broken = failed or self.broken, False
        if not self.frames:
            if not failed:
                self.committed.update(frame.names)
                self.due += [number for number, _ in self.hooks]
            self.hooks.clear()
            self.late += self.children
            self.children.clear()
        elif failed and frame.savepoint:
            self.hooks = [each for each in self.hooks if frame not in each[1]]
        else:
            self.frames[-1].names += frame.names
            self.broken = failed
        # Tasks that were started in it have an ended block around them, but the transaction's turn.

    # Blocks

    @rule(data=st.data(), kind=st.sampled_from(["plain", "plain", "no savepoint", "durable"]))
    @precondition(lambda self: len(self.frames) < DEPTH)
    def enter(self, data: Any, kind: str) -> None:
        actor = self.draw(data, self.acting())
        options = {"plain": {}, "no savepoint": {"savepoint": False}, "durable": {"durable": True}}
        answer = self.do(actor, lambda: actor.enter(**options[kind]))
        if kind == "durable" and self.frames:
            assert isinstance(answer, RuntimeError), answer
            return
        assert answer is None, answer
        saved = bool(self.frames) and kind == "plain" and not self.broken
        self.frames.append(Frame(actor, saved))

    @rule(error=st.sampled_from([None, None, ApplicationError()]))
    @precondition(lambda self: self.frames)
    def leave(self, error: Exception | None) -> None:
        actor = self.frames[-1].actor
        answer = self.do(actor, lambda: actor.leave(error))
        assert answer is None, answer
        self.leave_frame(failed=error is not None)

    @rule()
    @precondition(lambda self: self.frames and not self.broken)
    def cancel(self) -> None:
        actor = self.frames[-1].actor

        async def cancelled() -> Any:
            answer = actor.tell(actor.sleep_and_leave)
            while not self.sleeping():
                await asyncio.sleep(0.001)
            actor.task.cancel()
            return await answer

        answer = self.run(cancelled())
        assert isinstance(answer, asyncio.CancelledError), answer
        assert not self.sleeping()
        self.leave_frame(failed=True)

    def sleeping(self) -> bool:
        query = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state = 'active'"
            " AND query = 'SELECT pg_sleep(600)'"
        )
        return self.server.execute(query, [NAME]).fetchone() is not None

    @rule(error=st.sampled_from([None, ApplicationError()]))
    @precondition(
        lambda self: (
            len([each for each in self.frames if each.actor is self.owner]) == 1
            and self.frames[-1].actor is not self.owner
        )
    )
    def fail_around_children(self, error: Exception | None) -> None:
        """The owner's block fails while a child is inside blocks of its own."""
        frames = self.frames.copy()
        answer = self.do(self.owner, lambda: self.owner.leave(ApplicationError()))
        assert answer is None, answer
        del self.frames[1:]
        self.leave_frame(failed=True)
        for frame in reversed(frames[1:]):
            answer = self.do(frame.actor, lambda actor=frame.actor: actor.leave(error))
            assert isinstance(answer, RuntimeError) == (error is None), answer

    # Statements

    @rule(data=st.data())
    def write(self, data: Any) -> None:
        actor, name = self.draw(data, self.acting()), f"n{self.number()}"
        answer = self.do(actor, lambda: Author.objects.acreate(name=name))
        if self.broken:
            assert isinstance(answer, TransactionManagementError), answer
        elif self.frames:
            assert isinstance(answer, Author), answer
            self.frames[-1].names.append(name)
        else:
            assert isinstance(answer, Author), answer
            self.committed.add(name)

    @rule(data=st.data())
    @precondition(lambda self: not self.broken and (self.committed or self.pending()))
    def break_a_constraint(self, data: Any) -> None:
        actor = self.draw(data, self.acting())
        name = data.draw(st.sampled_from(sorted(self.committed) + self.pending()))
        answer = self.do(actor, lambda: Author.objects.acreate(name=name))
        assert isinstance(answer, IntegrityError), answer
        self.broken = bool(self.frames)

    @rule(data=st.data())
    def look(self, data: Any) -> None:
        actor = self.draw(data, self.acting())
        answer = self.do(actor, names)
        if self.broken:
            assert isinstance(answer, TransactionManagementError), answer
        else:
            assert answer == self.committed | set(self.pending())

    @rule()
    @precondition(lambda self: self.frames and not self.broken)
    def set_rollback(self) -> None:
        self.do(self.frames[-1].actor, lambda: bridged(transaction.set_rollback)(True))
        self.broken = True

    @rule()
    def write_beside(self) -> None:
        """A task that is not of the transaction commits at once."""
        name = f"n{self.number()}"
        self.run(Author.objects.acreate(name=name))
        self.committed.add(name)

    @rule()
    @precondition(lambda self: self.late)
    def write_late(self) -> None:
        """A task that has outlived its transaction is refused."""
        actor = self.late.pop()
        answer = self.do(actor, lambda: Author.objects.acreate(name="late"))
        assert isinstance(answer, RuntimeError), answer
        self.end(actor)

    # Savepoints by hand

    @rule()
    @precondition(lambda self: self.frames and not self.broken)
    def mark(self) -> None:
        frame = self.frames[-1]
        sid = self.do(frame.actor, asavepoint)
        assert isinstance(sid, str), sid
        frame.marks.append((sid, len(frame.names)))

    @rule(data=st.data(), back=st.booleans())
    @precondition(lambda self: self.frames and self.frames[-1].marks)
    def return_to_mark(self, data: Any, back: bool) -> None:
        """Roll back to a savepoint, as Django documents also after an error; or release it."""
        frame = self.frames[-1]
        place = data.draw(st.integers(0, len(frame.marks) - 1))
        sid, length = frame.marks[place]
        if back:

            async def roll_back() -> None:
                await bridged(transaction.set_rollback)(False)
                await asavepoint_rollback(sid)

            assert self.do(frame.actor, roll_back) is None
            del frame.names[length:], frame.marks[place + 1 :]
            self.broken = False
        elif not self.broken:
            assert self.do(frame.actor, lambda: asavepoint_commit(sid)) is None
            del frame.marks[place:]

    # Hooks

    @rule(data=st.data(), asynchronous=st.booleans())
    def on_commit(self, data: Any, asynchronous: bool) -> None:
        actor, number = self.draw(data, self.acting()), self.number()

        async def hook() -> None:
            await asyncio.sleep(0)
            self.called.append(number)

        function = hook if asynchronous else lambda: self.called.append(number)
        assert self.do(actor, lambda: aon_commit(function)) is None
        if self.frames:
            self.hooks.append((number, [each for each in self.frames if each.savepoint]))
        else:
            self.due.append(number)

    # Tasks

    @rule(data=st.data())
    @precondition(lambda self: self.frames and len(self.children) < CHILDREN)
    def start_child(self, data: Any) -> None:
        actor = self.draw(data, self.acting())
        child = self.do(actor, lambda: self._start(f"child {self.number()}"))
        assert isinstance(child, Actor), child
        # Its ancestors' frames: those of who starts it, and of those who started that one.
        around = [*self.children.get(actor, []), *(f for f in self.frames if f.actor is actor)]
        self.children[child] = [each for each in around if each in self.frames]

    @rule(data=st.data())
    @precondition(lambda self: self.idle_children())
    def end_child(self, data: Any) -> None:
        child = self.draw(data, self.idle_children())
        del self.children[child]
        self.end(child)

    def idle_children(self) -> list[Actor]:
        return [each for each in self.children if not each.blocks]

    def end(self, actor: Actor) -> None:
        async def ended() -> None:
            await actor.tell(None)
            await actor.task

        self.run(ended())

    @rule(data=st.data(), fail=st.booleans())
    @precondition(lambda self: self.frames and not self.broken)
    def gather(self, data: Any, fail: bool) -> None:
        """Three tasks, of which one writes in a block of its own that may fail."""
        actor = self.draw(data, self.acting())
        first, second, third = (f"n{self.number()}" for _ in range(3))

        async def in_block() -> None:
            async with transaction.atomic():
                await Author.objects.acreate(name=third)
                if fail:
                    raise ApplicationError

        async def gathered() -> Any:
            return await asyncio.gather(
                Author.objects.acreate(name=first),
                in_block(),
                Author.objects.acreate(name=second),
                return_exceptions=True,
            )

        answer = self.do(actor, gathered)
        assert [type(each) for each in answer] == [
            Author,
            ApplicationError if fail else type(None),
            Author,
        ], answer
        self.frames[-1].names += [first, second] if fail else [first, second, third]

    # What must hold

    @invariant()
    def others_see_what_is_committed(self) -> None:
        rows = self.server.execute("SELECT name FROM tests_author").fetchall()
        assert {name for (name,) in rows} == self.committed

    @invariant()
    def hooks_are_called_once_for_each_commit(self) -> None:
        assert self.called == self.due

    def teardown(self) -> None:
        try:
            while self.frames:
                self.leave(error=ApplicationError())
                self.others_see_what_is_committed()
            for actor in (self.owner, *self.children, *self.late):
                self.end(actor)
            stats = self.run(_stats())
            assert stats["pool_available"] == stats["pool_size"], stats
            assert stats["requests_waiting"] == 0
        finally:
            self.runner.close()
            self.server.execute("TRUNCATE tests_author CASCADE")
            self.server.close()


async def names() -> set[str]:
    return {name async for name in Author.objects.values_list("name", flat=True)}


async def _stats() -> dict[str, int]:
    """Return the pool's statistics when all connections are back."""
    while True:
        stats: dict[str, int] = connection.async_pool.get_stats()
        if stats["pool_available"] == stats["pool_size"]:
            return stats
        await asyncio.sleep(0.001)


@pytest.mark.timeout(900)
def test_transactions_are_those_of_the_model(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever tasks do in a transaction, what is committed is what the model says."""
    number = int(os.environ.get("PGBACKEND_MACHINE_SEED") or random.SystemRandom().getrandbits(32))
    with capfd.disabled():
        print(f"\ntransactions by a model, seed {number}, {EXAMPLES} examples", flush=True)
    run_state_machine_as_test(
        seed(number)(TransactionMachine),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
