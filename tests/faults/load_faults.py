"""The faults of the load test: what befalls an operation, and at which of its suspensions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import ContextVar
from types import coroutine
from typing import Any, TypeVar

import psycopg

from pgbackend import BridgeError
from tests.faults.load_proxy import LoadProxy

T = TypeVar("T")

# Kinds, with how often each is drawn.
KINDS = {
    "cancel": 20,
    "cancel twice": 15,
    "disconnect": 12,
    "terminate idle": 6,
    "terminate busy": 6,
    "terminate in transaction": 6,
    "reset": 6,
    "close": 6,
    "freeze": 4,
    "close coroutine": 8,
    "statement timeout": 6,
    "abandon iterator": 6,
    "deadlock": 5,
}

# Kinds that break a connection, each one at most.
BREAKING = frozenset(
    {"terminate idle", "terminate busy", "terminate in transaction", "reset", "close", "freeze"}
)

# The suspensions that a first plan is for: a transfer has more, a read fewer.
_STEPS = 12


class ClosedError(Exception):
    """The coroutine was closed, by its fault."""


class Fault:
    """What befalls one operation: `act` is called at its suspension number `step`."""

    def __init__(self, kind: str, rng: random.Random) -> None:
        self.kind = kind
        self.step = rng.randint(1, _STEPS)
        self.again = rng.randint(1, 4)
        self.act: Callable[[], None] = lambda: None
        self.landed = False
        self._steps = 0

    def aim(self, act: Callable[[], None]) -> None:
        """Set what it does to the next operation."""
        self.act = act
        self._steps = 0

    def missed(self) -> None:
        """Aim at an earlier suspension: the operation had ended before this one."""
        self.step = max(1, self.step // 2)

    def suspended(self) -> bool:
        """Count a suspension; return whether the coroutine is to be closed there."""
        self._steps += 1
        if self._steps == self.step:
            self.landed = True
            self.act()
            return self.kind == "close coroutine"
        if self.landed and self.kind == "cancel twice" and self._steps == self.step + self.again:
            self.act()
        return False


# The fault that befalls the operation of this context.
befalling: ContextVar[Fault | None] = ContextVar("load_fault", default=None)


@coroutine
def befalls(coro: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await *coro*, telling the fault of this context of each suspension.

    Raise `ClosedError` if that closes it.
    """
    fault = befalling.get()
    step: Callable[..., Any] = coro.send
    value: Any = None
    while True:
        try:
            waiting = step(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if fault is not None and fault.suspended():
            with suppress(BridgeError):
                # Unwinding, a function that would have to wait is refused that.
                coro.close()
            raise ClosedError
        try:
            step, value = coro.send, (yield waiting)
        except GeneratorExit:
            coro.close()
            raise
        except BaseException as error:
            step, value = coro.throw, error


class Breaker:
    """What breaks connections: the server, told by a connection of its own, and the proxy."""

    def __init__(self, conn: psycopg.AsyncConnection[Any], proxy: LoadProxy, name: str) -> None:
        self.conn = conn
        self.proxy = proxy
        self.name = name
        # How many connections it broke.
        self.broken = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def break_one(self, kind: str) -> None:
        """Break a connection, soon; *kind* is one of `BREAKING`."""
        if kind in ("reset", "close", "freeze"):
            self.proxy.command(kind)
            return
        task = asyncio.create_task(self._terminate(kind))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _terminate(self, kind: str) -> None:
        state = {"terminate idle": "idle", "terminate busy": "active"}.get(
            kind, "idle in transaction%"
        )
        while True:
            cursor = await self.conn.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
                " WHERE application_name = %s AND state LIKE %s ORDER BY random() LIMIT 1) each",
                [self.name, state],
            )
            if await cursor.fetchone() is not None:
                self.broken += 1
                return
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until all that was asked for is done; what found no victim is given up."""
        for task in self._tasks.copy():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.broken += self.proxy.settle()
