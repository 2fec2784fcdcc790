"""Errors: this backend's own, and that the others are Django's, whichever way a statement took."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from django.db import Error, OperationalError, connection, connections, models, transaction
from django.db.models.functions import Length

from pgbackend import CommitInDoubt, bridged
from pgbackend.wrapper.dispatch import run_for_alias
from tests.models import Author, Book
from tests.support.server import Server
from tests.support.wrapper import AddAlias


async def test_a_lost_commit_is_in_doubt(server: Server) -> None:
    """A connection lost at COMMIT gives CommitInDoubt; no hooks run, the next block works."""
    ran: list[Any] = []
    server.all(
        "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON tests_author"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
    )
    try:
        with pytest.raises(CommitInDoubt) as caught:
            async with transaction.atomic():
                await Author.objects.acreate(name="a")
                transaction.on_commit(lambda: ran.append(1))
        assert isinstance(caught.value, OperationalError)
        assert caught.value.__cause__ is not None
    finally:
        server.all("DROP TRIGGER die ON tests_author")
    assert ran == []
    async with transaction.atomic():
        await Author.objects.acreate(name="b")
    assert await Author.objects.acount() == 1


async def test_other_errors_are_not_in_doubt(server: Server) -> None:
    """An error that the server reports at COMMIT is not in doubt: nothing was committed."""

    def defer() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(OperationalError) as caught:
        async with transaction.atomic():
            await bridged(defer)()
    assert not isinstance(caught.value, CommitInDoubt)
    await asyncio.sleep(0)


# Ways to a row that Python cannot hold, and to a statement that fails. Each takes an alias.


def books(alias: str) -> Any:
    return Book.objects.using(alias).order_by("pk")


async def every(rows: Any) -> list[Any]:
    return [row async for row in rows]


def in_bridge(function: Callable[[str], Any]) -> Callable[[str], Awaitable[Any]]:
    """Return an asynchronous function that calls a synchronous one where its alias is used."""
    return lambda alias: run_for_alias(alias, function, alias)


def execute(sql: str, params: Any = None, fetch: str = "fetchall") -> Callable[[str], Any]:
    def run(alias: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql, params)
            getattr(cursor, fetch)()

    return in_bridge(run)


def iterated(alias: str) -> None:
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT published FROM tests_book")
        list(cursor)


def streamed(alias: str) -> None:
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        list(cursor.cursor.stream("SELECT published FROM tests_book"))


def copied_out(alias: str) -> None:
    with connections[alias].cursor() as cursor, cursor.copy("COPY nothing TO STDOUT") as copy:
        list(copy)


def copied_in(alias: str) -> None:
    with (
        connections[alias].cursor() as cursor,
        cursor.copy("COPY tests_author (id) FROM STDIN") as copy,
    ):
        copy.write(b"no number\n")


def rows_copied(alias: str) -> None:
    sql = "COPY (SELECT published FROM tests_book) TO STDOUT (FORMAT BINARY)"
    with connections[alias].cursor() as cursor, cursor.copy(sql) as copy:
        copy.set_types(["timestamptz"])
        list(copy.rows())


def called(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.callproc("pg_sleep", ["a"])


def executed_many(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [["new"], ["Ada"]])


def closed(alias: str) -> None:
    cursor = connections[alias].cursor()
    cursor.close()
    cursor.execute("SELECT 1")


def not_fetched(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SET LOCAL enable_sort = on")
        cursor.fetchone()


def at_commit(alias: str) -> None:
    with transaction.atomic(alias):
        Book.objects.using(alias).create(title="new", author_id=-1)


def checked(alias: str) -> None:
    with transaction.atomic(alias):
        Book.objects.using(alias).create(title="new", author_id=-1)
        connections[alias].check_constraints()


def unknown_savepoint(alias: str) -> None:
    with transaction.atomic(alias):
        transaction.savepoint_rollback("none", alias)


def lock_not_there(alias: str) -> None:
    with transaction.atomic(alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = 1")
        Author.objects.using(alias).update(name="Eve")


def read_only(alias: str) -> None:
    with transaction.atomic(alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        Author.objects.using(alias).create(name="Eve")


async def aiterator_in_atomic(alias: str) -> None:
    async with transaction.atomic(alias):
        await every(books(alias).aiterator())


WAYS: dict[str, Callable[[str], Awaitable[Any]]] = {
    # Rows that Python cannot hold.
    "aget": lambda alias: books(alias).aget(pk=1),
    "afirst": lambda alias: books(alias).afirst(),
    "alast": lambda alias: books(alias).alast(),
    "async for": lambda alias: every(books(alias)),
    "values": lambda alias: every(books(alias).values("published")),
    "values_list": lambda alias: every(books(alias).values_list("published", flat=True)),
    "aiterator": lambda alias: every(books(alias).aiterator()),
    "aiterator in a transaction": aiterator_in_atomic,
    "iterator": in_bridge(lambda alias: list(books(alias).iterator())),
    "list": in_bridge(lambda alias: list(books(alias))),
    "ain_bulk": lambda alias: books(alias).ain_bulk(),
    "aaggregate": lambda alias: books(alias).aaggregate(most=models.Max("published")),
    "adates": lambda alias: every(books(alias).dates("published", "month")),
    "raw": lambda alias: every(books(alias).raw("SELECT * FROM tests_book")),
    "union": lambda alias: every(books(alias).order_by().union(books(alias).order_by())),
    "arefresh_from_db": lambda alias: Book(pk=1).arefresh_from_db(using=alias),
    "prefetch": lambda alias: every(Author.objects.using(alias).prefetch_related("books")),
    "aget_or_create": lambda alias: books(alias).aget_or_create(pk=1),
    "aupdate_or_create": lambda alias: books(alias).aupdate_or_create(pk=1),
    "adelete": lambda alias: books(alias).adelete(),
    "fetchone": execute("SELECT published FROM tests_book", fetch="fetchone"),
    "fetchmany": execute("SELECT published FROM tests_book", fetch="fetchmany"),
    "fetchall": execute("SELECT published FROM tests_book"),
    "a cursor iterated": in_bridge(iterated),
    "stream": in_bridge(streamed),
    "rows of a COPY": in_bridge(rows_copied),
    # Statements that fail.
    "acreate": lambda alias: Author.objects.using(alias).acreate(name="Ada"),
    "asave": lambda alias: Author(name="Ada").asave(using=alias),
    "abulk_create": lambda alias: Author.objects.using(alias).abulk_create([Author(name="Ada")]),
    "NUL": lambda alias: Author.objects.using(alias).acreate(name="\0"),
    "NUL in a filter": lambda alias: Author.objects.using(alias).aget(name="\0"),
    "too long": lambda alias: Author.objects.using(alias).acreate(name="x" * 51),
    "1/0": lambda alias: books(alias).aupdate(price=models.Value(1) / models.F("price")),
    "annotate": lambda alias: every(
        books(alias).annotate(n=models.Value(1) / (Length("title") - Length("title")))
    ),
    "aexplain": lambda alias: books(alias).aexplain(format="json", nonsense=True),
    "extra": lambda alias: every(books(alias).extra(where=["nothing > 1"])),
    "aexists": lambda alias: books(alias).extra(where=["1/0 > 1"]).aexists(),
    "acontains": lambda alias: books(alias).extra(where=["1/0 > 1"]).acontains(Book(pk=1)),
    "syntax": execute("SELEC 1"),
    "placeholders": execute("SELECT %s, %s", ["one"]),
    "no placeholder": execute("SELECT 1", ["one"]),
    "type": execute("SELECT %s", [object()]),
    "nothing to fetch": in_bridge(not_fetched),
    "callproc": in_bridge(called),
    "executemany": in_bridge(executed_many),
    "a closed cursor": in_bridge(closed),
    "COPY TO": in_bridge(copied_out),
    "COPY FROM": in_bridge(copied_in),
    "at COMMIT": in_bridge(at_commit),
    "check_constraints": in_bridge(checked),
    "a savepoint": in_bridge(unknown_savepoint),
    "lock_timeout": in_bridge(lock_not_there),
    "read only": in_bridge(read_only),
}


@pytest.fixture
def unholdable(server: Server) -> None:
    """A row that psycopg cannot load."""
    server.all("INSERT INTO tests_author (name) VALUES ('Ada')")
    server.all(
        "INSERT INTO tests_book (title, author_id, price, on_loan, data, published)"
        " VALUES ('t', 1, 0, false, '{}', 'infinity')"
    )


async def outcome(way: Callable[[str], Awaitable[Any]], alias: str) -> Any:
    """Return what *way* raises: the types of the error and of its cause, and what it says."""
    try:
        await way(alias)
    except Exception as error:
        return type(error), type(error.__cause__), str(error).partition("\n")[0]
    finally:
        await in_bridge(forget)(alias)
    return None


def forget(alias: str) -> None:
    """Close the wrapper of *alias*, the thread's perhaps, and let the next test have its own."""
    connections[alias].close()
    del connections[alias]


# Behind these stock Django's cursor is psycopg's own.
PSYCOPGS = ("stream", "COPY TO", "COPY FROM", "rows of a COPY")


@pytest.mark.parametrize("binding", [False, True], ids=["", "prepared"])
@pytest.mark.parametrize("way", WAYS)
async def test_errors_are_those_of_stock(
    way: str, binding: bool, add_alias: AddAlias, server: Server, unholdable: None
) -> None:
    """Each way to fail raises what it does on Django's own backend, with the same cause."""
    options = {"server_side_binding": True, "prepare_threshold": 0} if binding else {}
    ours = add_alias(options)
    theirs = add_alias(options, ENGINE="django.db.backends.postgresql")
    raised = {}
    with server.conn.transaction(force_rollback=True):
        if way == "lock_timeout":
            server.all("LOCK TABLE tests_author IN ACCESS EXCLUSIVE MODE")
        for alias in (ours, theirs):
            raised[alias] = await outcome(WAYS[way], alias)
    assert raised[ours] is not None
    assert raised[ours] == raised[theirs]
    if way not in PSYCOPGS:
        error, cause, _ = raised[ours]
        assert not issubclass(error, psycopg.Error)
        assert issubclass(error, Error) == issubclass(cause, psycopg.Error)
