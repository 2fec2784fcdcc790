"""Calls that are driven together in a transaction: one message for each round of statements."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import psycopg
import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import (
    DatabaseError,
    IntegrityError,
    InternalError,
    OperationalError,
    connection,
    transaction,
)
from django.db.models import Avg, Count, Prefetch
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from pgbackend import await_bridged, bridged
from pgbackend.errors import NotRun
from pgbackend.futures import future, gather
from pgbackend.transaction import aset_autocommit, deferred_savepoint, detached
from tests.models import Author, Book, Elsewhere
from tests.support.books import library
from tests.support.fix_loops import Main
from tests.support.futures import authors, counted
from tests.support.left_early import driven_then_closed
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import on_loan, until

TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


class Failed(Exception):
    pass


def test_one_message(run_main: Main, server: Server) -> None:
    """Ten gathered reads, and a BEGIN that is due, are one message."""

    async def main() -> None:
        pks = await authors(10)
        async with counted(server) as proxy:
            await Author.objects.acount()
            async with transaction.atomic():
                before = proxy.messages
                found = await gather(*[future(Author.objects).get(name=f"a{i}") for i in range(10)])
                assert proxy.messages - before == 1
            assert [author.pk for author in found] == pks

    run_main(main())


async def test_ends(server: Server) -> None:
    """Each kind of end of a queryset goes into the message, and has Django's result."""
    ada, _ = await library()
    books, objects = future(Book.objects), future(Author.objects)
    async with counted(server) as proxy, transaction.atomic():
        await Author.objects.acount()
        before = proxy.messages
        found = await gather(
            books.filter(price__gt=10).count(),
            books.exists(),
            books.first(),
            books.last(),
            books.aggregate(Avg("price")),
            books.values("title", "price").filter(title="A1").submit(),
            books.values_list("title", flat=True),
            books.order_by("-price").values_list("price", flat=True)[:2].submit(),
            Book.objects.annotate(readers_count=Count("readers")).filter(readers_count=0),
            objects.get(pk=ada.pk),
            objects.select_for_update().get(name="Bea"),
            objects.create(name="Eve"),
            books.filter(title="B1").update(price=30),
            objects.bulk_create([Author(name="Joe"), Author(name="Kim")]),
            books.contains(Book(pk=1)),
            books.none().submit(),
        )
        # One for all, and one for bulk_create(), which enters a block before Django 6.1.
        assert proxy.messages - before <= 2
        (count, exists, first, last, aggregate, values, flat, sliced, annotated, *rest) = found
        got, locked, created, updated, many, contains, none = rest
        assert (count, exists, first.title, last.title) == (2, True, "A1", "B1")
        assert aggregate == {"price__avg": 15.0}
        assert values == [{"title": "A1", "price": 5}]
        assert flat == ["A1", "A2", "B1"]
        assert sliced == [25, 15]
        assert sorted((book.title, book.readers_count) for book in annotated) == [
            ("A1", 0),
            ("A2", 0),
            ("B1", 0),
        ]
        assert (got, locked.name, created.name, updated) == (ada, "Bea", "Eve", 1)
        assert all(author.pk for author in (created, *many))
        assert contains
        assert none == []
        assert await Author.objects.acount() == 5


async def test_prefetch(server: Server) -> None:
    """Prefetched levels come one after another, those of all calls together."""
    await library()
    prefetched = Author.objects.prefetch_related(
        Prefetch("books", Book.objects.prefetch_related("readers")), "tags"
    )
    async with counted(server) as proxy, transaction.atomic():
        # The content type of the tags' target is kept from then on.
        await bridged(ContentType.objects.get_for_model)(Author)
        before = proxy.messages
        one, two, plain = await gather(
            prefetched.filter(name="Ada"), prefetched.filter(name="Bea"), Author.objects.all()
        )
        # The authors, the books, their readers, the tags.
        assert proxy.messages - before == 4
        assert [book.title for book in one[0].books.all()] == ["A1", "A2"]
        assert [list(book.readers.all()) for book in two[0].books.all()] == [[]]
        assert len(plain) == 2


async def test_not_found() -> None:
    """A row that is missing is Django's exception, and no failed statement."""
    pks = await authors(2)
    async with transaction.atomic():
        found = await gather(
            future(Author.objects).get(name="nobody"),
            future(Author.objects).get(pk=pks[0]),
            future(Author.objects).get(pk__gt=0),
            return_exceptions=True,
        )
        assert isinstance(found[0], Author.DoesNotExist)
        assert found[1].pk == pks[0]
        assert isinstance(found[2], Author.MultipleObjectsReturned)
        with pytest.raises(Author.DoesNotExist):
            await gather(future(Author.objects).get(name="nobody"), Author.objects.all())
        assert await Author.objects.acount() == 2


async def test_failed_statement() -> None:
    """A failed statement is the one that is raised; those behind it were not run."""
    await authors(2)
    with pytest.raises(IntegrityError) as caught:
        async with transaction.atomic():
            await gather(
                future(Author.objects).create(name="new"),
                future(Author.objects).create(name="a0"),
                future(Author.objects).create(name="newer"),
            )
    assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
    assert await Author.objects.acount() == 2

    async with transaction.atomic():
        found = await gather(
            future(Author.objects).create(name="new"),
            future(Author.objects).create(name="a0"),
            future(Author.objects).count(),
            return_exceptions=True,
        )
        assert found[0].name == "new"
        assert isinstance(found[1], IntegrityError)
        assert isinstance(found[2], NotRun)
        assert isinstance(found[2].__cause__, psycopg.errors.UniqueViolation)
        # As after a `create` that failed in Django.
        with pytest.raises(TransactionManagementError):
            await Author.objects.acount()
        transaction.set_rollback(True)
    assert await Author.objects.acount() == 2


async def test_caught_failure_is_not_committed() -> None:
    """A failed read that was caught in the block leaves a transaction that cannot be committed."""
    await authors(1)
    with pytest.raises(InternalError, match="cannot be committed"):
        async with transaction.atomic():
            await Author.objects.acreate(name="new")
            wrong = Author.objects.extra(where=["1/0 = 1"])
            with pytest.raises(DatabaseError):
                await gather(wrong, Author.objects.all())
    assert await Author.objects.acount() == 1


async def test_error_positions() -> None:
    """The position in an error is that in its own statement."""
    await authors(1)
    good = Author.objects.filter(name="é\nü")
    bad = Author.objects.filter(pk=1).only("name")
    async with transaction.atomic():
        await bridged(_execute)("ALTER TABLE tests_author RENAME COLUMN name TO nom")
        found = await gather(
            future(Author.objects).values_list("pk", flat=True).submit(),
            future(Author.objects).filter(pk__gt=0).count(),
            bad,
            good,
            return_exceptions=True,
        )
        error = found[2].__cause__
        assert isinstance(error, psycopg.errors.UndefinedColumn)
        sql = str(bad.query)
        assert int(error.diag.statement_position or 0) == sql.index('"tests_author"."name"') + 1
        assert "LINE 1: SELECT" in str(error)
        transaction.set_rollback(True)


def _execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


async def test_by_other_means() -> None:
    """Cursors, nested blocks, streams and awaits in a call work, and disturb no other call."""
    await authors(3)

    def nested() -> int:
        with transaction.atomic():
            author = Author.objects.create(name="nested")
            try:
                with transaction.atomic():
                    Author.objects.create(name="nested")
            except IntegrityError:
                author.name = "renamed"
                author.save()
        return Author.objects.count()

    def unsaved() -> int:
        with transaction.atomic(savepoint=False):
            Author.objects.create(name="inner")
            return Author.objects.count()

    def waits() -> str:
        await_bridged(asyncio.sleep(0.01))
        return Author.objects.order_by("pk").values_list("name", flat=True)[0]

    def cursor() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tests_author")
            return cursor.fetchone()[0]

    def stream() -> list[str]:
        return [author.name for author in Author.objects.order_by("pk").iterator(chunk_size=1)]

    async def coroutine() -> int:
        await asyncio.sleep(0)
        return await Author.objects.filter(name="a1").acount()

    async with transaction.atomic():
        found = await gather(
            future(Author.objects).get(name="a0"),
            future(nested)(),
            future(unsaved)(),
            future(waits)(),
            future(cursor)(),
            future(stream)(),
            future(coroutine)(),
            future(Author.objects).get_or_create(name="a2"),
            future(Author.objects).update_or_create(name="a3", defaults={"name": "a4"}),
            future(Author.objects).filter(name="a1").count(),
        )
        assert found[0].name == "a0"
        assert found[3] == "a0"
        assert found[6] == found[9] == 1
        assert [created for _, created in found[7:9]] == [False, True]
        assert set(found[5]) <= {"a0", "a1", "a2", "renamed", "inner", "a4"}
    names = [name async for name in Author.objects.order_by("name").values_list("name", flat=True)]
    assert names == ["a0", "a1", "a2", "a4", "inner", "renamed"]


@bridged
def test_instrumented() -> None:
    """Where somebody looks at statements, each is seen, and runs as in Django."""
    seen: list[str] = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    Author.objects.create(name="a0")
    with transaction.atomic():
        with connection.execute_wrapper(look):
            found = gather(Author.objects.all(), future(Author.objects).count()).result()
        assert len(found[0]) == found[1] == 1
        assert len(seen) == 2
        with CaptureQueriesContext(connection) as captured:
            gather(Author.objects.all(), future(Author.objects).count()).result()
        assert len(captured) == 2


async def test_contexts() -> None:
    """Each call has a copy of the context: what it sets is seen neither by others nor after."""
    await authors(1)
    seen: list[str] = []

    def call(name: str) -> None:
        seen.append(TRACE.get())
        TRACE.set(name)
        Author.objects.count()
        seen.append(TRACE.get())

    TRACE.set("outside")
    async with transaction.atomic():
        await gather(*[future(call)(name) for name in "abc"])
    assert seen == ["outside"] * 3 + ["a", "b", "c"]
    assert TRACE.get() == "outside"


async def test_two_aliases() -> None:
    """Calls on two databases, each in a transaction of its own, run together."""
    await authors(2)
    async with transaction.atomic(), transaction.atomic(using="other"):
        _, there, here, found = await gather(
            future(Elsewhere.objects).create(name="there"),
            future(Elsewhere.objects).count(),
            future(Author.objects).count(),
            Author.objects.order_by("pk"),
        )
        assert (there, here, len(found)) == (1, 2, 2)
    async with transaction.atomic():
        there, here = await gather(
            future(Elsewhere.objects).count(), future(Author.objects).count()
        )
        assert (there, here) == (1, 2)


async def test_in_a_child_task() -> None:
    """A task that was started in the transaction gathers in it, in its turns."""
    async with transaction.atomic():
        await Author.objects.acreate(name="uncommitted")

        async def child(name: str) -> Any:
            return await gather(
                future(Author.objects).create(name=name),
                future(Author.objects).filter(name="uncommitted").count(),
                future(Author.objects).filter(name=name).count(),
            )

        async def blocks() -> None:
            for index in range(5):
                async with transaction.atomic():
                    await Author.objects.acreate(name=f"block {index}")

        *found, _ = await asyncio.gather(*[child(f"child {i}") for i in range(5)], blocks())
        assert [(seen, own) for _, seen, own in found] == [(1, 1)] * 5
    assert await Author.objects.acount() == 11


async def test_outlived() -> None:
    """A task whose transaction has ended meanwhile sends nothing on its old connection."""
    go = asyncio.Event()

    async def child() -> list[Any]:
        return await gather(
            future(Author.objects).count(),
            future(Author.objects).exists(),
            future(go.wait)(),
            return_exceptions=True,
        )

    async with transaction.atomic():
        await Author.objects.acount()
        task = asyncio.create_task(child())
        await asyncio.sleep(0.01)
    go.set()
    found = await task
    assert isinstance(found[0], RuntimeError)
    assert "transaction" in str(found[0])
    assert isinstance(found[1], NotRun)


def test_cancelled(run_main: Main, server: Server) -> None:
    """Cancelling the task stops the statements in the server; the connection is clean."""

    async def main() -> None:
        await authors(1)
        started = asyncio.Event()

        async def work() -> None:
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                started.set()
                await gather(
                    future(Author.objects).create(name="lost, too"),
                    Book.objects.all(),
                    future(Author.objects).create(name="never run"),
                )

        with TableLock(server, "tests_book") as lock:
            await lock.cancelled(asyncio.create_task(work()))
        await until(lambda: not on_loan(connection))
        assert [author.name async for author in Author.objects.all()] == ["a0"]

    run_main(main())


async def test_time_out_that_is_caught(server: Server) -> None:
    """A time-out around gather() that is caught leaves a transaction to be rolled back."""
    await authors(1)
    with TableLock(server, "tests_book"), pytest.raises(InternalError, match="cannot be committed"):
        async with transaction.atomic():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await gather(Author.objects.all(), Book.objects.all())
    async with transaction.atomic():
        with pytest.raises(TimeoutError):
            await bridged(_time_out)()
    assert await Author.objects.acount() == 1


def _time_out() -> None:
    never = future(asyncio.sleep)(60)
    gather(never, Author.objects.all()).result(timeout=0.05)


async def test_closed(server: Server) -> None:
    """A coroutine that is closed while it gathers leaves no statement and no connection behind."""
    await authors(1)
    left: list[str] = []

    def call() -> None:
        try:
            Book.objects.count()
        finally:
            left.append("left")

    async def work() -> None:
        async with transaction.atomic():
            await gather(future(call)(), future(call)())

    with TableLock(server, "tests_book") as lock:
        await driven_then_closed(work(), steps=1)
        await until(lambda: not lock.waiting())
    assert left == ["left", "left"]
    assert await Author.objects.acount() == 1


async def test_backend_ends(server: Server) -> None:
    """A connection that is lost in the middle is an OperationalError; the next one works."""
    await authors(1)

    async def work() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await gather(Book.objects.all(), Author.objects.all(), Book.objects.all())

    with TableLock(server, "tests_book") as lock:
        task = asyncio.create_task(work())
        await lock.waited_for()
        server.all("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        with pytest.raises(OperationalError, match="terminating connection"):
            await task
    assert await Author.objects.acount() == 1


async def test_backend_has_ended() -> None:
    """If one call loses the connection, the others say so."""
    async with transaction.atomic():
        found = await gather(
            Author.objects.all(),
            future(_execute)("SELECT pg_terminate_backend(pg_backend_pid())"),
            Book.objects.all(),
            return_exceptions=True,
        )
        assert [type(each) for each in found] == [OperationalError, OperationalError, NotRun]
        assert str(found[0]) == "the connection is lost"
        transaction.set_rollback(True)


async def test_autocommit_off() -> None:
    """A task with autocommit off gathers in its transaction."""
    await aset_autocommit(False)
    await gather(future(Author.objects).create(name="a"), future(Author.objects).create(name="b"))
    await bridged(transaction.rollback)()
    await aset_autocommit(True)
    assert await Author.objects.acount() == 0


async def test_reset_first(server: Server) -> None:
    """A session that has to be reset is, before what is gathered runs in it."""
    async with counted(server):
        server.all(
            "CREATE OR REPLACE FUNCTION spoil() RETURNS text LANGUAGE sql AS"
            " $$ SELECT set_config('pgbackend.test', 'left', false) $$"
        )
        await bridged(_execute)("SELECT spoil()")
        server.all("DROP FUNCTION spoil")
        async with transaction.atomic():
            found = await gather(
                Author.objects.all(),
                future(Author.objects).count(),
                future(Author.objects).exists(),
            )
            assert found == [[], 0, False]
            assert not await bridged(_setting)()


def _setting() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('pgbackend.test', true)")
        return cursor.fetchone()[0]


@bridged
def test_deferred_savepoint() -> None:
    """A deferred savepoint around gather() undoes what was gathered."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with pytest.raises(Failed), saved:
            gather(
                future(Author.objects).create(name="a"), future(Author.objects).create(name="b")
            ).result()
            raise Failed
        gather(future(Author.objects).create(name="c"), Author.objects.all()).result()
    assert [author.name for author in Author.objects.all()] == ["c"]


async def test_nested() -> None:
    """A gathered call may gather itself."""
    await authors(2)

    def inner() -> list[Any]:
        return gather(Author.objects.all(), future(Author.objects).count()).result()

    async with transaction.atomic():
        first, second, count = await gather(
            future(inner)(), future(inner)(), future(Author.objects).count()
        )
        assert first == second
        assert (len(first[0]), first[1], count) == (2, 2, 2)


async def test_cancelled_between_calls(server: Server) -> None:
    """Of calls whose results have come together, those that have yet to go on can clean up."""
    await authors(1)
    told: list[str] = []

    def waits() -> None:
        Author.objects.count()
        await_bridged(asyncio.sleep(600))

    def cleans_up() -> None:
        try:
            Author.objects.count()
        except asyncio.CancelledError:
            await_bridged(asyncio.sleep(0))
            told.append(Author.objects.get(name="a0").name)
            raise

    async def work() -> None:
        async with transaction.atomic():
            await gather(future(waits)(), future(cleans_up)())

    task = asyncio.create_task(work())
    await until(lambda: on_loan(connection))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["a0"]


async def test_ended_at_once() -> None:
    """A future has ended when its call has, not only with all the others."""
    first = future(len)("abc")
    async with transaction.atomic():
        await Author.objects.acreate(name="a0")
        assert await gather(first, future(lambda: first.result())()) == [3, 3]


async def test_detached() -> None:
    """In detached code inside a transaction, the owner still gathers in the transaction."""
    async with transaction.atomic():
        await Author.objects.acreate(name="uncommitted")
        with detached():
            assert await gather(future(Author.objects).count()) == [1]


async def test_many(server: Server) -> None:
    """Long statements with long answers in one message do not block each other."""
    await Book.objects.abulk_create(Book(data={"x": "y" * 20_000}) for _ in range(20))
    async with transaction.atomic():
        found = await gather(
            *[Book.objects.filter(pk__gt=n % 7, title__lt="z" * 100_000) for n in range(40)]
        )
    assert [len(each) for each in found] == [20 - n % 7 for n in range(40)]


@pytest.mark.parametrize("savepoints", [False, True])
async def test_one_future_is_cancelled(savepoints: bool) -> None:
    """In a transaction, nothing more is sent for a future that was cancelled; the others go on."""
    sent = future(Author.objects).create(name="handed over")
    later = future(Author.objects).create(name="not begun")

    def cancel() -> tuple[bool, bool]:
        return sent.cancel(), later.cancel()

    async with transaction.atomic():
        found = await gather(
            sent,
            future(cancel)(),
            later,
            future(Author.objects).create(name="other"),
            return_exceptions=True,
            savepoints=savepoints,
        )
        assert found[1] == (True, True)
        assert [type(each) for each in found[::2]] == [asyncio.CancelledError] * 2
        assert [sent.cancelled(), later.cancelled()] == [True, True]
    assert [author.name async for author in Author.objects.all()] == ["other"]
