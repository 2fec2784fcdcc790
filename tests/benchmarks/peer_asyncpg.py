"""asyncpg and its pool, without an ORM: what another driver costs."""

import asyncio
import os
from typing import Any

import asyncpg

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer


class Peer(AsyncPeer):
    """Rows as asyncpg's records, SQL by hand; it prepares what is repeated."""

    async def open(self) -> None:
        self.pool: Any = await asyncpg.create_pool(
            self.dsn,
            min_size=self.pool_size,
            max_size=self.pool_size,
            server_settings={"application_name": os.environ["BENCH_NAME"]},
        )

    async def close(self) -> None:
        await self.pool.close()

    async def get(self, table: str) -> None:
        await self.pool.fetch(f"SELECT * FROM bench_{table} WHERE id = $1", values.key())

    async def rows(self, table: str, rows: int = values.ROWS) -> None:
        await self.pool.fetch(
            f"SELECT * FROM bench_{table} WHERE id >= $1 ORDER BY id LIMIT $2",
            values.start(rows),
            rows,
        )

    async def update(self, table: str) -> None:
        async with self.pool.acquire() as conn, conn.transaction():
            key = values.key()
            await conn.fetch(f"SELECT * FROM bench_{table} WHERE id = $1 FOR UPDATE", key)
            await conn.execute(
                f"UPDATE bench_{table} SET name = $1 WHERE id = $2", values.new_name(), key
            )

    async def slow(self, count: int) -> None:
        sql = "SELECT id, name FROM bench_slow20 WHERE id = 1"
        await asyncio.gather(*(self.pool.fetch(sql) for _ in range(count)))

    async def wait(self) -> None:
        await self.pool.fetch("SELECT id, name FROM bench_slow100 WHERE id = 1")

    async def create(self, table: str) -> None:
        row = values.new_row(table)
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        await self.pool.fetch(
            f"INSERT INTO bench_{table} ({', '.join(row)}) VALUES ({places}) RETURNING id",
            *row.values(),
        )

    async def bulk_create(self, table: str) -> None:
        rows = [values.new_row(table) for _ in range(values.BULK)]
        async with self.pool.acquire() as conn:
            await conn.copy_records_to_table(
                f"bench_{table}",
                records=[tuple(row.values()) for row in rows],
                columns=list(rows[0]),
            )

    async def update_or_create(self, table: str) -> None:
        await self.update(table)

    async def aggregate(self, table: str) -> None:
        first = values.start(values.AGGREGATED)
        await self.pool.fetch(
            f"SELECT count(id), min(id), max(name) FROM bench_{table} WHERE id BETWEEN $1 AND $2",
            first,
            first + values.AGGREGATED - 1,
        )

    async def iterate(self, table: str) -> None:
        async with self.pool.acquire() as conn, conn.transaction():
            async for _ in conn.cursor(f"SELECT * FROM bench_{table}", prefetch=2000):
                pass

    async def savepoints(self) -> None:
        async with self.pool.acquire() as conn, conn.transaction():
            for _ in range(5):
                async with conn.transaction():
                    await conn.fetch("SELECT id, name FROM bench_item WHERE id = $1", values.key())
