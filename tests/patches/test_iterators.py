"""aiterator(), whose cursor is closed when it is left early."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db.models.query import ModelIterable

from pgbackend import bridged
from tests.models import Author, Book
from tests.support.books import library
from tests.support.script import run_script
from tests.support.server import Server


async def test_aiterator_left_early(server: Server, add_alias: Callable[..., str]) -> None:
    """An aiterator() that is left early gives its connection back."""
    await library()
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1, "timeout": 5}})
    rows = Book.objects.using(alias).aiterator(chunk_size=1)
    assert (await anext(rows)).title == "A1"
    # library()'s and the cursor's
    assert server.backends() == 2
    await rows.aclose()
    # Another task waits for the pool's only connection; this one might still hold it.
    assert await asyncio.create_task(Book.objects.using(alias).acount()) == 3
    assert server.backends() == 2


@pytest.mark.process
def test_aiterator_left_as_the_loop_ends() -> None:
    """The end of the loop does not disturb an aiterator() that was just left early."""
    printed = run_script(
        """
        settings.configure(**conf)
        import django
        django.setup()
        from tests.models import Author

        async def main():
            await Author.objects.abulk_create([Author(name=name) for name in "abc"])
            rows = Author.objects.order_by("name").aiterator(chunk_size=1)
            print(await anext(rows))
            await rows.aclose()
            # Meanwhile the cursor is being closed, by the loop's own finalizer.
            print(await Author.objects.acount())

        asyncio.run(main())
        """
    )
    assert printed == "a\n3\n"


async def test_aiterator_with_prefetch() -> None:
    """aiterator() honours prefetch_related() when it is given a chunk size."""
    await library()
    found = {
        author.name: [book.title for book in author.books.all()]
        async for author in Author.objects.prefetch_related("books").aiterator(chunk_size=1)
    }
    assert found == {"Ada": ["A1", "A2"], "Bea": ["B1"]}


async def test_arguments_of_aiterator() -> None:
    """aiterator() raises what Django's raises for a wrong chunk size or argument."""
    for size in (0, -1):
        with pytest.raises(ValueError, match=r"Chunk size must be strictly positive\."):
            await anext(Author.objects.aiterator(chunk_size=size))
    with pytest.raises(TypeError, match=r"QuerySet\.aiterator\(\)"):
        Author.objects.aiterator(size=1)  # type: ignore[call-arg]


class Shouting(ModelIterable):
    """Yields names in capitals, where it is iterated over asynchronously."""

    async def __aiter__(self) -> Any:  # type: ignore[override]
        for row in await bridged(list)(self):
            yield row.name.upper()


async def test_aiterator_of_an_iterable_class() -> None:
    """An iterable class with asynchronous iteration of its own iterates by that."""
    await library()
    authors = Author.objects.order_by("name")
    authors._iterable_class = Shouting
    assert [each async for each in authors.aiterator()] == ["ADA", "BEA"]


class InPairs(ModelIterable):
    """Reads two rows at a time, whatever it is asked for."""

    def __init__(self, queryset: Any, chunked_fetch: bool = False, chunk_size: int = 100) -> None:
        super().__init__(queryset, chunked_fetch, min(chunk_size, 2))


async def test_aiterator_of_a_chunk_size_of_its_own() -> None:
    """An iterable that sets its own chunk size, or that a function makes, yields all rows."""
    await library()
    books = Book.objects.order_by("title")
    for made_by in (InPairs, partial(ModelIterable), partial(InPairs)):
        books._iterable_class = made_by
        assert [each.title async for each in books.aiterator(100)] == ["A1", "A2", "B1"]


async def test_aiterator_of_kinds() -> None:
    """Chunks of any size yield all rows, of instances, values and lists of values."""
    await library()
    titles = ["A1", "A2", "B1"]
    books = Book.objects.order_by("title")
    for size in (1, 2, 3, 4):
        assert [each.title async for each in books.aiterator(chunk_size=size)] == titles
        rows = books.values("title").aiterator(chunk_size=size)
        assert [each async for each in rows] == [{"title": title} for title in titles]
        flat = books.values_list("title", flat=True).aiterator(size)
        assert [each async for each in flat] == titles
