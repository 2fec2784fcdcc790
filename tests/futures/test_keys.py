"""Reads by primary key that are gathered: one statement, and what `get` gives for each."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import django
import pytest
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    DataError,
    connection,
    connections,
    transaction,
)
from django.db.backends.postgresql.base import Cursor
from django.db.backends.signals import connection_created
from django.db.models import F, Manager, QuerySet
from django.db.models.signals import post_init
from django.test.utils import CaptureQueriesContext, override_settings
from django.utils.connection import ConnectionDoesNotExist

from pgbackend import bridged
from pgbackend.futures import as_completed, future, gather
from tests.models import Author, Book, Elsewhere
from tests.support.fix_loops import Main
from tests.support.futures import authors, counted
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.threads import run_in_thread
from tests.support.wrapper import make_wrapper, use_wrapper


@pytest.mark.parametrize("inside", [False, True])
def test_one_statement(run_main: Main, server: Server, inside: bool) -> None:
    """The rows come by one statement, each to its future, in the order of the arguments."""

    async def main() -> None:
        pks = await authors(10)
        async with counted(server) as proxy:

            async def gathered() -> None:
                await Author.objects.acount()
                before = proxy.messages
                found = await gather(
                    *[future(Author.objects).get(pk=pk) for pk in reversed(pks)],
                    future(Author.objects.filter(name__gte="a5")).get(pk=pks[7]),
                    return_exceptions=True,
                )
                assert [author.pk for author in found] == [*reversed(pks), pks[7]]
                # One statement each for the manager and the queryset.
                assert proxy.messages - before == (1 if inside else 2)

            if inside:
                async with transaction.atomic():
                    await gathered()
            else:
                await gathered()

    run_main(main())


async def test_missing() -> None:
    """A key without a row is DoesNotExist, in Django's words; the first missing one is raised."""
    (pk, _) = await authors(2)
    objects = future(Author.objects)
    found = await gather(
        objects.get(pk=10**6), objects.get(pk=pk), objects.get(pk=-1), return_exceptions=True
    )
    assert found[1].pk == pk
    with pytest.raises(Author.DoesNotExist) as caught:
        await Author.objects.aget(pk=10**6)
    assert [str(each) for each in found[::2]] == [str(caught.value)] * 2
    assert all(type(each) is Author.DoesNotExist for each in found[::2])
    with pytest.raises(Author.DoesNotExist):
        await gather(objects.get(pk=pk), objects.get(pk=-1))


async def test_same_key_twice() -> None:
    """Who asks twice for a row gets two instances, as from two queries."""
    (pk, other) = await authors(2)
    first, second, third = await gather(
        *[future(Author.objects).get(pk=each) for each in (pk, pk, other)]
    )
    assert first == second != third
    assert first is not second


# The statements that cursors of `Watched` have run.
_watched: list[str] = []


class Watched(Cursor):
    """A cursor as instrumentations of psycopg put in place of Django's."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        _watched.append(str(query))
        return super().execute(query, *args, **kwargs)


@pytest.mark.parametrize("place", ["outside", "inside", "thread"])
async def test_watched(place: str) -> None:
    """Who looks at the statements of a connection sees one for each read."""
    pks = await authors(2)

    def read() -> None:
        gather(*[future(Author.objects).get(pk=pk) for pk in pks]).result()

    def work() -> None:
        connections[DEFAULT_DB_ALIAS] = make_wrapper(options={"cursor_factory": Watched})
        Author.objects.count()
        _watched.clear()
        if place == "inside":
            with transaction.atomic():
                read()
        else:
            read()

    await (asyncio.to_thread(run_in_thread, work) if place == "thread" else bridged(work)())
    assert len([each for each in _watched if "tests_author" in each]) == 2


async def test_watched_by_receivers() -> None:
    """So does a function that a receiver of `connection_created` has put there."""
    pks = await authors(2)
    seen: list[str] = []

    def look(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    def watch(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(look)

    connection_created.connect(watch)
    try:
        use_wrapper(options={"pool": {"max_size": 1}})
        await gather(*[future(Author.objects).get(pk=pk) for pk in pks])
        assert len([each for each in seen if "tests_author" in each]) == 2
    finally:
        connection_created.disconnect(watch)


class OwnQuerySet(QuerySet):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        return "own"


class OwnAll(QuerySet):
    def all(self) -> Any:
        return self.none()


class OwnRows(QuerySet):
    def _fetch_all(self) -> None:
        super()._fetch_all()
        for author in self._result_cache:
            author.name = "own"


class Asking(Manager):
    def get_queryset(self) -> Any:
        """Return authors by what the database says, as managers of tenants do."""
        try:
            return super().get_queryset().filter(pk__lte=Author.objects.count())
        except Exception:
            return super().get_queryset().none()


class Failing(Manager):
    def get_queryset(self) -> Any:
        raise LookupError("no tenant")


def managed(manager: Manager) -> Manager:
    """Return *manager* as one of authors."""
    manager.model = Author
    return manager


@bridged
def test_what_stays_alone() -> None:
    """Whatever may differ from Django's own read of a row is a statement of its own."""
    Author.objects.bulk_create([Author(name="a"), Author(name="b")])
    first, second = Author.objects.order_by("pk").values_list("pk", flat=True)
    plain = Author.objects.all()

    def calls(queryset: Any, keys: Any = (first, second)) -> Any:
        return [future(queryset).get(pk=key) for key in keys]

    assert gather(*calls(OwnQuerySet(Author))).result() == ["own", "own"]
    with transaction.atomic():
        for queryset in (
            plain.select_for_update(),
            plain.values("name"),
            plain.only("name"),
            plain.prefetch_related("books"),
            plain.filter(books__isnull=True),
            plain.distinct(),
            plain.union(plain),
        ):
            found = gather(*calls(queryset), return_exceptions=True).result()
            expected = []
            for key in (first, second):
                try:
                    expected.append(queryset.get(pk=key))
                except Exception as error:
                    expected.append(error)
            assert [str(each) for each in found] == [str(each) for each in expected]
    for keys in ((str(first), str(second)), (first, 10**30), (None, first), (True, second)):
        found = gather(*calls(plain, keys), return_exceptions=True).result()
        for key, each in zip(keys, found, strict=True):
            row = plain.filter(pk=key).first()
            assert row == each if row else isinstance(each, Author.DoesNotExist)
    with CaptureQueriesContext(connection) as captured:
        gather(*calls(plain)).result()
    assert len(captured) == 2


@pytest.mark.parametrize("inside", [False, True])
async def test_own_methods(inside: bool) -> None:
    """A manager's or queryset's own way to a row is taken, also if Django's get() calls it."""
    pks = await authors(3)
    assert pks == [1, 2, 3]
    first = Author.objects.filter(pk__gte=0)

    async def names(subject: Any) -> list[Any]:
        found = await gather(
            *[future(subject).get(pk=pk) for pk in pks], return_exceptions=True, savepoints=True
        )
        return [each if type(each) is str else getattr(each, "name", each) for each in found]

    async def compare() -> None:
        assert await names(managed(Manager.from_queryset(OwnQuerySet)())) == ["own"] * 3
        assert await names(managed(Manager.from_queryset(OwnAll)())) == ["a0", "a1", "a2"]
        assert await names(OwnAll(Author).filter(pk__gte=0)) == ["a0", "a1", "a2"]
        assert await names(managed(Manager.from_queryset(OwnRows)())) == ["own"] * 3
        assert await names(managed(Asking())) == ["a0", "a1", "a2"]
        assert list(map(type, await names(managed(Failing())))) == [LookupError] * 3
        # Several rows have the key.
        twice = first.extra(tables=["tests_book"])
        assert list(map(type, await names(twice))) == [Author.MultipleObjectsReturned] * 3
        assert list(map(type, await names(first.using("nix")))) == [ConnectionDoesNotExist] * 3

    await Book.objects.abulk_create([Book(title="a"), Book(title="b")])
    if inside:
        async with transaction.atomic():
            await compare()
    else:
        await compare()


@pytest.mark.parametrize("inside", [False, True])
async def test_one_row_fails(inside: bool) -> None:
    """A row that cannot be made or compared fails alone: the others are read."""
    pks = await authors(3)

    def refuse(instance: Author, **kwargs: Any) -> None:
        if instance.pk == pks[1]:
            raise LookupError("no key for this row")

    async def kinds(queryset: Any) -> list[Any]:
        found = await gather(
            *[future(queryset).get(pk=pk) for pk in pks], return_exceptions=True, savepoints=True
        )
        return list(map(type, found))

    async def compare() -> None:
        post_init.connect(refuse, sender=Author)
        try:
            assert await kinds(Author.objects) == [Author, LookupError, Author]
        finally:
            post_init.disconnect(refuse, sender=Author)
        dividing = Author.objects.filter(pk__gt=1 / (F("pk") - pks[1]))
        assert await kinds(dividing) == [Author, DataError, Author]

    if inside:
        async with transaction.atomic():
            await compare()
    else:
        await compare()


@pytest.mark.parametrize("threaded", [False, True])
async def test_order(threaded: bool) -> None:
    """In a transaction a read does not go past a change of its row, in either direction."""
    pks = await authors(4)

    def work() -> list[Any]:
        author = Author.objects.all()
        with transaction.atomic():
            found = gather(
                future(author).get(pk=pks[0]),
                future(author).get(pk=pks[1]),
                future(author).update(name=F("pk")),
                future(author).get(pk=pks[2]),
                future(author).get(pk=pks[3]),
            ).result()
        return [getattr(each, "name", each) for each in found]

    found = await (asyncio.to_thread(run_in_thread, work) if threaded else bridged(work)())
    assert found == ["a0", "a1", 4, str(pks[2]), str(pks[3])]


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django has no fetch modes before 6.1")
async def test_peers() -> None:
    """An instance loads relations for those of its own query alone, as fetch_mode() says."""
    pks = await authors(2)
    await Book.objects.abulk_create([Book(pk=pk, title="", author_id=pk) for pk in pks])

    @bridged
    def read() -> list[bool]:
        from django.db.models import FETCH_PEERS

        books = Book.objects.fetch_mode(FETCH_PEERS)
        first, second = gather(*[future(books).get(pk=pk) for pk in pks]).result()
        assert first.author.pk == pks[0]
        return [Book.author.is_cached(each) for each in (first, second)]

    assert await read() == [True, False]


class Refusing:
    def db_for_read(self, model: Any, **hints: Any) -> str:
        raise LookupError("no tenant")


async def test_router_fails() -> None:
    """The error of a router is that of the reads, not one of gather()."""
    with override_settings(DATABASE_ROUTERS=[Refusing()]):
        for subject in (Author.objects, Author.objects.all()):
            found = await gather(
                *[future(subject).get(pk=pk) for pk in (1, 2)], return_exceptions=True
            )
            assert list(map(type, found)) == [LookupError] * 2


async def test_aliases() -> None:
    """Each queryset is read from its own database."""
    await authors(2)
    there = [await Elsewhere.objects.acreate(name=name) for name in "ab"]
    found = await gather(*[future(Elsewhere.objects).get(pk=each.pk) for each in there])
    assert found == there


@pytest.mark.parametrize("threaded", [False, True])
async def test_failed_statement(threaded: bool, caplog: pytest.LogCaptureFixture) -> None:
    """If the statement fails, so does each read, and the transaction goes on."""
    pks = await authors(2)

    def work() -> list[Any]:
        with transaction.atomic():
            _rename()
            found = gather(
                *[future(Author.objects).get(pk=pk) for pk in pks],
                future(Book.objects).count(),
                return_exceptions=True,
                savepoints=True,
            ).result()
            transaction.set_rollback(True)
        return found

    found = await (asyncio.to_thread(run_in_thread, work) if threaded else bridged(work)())
    assert isinstance(found[0], DatabaseError)
    assert found[1] is found[0]
    assert found[2] == 0
    gc.collect()
    assert not caplog.records


def _rename() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE tests_author RENAME COLUMN name TO nom")


@pytest.mark.parametrize("inside", [False, True])
async def test_cancelled(server: Server, inside: bool) -> None:
    """A cancelled gather() leaves none of its futures pending."""
    reads = [future(Book.objects).get(pk=pk) for pk in (1, 2)]

    async def work() -> None:
        if inside:
            async with transaction.atomic():
                await gather(*reads, future(Book.objects).count())
        else:
            await gather(*reads)

    with TableLock(server, "tests_book") as lock:
        await lock.cancelled(asyncio.create_task(work()))
    assert all(each.cancelled() for each in reads)


async def test_cancelled_at_once() -> None:
    """A task that is cancelled before its calls have begun leaves no future pending."""
    reads = [future(Author.objects).get(pk=pk) for pk in (1, 2)]

    async def work() -> None:
        await gather(*reads)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert all(each.cancelled() for each in reads)


async def test_as_completed_and_threads() -> None:
    """as_completed() and plain threads read by one statement, too."""
    pks = await authors(3)

    def reads() -> Any:
        return [future(Author.objects).get(pk=pk) for pk in pks]

    found = [each.result().pk async for each in as_completed(*reads())]
    assert sorted(found) == pks

    def work() -> list[int]:
        with transaction.atomic():
            return [author.pk for author in gather(*reads()).result()]

    assert await asyncio.to_thread(run_in_thread, work) == pks
