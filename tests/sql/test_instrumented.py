"""Methods that somebody replaced are called: the short way steps aside."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.operations import BaseDatabaseOperations
from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)
from django.db.backends.utils import CursorWrapper
from django.db.models.sql import compiler as djangos

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.operations import DatabaseOperations
from tests.models import Author


def counted(monkeypatch: pytest.MonkeyPatch, cls: type, name: str) -> list[str]:
    """Replace a method by one that does the same, and return the list that notes its calls."""
    original = getattr(cls, name)
    calls: list[str] = []

    def method(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(cls, name, method)
    return calls


REPLACED: list[tuple[type, str]] = [
    (BaseDatabaseWrapper, "cursor"),
    (BaseDatabaseWrapper, "_cursor"),
    (BaseDatabaseWrapper, "_prepare_cursor"),
    (DatabaseWrapper, "cursor"),
    (CursorWrapper, "execute"),
    (psycopg.Connection, "cursor"),
    (psycopg.Cursor, "execute"),
    (djangos.SQLCompiler, "execute_sql"),
]


@pytest.mark.parametrize(("cls", "name"), REPLACED)
async def test_replaced_methods(cls: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever replaces a method on Django's way, on whichever class, sees every statement."""
    await Author.objects.acreate(name="Ada")
    await Author.objects.aget()
    calls = counted(monkeypatch, cls, name)
    await Author.objects.aget(name="Ada")
    assert len(calls) == 1
    await Author.objects.aupdate(name="Bob")
    assert len(calls) == 2
    assert await Author.objects.acount() == 1
    assert len(calls) == 3
    monkeypatch.undo()
    await Author.objects.aget()
    assert len(calls) == 3


FETCHING = [
    (cls, name)
    for cls in (BaseDatabaseOperations, PostgresDatabaseOperations, DatabaseOperations)
    for name in (
        "fetch_returned_insert_columns",
        "fetch_returned_insert_rows",
        "fetch_returned_rows",
    )
    if hasattr(cls, name)
]


@pytest.mark.parametrize("in_block", [True, False])
async def test_replaced_execute_sql_of_inserts(
    monkeypatch: pytest.MonkeyPatch, in_block: bool
) -> None:
    """Whoever replaces the ``execute_sql`` of INSERTs sees them."""
    calls = counted(monkeypatch, djangos.SQLInsertCompiler, "execute_sql")

    @bridged
    def create() -> None:
        if in_block:
            with transaction.atomic():
                Author.objects.create(name="Ada")
        else:
            Author.objects.create(name="Ada")

    await create()
    assert calls == ["execute_sql"]
    assert (await Author.objects.aget()).name == "Ada"


@pytest.mark.parametrize(("cls", "name"), FETCHING)
async def test_replaced_fetching(cls: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations that take returned rows in a way of their own do so, with Django's cursor."""
    original = getattr(cls, name)
    columns: list[Any] = []

    def fetch(self: Any, cursor: Any, *args: Any) -> Any:
        columns.append([column.name for column in cursor.description])
        return original(self, cursor, *args)

    monkeypatch.setattr(cls, name, fetch)
    author = await Author.objects.acreate(name="Ada")
    more = await Author.objects.abulk_create([Author(name="Bob"), Author(name="Eve")])
    assert sorted([author.pk, *(each.pk for each in more)]) == [1, 2, 3]
    assert columns
    assert all(each == ["id"] for each in columns)
    monkeypatch.undo()
    operations = transaction.get_connection().ops
    setattr(operations, name, lambda *args: fetch(operations, *args))
    before = len(columns)
    await Author.objects.acreate(name="Dan")
    await Author.objects.abulk_create([Author(name="Fay"), Author(name="Gil")])
    assert len(columns) > before
