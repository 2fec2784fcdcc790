"""What the peers share.

A peer has the methods of what its library can do; a work that needs another is "not supported".
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

import psycopg

from tests.benchmarks import load
from tests.benchmarks_pubsub.record import Record, now

T = TypeVar("T")

# Rows of one call that fills a queue.
CHUNK = 10_000


class Peer:
    """A library with a database of its own.

    `listen` runs its worker until the process ends, for messages of a *kind*: "plain", "stored" or
    "trigger". `send` sends one; `fill` makes so many stored ones, and `drain` handles them until
    none is left.
    """

    # What `clear` empties and `size` measures.
    tables: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]] = ()
    can_drain: ClassVar[bool] = True
    # The kind of the messages that its writers send.
    writes: ClassVar[str] = "stored"
    # Whether these can be told not to notify: "poll".
    wakes: ClassVar[tuple[str, ...]] = ("notify",)

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        self.dsn = dsn
        self.record = record

    def prepare(self) -> None:
        """Make the tables, in a process of its own."""

    def open(self, connections: int = 2) -> None:
        """Make what `send`, `fill` and `drain` need, before any time is taken."""

    def listen(self, kind: str) -> None:
        """Run the worker for a *kind* of messages, for good."""
        raise NotImplementedError

    def declare(self, channels: int) -> None:
        """Make so many plain channels with a handler each, for `listen_many`."""
        raise NotImplementedError

    def listen_many(self) -> None:
        """Run the worker for the channels of `declare`, for good."""
        raise NotImplementedError

    def wire(self, number: int = 0) -> tuple[str, str]:
        """Return the name of a plain channel, one of those of `declare`, and its payload.

        The payload has %s where the time stands.
        """
        raise NotImplementedError

    def send(self, kind: str, wake: str = "notify") -> None:
        """Send a message of a *kind* that says when this was."""
        raise NotImplementedError

    def fill(self, rows: int) -> None:
        """Store so many messages whose handler does nothing."""
        raise NotImplementedError

    def drain(self) -> None:
        """Handle what is stored until nothing is left, in this process."""
        raise NotImplementedError

    def clear(self) -> None:
        """Empty the tables."""
        if self.tables:
            self.sql(f"TRUNCATE {', '.join(self.tables)} CASCADE")

    def settle(self) -> None:
        """Give the planner what autovacuum would: the size of the tables."""
        for table in self.tables:
            self.sql(f"ANALYZE {table}")

    def size(self) -> int:
        """Return the bytes of the tables and their indexes."""
        total = " + ".join(f"pg_total_relation_size('{table}')" for table in self.tables)
        with psycopg.connect(self.dsn) as conn:
            row = conn.execute(f"SELECT {total}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def sql(self, statement: str) -> None:
        """Do a statement on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(statement.encode())

    def paced(self, kind: str, rate: float, seconds: float) -> None:
        """Send for so many *seconds* so many messages a second, at even distances."""
        begin, count = time.monotonic(), int(rate * seconds)
        for number in range(count):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            self.send(kind)

    def write(self, writers: int, wake: str, *, warm_up: float, seconds: float) -> dict[str, Any]:
        """Have so many *writers* send stored messages, each after the other; threads here."""
        counts, ended = [0] * writers, threading.Event()
        # All have their connections.
        begin = threading.Barrier(writers + 1)

        def writer(number: int) -> None:
            self.send(self.writes, wake)
            begin.wait()
            while not ended.is_set():
                self.send(self.writes, wake)
                counts[number] += 1

        threads = [threading.Thread(target=writer, args=(each,)) for each in range(writers)]
        for thread in threads:
            thread.start()
        begin.wait()
        time.sleep(warm_up)
        before, began = sum(counts), now()
        time.sleep(seconds)
        after, passed = sum(counts), (now() - began) / 1e9
        ended.set()
        for thread in threads:
            thread.join()
        return {"rps": (after - before) / passed, "seconds": passed}


class AsyncPeer(Peer):
    """A library of asyncio, with one loop for all that a process does.

    Its methods are `aopen`, `asend`, `alisten`, `afill`, `adrain`.
    """

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        super().__init__(dsn, record, **options)
        self.runner = asyncio.Runner(loop_factory=self.loop_factory(**options))

    @staticmethod
    def loop_factory(**options: Any) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return what makes the loop; None: asyncio's own."""
        return None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def aopen(self, connections: int) -> None:
        """See `open`."""

    async def alisten(self, kind: str) -> None:
        raise NotImplementedError

    async def asend(self, kind: str, wake: str = "notify") -> None:
        raise NotImplementedError

    async def afill(self, rows: int) -> None:
        raise NotImplementedError

    async def adrain(self) -> None:
        raise NotImplementedError

    def open(self, connections: int = 2) -> None:
        self.run(self.aopen(connections))

    def listen(self, kind: str) -> None:
        self.run(self.alisten(kind))

    def fill(self, rows: int) -> None:
        self.run(self.afill(rows))

    def drain(self) -> None:
        self.run(self.adrain())

    def paced(self, kind: str, rate: float, seconds: float) -> None:
        async def send() -> None:
            begin, count = time.monotonic(), int(rate * seconds)
            for number in range(count):
                await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
                await self.asend(kind)

        self.run(send())

    def write(self, writers: int, wake: str, *, warm_up: float, seconds: float) -> dict[str, Any]:
        async def write() -> load.Window:
            # Pools open their connections at the first use.
            for _ in range(5):
                await asyncio.gather(*(self.asend(self.writes, wake) for _ in range(writers)))
            return await load.steady(
                lambda: self.asend(self.writes, wake),
                clients=writers,
                warm_up=warm_up,
                seconds=seconds,
            )

        figures = self.run(write()).figures(1)
        if figures["errors"]:
            raise RuntimeError(figures["error"])
        return figures
