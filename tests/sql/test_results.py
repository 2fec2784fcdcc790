"""Results and errors of the short way: those that Django's own backend has, of whichever kind."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.operations import BaseDatabaseOperations
from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)
from django.db.backends.utils import CursorWrapper
from django.db.models.sql import compiler as djangos
from django.test.utils import isolate_apps

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.operations import DatabaseOperations
from pgbackend.session.clean import CleanSQL
from pgbackend.sql.direct import cursor_for
from tests.models import Author
from tests.support.server import Server
from tests.support.wrapper import AddAlias

RULES = {
    "insert, a row": "ON INSERT TO tests_author DO ALSO SELECT 70 AS id, 'also' AS name",
    "insert, rows": "ON INSERT TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "insert, nothing": "ON INSERT TO tests_author DO ALSO NOTIFY tests",
    "update, a row": "ON UPDATE TO tests_author DO ALSO SELECT 70 AS id, 'also' AS name",
    "update, rows": "ON UPDATE TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "update instead": "ON UPDATE TO tests_author DO INSTEAD SELECT * FROM generate_series(5, 9)",
    "delete, rows": "ON DELETE TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "insert, two": "ON INSERT TO tests_author DO ALSO"
    " (SELECT 70; SELECT * FROM generate_series(5, 9))",
    "update, two": "ON UPDATE TO tests_author DO ALSO"
    " (SELECT * FROM generate_series(5, 9); SELECT 70 AS id, 'also' AS name)",
    "update instead, two": "ON UPDATE TO tests_author DO INSTEAD"
    " (SELECT 70 AS id, 'also' AS name; SELECT * FROM generate_series(5, 9))",
    "update, one of two": "ON UPDATE TO tests_author DO ALSO"
    " (SELECT 70; SELECT 1 / (random() * 0)::int)",
    "delete, two": "ON DELETE TO tests_author DO ALSO"
    " (SELECT * FROM generate_series(5, 9); SELECT 70)",
    "delete instead": "ON DELETE TO tests_author DO INSTEAD NOTHING",
    "a failure": "ON UPDATE TO tests_author DO ALSO SELECT 1 / (random() * 0)::int",
}


@pytest.fixture
def rule(request: pytest.FixtureRequest, server: Server) -> Iterator[None]:
    """A rule on the authors' table for the test."""
    server.all(f"CREATE RULE tests_also AS {RULES[request.param]}")
    yield
    server.all("DROP RULE tests_also ON tests_author")


@pytest.fixture
def stock(add_alias: AddAlias) -> str:
    """An alias of Django's own backend."""
    return add_alias({}, ENGINE="django.db.backends.postgresql")


def outcomes(alias: str, *, in_block: bool, first: bool) -> list[Any]:
    """Return what operations on authors come to: as the *first* of a block, or after another."""
    manager = Author._base_manager.using(alias)
    found: list[Any] = []

    def run(operation: Callable[[], Any]) -> None:
        try:
            if not in_block:
                found.append(operation())
                return
            with transaction.atomic(using=alias):
                if not first:
                    manager.count()
                found.append(operation())
        except Exception as error:
            found.append((type(error), str(error)))

    def saved() -> Any:
        author = Author(name="saved")
        author.save(using=alias)
        return author.pk, author.name

    def created() -> Any:
        rows = manager.bulk_create([Author(name="one"), Author(name="two")])
        return [(row.pk, row.name) for row in rows]

    def again() -> Any:
        author = manager.order_by("pk").first()
        author.name = f"{author.name}!"
        author.save(using=alias)
        return author.name

    run(saved)
    run(created)
    run(again)
    run(lambda: manager.filter(name__startswith="o").update(name="three"))
    run(lambda: sorted(manager.values_list("name", flat=True)))
    run(lambda: manager.filter(name="three")._raw_delete(alias))
    run(lambda: manager.all().delete())
    run(manager.count)
    return found


@pytest.mark.parametrize("rule", RULES, indirect=True)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("in_block", [True, False])
async def test_several_results(
    rule: None, server: Server, stock: str, in_block: bool, first: bool
) -> None:
    """Where a rule makes several results, Django's is taken; an error in any of them is raised."""

    def run(alias: str) -> list[Any]:
        server.all("TRUNCATE tests_author RESTART IDENTITY CASCADE")
        return outcomes(alias, in_block=in_block, first=first)

    # Not in the bridge, as Django's own backend runs.
    expected = run_in_thread(lambda: run(stock))
    assert await bridged(run)("default") == expected


def run_in_thread(function: Callable[[], Any]) -> Any:
    """Run *function* in a thread, where stock Django may be used, and close its connections."""
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(function())
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results[0]


async def test_insert_that_a_trigger_skips(server: Server, stock: str) -> None:
    """An INSERT that a trigger turns into nothing ends as it does with Django's own backend."""
    server.all(
        "CREATE FUNCTION tests_skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    server.all(
        "CREATE TRIGGER tests_skip BEFORE INSERT OR UPDATE ON tests_author"
        " FOR EACH ROW EXECUTE FUNCTION tests_skip()"
    )
    try:
        for in_block in (True, False):
            expected = run_in_thread(lambda: outcomes(stock, in_block=in_block, first=True))  # noqa: B023
            assert await bridged(outcomes)("default", in_block=in_block, first=True) == expected
    finally:
        server.all("DROP FUNCTION tests_skip CASCADE")


# Errors


def described(error: BaseException) -> Any:
    """Return what an error says, of itself and of its cause, with all of its fields."""
    cause: Any = error.__cause__
    fields = {
        name: getattr(cause.diag, name)
        for name in dir(cause.diag)
        # Where in the server's own code.
        if not name.startswith(("_", "source_"))
    }
    again = pickle.loads(pickle.dumps(cause))
    assert again.diag.statement_position == fields["statement_position"]
    return type(error), str(error), type(cause), str(cause), cause.sqlstate, fields


WRONG = [
    "SELEC 1",
    "SELECT nothing FROM tests_author",
    "SELECT name,\n  nothing\nFROM tests_author",
    "\n" * 8 + "SELECT nothing FROM tests_author",
    "SELECT 'ä€𝄞' || name, nothing FROM tests_author",
    "SELECT name FROM tests_nowhere",
    "SELECT 'nothing\n2\n3', nothing FROM tests_author",
    "SELECT 1 / 0",
    "SELECT 'x'::int",
    "SELECT name::int FROM tests_author",
    "INSERT INTO tests_author (id, name) VALUES (99, NULL)",
    "SELECT jsonb_path_query('{}', 'strict $.a')",
    "SELECT nothing(1)",
    "SELECT " + "1 + " * 100 + "nothing FROM tests_author WHERE " + "1 = 1 AND " * 100 + "true",
]


@pytest.mark.parametrize("sql", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_positions_of_errors(
    sql: str, isolation: str, stock: str, add_alias: AddAlias
) -> None:
    """An error says where it is in the statement, also if BEGIN was in one message with it."""
    level = psycopg.IsolationLevel[isolation.upper().replace(" ", "_")]
    alias = add_alias({"isolation_level": level})
    await Author.objects.acreate(name="Ada")

    def errors_of(alias: str) -> list[Any]:
        found = []
        for first in (True, False):
            with pytest.raises(DatabaseError) as caught, transaction.atomic(using=alias):
                if not first:
                    Author.objects.using(alias).count()
                connection = transaction.get_connection(alias)
                cursor: Any = (
                    connection.cursor()
                    if connection.settings_dict["ENGINE"].startswith("django.")
                    else cursor_for(connection, CleanSQL(sql))
                )
                with cursor:
                    cursor.execute(sql if alias == stock else CleanSQL(sql), None)
            found.append(described(caught.value))
        return found

    expected = run_in_thread(lambda: errors_of(stock))
    assert await bridged(errors_of)(alias) == expected


async def test_position_of_a_column_that_is_missing(stock: str) -> None:
    """A model's column that its table does not have is shown where it is in the statement."""

    @isolate_apps("tests")
    def make() -> Any:
        class Lacking(models.Model):
            nothing = models.TextField()

            class Meta:
                app_label = "tests"
                db_table = "tests_author"

        return Lacking

    model = make()

    def error_of(alias: str) -> Any:
        with pytest.raises(DatabaseError) as caught, transaction.atomic(using=alias):
            model._base_manager.using(alias).get(pk=1)
        return described(caught.value)

    expected = run_in_thread(lambda: error_of(stock))
    assert "LINE 1: " in expected[1]
    for _ in range(2):
        assert await bridged(error_of)("default") == expected


# Methods that were replaced


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
