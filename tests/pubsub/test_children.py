"""Tasks that listeners start: they are in its transaction until the listener ends, not after."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
from django.db import Error

from pgbackend.pubsub import Channel, anotify_many, listener
from tests.pubsub.site.jobs import run_sql
from tests.pubsub.site.models import Effect
from tests.support.pubsub import effects, until, working

from .test_worker import counted, rows

# What became of what the tasks tried, and the tasks.
outcomes: Counter[str] = Counter()
tasks: list[asyncio.Task[None]] = []


@dataclass
class Parent(Channel):
    """Its listener starts a task and does not wait for it; 0 begins, and the others follow."""

    lock_notifications = True
    retries = 0
    number: int
    do: str


async def child(do: str) -> None:
    if do == "later":
        # Until another listener of the same transaction runs.
        await asyncio.sleep(0.01)
    try:
        if do == "fail":
            await run_sql("SELECT 1 / (pg_sleep(0.05) IS NULL)::int")
        elif do == "now":
            await run_sql("SELECT pg_sleep(0.05)")
        await Effect.objects.acreate(number=1000)
    except RuntimeError as error:
        outcomes[str(error)[:58]] += 1
    except Error:
        outcomes["failed"] += 1
    else:
        outcomes["written"] += 1


@listener(Parent)
async def parent(number: int, do: str) -> None:
    await Effect.objects.acreate(number=number)
    if number == 0:
        tasks.append(asyncio.create_task(child(do)))
        # So that it sends its first statement, or waits.
        await asyncio.sleep(0.005)
    else:
        await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def forget() -> None:
    outcomes.clear()
    tasks.clear()


@pytest.mark.parametrize("do", ["now", "later"])
async def test_outliving_task(do: str) -> None:
    """A task that outlives its listener is refused, whatever the worker does at that time."""
    # The first one alone, which tells the worker how many it may claim together.
    async with working(Parent) as worker:
        await anotify_many([Parent(n, do) for n in (1, 2, 3, 0, 4, 5, 6)])
        await until(counted(worker, handled=7), worker)
        await asyncio.wait(tasks)
    assert outcomes == {"this task was started inside a transaction that has ended;": 1}
    assert await effects() == list(range(7))


async def test_statement_that_fails_late() -> None:
    """A statement that a task had begun is its listener's: where it fails, no other one does."""
    async with working(Parent) as worker:
        await anotify_many([Parent(n, "fail") for n in (1, 2, 3, 0, 4, 5, 6)])
        await until(counted(worker, handled=6, dead=1), worker)
        await asyncio.wait(tasks)
    assert outcomes == {"failed": 1}
    assert await effects() == list(range(1, 7))
    assert [each.payload["kwargs"]["number"] for each in await rows()] == [0]
