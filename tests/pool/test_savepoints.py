"""Savepoints that go with the next statement: those of `atomic` and of `deferred_savepoint`.

A block that raises is undone, and one that did nothing costs nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, DataError, IntegrityError, connection, transaction
from django.db.models import Count
from django.test.utils import CaptureQueriesContext

from pgbackend import NotCommitted, await_bridged, bridged
from pgbackend.futures import future, gather
from pgbackend.transaction import (
    acommit,
    asavepoint,
    asavepoint_commit,
    asavepoint_rollback,
    aset_autocommit,
    deferred_savepoint,
)
from tests.models import Author, Book
from tests.support.futures import counted
from tests.support.server import Server
from tests.support.wrapper import until, use_wrapper, value


def names(server: Server) -> list[str]:
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]


def write(name: str, how: str) -> None:
    """Write *name* by one of the ways to send a statement."""
    match how:
        case "orm":
            Author.objects.create(name=name)
        case "cursor":
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])
        case "psycopg":
            connection.connection.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])
        case "copy":
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY tests_author (name) FROM STDIN") as copy,
            ):
                copy.write_row([name])
        case "atomic":
            with transaction.atomic():
                Author.objects.create(name=name)
        case "many":
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [[name]])


@pytest.mark.parametrize("how", ["orm", "cursor", "psycopg", "copy", "atomic", "many"])
@bridged
def test_blocks_that_raise(server: Server, how: str) -> None:
    """Whatever sent the statement: the blocks that raise are undone, and no others."""
    hooks: list[str] = []
    with transaction.atomic():
        saved = deferred_savepoint()
        for number in range(6):
            with suppress(ValueError), saved:
                write(f"{number}", how)
                transaction.on_commit(lambda number=number: hooks.append(f"{number}"))
                if number % 2:
                    raise ValueError
        write("after", how)
    assert names(server) == ["0", "2", "4", "after"]
    assert hooks == ["0", "2", "4"]


@pytest.mark.parametrize("first", ["due", "sent", "reset"])
@pytest.mark.parametrize("how", ["orm", "cursor", "psycopg", "copy", "atomic", "many"])
async def test_statement_in_line_before_a_block(server: Server, how: str, first: str) -> None:
    """What a task writes is not undone with a block that another one begins later.

    The statement waits for the connection, which another task's statement uses. That has sent the
    savepoint that both are in, or the session's reset.
    """
    write_it = bridged(write)

    async def child() -> None:
        await Author.objects.acreate(name="first")
        async with transaction.atomic():
            await Author.objects.acreate(name="undone")
            await asyncio.sleep(0.05)
            raise ValueError("as planned")

    if first == "reset":
        # The transaction begins with the session's reset.
        use_wrapper(options={"reset": "always", "pool": {"max_size": 1}})
        await Author.objects.aexists()
    # The insert of the same name waits for the end of this transaction.
    server.all("BEGIN; INSERT INTO tests_author (name) VALUES ('first')")
    async with transaction.atomic():
        if first == "sent":
            await Author.objects.aexists()
        async with transaction.atomic():
            task = asyncio.create_task(child())
            await until(lambda: connection.state.lease.face.is_executing)
            writing = asyncio.create_task(write_it("kept", how))
            await asyncio.sleep(0.01)
            server.all("ROLLBACK")
            await writing
            with pytest.raises(ValueError, match="as planned"):
                await task
    assert names(server) == ["first", "kept"]


async def test_block_of_a_deferred_savepoint_begins_behind_those_in_line(server: Server) -> None:
    """What another task has sent before is not undone."""

    @bridged
    def undone() -> None:
        with suppress(ValueError), deferred_savepoint():
            write("undone", "orm")
            raise ValueError

    server.all("BEGIN; INSERT INTO tests_author (name) VALUES ('first')")
    async with transaction.atomic():
        running = asyncio.create_task(Author.objects.acreate(name="first"))
        writing = asyncio.create_task(Author.objects.acreate(name="kept"))
        undoing = asyncio.create_task(undone())
        await asyncio.sleep(0.01)
        server.all("ROLLBACK")
        await asyncio.gather(running, writing, undoing)
    assert names(server) == ["first", "kept"]


@bridged
def test_first_statement_of_the_transaction(server: Server) -> None:
    """The block may hold the first statement of its transaction, and the last."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with suppress(ValueError), saved:
            write("undone", "orm")
            raise ValueError
        with saved:
            write("kept", "orm")
    assert names(server) == ["kept"]


@bridged
def test_blocks_without_statements(server: Server) -> None:
    """A block that sends nothing costs no statement, also one that raises."""
    with transaction.atomic():
        before = value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
        saved = deferred_savepoint()
        for _ in range(3):
            with suppress(ValueError), saved:
                raise ValueError
        assert connection.connection.pgconn.transaction_status == 2
        assert before == value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
    assert names(server) == []


@bridged
def test_failed_statements(server: Server) -> None:
    """A failed statement leaves the transaction well; one that was caught is told of."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with pytest.raises(IntegrityError), saved:
            Author.objects.create(name=None)
        with pytest.raises(NotCommitted), saved:
            write("lost with it", "orm")
            with suppress(IntegrityError), transaction.atomic(savepoint=False):
                Author.objects.create(name=None)
        write("kept", "orm")
    assert names(server) == ["kept"]


async def test_outside_a_transaction() -> None:
    """Outside of a transaction, and of the bridge, an error names what is needed."""
    with pytest.raises(RuntimeError, match=r"needs an open transaction\.atomic"):
        deferred_savepoint().__enter__()
    with pytest.raises(RuntimeError, match="needs an open"):
        await bridged(deferred_savepoint().__enter__)()


@bridged
def test_strict(server: Server) -> None:
    """In strict blocks a COMMIT is refused, and settings end with the block."""
    with transaction.atomic():
        saved = deferred_savepoint(strict=True)
        with saved:
            write("one", "orm")
        with pytest.raises(NotCommitted), saved, suppress(DatabaseError):
            value("COMMIT")
        assert saved.has_ended
        transaction.set_rollback(True)
    assert names(server) == []
    with transaction.atomic():
        saved = deferred_savepoint(strict=True)
        with saved:
            write("one", "cursor")
            value("SELECT set_config('app.one', '1', true)")
        assert value("SELECT current_setting('app.one', true)") in ("", None)
        value(f"SELECT 1; {saved.before_commit}")
    assert names(server) == ["one"]


@bridged
def test_strict_blocks_of_the_orm(server: Server) -> None:
    """After statements of the ORM alone nothing is given back, and nothing sent."""
    with transaction.atomic():
        value("SELECT set_config('app.one', '1', true)")
        saved = deferred_savepoint(strict=True)
        for name in "ab":
            with saved:
                write(name, "orm")
        assert value("SELECT current_setting('app.one', true)") == "1"
        value(f"SELECT 1; {saved.before_commit}")
    assert names(server) == ["a", "b"]


# Blocks of atomic


async def test_messages_of_blocks(server: Server) -> None:
    """A nested block costs no message of its own, and one without a statement costs nothing."""
    async with counted(server) as proxy:
        await Author.objects.acreate(name="Ada")
        # The first is compiled anew, and so has its SAVEPOINT sent before it.
        for expected in (5, 4):
            before = proxy.messages
            async with transaction.atomic():
                for _ in range(3):
                    async with transaction.atomic():
                        await Author.objects.aget(name="Ada")
                    async with transaction.atomic(), transaction.atomic():
                        pass
            assert proxy.messages - before in (4, expected)
        before = proxy.messages
        async with transaction.atomic():
            async with transaction.atomic():
                pass
            with suppress(ValueError):
                async with transaction.atomic():
                    raise ValueError
        assert proxy.messages == before


async def test_order_of_statements(server: Server) -> None:
    """What the server gets has each savepoint at its place."""
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        with suppress(ValueError):
            async with transaction.atomic():
                await Author.objects.acreate(name="two")
                async with transaction.atomic():
                    await Author.objects.acreate(name="three")
                raise ValueError
        async with transaction.atomic():
            with suppress(ValueError):
                async with transaction.atomic():
                    await Author.objects.filter(name="one").aupdate(name="lost")
                    raise ValueError
            await Author.objects.filter(name="one").aupdate(name="four")
        async with transaction.atomic(), transaction.atomic():
            await Author.objects.acreate(name="five")
    assert names(server) == ["five", "four"]


def same_name() -> None:
    Author.objects.create(name="Ada")


def too_long() -> None:
    Author.objects.filter(name="Ada").update(name="a" * 51)


def by_zero() -> None:
    Author.objects.aggregate(n=1 / (Count("pk") - Count("pk")))


def cannot_be_parsed() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELEC 1")


def cannot_be_parsed_by_the_orm() -> None:
    list(Author.objects.extra(where=["nonsense ("]))


FAILURES = [same_name, too_long, by_zero, cannot_be_parsed, cannot_be_parsed_by_the_orm]


@pytest.mark.parametrize("begun", [False, True], ids=["with BEGIN", "begun"])
@pytest.mark.parametrize("fail", FAILURES)
@bridged
def test_statement_that_fails(server: Server, fail: object, begun: bool) -> None:
    """A failed statement ends its own block only, whether the block was sent with it or not."""
    assert callable(fail)
    Author.objects.create(name="Ada")
    with transaction.atomic():
        for round_ in range(3):
            if begun:
                Author.objects.create(name=f"{round_}")
            for _ in range(2):
                with (
                    pytest.raises((IntegrityError, DataError, DatabaseError)),
                    transaction.atomic(),
                ):
                    fail()
            with pytest.raises(DatabaseError), transaction.atomic():
                Author.objects.filter(name="Ada").first()
                fail()
        Author.objects.create(name="after")
    assert names(server) == [*(("0", "1", "2") if begun else ()), "Ada", "after"]


@bridged
def test_character_that_the_database_lacks(server: Server) -> None:
    """The server refuses the whole message then, and the block around goes on."""
    use_wrapper(NAME=database_in_latin1(server))
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE tests_author (id serial PRIMARY KEY, name text)")
        with transaction.atomic():
            with transaction.atomic():
                assert not Author.objects.filter(name="é").exists()
                assert Author.objects.filter(name="é").first() is None
            for _ in range(2):
                with pytest.raises(DataError), transaction.atomic():
                    Author.objects.filter(name="€").first()
            Author.objects.create(name="after")
        assert Author.objects.filter(name="after").exists()
    finally:
        connection.close_pool()


def database_in_latin1(server: Server) -> str:
    server.all("DROP DATABASE IF EXISTS latin1 WITH (FORCE)")
    server.all("CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    return "latin1"


async def test_savepoint_by_hand_that_was_not_sent(server: Server) -> None:
    """It can be rolled back to as often as one likes, and be released once."""
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        savepoint = await asavepoint()
        await asavepoint_rollback(savepoint)
        await Author.objects.acreate(name="two")
        await asavepoint_rollback(savepoint)
        await asavepoint_rollback(savepoint)
        await asavepoint_commit(savepoint)
        with pytest.raises(DatabaseError):
            async with transaction.atomic():
                await asavepoint_rollback(savepoint)
        await Author.objects.acreate(name="three")
    assert names(server) == ["one", "three"]


async def test_savepoint_by_hand_with_nothing_after_it(server: Server) -> None:
    """COMMIT ends it, and the next statement of the connection knows nothing of it."""
    async with transaction.atomic():
        await asavepoint()
    await Author.objects.acreate(name="one")
    async with transaction.atomic():
        await Author.objects.acreate(name="two")
        await asavepoint()
    assert await bridged(value)("SELECT count(*) FROM tests_author") == 2


@bridged
def test_statements_that_are_looked_at() -> None:
    """Where statements are logged, each is sent at its time, as Django does."""
    Author.objects.create(name="Ada")
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        with transaction.atomic():
            Author.objects.get(name="Ada")
        with transaction.atomic():
            pass
    kinds = [query["sql"].split()[0] for query in queries]
    assert kinds == ["BEGIN", "SAVEPOINT", "SELECT", "RELEASE", "SAVEPOINT", "RELEASE", "COMMIT"]
    seen = []

    def look(execute: object, sql: str, *args: object) -> object:
        seen.append(sql.split()[0])
        assert callable(execute)
        return execute(sql, *args)

    with transaction.atomic():
        with transaction.atomic(), connection.execute_wrapper(look):
            Author.objects.get(name="Ada")
        with connection.execute_wrapper(look), transaction.atomic():
            Author.objects.get(name="Ada")
    assert seen == ["SELECT", "SAVEPOINT", "SELECT", "RELEASE"]


@bridged
def test_transaction_that_raw_sql_ends() -> None:
    """The end of the block reports it, as with Django's own backend."""
    with pytest.raises(DatabaseError):  # noqa: SIM117
        with transaction.atomic():
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("ROLLBACK AND CHAIN")


@bridged
def test_psycopgs_own_transaction(server: Server) -> None:
    """psycopg's own savepoints are inside those that are due."""
    with transaction.atomic():
        Author.objects.create(name="one")
        with suppress(ValueError), transaction.atomic():
            raw = connection.connection
            with raw.transaction():
                raw.execute("INSERT INTO tests_author (name) VALUES ('two')")
            raise ValueError
        with transaction.atomic():
            Author.objects.create(name="three")
        with suppress(ValueError), raw.transaction():
            raw.execute("INSERT INTO tests_author (name) VALUES ('four')")
            raise ValueError
        with transaction.atomic(), raw.transaction():
            pass
    with transaction.atomic(), transaction.atomic(), connection.connection.transaction():
        Author.objects.create(name="five")
    assert names(server) == ["five", "one", "three"]


@bridged
def test_psycopgs_transaction_after_a_block_without_statements(server: Server) -> None:
    """It is no transaction of its own, although nothing was sent before it."""
    for inside in (False, True):
        with suppress(ValueError), transaction.atomic():
            with suppress(ValueError), transaction.atomic():
                if inside:
                    raise ValueError
            with connection.connection.transaction():
                Author.objects.create(name="lost")
            raise ValueError
        assert names(server) == []
    with transaction.atomic(), connection.connection.transaction():
        Author.objects.create(name="kept")
    assert names(server) == ["kept"]


@bridged
def test_psycopgs_transaction_after_raw_sql_ended_djangos(server: Server) -> None:
    """It is a transaction of its own then, as with Django's own backend."""
    with suppress(ValueError), transaction.atomic():
        with transaction.atomic():
            Author.objects.exists()
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")
        raw = connection.connection
        with raw.transaction():
            raw.execute("INSERT INTO tests_author (name) VALUES ('kept')")
        raise ValueError
    assert names(server) == ["kept"]


@bridged
def test_statements_of_psycopgs_pipeline(server: Server) -> None:
    """What is due goes into a pipeline, too."""
    with transaction.atomic():
        Author.objects.create(name="one")
        with transaction.atomic():
            Author.objects.create(name="two")
        with suppress(ValueError), transaction.atomic():
            with connection.connection.pipeline():
                connection.connection.execute("INSERT INTO tests_author (name) VALUES ('three')")
            raise ValueError
        with transaction.atomic():
            Author.objects.create(name="four")
    assert names(server) == ["four", "one", "two"]


async def test_statement_that_waits_for_the_connection(server: Server) -> None:
    """A sibling's statement that came first is not in the savepoint of a block that came later."""

    async def slow() -> None:
        await bridged(value)("SELECT count(*) FROM pg_sleep(0.05)")

    async def fails() -> None:
        with suppress(ValueError):
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                raise ValueError

    for _ in range(5):
        async with transaction.atomic():
            await asyncio.gather(
                slow(), *(Author.objects.acreate(name=f"{n}") for n in range(3)), fails()
            )
        assert names(server) == ["0", "1", "2"]
        await Author.objects.all().adelete()


@bridged
def test_server_side_cursor_around_blocks() -> None:
    """A cursor is read on while blocks are entered and left."""
    author = Author.objects.create(name="Ada")
    Book.objects.bulk_create(Book(title=f"{n}", author=author) for n in range(6))
    with transaction.atomic():
        titles = []
        for book in Book.objects.iterator(chunk_size=2):
            titles.append(book.title)
            with suppress(ValueError), transaction.atomic():
                Book.objects.filter(pk=book.pk).update(title="lost")
                if int(book.title) % 2:
                    raise ValueError
            with transaction.atomic():
                pass
    assert titles == [f"{n}" for n in range(6)]
    assert [book.title for book in Book.objects.all()] == ["lost", "1", "lost", "3", "lost", "5"]


@bridged
def test_error_shows_the_statement_alone() -> None:
    """The position in an error is that in the statement, whatever was sent before it."""
    Author.objects.create(name="Ada")
    books = Book.objects.extra(where=["nonsense = 1"])
    with transaction.atomic():
        with transaction.atomic():
            Author.objects.filter(name="Ada").first()
        with pytest.raises(DatabaseError) as caught, transaction.atomic():
            list(books)
    error = caught.value.__cause__
    assert isinstance(error, psycopg.Error)
    sql = str(books.query)
    assert error.diag.statement_position == str(sql.index("nonsense") + 1)
    assert "LINE 1: SELECT" in str(error) or "LINE 1: ..." in str(error)


# Savepoints that are not there any more


@pytest.mark.parametrize("between", [False, True], ids=["not sent", "sent"])
async def test_savepoint_that_was_released(server: Server, between: bool) -> None:
    """To release it again, or one inside it, raises at once; nothing else is broken by it."""
    async with transaction.atomic():
        await Author.objects.acreate(name="one")
        outer = await asavepoint()
        if between:
            await Author.objects.acreate(name="two")
        inner = await asavepoint()
        if between:
            await Author.objects.acreate(name="three")
        await asavepoint_commit(outer)
        for each in (outer, inner):
            with pytest.raises(DatabaseError):
                async with transaction.atomic():
                    await asavepoint_commit(each)
        await Author.objects.acreate(name="last")
    assert names(server) == ["last", "one", *(["three", "two"] if between else [])]


@pytest.mark.parametrize("end", [asavepoint_commit, asavepoint_rollback])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_block_whose_savepoint_was_ended(
    server: Server, end: Callable[[str], Awaitable[None]], in_thread: bool
) -> None:
    """A block inside a savepoint by hand that its own body ended raises at its end, as Django's."""
    with pytest.raises(DatabaseError):
        async with transaction.atomic():
            savepoint = await asavepoint()
            assert savepoint is not None
            await Author.objects.acreate(name="one")
            async with transaction.atomic():
                await Author.objects.acreate(name="two")
                if in_thread:
                    name = end.__name__.removeprefix("a")
                    await sync_to_async(getattr(transaction, name))(savepoint)
                else:
                    await end(savepoint)
    assert names(server) == []


@bridged
def test_psycopgs_transaction_around_a_savepoint_by_hand(server: Server) -> None:
    """The end of psycopg's savepoint ends it, and to release it raises at once."""
    with transaction.atomic():
        with connection.connection.transaction():
            savepoint = transaction.get_connection().savepoint()
            Author.objects.create(name="one")
        with pytest.raises(DatabaseError), transaction.atomic():
            transaction.savepoint_commit(savepoint)
        Author.objects.create(name="two")
    assert names(server) == ["one", "two"]


async def test_autocommit_after_a_savepoint(server: Server) -> None:
    """A savepoint begins the transaction, which autocommit cannot be turned on in."""
    await aset_autocommit(False)
    await asavepoint()
    with pytest.raises(DatabaseError):
        await aset_autocommit(True)
    await Author.objects.acreate(name="one")
    await acommit()
    await aset_autocommit(True)
    assert names(server) == ["one"]


async def test_siblings_of_a_block(server: Server) -> None:
    """A statement with which a savepoint goes is before the savepoint of a block that comes."""

    async def fails() -> None:
        with suppress(ValueError):
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                raise ValueError

    async def by_a_cursor(name: str) -> None:
        await bridged(write)(name, "cursor")

    async with transaction.atomic():
        async with transaction.atomic():
            await asyncio.gather(Author.objects.acreate(name="one"), fails())
        await asyncio.gather(by_a_cursor("two"), fails())
    assert names(server) == ["one", "two"]


@pytest.mark.parametrize("how", ["deferred", "gather"])
async def test_statement_of_a_sibling_beside_a_savepoint(server: Server, how: str) -> None:
    """What another task writes meanwhile is not undone with what has the savepoint."""
    begun = asyncio.Event()

    def lost() -> None:
        write("lost", "cursor")
        begun.set()
        await_bridged(asyncio.sleep(0.02))
        raise ValueError

    @bridged
    def undone() -> None:
        if how == "gather":
            calls = future(lost)(), future(Author.objects).count()
            gather(*calls, savepoints=True, return_exceptions=True).result()
            return
        with suppress(ValueError), deferred_savepoint():
            lost()

    async def sibling() -> None:
        await begun.wait()
        await Author.objects.acreate(name="kept")

    async with transaction.atomic():
        task = asyncio.create_task(sibling())
        await undone()
        await task
    assert names(server) == ["kept"]
