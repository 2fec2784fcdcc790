"""The short way of the ORM's statements: what it does, and for whom it steps aside."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import DatabaseError, DataError, IntegrityError, connection, transaction
from django.db.backends.postgresql.base import Cursor
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.db.models import Avg, Count
from django.db.models.functions import TruncDate
from django.db.transaction import TransactionManagementError
from psycopg.types.string import StrDumper, TextLoader

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.session.clean import CleanSQL
from pgbackend.sql.direct import DirectCursor, cursor_for
from pgbackend.transaction import pinned
from tests.models import Author, Book
from tests.support.server import Server
from tests.support.threads import run_in_thread
from tests.support.wrapper import AddAlias, small_pool, until, value


def is_short() -> bool:
    """Return whether a statement of the ORM's would go the short way."""
    sql, _ = Author.objects.filter(pk=1).query.get_compiler("default").as_sql()
    with cursor_for(transaction.get_connection(), sql) as cursor:
        return isinstance(cursor, DirectCursor)


@bridged
def test_the_orms_own() -> None:
    """A statement compiled from Django's own parts goes the short way, raw SQL does not."""
    assert is_short()
    with cursor_for(transaction.get_connection(), "SELECT 1") as cursor:
        assert not isinstance(cursor, DirectCursor)
    with transaction.atomic():
        assert is_short()


async def test_results() -> None:
    """Rows, counts, nothing found and values made by the database are as with Django's cursors."""
    ada = await Author.objects.acreate(name="Ada")
    assert (await Author.objects.aget(pk=ada.pk)).name == "Ada"
    assert await Author.objects.filter(name="Bob").afirst() is None
    assert await Author.objects.acount() == 1
    assert await Author.objects.filter(name="Ada").aupdate(name="Eve") == 1
    assert await Author.objects.filter(name="Ada").aupdate(name="Eve") == 0
    assert (await Author.objects.filter(name="Eve").adelete())[0] == 1
    assert [author async for author in Author.objects.all()] == []


async def test_errors(server: Server) -> None:
    """Errors are Django's, with psycopg's as the cause, and break the block they occur in."""
    await Author.objects.acreate(name="Ada")
    with pytest.raises(IntegrityError) as caught:
        await Author.objects.acreate(name="Ada")
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    async with transaction.atomic():
        with pytest.raises(IntegrityError):
            await Author.objects.acreate(name="Ada")
        with pytest.raises(TransactionManagementError):
            await Author.objects.acount()
        transaction.get_connection().needs_rollback = True
    assert await Author.objects.acount() == 1


async def test_begin_comes_with_the_first_statement(server: Server) -> None:
    """BEGIN and a block's first statement are one message to the server."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        assert server.one(
            "SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'"
            " AND application_name = 'pgbackend-tests'"
        ).startswith("BEGIN;\nINSERT")
        async with transaction.atomic():
            await Author.objects.acreate(name="Bob")
    assert await Author.objects.acount() == 2


@bridged
def test_first_statement_fails() -> None:
    """A block's first statement that fails leaves the transaction broken, and nothing else."""
    wrapper = transaction.get_connection()
    for sql, error in [
        ("SELEC 1", psycopg.errors.SyntaxError),
        ("SELECT nothing", psycopg.errors.UndefinedColumn),
        ("SELECT 1/0", psycopg.errors.DivisionByZero),
    ]:
        with transaction.atomic():
            with (
                pytest.raises(DatabaseError) as caught,
                cursor_for(wrapper, CleanSQL(sql)) as cursor,
            ):
                assert isinstance(cursor, DirectCursor)
                cursor.execute(sql, None)
            assert isinstance(caught.value.__cause__, error)
            status = wrapper.connection.info.transaction_status
            assert status == psycopg.pq.TransactionStatus.INERROR
            transaction.set_rollback(True)
        assert Author.objects.count() == 0


async def test_first_statement_is_cancelled(server: Server) -> None:
    """A block that is cancelled in its first statement has not begun anything afterwards."""
    await Author.objects.acreate(name="Ada")
    locked, done = asyncio.Event(), asyncio.Event()

    async def lock() -> None:
        async with transaction.atomic():
            await Author.objects.select_for_update().aget()
            locked.set()
            await done.wait()

    async def wait_for_it() -> None:
        async with transaction.atomic():
            await Author.objects.select_for_update().aget()

    holder = asyncio.create_task(lock())
    await locked.wait()
    waiter = asyncio.create_task(wait_for_it())
    await until(lambda: server.all("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    done.set()
    await holder
    assert not server.all(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbackend-tests'"
        " AND state <> 'idle'"
    )
    async with transaction.atomic():
        assert await Author.objects.select_for_update().aget()


@bridged
def test_pipeline() -> None:
    """In a pipeline of psycopg's, statements go by its own cursors."""
    with transaction.atomic():
        Author.objects.create(name="Ada")
        with connection.connection.pipeline():
            assert not is_short()
            assert [author.name for author in Author.objects.all()] == ["Ada"]


# Stepping aside


def debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "DEBUG", True)


def replaced_on_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    make = DatabaseWrapper.make_cursor
    monkeypatch.setattr(DatabaseWrapper, "make_cursor", lambda self, cursor: make(self, cursor))


def replaced_on_the_cursors(monkeypatch: pytest.MonkeyPatch) -> None:
    execute = CursorWrapper.execute
    monkeypatch.setattr(CursorWrapper, "execute", lambda self, *args: execute(self, *args))


@pytest.mark.parametrize("change", [debug, replaced_on_its_class, replaced_on_the_cursors])
async def test_steps_aside(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Under DEBUG, and where a method on the long way was replaced, statements go that way."""
    change(monkeypatch)
    assert not await bridged(is_short)()
    assert await Author.objects.acount() == 0
    monkeypatch.undo()
    assert await bridged(is_short)()


async def test_steps_aside_for_a_wrapper() -> None:
    """So they do inside execute_wrapper, and where the wrapper's own cursor() was replaced."""

    @bridged
    def look() -> None:
        seen: list[str] = []

        def see(execute: Any, sql: str, *args: Any) -> Any:
            seen.append(sql)
            return execute(sql, *args)

        with connection.execute_wrapper(see):
            assert Author.objects.count() == 0
        assert len(seen) == 1
        wrapper = transaction.get_connection()
        wrapper.cursor = wrapper.cursor
        assert not is_short()
        del wrapper.cursor
        assert is_short()

    await look()


async def test_server_side_binding(add_alias: AddAlias) -> None:
    """With server_side_binding parameters go to the server beside the statement."""
    alias = add_alias({"server_side_binding": True})
    await Author.objects.acreate(name="Ada")

    @bridged
    def look() -> type:
        sql, _ = Author.objects.using(alias).all().query.get_compiler(alias).as_sql()
        with cursor_for(transaction.get_connection(alias), sql) as cursor:
            return type(cursor)

    assert await look() is not DirectCursor
    assert await Author.objects.using(alias).filter(name="Ada").acount() == 1


class OwnCursor(Cursor):
    """A cursor of an application."""


def use_own_cursor(connection: DatabaseWrapper, **_: Any) -> None:
    connection.connection.cursor_factory = OwnCursor


async def test_waits_once_for_a_connection() -> None:
    """A statement that steps aside keeps the connection that it has waited for."""
    connection_created.connect(use_own_cursor)
    try:
        small_pool()
        begun, counted = asyncio.Event(), asyncio.Event()

        async def occupy(until: asyncio.Event) -> None:
            async with transaction.atomic():
                await Author.objects.acount()
                begun.set()
                await until.wait()

        async def count() -> None:
            assert not await Author.objects.acount()
            counted.set()

        release = asyncio.Event()
        first = asyncio.create_task(occupy(release))
        await begun.wait()
        counting = asyncio.create_task(count())
        await asyncio.sleep(0.01)
        # This one comes later, and keeps the connection until the statement has been executed.
        last = asyncio.create_task(occupy(counted))
        await asyncio.sleep(0.01)
        release.set()
        await asyncio.gather(first, counting, last)
    finally:
        connection_created.disconnect(use_own_cursor)


# What a borrower registers


class Shouting(StrDumper):
    """Writes strings in capitals."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.upper())

    def quote(self, obj: str) -> Any:
        return super().quote(obj.upper())


async def test_adapters_of_a_borrower() -> None:
    """What a borrower registers holds for its next statements, and for no other borrower."""
    await Author.objects.acreate(name="ada")

    def found() -> bool:
        return Author.objects.filter(name="ada").exists()

    @bridged
    def register() -> None:
        with transaction.atomic():
            assert found()
            connection.connection.adapters.register_dumper(str, Shouting)
            assert not found()

    await register()
    assert await bridged(found)()


# What the server reports


NOON = datetime.datetime(2024, 3, 4, 12, tzinfo=datetime.UTC)


def published() -> datetime.datetime:
    """Return when the only book was published, as the short way reads it."""
    assert is_short()
    at: datetime.datetime = Book.objects.get().published
    return at


def day() -> datetime.date:
    """Return the day of that as a date of the server's."""
    found: datetime.date = Book.objects.values_list(TruncDate("published"), flat=True).get()
    return found


LOCAL: dict[str, tuple[str, Callable[[], Any], Any]] = {
    "time zone": ("SET LOCAL TIME ZONE 'Asia/Tokyo'", published, NOON),
    "encoding": ("SET LOCAL client_encoding = 'LATIN1'", lambda: Book.objects.get().title, "café"),
    "date style": ("SET LOCAL datestyle = 'SQL, DMY'", day, NOON.date()),
    "by a function": ("SELECT set_config('timezone', 'Asia/Tokyo', true)", published, NOON),
}


def change(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.parametrize("end", ["commit", "rollback", "savepoint"])
@pytest.mark.parametrize("name", LOCAL)
@bridged
def test_a_setting_of_a_transaction(name: str, end: str) -> None:
    """After a transaction with another time zone, encoding or date style, values are right."""
    statement, read, expected = LOCAL[name]
    Book.objects.create(title="café", published=NOON)
    with pinned():
        if end == "savepoint":
            with transaction.atomic():
                with suppress(DataError), transaction.atomic():
                    change(statement)
                    read()
                    raise DataError
                assert read() == expected
        else:
            with transaction.atomic():
                change(statement)
                read()
                transaction.set_rollback(end == "rollback")
        assert read() == expected


@bridged
def test_a_setting_while_it_holds() -> None:
    """Values are read and written by the encoding and the date style that hold."""
    Book.objects.create(title="café", published=NOON)
    Book.objects.get()
    with transaction.atomic():
        change("SET LOCAL client_encoding = 'LATIN1'")
        assert Book.objects.get(title="café").title == "café"
        Book.objects.update(title="thé")
        for style in ("SQL, DMY", "SQL, MDY", "German", "ISO"):
            change(f"SET LOCAL datestyle = '{style}'")
            assert day() == NOON.date()
    assert Book.objects.get().title == "thé"


async def test_a_reload_of_the_servers_configuration(server: Server) -> None:
    """A setting that changes in the server's configuration, under a warm pool, is followed."""
    await Book.objects.acreate(title="a", published=NOON)
    alias = small_pool().alias
    read = Book.objects.using(alias).values_list(TruncDate("published"), flat=True)
    assert await read.aget() == NOON.date()
    before = server.one("SHOW datestyle")
    try:
        for style in ("SQL, DMY", "SQL, MDY", "German"):
            server.all(f"ALTER SYSTEM SET datestyle = '{style}'")
            server.all("SELECT pg_reload_conf()")
            await until(lambda style=style: server.one("SHOW datestyle").startswith(style))
            assert await read.aget() == NOON.date()
    finally:
        server.all("ALTER SYSTEM RESET datestyle")
        server.all("SELECT pg_reload_conf()")
        await until(lambda: server.one("SHOW datestyle") == before)


@pytest.mark.parametrize("by", ["a loader", "a finalizer"])
@bridged
def test_a_statement_while_rows_are_loaded(by: str) -> None:
    """A statement that runs on the connection while rows are loaded does not touch these."""
    names = [f"author {number}" for number in range(5)]
    Author.objects.bulk_create([Author(name=name) for name in names])
    counts = []

    class Finalized:
        def __del__(self) -> None:
            counts.append(Author.objects.aggregate(count=Count("pk"), mean=Avg("pk")))

    class Loader(TextLoader):
        def load(self, data: Any) -> str:
            if by == "a loader":
                counts.append(Author.objects.aggregate(count=Count("pk"), mean=Avg("pk")))
            else:
                Finalized()
            return super().load(data)

    with transaction.atomic():
        connection.ensure_connection()
        connection.connection.adapters.register_loader("varchar", Loader)
        rows = list(Author.objects.order_by("pk").values_list("name", "pk", "name"))
        assert [name for name, _, _ in rows] == names
        assert [type(pk) for _, pk, _ in rows] == [int] * 5
        assert [each["count"] for each in counts] == [5] * 10
        assert Author.objects.filter(name="author 1").get().name == "author 1"


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


SET = "SELECT set_config('pgbackend.test', %s, true)", ["x"]
SHOW = "SELECT current_setting('pgbackend.test', true)"


@bridged
def test_due(server: Server) -> None:
    """What is due goes with the next statement, by whichever way that goes, or not at all."""
    wrapper = transaction.get_connection()
    for next_one in (Author.objects.count, lambda: value("SELECT 1")):
        with transaction.atomic():
            with cursor_for(wrapper, CleanSQL("")) as cursor:
                due = cursor.execute_with_next(SET, SET)
            assert not due.is_sent
            next_one()
            assert due.is_sent
            assert value(SHOW) == "x"
        with transaction.atomic():
            with cursor_for(wrapper, CleanSQL("")) as cursor:
                due = cursor.execute_with_next(SET)
            due.send()
            due.send()
            assert value(SHOW) == "x"
        with transaction.atomic():
            with cursor_for(wrapper, CleanSQL("")) as cursor:
                due = cursor.execute_with_next(SET)
            due.drop()
            assert value(SHOW) != "x"


@bridged
def test_due_that_fails() -> None:
    """A statement behind one that fails is not run, and the error is that of the first."""
    wrapper = transaction.get_connection()
    with pytest.raises(DataError), transaction.atomic():
        with cursor_for(wrapper, CleanSQL("")) as cursor:
            due = cursor.execute_with_next(("SELECT 1 / %s", [0]))
        try:
            Author.objects.create(name="Ada")
        finally:
            assert not due.is_sent
            due.drop()
    assert Author.objects.count() == 0
    # Behind a statement that succeeds, one fails whose text the server cannot parse.
    with (
        pytest.raises(DatabaseError, match="LINE 1"),
        transaction.atomic(),
        cursor_for(wrapper, CleanSQL("")) as cursor,
    ):
        due = cursor.execute_with_next(SET)
        cursor.execute("SELECT FROM WHERE", [])
    assert due.is_sent


@bridged
def test_commit_next(server: Server) -> None:
    """A COMMIT goes with the statement, and one that follows all the same has a transaction."""
    wrapper = transaction.get_connection()
    with transaction.atomic():
        with cursor_for(wrapper, CleanSQL("")) as cursor:
            due = cursor.execute_with_next(SET)
        due.commit_next()
        assert Author.objects.count() == 0
        assert not server.one("SELECT count(*) FROM pg_stat_activity WHERE state ~ '^idle in tr'")
        Author.objects.create(name="Ada")
        assert value(SHOW) == "x"
        assert server.one("SELECT count(*) FROM tests_author") == 0
    assert server.one("SELECT count(*) FROM tests_author") == 1
    assert value(SHOW) != "x"
    # Where none follows, nothing more is sent.
    with transaction.atomic():
        with cursor_for(wrapper, CleanSQL("")) as cursor:
            due = cursor.execute_with_next(SET)
        due.commit_next()
        assert Author.objects.count() == 1
    assert server.one("SELECT count(*) FROM pg_stat_activity WHERE query ~ 'COMMIT$'") == 1
    assert value(SHOW) != "x"
    with pytest.raises(ValueError, match="undone"), transaction.atomic():
        with cursor_for(wrapper, CleanSQL("")) as cursor:
            due = cursor.execute_with_next(SET)
        due.commit_next()
        due.drop()
        Author.objects.create(name="Eve")
        raise ValueError("undone")
    assert server.one("SELECT count(*) FROM tests_author") == 1
