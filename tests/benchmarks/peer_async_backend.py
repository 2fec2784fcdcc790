"""django-async-backend: its own managers, methods and transactions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer
from tests.benchmarks.peer_django import full, set_up


class Peer(AsyncPeer):
    """As its documentation has it: a connection for each task, given back at its end.

    It has no prefetch_related and no aiterator.
    """

    def __init__(self, dsn: str, pool: int) -> None:
        super().__init__(dsn, pool)
        set_up(
            dsn,
            "django_async_backend.db.backends.postgresql",
            {"pool": full(pool)},
            ("django_async_backend",),
        )
        from tests.benchmarks import models

        self.models = models
        self.tables = models.TABLES

    async def request(self, operation: Callable[..., Awaitable[Any]], spec: Any) -> None:
        from django_async_backend.db import close_old_async_connections

        try:
            await super().request(operation, spec)
        finally:
            # By the signal request_finished.
            await close_old_async_connections()

    async def close(self) -> None:
        from django_async_backend.db import async_connections

        await async_connections["default"].close_pool()

    async def get(self, table: str) -> None:
        await self.tables[table].async_objects.aget(pk=values.key())

    async def rows(self, table: str, rows: int = values.ROWS) -> None:
        queryset = self.tables[table].async_objects.filter(pk__gte=values.start(rows))
        assert len([row async for row in queryset.order_by("pk")[:rows]]) == rows

    async def update(self, table: str) -> None:
        from django_async_backend.db.transaction import async_atomic

        async with async_atomic():
            queryset = self.tables[table].async_objects.select_for_update()
            row = await queryset.aget(pk=values.key())
            row.name = values.new_name()
            await row.async_save()

    async def slow(self, count: int) -> None:
        from django_async_backend.db import async_new_connection

        get = self.models.Slow20.async_objects.aget
        if count == 1:
            await get(pk=1)
        else:
            await asyncio.gather(*(async_new_connection(get(pk=1)) for _ in range(count)))

    async def wait(self) -> None:
        await self.models.Slow100.async_objects.aget(pk=1)

    async def create(self, table: str) -> None:
        await self.tables[table].async_objects.acreate(**values.new_row(table))

    async def bulk_create(self, table: str) -> None:
        model = self.tables[table]
        await model.async_objects.abulk_create(
            [model(**values.new_row(table)) for _ in range(values.BULK)]
        )

    async def update_or_create(self, table: str) -> None:
        await self.tables[table].async_objects.aupdate_or_create(
            pk=values.key(), defaults={"name": values.new_name()}
        )

    async def aggregate(self, table: str) -> None:
        from django.db.models import Count, Max, Min

        first = values.start(values.AGGREGATED)
        queryset = self.tables[table].async_objects.filter(
            pk__range=(first, first + values.AGGREGATED - 1)
        )
        result = await queryset.aaggregate(Count("pk"), Min("pk"), Max("name"))
        assert result["pk__count"] == values.AGGREGATED

    async def savepoints(self) -> None:
        from django_async_backend.db.transaction import async_atomic

        async with async_atomic():
            for _ in range(5):
                async with async_atomic():
                    await self.get("item")
