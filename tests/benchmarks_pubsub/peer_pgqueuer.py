"""pgqueuer: on asyncpg and uvloop, with what its guide "Performance tuning" advises."""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from tests.benchmarks_pubsub.peer import CHUNK, AsyncPeer
from tests.benchmarks_pubsub.record import now


class Peer(AsyncPeer):
    """So many *consumers*, with a connection each, take so many jobs at once: *batch*."""

    tables: ClassVar[tuple[str, ...]] = ("pgqueuer", "pgqueuer_log", "pgqueuer_statistics")
    kinds: ClassVar[tuple[str, ...]] = ("stored",)

    @staticmethod
    def loop_factory(**options: Any) -> Callable[[], asyncio.AbstractEventLoop] | None:
        return uvloop.new_event_loop

    def __init__(self, dsn: str, record: Any, *, batch: int, consumers: int) -> None:
        super().__init__(dsn, record)
        self.batch, self.consumers = batch, consumers

    def prepare(self) -> None:
        self.run(self._prepare())

    async def _prepare(self) -> None:
        queries = Queries(AsyncpgDriver(await asyncpg.connect(self.dsn)))
        await queries.install()
        await queries.optimize_autovacuum()

    async def aopen(self, connections: int) -> None:
        pool = await asyncpg.create_pool(self.dsn, min_size=connections, max_size=connections)
        self.queries = Queries(AsyncpgPoolDriver(pool))

    async def _work(self, mode: QueueExecutionMode) -> None:
        workers = []
        for _ in range(self.consumers):
            conn = await asyncpg.connect(self.dsn)
            workers.append(PgQueuer.from_asyncpg_connection(conn))
            workers[-1].entrypoint("handle")(self._handle)
        await asyncio.gather(*(each.run(batch_size=self.batch, mode=mode) for each in workers))

    async def _handle(self, job: Job) -> None:
        assert job.payload is not None
        self.record.note(int(job.payload))

    async def alisten(self, kind: str) -> None:
        await self._work(QueueExecutionMode.continuous)

    async def asend(self, kind: str, wake: str = "notify") -> None:
        await self.queries.enqueue("handle", b"%d" % now())

    async def afill(self, rows: int) -> None:
        for begin in range(0, rows, CHUNK):
            count = min(CHUNK, rows - begin)
            await self.queries.enqueue(["handle"] * count, [b"0"] * count, [0] * count)

    async def adrain(self) -> None:
        await self._work(QueueExecutionMode.drain)
