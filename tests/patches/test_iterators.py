"""aiterator(), whose cursor is closed when it is left early."""

import asyncio
from collections.abc import Callable

import pytest

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
