"""The three calls, on a table of their own, and how their way is counted."""

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


def _make_table() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Item)
    Item.objects.create(pk=1, name="a")


def _drop_table() -> None:
    with connection.schema_editor() as editor:
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
