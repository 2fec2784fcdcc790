"""The floor: psycopg's own loop over `notifies()`, and SQL by hand for stored messages."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg

from tests.benchmarks_pubsub.peer import AsyncPeer
from tests.benchmarks_pubsub.record import now

NOTIFY = b"SELECT pg_notify(%s, %s)"
STORE = b"WITH stored AS (INSERT INTO message (sent) VALUES (%s) RETURNING id)"
CLAIM = b"SELECT id, sent FROM message ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED"
REMOVE = b"DELETE FROM message WHERE id = ANY (%s)"


class Peer(AsyncPeer):
    """A connection that listens; for writers a connection each, and a table of two columns."""

    tables: ClassVar[tuple[str, ...]] = ("message",)
    kinds: ClassVar[tuple[str, ...]] = ("plain", "stored")
    can_drain: ClassVar[bool] = False
    wakes: ClassVar[tuple[str, ...]] = ("notify", "poll")

    # Names and payloads of other channels, where it sends for another peer.
    told: Sequence[tuple[str, str]] = ()

    def prepare(self) -> None:
        self.sql("CREATE TABLE message (id bigserial PRIMARY KEY, sent bigint)")

    def wire(self, number: int = 0) -> tuple[str, str]:
        return f"raw_{number}", "%s"

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)

    async def aopen(self, connections: int) -> None:
        self.free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
        for _ in range(connections):
            self.free.put_nowait(await self._connect())

    async def alisten(self, kind: str) -> None:
        if kind == "plain":
            await self._listen(1)
            return
        listening, working = await self._connect(), await self._connect()
        await listening.execute(b"LISTEN " + self.wire()[0].encode())
        async for _ in listening.notifies():
            async with working.transaction():
                rows = await (await working.execute(CLAIM)).fetchall()
                for _id, sent in rows:
                    self.record.note(sent)
                await working.execute(REMOVE, [[row[0] for row in rows]])

    def declare(self, channels: int) -> None:
        self.channels = channels

    def listen_many(self) -> None:
        self.run(self._listen(self.channels))

    async def _listen(self, channels: int) -> None:
        conn = await self._connect()
        names = [self.wire(number)[0] for number in range(channels)]
        await conn.execute(";".join(f"LISTEN {name}" for name in names).encode())
        async for notify in conn.notifies():
            self.record.note(int(notify.payload))

    async def asend(self, kind: str, wake: str = "notify") -> None:
        conn = await self.free.get()
        try:
            if kind == "plain":
                name, payload = random.choice(self.told or [self.wire()])
                await conn.execute(NOTIFY, [name, payload.replace("%s", f"{now()}")])
            elif wake == "poll":
                await conn.execute(STORE + b" SELECT id FROM stored", [now()])
            else:
                call = b" SELECT pg_notify(%s, id::text) FROM stored"
                await conn.execute(STORE + call, [now(), self.wire()[0]])
        finally:
            self.free.put_nowait(conn)
