"""Tables that are locked from outside: who reads them waits until the test lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

import psycopg
from psycopg import sql

from tests.support.limits import PATIENCE
from tests.support.server import DATABASES, Server

T = TypeVar("T")


class TableLock:
    """A lock of a table, against everybody, until `release` or the end of the block."""

    def __init__(self, server: Server, table: str) -> None:
        self.server = server
        self.table = table
        self.conn = psycopg.connect(server.dsn, dbname=DATABASES[0])

    def __enter__(self) -> TableLock:
        self.conn.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(self.table))
        )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.conn.close()

    def release(self) -> None:
        """Let those who wait go on."""
        self.conn.rollback()

    def waiting(self) -> int:
        """Return how many backends wait for the lock."""
        return int(
            self.server.one(
                "SELECT count(*) FROM pg_locks WHERE relation = %s::regclass AND NOT granted",
                self.table,
            )
        )

    async def waited_for(self, count: int = 1) -> None:
        """Wait, on the loop, until *count* backends wait for the lock; at most PATIENCE."""
        async with asyncio.timeout(PATIENCE):
            while self.waiting() != count:
                await asyncio.sleep(0.001)

    async def cancelled(self, task: asyncio.Task[Any]) -> None:
        """Cancel *task* when it waits for the lock; wait until its statement has been stopped."""
        await self.waited_for()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        async with asyncio.timeout(PATIENCE):
            while self.waiting():
                await asyncio.sleep(0.001)

    async def passed_by(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await *coroutine*, which has to wait for the lock, and release it meanwhile.

        Code that blocks the loop while it waits gets no further: nobody releases the lock.
        """
        task = asyncio.create_task(coroutine)
        try:
            await self.waited_for()
            self.release()
            return await task
        finally:
            task.cancel()
