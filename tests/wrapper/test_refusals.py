"""What SynchronousOnlyOperation says: what was used, and the cure for the place it was used in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.models import aprefetch_related_objects, prefetch_related_objects

from pgbackend import bridged
from tests.models import Author, Book


def cursor() -> None:
    with connection.cursor() as opened:
        opened.execute("SELECT 1")


def block() -> None:
    with transaction.atomic():
        pass


USES: dict[str, tuple[Callable[[Book], Any], str]] = {
    "relation": (
        lambda book: book.author,
        "Book.author was not fetched. Fetch it with the instance, by `select_related('author')`; or"
        " before, by `await aprefetch_related_objects([instance], 'author')`",
    ),
    "deferred": (
        lambda book: book.title,
        "Book.title is deferred. Load it by `await instance.arefresh_from_db(fields=['title'])`",
    ),
    "get": (lambda book: Book.objects.get(pk=1), "get() of Book. Write `await ... .aget(...)`"),
    "filtered": (lambda book: Book.objects.filter(pk=1).count(), "`await ... .acount(...)`"),
    "related": (lambda book: book.readers.set([]), "set() of Author. Write `await ... .aset(...)`"),
    "save": (lambda book: Author(name="x").save(), "save() of Author. Write `await ... .asave("),
    "iterated": (
        lambda book: list(Book.objects.all()),
        "a queryset of Book was evaluated, by __iter__(). Write `async for row in queryset`",
    ),
    "iterator": (
        lambda book: list(Book.objects.iterator()),
        "iterator() of Book. Write `async for row in queryset.aiterator()`",
    ),
    "raw": (
        lambda book: list(Book.objects.raw("SELECT * FROM tests_book")),
        "a queryset of Book was evaluated, by __iter__(). Write `async for row in queryset`",
    ),
    "atomic": (lambda book: block(), "Write `async with transaction.atomic():`"),
    "cursor": (
        lambda book: cursor(),
        "a cursor was opened, which has no asynchronous form. Put what uses it into a function that"
        " is decorated with @pgbackend.bridged, and await that",
    ),
    "validation": (
        lambda book: Author(name="Bob").full_clean(),
        "full_clean() of Author, which has no asynchronous form. Put it into a function",
    ),
    "prefetch": (
        lambda book: prefetch_related_objects([book], "author"),
        "prefetch_related_objects(). Write `await aprefetch_related_objects(...)`",
    ),
    "other": (lambda book: connection.ensure_connection(), ". Await the asynchronous form, as in"),
}

each_use = pytest.mark.parametrize(("use", "words"), USES.values(), ids=USES)


@pytest.fixture
def made() -> None:
    Book.objects.create(title="Notes", author=Author.objects.create(name="Ada"))


async def refused(use: Callable[[Book], Any]) -> str:
    """Return what is said of a use in a coroutine that is not bridged."""
    book = await Book.objects.only("pk", "author_id").aget()
    with pytest.raises(SynchronousOnlyOperation) as caught:
        use(book)
    return str(caught.value)


@pytest.mark.usefixtures("made")
@each_use
async def test_on_the_loop(use: Callable[[Book], Any], words: str) -> None:
    """On a running loop it names what was used and the form to await, or `bridged`."""
    said = await refused(use)
    assert "(alias 'default')" in said
    assert words in said
    assert "or decorate the function with @pgbackend.bridged and await it" in said
    await bridged(use)(await Book.objects.only("pk", "author_id").aget())


@pytest.mark.usefixtures("made")
@each_use
def test_under_wsgi(use: Callable[[Book], Any], words: str) -> None:
    """In async_to_sync, as under WSGI, it names what works there, too."""
    said = async_to_sync(refused)(use)
    assert words in said
    assert "`await pgbackend.bridged(function)(...)`, which runs it in the thread" in said
    assert "decorate the function with" not in said

    async def cured() -> None:
        await bridged(use)(await Book.objects.only("pk", "author_id").aget())

    async_to_sync(cured)()


@pytest.mark.usefixtures("made")
async def test_in_a_thread() -> None:
    """In a thread without a loop nothing is refused; in one with a loop it is as on any loop."""

    def read() -> str:
        try:
            return Book.objects.get().author.name
        finally:
            connections.close_all()

    assert await asyncio.to_thread(read) == "Ada"

    def run() -> str:
        return asyncio.run(refused(USES["relation"][0]))

    assert USES["relation"][1] in await asyncio.to_thread(run)


@pytest.mark.usefixtures("made")
async def test_in_an_asynchronous_generator() -> None:
    """What cannot be decorated itself is not named for it, and what is named works."""

    async def titles() -> AsyncIterator[str]:
        for book in Book.objects.all():
            yield book.title

    async def read() -> list[str]:
        return [title async for title in titles()]

    with pytest.raises(SynchronousOnlyOperation) as caught:
        await read()
    cure = "or decorate the function that iterates over this asynchronous generator with @pgbackend"
    assert cure in str(caught.value)
    assert await bridged(read)() == ["Notes"]


async def test_cures() -> None:
    """What the messages tell to write works on the running loop."""
    await Book.objects.acreate(title="Notes", author=await Author.objects.acreate(name="Ada"))
    book = await Book.objects.select_related("author").aget()
    assert book.author.name == "Ada"
    book = await Book.objects.only("pk", "author_id").aget()
    await aprefetch_related_objects([book], "author")
    assert book.author.name == "Ada"
    await book.arefresh_from_db(fields=["title"])
    assert book.title == "Notes"
