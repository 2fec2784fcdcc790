"""Django's a-methods: each runs bridged, without a thread."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.db.models import Count, F, Model, QuerySet, Sum

from pgbackend import bridged
from tests.models import Author, Book
from tests.support.books import library


async def abulk_create(books: Any) -> Any:
    return len(await books.abulk_create([Book(title="x"), Book(title="y")]))


async def abulk_update(books: Any) -> Any:
    found = [book async for book in books]
    for book in found:
        book.price += 1
    return await books.abulk_update(found, ["price"], batch_size=2), [
        book.price async for book in books
    ]


async def acreate(books: Any) -> Any:
    return (await books.acreate(title="x")).pk is not None


async def aiterator(books: Any) -> Any:
    return [book.title async for book in books.aiterator(chunk_size=2)]


async def aexplain(books: Any) -> Any:
    return "tests_book" in await books.aexplain()


async def ain_bulk(books: Any) -> Any:
    found = await books.order_by().ain_bulk()
    return {book.title for book in found.values()}


async def acontains(books: Any) -> Any:
    return await books.acontains(await books.aget(title="A1"))


async def aget_or_create(books: Any) -> Any:
    return [(await books.aget_or_create(title=title))[1] for title in ("A1", "new")]


async def aupdate_or_create(books: Any) -> Any:
    results = [
        await books.aupdate_or_create(title=title, defaults={"price": 7}) for title in ("A1", "new")
    ]
    return [(book.price, created) for book, created in results]


async def first_of(found: Awaitable[Any]) -> Any:
    return (await found).title


# Each a-method of QuerySet on the books of `library`, and what it returns.
A_METHODS: dict[str, tuple[Callable[[Any], Awaitable[Any]], Any]] = {
    "aaggregate": (
        lambda books: books.aaggregate(Sum("price"), n=Count("pk")),
        {"price__sum": 45, "n": 3},
    ),
    "abulk_create": (abulk_create, 2),
    "abulk_update": (abulk_update, (3, [6, 16, 26])),
    "acontains": (acontains, True),
    "acount": (lambda books: books.acount(), 3),
    "acreate": (acreate, True),
    "adelete": (
        lambda books: books.filter(title="A1").adelete(),
        (1, {"tests.Book": 1}),
    ),
    "aearliest": (lambda books: first_of(books.aearliest("price")), "A1"),
    "aexists": (lambda books: books.aexists(), True),
    "aexplain": (aexplain, True),
    "afirst": (lambda books: first_of(books.afirst()), "A1"),
    "aget": (lambda books: first_of(books.aget(price=15)), "A2"),
    "aget_or_create": (aget_or_create, [False, True]),
    "ain_bulk": (ain_bulk, {"A1", "A2", "B1"}),
    "aiterator": (aiterator, ["A1", "A2", "B1"]),
    "alast": (lambda books: first_of(books.alast()), "B1"),
    "alatest": (lambda books: first_of(books.alatest("price")), "B1"),
    "aupdate": (lambda books: books.aupdate(price=F("price") + 1), 3),
    "aupdate_or_create": (aupdate_or_create, [(7, False), (7, True)]),
}


def a_methods(cls: type) -> list[str]:
    """Return the names of a class's asynchronous methods."""
    return [
        name
        for name, member in inspect.getmembers(cls)
        if not name.startswith("_")
        and (inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member))
    ]


@pytest.mark.parametrize("name", a_methods(QuerySet))
async def test_queryset_a_method(name: str) -> None:
    """Each a-method of QuerySet gives what its synchronous twin would."""
    await library()
    function, expected = A_METHODS[name]
    assert await function(Book.objects.all()) == expected


async def test_manager_a_methods() -> None:
    """The a-methods of a manager are those of its querysets."""
    await library()
    assert await Book.objects.acount() == 3
    assert (await Book.objects.aget(price=5)).title == "A1"
    assert {name for name in A_METHODS if hasattr(Book.objects, name)} == {*A_METHODS} - {"adelete"}


def test_a_methods_of_model_are_known() -> None:
    """Django has no a-method of Model that the next test leaves out."""
    assert a_methods(Model) == ["adelete", "arefresh_from_db", "asave"]


async def test_a_methods_of_related_managers_are_known() -> None:
    """Django has no a-method of a related manager that the tests above leave out."""

    @bridged
    def managers() -> list[Any]:
        author, book = Author(pk=1), Book(pk=1)
        return [author.books, author.reads, book.readers, author.tags]

    for manager in await managers():
        known = {"aadd", "aclear", "aremove", "aset"}
        assert {*a_methods(type(manager))} - {*a_methods(QuerySet)} == known
