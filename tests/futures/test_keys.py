"""Reads by primary key that are gathered: one statement, and what `get` gives for each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from pgbackend import bridged
from pgbackend.futures import as_completed, future, gather
from tests.models import Author, Book, Elsewhere
from tests.support.fix_loops import Main
from tests.support.futures import authors, counted
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.threads import run_in_thread


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


class OwnQuerySet(QuerySet):
    def get(self, *args: Any, **kwargs: Any) -> Any:
        return "own"


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


async def test_aliases() -> None:
    """Each queryset is read from its own database."""
    await authors(2)
    there = [await Elsewhere.objects.acreate(name=name) for name in "ab"]
    found = await gather(*[future(Elsewhere.objects).get(pk=each.pk) for each in there])
    assert found == there


async def test_failed_statement() -> None:
    """If the statement fails, so does each read."""
    pks = await authors(2)
    async with transaction.atomic():
        await bridged(_rename)()
        found = await gather(
            *[future(Author.objects).get(pk=pk) for pk in pks],
            future(Book.objects).count(),
            return_exceptions=True,
            savepoints=True,
        )
        assert isinstance(found[0], DatabaseError)
        assert found[1] is found[0]
        assert found[2] == 0
        transaction.set_rollback(True)


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
