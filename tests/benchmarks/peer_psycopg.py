"""psycopg and its pool, without an ORM: what the driver costs."""

import asyncio
from typing import Any

from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer


class Peer(AsyncPeer):
    """Rows as tuples, SQL by hand, autocommit."""

    async def open(self) -> None:
        self.pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            self.dsn,
            min_size=self.pool_size,
            max_size=self.pool_size,
            timeout=60,
            open=False,
            kwargs={"autocommit": True, "row_factory": tuple_row},
        )
        await self.pool.open(wait=True)

    async def close(self) -> None:
        await self.pool.close()

    async def fetch(self, sql: str, *params: Any) -> list[Any]:
        async with self.pool.connection() as conn:
            return await (await conn.execute(sql.encode(), params)).fetchall()

    async def get(self, table: str) -> None:
        await self.fetch(f"SELECT * FROM bench_{table} WHERE id = %s", values.key())

    async def rows(self, table: str, rows: int = values.ROWS) -> None:
        sql = f"SELECT * FROM bench_{table} WHERE id >= %s ORDER BY id LIMIT %s"
        await self.fetch(sql, values.start(rows), rows)

    async def update(self, table: str) -> None:
        async with self.pool.connection() as conn, conn.transaction():
            key = values.key()
            await conn.execute(
                f"SELECT * FROM bench_{table} WHERE id = %s FOR UPDATE".encode(), [key]
            )
            await conn.execute(
                f"UPDATE bench_{table} SET name = %s WHERE id = %s".encode(),
                [values.new_name(), key],
            )

    async def slow(self, count: int) -> None:
        sql = "SELECT id, name FROM bench_slow20 WHERE id = 1"
        await asyncio.gather(*(self.fetch(sql) for _ in range(count)))

    async def wait(self) -> None:
        await self.fetch("SELECT id, name FROM bench_slow100 WHERE id = 1")

    async def create(self, table: str) -> None:
        row = values.new_row(table)
        sql = (
            f"INSERT INTO bench_{table} ({', '.join(row)})"
            f" VALUES ({', '.join(['%s'] * len(row))}) RETURNING id"
        )
        await self.fetch(sql, *row.values())

    async def bulk_create(self, table: str) -> None:
        rows = [values.new_row(table) for _ in range(values.BULK)]
        one = f"({', '.join(['%s'] * len(rows[0]))})"
        sql = (
            f"INSERT INTO bench_{table} ({', '.join(rows[0])})"
            f" VALUES {', '.join([one] * len(rows))} RETURNING id"
        )
        await self.fetch(sql, *(value for row in rows for value in row.values()))

    async def update_or_create(self, table: str) -> None:
        await self.update(table)

    async def aggregate(self, table: str) -> None:
        first = values.start(values.AGGREGATED)
        await self.fetch(
            f"SELECT count(id), min(id), max(name) FROM bench_{table} WHERE id BETWEEN %s AND %s",
            first,
            first + values.AGGREGATED - 1,
        )

    async def iterate(self, table: str) -> None:
        async with (
            self.pool.connection() as conn,
            conn.transaction(),
            conn.cursor("iterate") as cursor,
        ):
            cursor.itersize = 2000
            await cursor.execute(f"SELECT * FROM bench_{table}".encode())
            async for _ in cursor:
                pass

    async def savepoints(self) -> None:
        async with self.pool.connection() as conn, conn.transaction():
            for _ in range(5):
                async with conn.transaction():
                    await conn.execute(
                        "SELECT id, name FROM bench_item WHERE id = %s", [values.key()]
                    )
