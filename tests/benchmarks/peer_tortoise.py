"""Tortoise ORM, on asyncpg."""

import asyncio
import os
from typing import Any
from urllib.parse import unquote, urlsplit

from tortoise import Tortoise, fields
from tortoise.functions import Count, Max, Min
from tortoise.models import Model
from tortoise.transactions import in_transaction

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer


class Item(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)

    class Meta:
        table = "bench_item"


class Author(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)

    class Meta:
        table = "bench_author"


class Book(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)
    author: Any = fields.ForeignKeyField("bench.Author", related_name="books")

    class Meta:
        table = "bench_book"


class Chapter(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)
    book: Any = fields.ForeignKeyField("bench.Book", related_name="chapters")

    class Meta:
        table = "bench_chapter"


class TwentyFields(Model):
    """The key, and eighteen more; the author is the nineteenth."""

    id = fields.BigIntField(primary_key=True)
    n1 = fields.IntField()
    n2 = fields.IntField()
    n3 = fields.IntField()
    n4 = fields.IntField()
    big = fields.BigIntField()
    name = fields.CharField(max_length=100)
    s2 = fields.CharField(max_length=100)
    s3 = fields.CharField(max_length=100)
    s4 = fields.CharField(max_length=100)
    t = fields.TextField()
    f1 = fields.FloatField()
    f2 = fields.FloatField()
    b1 = fields.BooleanField()
    b2 = fields.BooleanField()
    d = fields.DateField()
    ts = fields.DatetimeField()
    price = fields.DecimalField(max_digits=10, decimal_places=2)
    u = fields.UUIDField()

    class Meta:
        abstract = True


class Wide(TwentyFields):
    author: Any = fields.ForeignKeyField("bench.Author", related_name="wides")

    class Meta:
        table = "bench_wide"


class WideBook(TwentyFields):
    author: Any = fields.ForeignKeyField("bench.Author", related_name="widebooks")

    class Meta:
        table = "bench_widebook"


class WideNote(TwentyFields):
    author: Any = fields.ForeignKeyField("bench.Author", related_name="widenotes")
    book: Any = fields.ForeignKeyField("bench.WideBook", related_name="notes")

    class Meta:
        table = "bench_widenote"


class Slow20(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)

    class Meta:
        table = "bench_slow20"


class Slow100(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)

    class Meta:
        table = "bench_slow100"


TABLES: dict[str, Any] = {"item": Item, "wide": Wide}


class Peer(AsyncPeer):
    """Its documented methods. It has no iteration by a server-side cursor."""

    async def open(self) -> None:
        url = urlsplit(self.dsn)
        await Tortoise.init(
            config={
                "connections": {
                    "default": {
                        "engine": "tortoise.backends.asyncpg",
                        "credentials": {
                            "host": url.hostname,
                            "port": url.port,
                            "user": unquote(url.username or ""),
                            "password": unquote(url.password or ""),
                            "database": url.path.strip("/"),
                            "minsize": self.pool_size,
                            "maxsize": self.pool_size,
                            "server_settings": {"application_name": os.environ["BENCH_NAME"]},
                        },
                    }
                },
                "apps": {"bench": {"models": [__name__], "default_connection": "default"}},
                "use_tz": True,
            }
        )

    async def close(self) -> None:
        await Tortoise.close_connections()

    async def get(self, table: str) -> None:
        await TABLES[table].get(id=values.key())

    async def rows(self, table: str, rows: int = values.ROWS) -> None:
        query = TABLES[table].filter(id__gte=values.start(rows)).order_by("id").limit(rows)
        assert len(await query) == rows

    async def update(self, table: str) -> None:
        async with in_transaction() as conn:
            row = await TABLES[table].select_for_update().using_db(conn).get(id=values.key())
            row.name = values.new_name()
            await row.save(using_db=conn)

    async def slow(self, count: int) -> None:
        await asyncio.gather(*(Slow20.get(id=1) for _ in range(count)))

    async def wait(self) -> None:
        await Slow100.get(id=1)

    async def create(self, table: str) -> None:
        await TABLES[table].create(**values.new_row(table))

    async def bulk_create(self, table: str) -> None:
        await TABLES[table].bulk_create(
            [TABLES[table](**values.new_row(table)) for _ in range(values.BULK)]
        )

    async def update_or_create(self, table: str) -> None:
        await TABLES[table].update_or_create(defaults={"name": values.new_name()}, id=values.key())

    async def prefetch(self, table: str) -> None:
        first = values.some_author()
        name = "books__chapters" if table == "item" else "widebooks__notes"
        found = await Author.filter(
            id__gte=first, id__lte=first + values.PREFETCHED - 1
        ).prefetch_related(name)
        assert len(found) == values.PREFETCHED

    async def aggregate(self, table: str) -> None:
        first = values.start(values.AGGREGATED)
        query = TABLES[table].filter(id__gte=first, id__lte=first + values.AGGREGATED - 1)
        rows = await query.annotate(n=Count("id"), low=Min("id"), high=Max("name")).values(
            "n", "low", "high"
        )
        assert rows[0]["n"] == values.AGGREGATED

    async def savepoints(self) -> None:
        async with in_transaction() as conn:
            for _ in range(5):
                async with conn._in_transaction() as nested:
                    await Item.all().using_db(nested).get(id=values.key())
