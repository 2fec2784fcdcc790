"""Authors and their books, for the tests of queries."""

from typing import Any

from tests.models import Author, Book


async def library() -> tuple[Author, Author]:
    """Create Ada with the books "A1" (5) and "A2" (15), and Bea with "B1" (25)."""
    ada = await Author.objects.acreate(name="Ada")
    bea = await Author.objects.acreate(name="Bea")
    await Book.objects.abulk_create(
        [
            Book(title="A1", author=ada, price=5),
            Book(title="A2", author=ada, price=15),
            Book(title="B1", author=bea, price=25),
        ]
    )
    return ada, bea


async def titles(books: Any) -> list[str]:
    return [book.title async for book in books]
