"""A snapshot each second while somebody looks: one sampler for each event loop, for all lookers."""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from time import time
from weakref import WeakKeyDictionary

from .process import process_part, some_wait
from .server import Server, own_aliases

__all__ = ["close_streams", "one_snapshot", "snapshots"]

logger = logging.getLogger("pgbackend.status")

# The time between two snapshots, and how long one waits for the servers' answers, seconds.
INTERVAL = 1.0
PATIENCE = 0.5

# How long one that is made alone waits for them, seconds: it has to connect first.
PATIENCE_ALONE = 2.0

# A stream ends after so many seconds, and the page opens the next one: who may not look any more
# sees no more, and a server that shuts down waits no longer.
LIFETIME = 60.0


class Sampler:
    """Makes the snapshots of one loop, from its first looker to its last."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self.lookers = 0
        self._loop = loop
        self._next: Future[str | None] = loop.create_future()
        # Nothing of the request that happens to look first: no transaction, and none of its tasks.
        self._task: Task[None] = loop.create_task(self._run(), context=Context())
        _running.add(self._task)
        self._task.add_done_callback(self._ended)

    async def next(self) -> str | None:
        """Wait for the next snapshot, as JSON; None if there will be none."""
        # A looker that is cancelled takes it from no other one.
        return await asyncio.shield(self._next)

    def stop(self) -> None:
        """End, and close the connections soon."""
        if _samplers.get(self._loop) is self:
            del _samplers[self._loop]
        self._task.cancel()

    async def _run(self) -> None:
        async with _asking() as ask:
            due = self._loop.time()
            while True:
                text = await ask(PATIENCE, max(0.0, self._loop.time() - due))
                ready, self._next = self._next, self._loop.create_future()
                ready.set_result(text)
                due = max(due + INTERVAL, self._loop.time())
                await asyncio.sleep(due - self._loop.time())

    def _ended(self, task: Task[None]) -> None:
        _running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("no snapshots any more", exc_info=error)
        if _samplers.get(self._loop) is self:
            del _samplers[self._loop]
        if not self._next.done():
            self._next.set_result(None)


_samplers: WeakKeyDictionary[AbstractEventLoop, Sampler] = WeakKeyDictionary()

# Those that are ending, too: the loop keeps no reference.
_running: set[Task[None]] = set()


async def snapshots() -> AsyncGenerator[str, None]:
    """Yield a snapshot each second, as JSON, until `LIFETIME` is over.

    While tasks wait for a connection the stream goes on: the next one would wait with them, since
    it has to read who asks for it.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + LIFETIME
    sampler = _samplers.get(loop)
    if sampler is None:
        sampler = _samplers[loop] = Sampler(loop)
    sampler.lookers += 1
    try:
        while (text := await sampler.next()) is not None:
            yield text
            if loop.time() >= ends_at and not some_wait():
                break
    finally:
        sampler.lookers -= 1
        if not sampler.lookers:
            sampler.stop()


async def one_snapshot() -> str:
    """Return a snapshot that is made for itself, on connections that are closed again."""
    async with _asking() as ask:
        return await ask(PATIENCE_ALONE, None)


def close_streams() -> None:
    """End the streams of the running loop: a server that shuts down waits for its responses."""
    sampler = _samplers.get(asyncio.get_running_loop())
    if sampler is not None:
        sampler.stop()


# Makes a snapshot, as JSON: takes how long the servers are waited for, and how late the loop was.
_Ask = Callable[[float, float | None], Awaitable[str]]


@asynccontextmanager
async def _asking() -> AsyncIterator[_Ask]:
    """Connect to the servers; yield what makes a snapshot; disconnect."""
    own, others = own_aliases()
    servers = [Server(alias) for alias in own]
    connections = [asyncio.create_task(each.connection.run()) for each in servers]

    async def ask(patience: float, late: float | None) -> str:
        if servers:
            await asyncio.wait([each.ask() for each in servers], timeout=patience)
        return json.dumps(
            {
                "at": time(),
                "late": late,
                "process": process_part(own),
                "servers": {each.alias: each.part() for each in servers},
                "others": others,
            }
        )

    try:
        yield ask
    finally:
        for each in connections:
            each.cancel()
        closing = (each.close() for each in servers)
        await asyncio.gather(*closing, *connections, return_exceptions=True)
