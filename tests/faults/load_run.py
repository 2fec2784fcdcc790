"""One run of the load test: 200 tasks on a pool of 8, and the faults among their operations."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import psycopg
from django.db import Error, connection, connections

from tests.faults import load_bank as bank
from tests.faults.load_checks import Baseline, Complaints, at_rest, check_ledger
from tests.faults.load_faults import (
    BREAKING,
    KINDS,
    Breaker,
    ClosedError,
    Fault,
    befalling,
    befalls,
)
from tests.faults.load_proxy import LoadProxy
from tests.settings import APPLICATION_NAME
from tests.support.client import serving
from tests.support.limits import PATIENCE
from tests.support.loops import new_loop
from tests.support.server import DATABASES

TASKS = 200
POOL = 8
OPERATIONS = 20_000
FAULTS = 200

# Operations without faults before the baseline is taken, and their first number.
WARM_UP = 400
_EXTRA = 10**9

# How long an operation may take, seconds.
BOUND = 60.0

# Between two lines of progress, seconds.
_PROGRESS = 5.0

# The operations that may use asyncio.gather.
_GATHERING = ("read", "transfer gathered")

# Of a hundred operations.
MIX = {
    "transfer flat": 8,
    "transfer nested": 2,
    "transfer gathered": 2,
    "transfer synchronous": 8,
    "read": 60,
    "stream": 3,
    "session": 2,
    "GET transfer": 4,
    "GET total": 9,
    "GET stream": 2,
}


@dataclass
class Report:
    """What happened in a run, and which invariants of `faults.md` did not hold."""

    seed: int
    loop: str
    seconds: float = 0.0
    longest: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    # Connections that were broken, and operations that failed, by error.
    breaks: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    logged: Counter[str] = field(default_factory=Counter)
    # How many more objects there were after it than before.
    objects: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        done = self.operations.total()
        return "\n".join(
            [
                f"seed {self.seed}, {self.loop}: {done} operations in {self.seconds:.1f} s,"
                f" {done / self.seconds:.0f} a second, the longest {self.longest:.1f} s",
                f"operations: {_listed(self.operations)}",
                f"faults: {self.faults.total()}: {_listed(self.faults)}",
                f"transfers: {_listed(self.outcomes)}, lost {self.outcomes['lost']}",
                f"connections broken: {self.breaks}; operations failed: {_listed(self.errors)}",
                f"warnings and errors logged: {_listed(self.logged)}",
                f"objects left: {self.objects}",
                f"invariants broken: {len(self.broken)}",
                *self.broken[:50],
            ]
        )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.most_common() if n) or "none"


class Load:
    """One run. `run` does everything; `stop` lets it end early."""

    def __init__(
        self,
        seed: int,
        operations: int = OPERATIONS,
        faults: int = FAULTS,
        *,
        loop: str = "asyncio",
        minutes: float | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.loop = loop
        self.operations = operations
        self.faults = faults
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.progress = progress
        self.report = Report(seed, loop)
        self.stopped = False
        # Faults, by the number of an operation in its block; and those whose operation had
        # ended before they were due.
        self.plan: dict[int, Fault] = {}
        self.missed: list[Fault] = []
        # The tasks at work: since when, and on what.
        self.in_flight: dict[asyncio.Task[Any], tuple[float, str]] = {}

    def stop(self) -> None:
        """Begin no more operations."""
        self.stopped = True

    def run(self) -> Report:
        """Run the operations on an event loop of their own and check what must hold then."""
        complaints = Complaints()
        with (
            complaints.collected(),
            serving(ROOT_URLCONF="tests.faults.load_bank", MIDDLEWARE=[]) as self.client,
            _bank(self.seed) as self.proxy,
            asyncio.Runner(loop_factory=lambda: new_loop(self.loop)) as runner,
        ):
            loop = runner.get_loop()
            loop.set_exception_handler(complaints.of_loop)
            if self.progress is not None:
                loop.add_signal_handler(signal.SIGINT, self.stop)
            runner.run(self._run())
        self.report.broken += [f"8: {each}" for each in complaints]
        self.report.logged = complaints.logged
        return self.report

    async def _run(self) -> None:
        report = self.report
        server = await psycopg.AsyncConnection.connect(
            os.environ["PGBACKEND_TEST_DSN"], dbname=DATABASES[0], autocommit=True
        )
        self.breaker = Breaker(server, self.proxy, APPLICATION_NAME)
        async with server:
            extra = itertools.count(_EXTRA)
            await self._work_off(itertools.islice(extra, WARM_UP))
            report.broken += await at_rest(server, APPLICATION_NAME, POOL)
            report.operations.clear()
            before = Baseline()
            began = time.monotonic()
            watching = asyncio.create_task(self._watch())
            await self._work_off(self._numbers())
            while self.missed:
                await self._work_off(itertools.islice(extra, len(self.missed)))
            watching.cancel()
            await asyncio.wait([watching])
            await self.breaker.settle()
            report.seconds = time.monotonic() - began
            report.breaks = self.breaker.broken
            done = report.operations.copy()
            # The first borrower finds what broke while it was idle.
            await self._work_off(itertools.islice(extra, WARM_UP))
            report.operations = done
            report.broken += await at_rest(server, APPLICATION_NAME, POOL)
            report.broken += await check_ledger(bank.ledger)
            report.outcomes = bank.ledger.counts + Counter(
                each.outcome for each in bank.ledger.entries.values()
            )
            bank.ledger.entries.clear()
            bank.ledger.counts.clear()
            # What is left of it, if the run was stopped.
            self.plan.clear()
            if report.errors.total() > report.breaks:
                report.broken.append("10: more operations failed than connections were broken")
            after = await self._at_rest_again(before)
            report.objects = after.objects - before.objects
            report.broken += after.compare(before, report.operations.total())
            await connection.async_pool.close()

    async def _at_rest_again(self, before: Baseline) -> Baseline:
        """Return what there is when it is no more than *before*, or after PATIENCE.

        The loop closes sockets some time later.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            after = Baseline()
            more = any(after.compare(before, self.report.operations.total()))
            if not more or time.monotonic() > deadline:
                return after
            await asyncio.sleep(0.1)

    def _numbers(self) -> Iterator[int]:
        number = 0
        while not self.stopped:
            if self.deadline is None:
                if number == self.operations:
                    return
            elif time.monotonic() > self.deadline:
                return
            yield number
            number += 1

    async def _work_off(self, numbers: Iterator[int]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(self._work(numbers))

    async def _work(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._operate(number)

    async def _watch(self) -> None:
        """Print the progress, and stop the load if an operation does not end."""
        while True:
            await asyncio.sleep(_PROGRESS)
            done, report = self.report.operations.total(), self.report
            for task, (began, what) in self.in_flight.items():
                if time.monotonic() - began > BOUND:
                    report.broken.append(f"6: {what} has not ended: {task.get_stack()}")
                    self.stop()
                    task.cancel()
            if self.progress is not None:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                self.progress(
                    f"{done} operations, {report.faults.total()} faults,"
                    f" {report.errors.total()} failed, {len(report.broken)} invariants broken,"
                    f" at most {memory // 1024} MB"
                )

    # Operations

    async def _operate(self, number: int) -> None:
        """Run one operation to its end, with its fault, and count what came of it."""
        rng = random.Random(self.seed * 2**32 + number)
        fault = self._draw(number)
        name, operation = self._choose(number, rng, fault)
        task = asyncio.current_task()
        assert task is not None
        began = time.monotonic()
        self.in_flight[task] = began, f"operation {number} ({name})"
        try:
            if fault is None:
                await operation()
            else:
                await self._befall(fault, name, operation)
        except Error as error:
            self.report.errors[bank.named(error)] += 1
        except (bank.Refused, ClosedError):
            pass
        except bank.BrokenInvariantError as error:
            self.report.broken.append(f"5: operation {number} ({name}): {error}")
        except Exception as error:
            self.report.broken.append(f"operation {number} ({name}): {error!r}")
        finally:
            del self.in_flight[task]
        self.report.operations[name] += 1
        self.report.longest = max(self.report.longest, time.monotonic() - began)

    def _draw(self, number: int) -> Fault | None:
        """Return the fault of an operation; one that missed another, if it has none."""
        block, place = divmod(number, self.operations)
        if number < _EXTRA and place == 0:
            rng = random.Random(f"{self.seed} {block}")
            places = rng.sample(range(self.operations), self.faults)
            kinds = rng.choices(list(KINDS), list(KINDS.values()), k=self.faults)
            self.plan = {place: Fault(kind, rng) for place, kind in zip(places, kinds, strict=True)}
        fault = self.plan.pop(place, None) if number < _EXTRA else None
        return fault if fault is not None or not self.missed else self.missed.pop()

    def _choose(
        self, number: int, rng: random.Random, fault: Fault | None
    ) -> tuple[str, Callable[[], Awaitable[Any]]]:
        special = {
            "statement timeout": bank.time_out,
            "abandon iterator": bank.abandon,
            "deadlock": bank.deadlock,
        }
        if fault is not None and fault.kind in special:
            fault.landed = True
            return fault.kind, functools.partial(special[fault.kind], number, rng)
        name = rng.choices(list(MIX), list(MIX.values()))[0]
        if fault is not None and fault.kind == "disconnect":
            name = rng.choice([each for each in MIX if each.startswith("GET")])
        elif fault is not None and fault.kind == "close coroutine":
            # No `async with` in them: a closed coroutine cannot await its end.
            name = rng.choice(["read", "transfer synchronous"])
        seed = rng.getrandbits(30)
        if name.startswith("GET"):
            style = rng.choice(list(bank.STYLES))
            address = {
                "GET transfer": f"/transfer/{number}/{style}/{seed}/",
                "GET total": "/total/",
                "GET stream": "/stream/",
            }[name]
            return name, functools.partial(self._request, address, fault)
        if name.startswith("transfer"):
            move = bank.Move.of(number, rng)
            return name, lambda: befalls(bank.transfer(name.split()[1], move))
        operation = {"read": bank.read, "stream": bank.stream, "session": bank.session}[name]
        return name, lambda: befalls(operation(number, rng))

    async def _befall(
        self, fault: Fault, name: str, operation: Callable[[], Awaitable[Any]]
    ) -> None:
        """Run *operation* in a task of its own, with *fault*."""

        async def run() -> None:
            befalling.set(fault)
            await operation()

        task = asyncio.get_running_loop().create_task(run(), context=copy_context())
        if fault.kind in ("cancel", "cancel twice"):
            fault.aim(task.cancel)
        elif fault.kind in BREAKING:
            fault.aim(functools.partial(self.breaker.break_one, fault.kind))
        else:
            fault.aim(fault.act)
        await asyncio.wait([task])
        if not fault.landed:
            fault.missed()
            self.missed.append(fault)
        else:
            self.report.faults[fault.kind] += 1
            if fault.kind in ("cancel", "cancel twice"):
                if task.cancelled():
                    return
                # asyncio.gather ends by the error of one of its own that has failed meanwhile,
                # as one does whose connection another fault breaks.
                if name not in _GATHERING or not isinstance(task.exception(), Error):
                    self.report.broken.append(f"6: a cancel() of {name} ended as {task!r}")
        task.result()

    async def _request(self, address: str, fault: Fault | None) -> None:
        """Send a request, in this process; the client goes away if that is its fault."""

        exchange = self.client.open(address)
        if fault is not None and fault.kind == "disconnect":
            fault.aim(exchange.disconnect)
        await exchange.application(*exchange.protocol)
        if fault is not None and fault.landed and fault.kind == "disconnect":
            return
        answer = exchange.answer()
        if answer.status == 503:
            self.report.errors[answer.text] += 1
        elif answer.status != 200:
            raise bank.BrokenInvariantError(f"{address} was answered by {answer.status}")
        elif address == "/stream/" and sum(map(int, answer.text.split())) != bank.TOTAL:
            raise bank.BrokenInvariantError("the sum of the streamed balances was not the bank's")


@contextmanager
def _bank(seed: int) -> Iterator[LoadProxy]:
    """Make the tables, and put a proxy and a pool of 8 before them while the block runs."""

    with connection.schema_editor() as editor:
        for model in (bank.Account, bank.Transfer):
            editor.create_model(model)
    bank.Account.objects.bulk_create(
        bank.Account(balance=bank.BALANCE) for _ in range(bank.ACCOUNTS)
    )
    conf = connections.settings["default"]
    proxy = LoadProxy(conf["HOST"], int(conf["PORT"] or 5432), seed)
    connections.settings["default"] = {
        **conf,
        "HOST": "127.0.0.1",
        "PORT": proxy.port,
        "OPTIONS": {
            **conf["OPTIONS"],
            "pool": {"min_size": POOL, "max_size": POOL, "timeout": BOUND},
            "options": "-c deadlock_timeout=50ms",
        },
    }
    _forget_wrapper()
    try:
        yield proxy
    finally:
        connections.settings["default"] = conf
        _forget_wrapper()
        proxy.close()
        with connection.schema_editor() as editor:
            for model in (bank.Account, bank.Transfer):
                editor.delete_model(model)
        _forget_wrapper()


def _forget_wrapper() -> None:
    """Close what the synchronous path has open, and let the next use find the settings anew."""
    connection.close()
    connection.close_pool()
    del connections["default"]
