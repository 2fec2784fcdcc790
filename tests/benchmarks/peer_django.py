"""Django's ORM: pgbackend, and stock Django with and without its pool.

The operations are the same code for both but for transactions, which stock Django cannot
open in a coroutine, and for what is around a request: there stock Django has a thread for each
request and closes the request's connection at its end, as its ASGI handler does.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer


def set_up(
    dsn: str,
    engine: str,
    options: dict[str, Any],
    apps: tuple[str, ...] = (),
    max_age: int | None = 0,
) -> None:
    """Configure Django, and set it up."""
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tests.benchmarks.settings",
        BENCH_DSN=dsn,
        BENCH_ENGINE=engine,
        BENCH_OPTIONS=json.dumps(options),
        BENCH_APPS=json.dumps(apps),
        BENCH_MAX_AGE=json.dumps(max_age),
    )
    import django

    django.setup()


def full(pool: int) -> dict[str, Any]:
    """Return the options of a pool whose connections are all open from the start."""
    return {"min_size": pool, "max_size": pool, "timeout": 60}


class DjangoPeer(AsyncPeer):
    """What an application writes with Django's a-methods."""

    models: Any

    def load_models(self) -> None:
        from tests.benchmarks import models

        self.models = models
        self.tables = models.TABLES

    async def get(self, table: str) -> None:
        await self.tables[table].objects.aget(pk=values.key())

    async def rows(self, table: str, rows: int = values.ROWS) -> None:
        queryset = self.tables[table].objects.filter(pk__gte=values.start(rows))
        assert len([row async for row in queryset.order_by("pk")[:rows]]) == rows

    async def slow(self, count: int) -> None:
        get = self.models.Slow20.objects.aget
        await asyncio.gather(*(get(pk=1) for _ in range(count)))

    async def wait(self) -> None:
        await self.models.Slow100.objects.aget(pk=1)

    async def create(self, table: str) -> None:
        await self.tables[table].objects.acreate(**values.new_row(table))

    async def bulk_create(self, table: str) -> None:
        model = self.tables[table]
        await model.objects.abulk_create(
            [model(**values.new_row(table)) for _ in range(values.BULK)]
        )

    async def update_or_create(self, table: str) -> None:
        await self.tables[table].objects.aupdate_or_create(
            pk=values.key(), defaults={"name": values.new_name()}
        )

    async def prefetch(self, table: str) -> None:
        first = values.some_author()
        names = ("books__chapters",) if table == "item" else ("widebooks__notes",)
        authors = self.models.Author.objects.filter(
            pk__range=(first, first + values.PREFETCHED - 1)
        )
        found = [author async for author in authors.prefetch_related(*names)]
        assert len(found) == values.PREFETCHED

    async def aggregate(self, table: str) -> None:
        from django.db.models import Count, Max, Min

        first = values.start(values.AGGREGATED)
        queryset = self.tables[table].objects.filter(
            pk__range=(first, first + values.AGGREGATED - 1)
        )
        result = await queryset.aaggregate(Count("pk"), Min("pk"), Max("name"))
        assert result["pk__count"] == values.AGGREGATED

    async def iterate(self, table: str) -> None:
        async for _ in self.tables[table].objects.aiterator(chunk_size=2000):
            pass


class Pgbackend(DjangoPeer):
    """This package; *bridged* runs a request in a bridge of its own, as under ASGI.

    With *prepared* the server binds the parameters, and a statement is prepared the fifth time.
    """

    def __init__(self, dsn: str, pool: int, bridged: bool = False, prepared: bool = False) -> None:
        super().__init__(dsn, pool)
        options = {"server_side_binding": True, "prepare_threshold": 5} if prepared else {}
        set_up(dsn, "pgbackend", {"pool": full(pool), **options})
        self.load_models()
        if bridged:
            from pgbackend import bridged as in_bridge

            self.request = in_bridge(super().request)  # type: ignore[method-assign]

    async def update(self, table: str) -> None:
        from django.db import transaction

        async with transaction.atomic():
            row = await self.tables[table].objects.select_for_update().aget(pk=values.key())
            row.name = values.new_name()
            await row.asave()

    async def savepoints(self) -> None:
        from django.db import transaction

        async with transaction.atomic():
            for _ in range(5):
                async with transaction.atomic():
                    await self.get("item")


class Stock(DjangoPeer):
    """Stock Django under ASGI: with its pool, or with a connection for each request."""

    def __init__(self, dsn: str, pool: int, pooled: bool) -> None:
        super().__init__(dsn, pool)
        set_up(dsn, "django.db.backends.postgresql", {"pool": full(pool)} if pooled else {})
        self.load_models()

    async def request(self, operation: Callable[..., Awaitable[Any]], spec: Any) -> None:
        from asgiref.sync import ThreadSensitiveContext, sync_to_async
        from django.db import close_old_connections

        async with ThreadSensitiveContext():
            try:
                await super().request(operation, spec)
            finally:
                # By the signal request_finished.
                await sync_to_async(close_old_connections)()

    async def close(self) -> None:
        from django.db import connection

        connection.close_pool()

    async def update(self, table: str) -> None:
        from asgiref.sync import sync_to_async

        await sync_to_async(self._update)(table)

    def _update(self, table: str) -> None:
        from django.db import transaction

        with transaction.atomic():
            row = self.tables[table].objects.select_for_update().get(pk=values.key())
            row.name = values.new_name()
            row.save()

    async def savepoints(self) -> None:
        from asgiref.sync import sync_to_async

        await sync_to_async(self._savepoints)()

    def _savepoints(self) -> None:
        from django.db import transaction

        with transaction.atomic():
            for _ in range(5):
                with transaction.atomic():
                    self.tables["item"].objects.get(pk=values.key())


def Peer(dsn: str, pool: int, backend: str, **options: Any) -> DjangoPeer:
    """Return the peer of a backend: "pgbackend" or "stock"."""
    return {"pgbackend": Pgbackend, "stock": Stock}[backend](dsn, pool, **options)
