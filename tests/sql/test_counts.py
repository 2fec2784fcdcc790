"""What one `aget` does, counted: a slower path shows here without anything being timed.

The ceilings are what was measured, and a little more. Who makes the path shorter lowers them;
who has to raise one says why.
"""

import asyncio
import inspect
import selectors
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import starmap
from operator import gt
from types import FrameType
from typing import Any

import django
import greenlet
import pytest
from django.db import connections

from pgbackend import bridged
from pgbackend.pool.open_pools import open_pools
from tests.models import Author
from tests.ways import calls

# Of so many calls the least of each count is taken: a busy server may send its answer in two
# parts, and the collector may run at any time.
CALLS = 30


class Counts:
    """How often things happened."""

    def __init__(self) -> None:
        # Python functions entered, and coroutines and generators resumed; the loop's own too.
        self.calls = 0
        # Of these, coroutines: each is entered once, and once more for each suspension in it.
        self.coroutine_steps = 0
        self.switches = 0
        # What the selector was told: sockets to wait for, changes, and sockets to forget.
        self.registrations = 0
        # How often the loop looked for events: once for each time that the task waited.
        self.iterations = 0
        self.timers = 0
        self.acquisitions = 0

    def profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.calls += 1
            if frame.f_code.co_flags & inspect.CO_COROUTINE:
                self.coroutine_steps += 1

    def trace(self, event: str, argument: object) -> None:
        self.switches += 1


class CountingSelector(selectors.DefaultSelector):
    """A selector that counts what the event loop does with it."""

    counts = Counts()

    def register(self, *args: Any) -> Any:
        self.counts.registrations += 1
        return super().register(*args)

    def modify(self, *args: Any) -> Any:
        self.counts.registrations += 1
        return super().modify(*args)

    def unregister(self, *args: Any) -> Any:
        self.counts.registrations += 1
        return super().unregister(*args)

    def select(self, *args: Any) -> Any:
        self.counts.iterations += 1
        return super().select(*args)


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts the timers that are set on it, and more by its selector."""

    def __init__(self) -> None:
        self.selector = CountingSelector()
        super().__init__(self.selector)

    def call_at(self, *args: Any, **kwargs: Any) -> Any:
        self.selector.counts.timers += 1
        return super().call_at(*args, **kwargs)


async def count_aget(pk: int) -> Counts:
    """Return the counts of one `aget`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    (pool,) = open_pools("default")
    before = pool.get_stats().get("requests_num", 0)
    counts = loop.selector.counts = Counts()
    previous = greenlet.settrace(counts.trace)
    sys.setprofile(counts.profile)
    try:
        await Author.objects.aget(pk=pk)
    finally:
        sys.setprofile(None)
        greenlet.settrace(previous)
        loop.selector.counts = Counts()
    counts.acquisitions = pool.get_stats()["requests_num"] - before
    return counts


def least(count: Callable[[int], Awaitable[Counts]]) -> dict[str, int]:
    """Return the least of each count over `CALLS` calls on a new loop, after some to warm up."""

    async def main() -> list[dict[str, int]]:
        author = await Author.objects.acreate(name="counted")
        for _ in range(5):
            await count(author.pk)
        return [vars(await count(author.pk)) for _ in range(CALLS)]

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        counted = runner.run(main())
    return {name: min(each[name] for each in counted) for name in counted[0]}


def calls_of_get(alias: str) -> int:
    """Return the Python calls of a synchronous `get` in *alias*, connected, in a thread."""
    counted: list[int] = []

    def count() -> None:
        authors = Author.objects.using(alias)
        author = authors.create(name="counted by get")
        for _ in range(CALLS):
            counts = Counts()
            sys.setprofile(counts.profile)
            authors.get(pk=author.pk)
            sys.setprofile(None)
            counted.append(counts.calls)
        connections[alias].close()

    thread = threading.Thread(target=count)
    thread.start()
    thread.join()
    return min(counted)


# In a task, and in a request, which is one bridge already. "beyond get": Python calls that a `get`
# on Django's own backend does without, or less than none; by version, as Django's own calls differ.
CEILINGS = {
    "task": {
        "coroutine_steps": 7,
        "switches": 4,
        "registrations": 0,
        "iterations": 1,
        "timers": 0,
        "acquisitions": 1,
        "beyond get": {(5, 2): -124, (6, 0): -130, (6, 1): -120},
    },
    "request": {
        "coroutine_steps": 8,
        "switches": 2,
        "registrations": 0,
        "iterations": 1,
        "timers": 0,
        "acquisitions": 1,
        "beyond get": {(5, 2): -122, (6, 0): -129, (6, 1): -119},
    },
}


@pytest.mark.parametrize("place", CEILINGS)
def test_aget_stays_within_its_ceilings(place: str, add_alias: Callable[..., str]) -> None:
    """An `aget`, in a task and in a request, does nothing more often than it has to."""
    counted = least(count_aget if place == "task" else bridged(count_aget))
    stock = add_alias({}, ENGINE="django.db.backends.postgresql")
    counted["beyond get"] = counted.pop("calls") - calls_of_get(stock)
    ceilings: dict[str, Any] = dict(CEILINGS[place])
    ceilings["beyond get"] = ceilings["beyond get"][django.VERSION[:2]]
    above = {name: count for name, count in counted.items() if count > ceilings[name]}
    assert above == {}, f"counted {counted}, ceilings {ceilings}"


# Calls of this package's functions, changes of file between them, and look-ups of the state.
OWN_CEILINGS = {
    "aget": (63, 48, 1),
    "atomic, aget": (201, 150, 3),
    "atomic, select_for_update, save": (240, 188, 1),
}


def test_own_calls_stay_within_their_ceilings() -> None:
    """The three calls of `make ways` go no longer way through this package than they have to."""

    async def main() -> dict[str, Any]:
        await calls.make_table()
        try:
            for call in calls.THREE.values():
                for _ in range(5):
                    await call()
            return {name: await calls.follow(call) for name, call in calls.THREE.items()}
        finally:
            await calls.drop_table()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        ways = runner.run(main())
    counted = {name: (way.calls, way.changes, way.states) for name, way in ways.items()}
    above = {
        name: each
        for name, each in counted.items()
        if any(starmap(gt, zip(each, OWN_CEILINGS[name], strict=True)))
    }
    assert above == {}, f"counted {counted}, ceilings {OWN_CEILINGS}"
