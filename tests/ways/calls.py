"""The calls, on tables of their own, and how the way of the first three is counted."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from django.db import connection, models, transaction

import pgbackend

_PACKAGE = f"{Path(pgbackend.__file__).parent}/"

# Of so many calls the one with the fewest counts: the collector may run in any, and an answer may
# come in two parts.
CALLS = 30


class Item(models.Model):
    name = models.CharField(max_length=20)

    class Meta:
        app_label = "ways"


class Part(models.Model):
    item = models.ForeignKey(Item, models.CASCADE, related_name="parts", db_constraint=False)
    name = models.CharField(max_length=20)
    number = models.IntegerField()
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    made = models.DateTimeField(null=True)

    class Meta:
        app_label = "ways"


# Items, and parts of each; what lists and prefetches read.
ITEMS, PARTS = 20, 3

# Rows that one `aiterator()` reads.
ROWS = 20_000


async def aget() -> None:
    await Item.objects.aget(pk=1)


async def aget_in_atomic() -> None:
    async with transaction.atomic():
        await Item.objects.aget(pk=1)


def _lock_and_save() -> None:
    with transaction.atomic():
        item = Item.objects.select_for_update().get(pk=1)
        item.name = "b"
        item.save()


async def lock_and_save() -> None:
    await pgbackend.bridged(_lock_and_save)()


THREE: dict[str, Callable[[], Awaitable[None]]] = {
    "aget": aget,
    "atomic, aget": aget_in_atomic,
    "atomic, select_for_update, save": lock_and_save,
}


async def read_list() -> None:
    assert len([each async for each in Part.objects.filter(pk__lte=20)]) == 20


async def read_by_keys() -> None:
    assert len([each async for each in Part.objects.filter(pk__in=range(1, 21))]) == 20


async def exists() -> None:
    assert await Part.objects.filter(item=1).aexists()


async def count() -> None:
    assert await Part.objects.filter(item=1).acount() == PARTS


async def aggregate() -> None:
    await Part.objects.filter(item=1).aaggregate(total=models.Sum("number"))


async def values() -> None:
    assert len([each async for each in Part.objects.filter(pk__lte=20).values("id", "name")]) == 20


async def values_list() -> None:
    rows = Part.objects.filter(pk__lte=20).values_list("name", flat=True)
    assert len([each async for each in rows]) == 20


async def prefetch() -> None:
    items = Item.objects.filter(pk__lte=ITEMS).prefetch_related("parts")
    assert len([each async for each in items]) == ITEMS


async def select_related() -> None:
    await Part.objects.select_related("item").aget(pk=1)


async def create() -> None:
    await Part.objects.acreate(item_id=0, name="new", number=1)


async def bulk_create() -> None:
    await Part.objects.abulk_create(
        [Part(item_id=0, name="new", number=number) for number in range(100)]
    )


async def delete() -> None:
    await Part(pk=0, item_id=0).adelete()


async def delete_rows() -> None:
    await Part.objects.filter(item=-1).adelete()


async def read_all() -> None:
    rows = 0
    async for _ in Item.objects.filter(pk__gt=100).aiterator():
        rows += 1
    assert rows == ROWS


def _read_all() -> None:
    rows = 0
    for _ in Item.objects.filter(pk__gt=100).iterator():
        rows += 1
    assert rows == ROWS


iterator = pgbackend.bridged(_read_all)


# Calls of which only the CPU is compared.
MORE: dict[str, Callable[[], Awaitable[None]]] = {
    "list of 20": read_list,
    "list of 20, by key": read_by_keys,
    "exists": exists,
    "count": count,
    "aggregate": aggregate,
    "values": values,
    "values_list": values_list,
    "prefetch": prefetch,
    "select_related": select_related,
    "create": create,
    "bulk_create of 100": bulk_create,
    "delete": delete,
    "delete of rows": delete_rows,
    "aiterator": read_all,
    "iterator": iterator,
}


def _make_table() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Item)
        editor.create_model(Part)
    Item.objects.bulk_create(Item(pk=pk, name="a") for pk in range(1, ITEMS + 1))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO ways_item (id, name) SELECT id + 100, 'item ' || id"
            " FROM generate_series(1, %s) id",
            [ROWS],
        )
    Part.objects.bulk_create(
        Part(item_id=item, name="part", number=number)
        for item in range(1, ITEMS + 1)
        for number in range(PARTS)
    )


def _drop_table() -> None:
    with connection.schema_editor() as editor:
        editor.delete_model(Part)
        editor.delete_model(Item)


make_table, drop_table = pgbackend.bridged(_make_table), pgbackend.bridged(_drop_table)


class Way(NamedTuple):
    """What a call did in this package."""

    # Functions entered, and coroutines and generators resumed.
    calls: int
    files: int
    # How often one such call was in another file than the one before.
    changes: int
    # How often it was asked whether the caller is bridged, and whose state it is.
    bridged: int
    states: int


def _way(entered: list[tuple[str, str]]) -> Way:
    files = [file for file, _ in entered]
    names = Counter(name for _, name in entered)
    return Way(
        len(entered),
        len(set(files)),
        sum(before != after for before, after in itertools.pairwise(files)),
        names["is_bridged"],
        names["current"],
    )


async def follow(call: Callable[[], Awaitable[None]]) -> Way:
    """Return the shortest way that *call* takes, once its statement is kept."""
    ways = []
    for _ in range(CALLS):
        entered: list[tuple[str, str]] = []

        def note(frame: FrameType, event: str, argument: Any) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(_PACKAGE):
                entered.append((code.co_filename, code.co_name))  # noqa: B023  # in this turn only

        sys.setprofile(note)
        try:
            await call()
        finally:
            sys.setprofile(None)
        ways.append(_way(entered))
    return min(ways)
