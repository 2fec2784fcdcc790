"""COPY for models and querysets."""

from __future__ import annotations

import asyncio
import datetime
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, connection, transaction
from django.db.models import F, Value

from pgbackend.copying import copy_from, copy_to
from tests.models import Author, Book
from tests.support.server import Server
from tests.support.wrapper import on_loan, until, use_wrapper

AWARE = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC)
# What COPY's own format has to escape.
STRANGE = ["a\tb", "line\nbreak", "back\\slash", "\\N", "", "ü€😀", "a'b\"c"]


async def as_asynchronous(rows: Any) -> AsyncIterator[Any]:
    for row in rows:
        await asyncio.sleep(0)
        yield row


async def test_instances() -> None:
    """Instances are written with the values that save() would write, of all kinds of fields."""
    ada = await Author.objects.acreate(name="Ada")
    books = [
        Book(title=title, author=ada, price=number, data={"tags": [title]}, published=AWARE)
        for number, title in enumerate(STRANGE)
    ]
    books.append(Book(title="None", author=None, published=None))
    assert await copy_from(Book, books) == len(books)
    found = [book async for book in Book.objects.all()]
    assert [book.title for book in found] == [*STRANGE, "None"]
    assert [book.data for book in found] == [*({"tags": [title]} for title in STRANGE), {}]
    assert found[0].published == AWARE
    assert (found[0].author_id, found[-1].author_id, found[-1].published) == (ada.pk, None, None)
    # And so they come back.
    copied = [book async for book in copy_to(Book.objects.all())]
    assert copied == found
    assert [vars(each)["data"] for each in copied] == [each.data for each in found]
    assert [each.published for each in copied] == [each.published for each in found]


@pytest.mark.parametrize("kind", [list, iter, as_asynchronous])
async def test_rows(kind: Any) -> None:
    """Rows are sequences for named fields, from any iterable; progress is told."""
    told: list[int] = []
    rows = [(number, f"{number}") for number in range(1, 1201)]
    number = await copy_from(Author, kind(rows), fields=["id", "name"], progress=told.append)
    assert number == 1200
    assert told == [500, 1000, 1200]
    assert await Author.objects.acount() == 1200
    told.clear()
    authors = Author.objects.order_by("id")
    assert [row async for row in copy_to(authors.values_list(), progress=told.append)] == rows
    assert told == [500, 1000, 1200]


async def test_forms_of_querysets() -> None:
    """Rows have the form of the queryset: instances, dictionaries, tuples, single values."""
    ada = await Author.objects.acreate(name="Ada")
    await Book.objects.acreate(title="One", author=ada, price=3)
    books = Book.objects.annotate(twice=F("price") * 2, word=Value("100%"))
    for queryset in (
        books.values("title", "twice"),
        books.values_list("twice", "title", "word"),
        books.values_list("title", flat=True),
        books.values_list("title", "price", named=True),
        books.filter(title__contains="n", price__in=[3, 4]).values_list("author__name"),
    ):
        assert [row async for row in copy_to(queryset)] == [row async for row in queryset]
    (book,) = [book async for book in copy_to(books.select_related("author"))]
    assert (book.twice, book.word, book.author) == (6, "100%", ada)
    assert [row async for row in copy_to(books.none())] == []
    assert [row async for row in copy_to(books.filter(price=0))] == []


async def test_all_or_nothing(server: Server) -> None:
    """An error of the server, of a row or of what gives the rows leaves nothing, and no loan."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1, "timeout": 5}})

    def failing() -> Iterator[Any]:
        yield from ((f"{number}",) for number in range(2000))
        raise ZeroDivisionError

    with pytest.raises(IntegrityError):
        await copy_from(Author, [("a",), ("b",), ("a",)])
    with pytest.raises(ValueError, match="has 1 values, for name; this one has 2"):
        await copy_from(Author, [("a",), ("b", 1)])
    for rows in (failing(), as_asynchronous(failing())):
        with pytest.raises(ZeroDivisionError):
            await copy_from(Author, rows)
    assert await Author.objects.acount() == 0
    assert on_loan(wrapper) == 0


async def test_in_a_transaction(server: Server) -> None:
    """In a block it belongs to that, and another statement meanwhile is refused, not waited for."""
    with pytest.raises(ZeroDivisionError):
        async with transaction.atomic():
            assert await copy_from(Author, [("a",), ("b",)]) == 2
            assert [row async for row in copy_to(Author.objects.values_list("name"))] == [
                ("a",),
                ("b",),
            ]
            assert await Author.objects.acount() == 2
            raise ZeroDivisionError
    assert await Author.objects.acount() == 0

    async def asking() -> AsyncIterator[Any]:
        yield ("a",)
        yield (str(await Author.objects.acount()),)

    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="a COPY runs in this transaction"):
            async with transaction.atomic():
                await copy_from(Author, asking())
        # Outside, what gives the rows has a connection of its own.
        assert await copy_from(Author, asking()) == 2
    names = server.all("SELECT name FROM tests_author ORDER BY name")
    assert names == [("0",), ("a",)]
    await copy_from(Author, ((f"n{number}",) for number in range(20_000)))
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="a COPY runs in this transaction"):
            async with transaction.atomic():
                async for _ in copy_to(Author.objects.all()):
                    await Author.objects.acount()


async def test_left_early() -> None:
    """An iteration that is left stops the COPY, and gives its connection back."""
    wrapper = use_wrapper(options={"pool": {"max_size": 2, "timeout": 5}})
    await copy_from(Author, ((f"{number}",) for number in range(20_000)))
    async with aclosing(copy_to(Author.objects.all())) as rows:
        async for author in rows:
            # Statements of the body have another connection.
            assert await Author.objects.filter(pk=author.pk).aexists()
            break
    await until(lambda: on_loan(wrapper) == 0)
    task = asyncio.create_task(copy_from(Author, as_asynchronous(iter(lambda: ("b",), None))))
    await until(lambda: on_loan(wrapper) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: on_loan(wrapper) == 0)
    assert await Author.objects.acount() == 20_000


def test_without_a_loop() -> None:
    """On behalf of a thread that waits, both run on its connection, in its transaction."""

    async def work() -> list[Any]:
        assert await copy_from(Author, as_asynchronous([("a",), ("b",)])) == 2
        return [name async for name in copy_to(Author.objects.values_list("name", flat=True))]

    with transaction.atomic():
        assert sorted(async_to_sync(work)()) == ["a", "b"]
        transaction.set_rollback(True)
    assert Author.objects.count() == 0
    connection.close()


async def test_refused() -> None:
    """What COPY cannot do is refused before anything is sent."""
    with pytest.raises(ValueError, match="prefetch_related"):
        [row async for row in copy_to(Book.objects.prefetch_related("readers"))]


@pytest.mark.parametrize("number", [100_000, pytest.param(1_000_000, marks=pytest.mark.load)])
async def test_many_rows(number: int) -> None:
    """Many rows in, and out again: the memory stays flat, and the loop goes on."""
    sizes: list[int] = []

    def size() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)
            sizes.append(size())

    await copy_from(Author, ((f"-{each}",) for each in range(1000)))
    before = size()
    ticking = asyncio.create_task(tick())
    try:
        assert await copy_from(Author, ((f"{each}",) for each in range(number))) == number
        found = 0
        async for _ in copy_to(Author.objects.all()):
            found += 1
    finally:
        ticking.cancel()
    assert found == number + 1000
    assert len(sizes) > number / 10_000
    assert max(sizes) - before < 20_000_000
