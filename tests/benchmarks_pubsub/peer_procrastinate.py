"""procrastinate: its own connector, coroutines as tasks, and the concurrency that its docs name."""

from typing import Any, ClassVar

import procrastinate

from tests.benchmarks_pubsub.peer import CHUNK, AsyncPeer
from tests.benchmarks_pubsub.record import Record, now

# Of its documentation, "Execute multiple jobs at the same time".
CONCURRENCY = 30


class Peer(AsyncPeer):
    """Jobs that succeeded are deleted, as the messages of all peers are."""

    tables: ClassVar[tuple[str, ...]] = ("procrastinate_jobs", "procrastinate_events")
    kinds: ClassVar[tuple[str, ...]] = ("stored",)

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        super().__init__(dsn, record, **options)

        async def handle(sent: int) -> None:
            record.note(sent)

        self._handle = handle
        self._make(10)

    def _make(self, connections: int) -> None:
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=self.dsn, min_size=connections, max_size=connections
            )
        )
        self.task = self.app.task(name="handle")(self._handle)

    def prepare(self) -> None:
        with self.app.open():
            self.app.schema_manager.apply_schema()

    async def aopen(self, connections: int) -> None:
        self._make(max(connections, 10))
        await self.app.open_async()

    async def _work(self, *, wait: bool) -> None:
        await self.app.run_worker_async(
            concurrency=CONCURRENCY,
            wait=wait,
            delete_jobs="always",
            install_signal_handlers=False,
        )

    async def alisten(self, kind: str) -> None:
        await self.app.open_async()
        await self._work(wait=True)

    async def asend(self, kind: str, wake: str = "notify") -> None:
        await self.task.defer_async(sent=now())

    async def afill(self, rows: int) -> None:
        for begin in range(0, rows, CHUNK):
            await self.task.batch_defer_async(*[{"sent": 0}] * min(CHUNK, rows - begin))

    async def adrain(self) -> None:
        await self._work(wait=False)
