"""future() and delayed(): each method of querysets is recorded, or ends in a future."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet, Subquery
from django.db.models.query import RawQuerySet

from pgbackend import bridged
from pgbackend.futures import Future, NotAwaitedError, delayed, future, gather
from pgbackend.futures.recording import ATTRIBUTES, CHAINED, ENDS, LEFT_OUT, Recorder
from tests.models import Author, Book
from tests.support.books import library
from tests.support.threads import run_in_thread

# What each chained method is called with here.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "complex_filter": ({"price__gt": 1},),
    "dates": ("published", "year"),
    "datetimes": ("published", "year"),
    "defer": ("title",),
    "difference": (Book.objects.all(),),
    "fetch_mode": (None,),
    "intersection": (Book.objects.all(),),
    "only": ("title",),
    "order_by": ("title",),
    "prefetch_related": ("readers",),
    "raw": ("SELECT * FROM tests_book",),
    "select_related": ("author",),
    "union": (Book.objects.all(),),
    "using": ("default",),
    "values": ("title",),
    "values_list": ("title",),
}


def public_names() -> set[str]:
    """Return the public names of querysets of this Django, coroutine functions aside."""
    return {
        name
        for name, value in inspect.getmembers(QuerySet)
        if not name.startswith("_") and not iscoroutinefunction(value) and name != "aiterator"
    }


def test_each_method_is_known() -> None:
    """Each public method of QuerySet is in one of the lists, and in one alone."""
    lists = [CHAINED, ENDS, ATTRIBUTES, LEFT_OUT]
    assert public_names() <= frozenset().union(*lists)
    assert sum(map(len, lists)) == len(frozenset().union(*lists))
    # What only some versions of Django have.
    assert frozenset().union(*lists) - public_names() <= {"fetch_mode", "totally_ordered"}


@pytest.mark.parametrize("name", sorted(CHAINED & public_names()))
def test_chained(name: str) -> None:
    """A method that returns a queryset returns a recorder, and asks nothing."""
    found = getattr(Book.objects.all(), name)(*ARGUMENTS.get(name, ()))
    assert isinstance(found, QuerySet | RawQuerySet)
    recorded = getattr(future(Book.objects.all()), name)(*ARGUMENTS.get(name, ()))
    assert isinstance(recorded, Recorder)


@pytest.mark.parametrize("name", sorted(ENDS))
async def test_ends(name: str) -> None:
    """A method that asks the database returns a future, which has not begun."""
    found = getattr(future(Book.objects), name)()
    assert isinstance(found, Future)
    assert repr(found) == "<Future not started>"
    # The method of that name, and no other, is called: it misses its arguments, or is Django's.
    found.cancel()


@pytest.mark.parametrize("name", ["iterator", "as_manager", "nothing", "_fetch_all", "__len__"])
def test_left_out(name: str) -> None:
    """What is neither a queryset nor a result, or does not exist, is an AttributeError."""
    with pytest.raises(AttributeError):
        getattr(future(Book.objects.all()), name)


def test_a_methods() -> None:
    """The error for an a-method names the one to use."""
    with pytest.raises(AttributeError, match=r"its get\(\) is awaited"):
        future(Author.objects).aget(name="Ada")


async def test_results() -> None:
    """The futures' results are those of the queryset's own methods."""
    ada, _ = await library()
    books = future(Book.objects)
    assert await books.count() == 3
    assert (await books.get(title="A1")).author_id == ada.pk
    assert [book.title for book in await books.order_by("-price").submit()] == ["B1", "A2", "A1"]
    assert await books.values_list("title", flat=True).submit() == ["A1", "A2", "B1"]
    assert await books.filter(price__lt=20).in_bulk(field_name="id")
    assert (await books[1]).title == "A2"
    assert [book.title for book in await books[1:].submit()] == ["A2", "B1"]
    assert [book.title for book in await books[::2]] == ["A1", "B1"]
    assert [book.title for book in await books.cheap().submit()] == ["A1"]
    either = books.filter(title="A1") | Book.objects.filter(title="B1")
    assert await either.count() == 2
    assert await (either & books.filter(price=25)).count() == 1
    assert await books.filter(title="A1").update(price=F("price") + 1) == 1
    assert await books.dates("published", "year").submit() == []
    assert [
        book.title for book in await future(Book.objects.raw("SELECT * FROM tests_book")).submit()
    ]
    assert "SELECT" in str(books.all().query)
    assert "Recorder of a" in repr(books)


async def test_managers_of_relations() -> None:
    """The manager of a relation writes in futures, too."""
    ada, bea = await library()
    book = await Book.objects.aget(title="A1")
    await future(book.readers).add(ada, bea)
    assert await future(book.readers).count() == 2
    await future(book.readers).remove(bea)
    created = await future(ada.books).create(title="A3")
    assert created.author == ada
    assert await future(ada.books).filter(title="A3").exists()


async def test_functions() -> None:
    """A function, a bound method, and a coroutine function make futures of what they return."""
    author = Author(name="Ada")
    await future(author.save)()
    assert author.pk

    async def coroutine(name: str) -> int:
        return await Author.objects.filter(name=name).acount()

    assert await future(coroutine)("Ada") == 1
    async with transaction.atomic():
        assert await gather(future(coroutine)("Ada"), future(Author.objects.count)()) == [1, 1]
    with pytest.raises(TypeError, match="expected a queryset, a manager or a function"):
        future(3)  # type: ignore[call-overload]  # the error is what is tested


def test_coroutine_function_in_a_thread() -> None:
    """In a plain thread a coroutine function runs on a loop of async_to_sync."""

    async def coroutine() -> int:
        return await Author.objects.acount()

    assert run_in_thread(lambda: future(coroutine)().result()) == 0


async def test_own_method_without_a_queryset() -> None:
    """An own method that returns a value names the way to its future."""

    class Counting(QuerySet):
        def total(self) -> int:
            return 7

    with pytest.raises(TypeError, match=r"future\(queryset.total\)"):
        future(Counting(Book)).total()
    assert await future(Counting(Book).total)() == 7


async def test_delayed() -> None:
    """A delayed queryset is a subquery of a filter, and is computed by itself."""
    await library()
    cheap = delayed(future(Book.objects).filter(price__lt=10).values("author"))
    query = Author.objects.filter(pk__in=cheap)
    assert str(query.query).count("SELECT") == 2
    assert [author.name async for author in query] == ["Ada"]
    assert [author.name async for author in Author.objects.exclude(pk__in=cheap)] == ["Bea"]
    assert len(await cheap.acompute()) == 1
    assert await bridged(cheap.compute)() == await cheap.acompute()
    with pytest.raises(NotAwaitedError):
        cheap.compute()
    books = delayed(Book.objects.filter(author=OuterRef("pk")).order_by("-price"))
    rich = Author.objects.annotate(most=Subquery(books.queryset.values("price")[:1]))
    assert [author.most async for author in rich.order_by("pk")] == [15, 25]
    assert await Author.objects.filter(Exists(books)).acount() == 2
    assert await Author.objects.filter(pk=delayed(Author.objects.values("pk")[:1])).acount() == 1
    assert await delayed(Book.objects).acompute()
    with pytest.raises(TypeError, match="expected a queryset"):
        delayed(Book)


def test_delayed_in_a_thread() -> None:
    """A plain thread computes, too."""
    assert run_in_thread(lambda: delayed(Author.objects.values("pk")).compute()) == []


def test_not_iterable() -> None:
    """What asks for rows is told to await them: a loop over futures of rows would never end."""
    for ask in (
        list,
        lambda recorder: Author() in recorder,
        lambda recorder: Author.objects.filter(pk__in=recorder),
    ):
        with pytest.raises(TypeError, match=r"iterable|submit"):
            ask(future(Author.objects))
