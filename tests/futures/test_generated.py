"""Generated querysets: what is gathered is what is awaited, in and outside of a transaction."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Avg, Count, Exists, F, Max, OuterRef, Prefetch, Q, Subquery, Sum
from django.db.models.functions import Length, Lower

from pgbackend import bridged
from pgbackend.futures import future, gather
from tests.models import Author, Book
from tests.support.futures import authors

# How many querysets `make test` compares, and how many `make test-load`.
FEW, MANY = 40, 2_000

_CONDITIONS: list[Callable[[random.Random], Q]] = [
    lambda rand: Q(price__gt=rand.randrange(40)),
    lambda rand: Q(price__in=[rand.randrange(40) for _ in range(rand.randrange(4))]),
    lambda rand: Q(title__icontains=rand.choice("ab1%'\\\"é")),
    lambda rand: Q(title__startswith=rand.choice(["t", "T1", "%s", "_"])),
    lambda rand: Q(author__isnull=rand.random() < 0.5),
    lambda rand: Q(author__name__gte=rand.choice(["a1", "a3", "ü"])),
    lambda rand: Q(pk=rand.choice([1, 2, 5, 10**30, None])),
    lambda rand: Q(on_loan=rand.random() < 0.5),
    lambda rand: Q(data__kind=rand.choice(["x", None, 1])),
    lambda rand: Q(readers__name=rand.choice(["a0", "a2"])),
    lambda rand: Q(author__in=Author.objects.filter(name__lt=rand.choice(["a2", "b"]))),
    lambda rand: Q(price__lt=F("author__id") * rand.randrange(1, 9)),
    lambda rand: Q(Exists(Book.readers.through.objects.filter(book=OuterRef("pk")))),
]

_CHANGES: list[Callable[[random.Random, Any], Any]] = [
    lambda rand, books: books.exclude(rand.choice(_CONDITIONS)(rand)),
    lambda rand, books: books.select_related("author"),
    lambda rand, books: books.only("title", "price"),
    lambda rand, books: books.defer("data"),
    lambda rand, books: books.annotate(length=Length("title"), low=Lower("title")),
    lambda rand, books: books.annotate(number=Count("readers")),
    lambda rand, books: books.prefetch_related("readers"),
    lambda rand, books: books.prefetch_related(
        Prefetch("author", Author.objects.prefetch_related("books"))
    ),
    lambda rand, books: books.order_by(rand.choice(["-price", "title"]), "pk"),
    lambda rand, books: books.annotate(
        most=Subquery(
            Book.objects.filter(author=OuterRef("author")).order_by("-price", "pk").values("pk")[:1]
        )
    ),
    lambda rand, books: books.select_for_update(of=("self",)) if rand.random() < 0.1 else books,
    lambda rand, books: books.extra(select={"twice": "price * 2"}),
    lambda rand, books: books.distinct(),
]

_ENDS: list[Callable[[random.Random, Any], Any]] = [
    lambda rand, books: partial(list, books),
    lambda rand, books: partial(list, books[rand.randrange(3) : rand.randrange(3, 6)]),
    lambda rand, books: partial(list, books.values("title", "price", "author__name")),
    lambda rand, books: partial(list, books.values_list("pk", flat=True)),
    lambda rand, books: partial(list, books.values_list("title", "data", named=True)),
    lambda rand, books: partial(list, books.dates("published", "month")),
    lambda rand, books: partial(list, books.values("author").annotate(total=Sum("price"))),
    lambda rand, books: partial(list, books.none()),
    lambda rand, books: books.count,
    lambda rand, books: books.exists,
    lambda rand, books: books.first,
    lambda rand, books: books.last,
    lambda rand, books: partial(books.get, pk=rand.randrange(12)),
    lambda rand, books: partial(books.get, title=rand.choice(["T1", "nothing"])),
    lambda rand, books: partial(books.get, price__gt=rand.randrange(50)),
    lambda rand, books: partial(books.aggregate, Avg("price"), Max("title"), Count("pk")),
    lambda rand, books: partial(books.in_bulk, [rand.randrange(12) for _ in range(3)]),
    lambda rand, books: partial(books.earliest, "price", "pk"),
    lambda rand, books: partial(books.__getitem__, rand.randrange(8)),
    lambda rand, books: partial(books.order_by().explain, costs=False),
    lambda rand, books: partial(books.contains, Book(pk=rand.randrange(1, 12))),
    lambda rand, books: partial(list, Book.objects.raw("SELECT id, title FROM tests_book")),
    lambda rand, books: partial(_by_cursor, rand.randrange(20)),
    lambda rand, books: partial(_in_block, books),
]


def _by_cursor(number: int) -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tests_book WHERE price > %s", [number])
        return cursor.fetchall()


def _in_block(books: Any) -> Any:
    with transaction.atomic():
        return [books.count(), books.first()]


def call(rand: random.Random) -> Callable[[], Any]:
    """Return a call that is made anew by the same state of *rand*."""
    books = Book.objects.all()
    for _ in range(rand.randrange(3)):
        condition = rand.choice(_CONDITIONS)(rand)
        if rand.random() < 0.3:
            other = rand.choice(_CONDITIONS)(rand)
            condition = condition | other if rand.random() < 0.5 else condition & ~other
        books = books.filter(condition)
    for _ in range(rand.randrange(4)):
        books = rand.choice(_CHANGES)(rand, books)
    found: Callable[[], Any] = rand.choice(_ENDS)(rand, books)
    return found


def made(seed: int) -> Callable[[], Any]:
    """Return a function that makes the call of *seed*, also if making it raises, and runs it."""

    def run() -> Any:
        return call(random.Random(seed))()

    return run


def plain(value: Any, depth: int = 3) -> Any:
    """Return *value* with its rows as what they hold, to be compared.

    *depth* is how many relations are followed: they lead back.
    """
    if isinstance(value, BaseException):
        return type(value).__name__, str(value).splitlines()[:1]
    if isinstance(value, Author | Book):
        held = {key: plain(each) for key, each in vars(value).items() if key[0] != "_"}
        if depth:
            related = {**vars(value).get("_prefetched_objects_cache", {})}
            related |= value._state.fields_cache
            held |= {
                f"{key}()": plain(
                    each if each is None or isinstance(each, Author) else list(each), depth - 1
                )
                for key, each in related.items()
            }
        return type(value).__name__, held
    if isinstance(value, dict):
        return {key: plain(each, depth) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, depth) for each in value]
    return value


async def fill() -> None:
    """Create some authors, their books, and readers."""
    pks = await authors(5)
    books = [
        Book(
            title=f"T{number}" if number % 3 else f"%s'{number}\\é",
            author_id=None if number % 5 == 4 else pks[number % 4],
            price=number * 3,
            on_loan=number % 2 == 0,
            data={"kind": "xyz"[number % 3]},
        )
        for number in range(11)
    ]
    await Book.objects.abulk_create(books)
    for book in books[::2]:
        await book.readers.aset(pks[:3])


async def one(function: Callable[[], Any]) -> Any:
    """Await one call, and return its result or exception."""
    try:
        return plain(await bridged(_safely)(function))
    except Exception as error:
        return plain(error)


def _safely(function: Callable[[], Any]) -> Any:
    """Call *function* in a block of its own where a failed statement would break the open one."""
    if connection.in_atomic_block:
        with transaction.atomic():
            return function()
    return function()


@pytest.mark.parametrize(
    "number", [FEW, pytest.param(MANY, marks=pytest.mark.load)], ids=["few", "many"]
)
async def test_generated(number: int) -> None:
    """Generated querysets have, gathered, the results and the exceptions that they have awaited."""
    await fill()
    rand = random.Random(number)
    begun = 0
    while begun < number:
        calls = [made(seed) for seed in range(begun, begun + rand.randrange(1, 13))]
        begun += len(calls)
        inside = rand.random() < 0.7
        if inside:
            async with transaction.atomic():
                expected = [await one(each) for each in calls]
                found = await gather(
                    *[future(each)() for each in calls], return_exceptions=True, savepoints=True
                )
        else:
            expected = [await one(each) for each in calls]
            found = await gather(*[future(each)() for each in calls], return_exceptions=True)
        for seed, (awaited, gathered) in enumerate(
            zip(expected, map(plain, found), strict=True), begun - len(calls)
        ):
            assert gathered == awaited, seed


async def test_generated_without_savepoints() -> None:
    """Querysets none of which fails in the server are the same without savepoints."""
    await fill()
    async with transaction.atomic():
        good: list[int] = []
        for seed in range(FEW):
            found = await one(made(seed))
            if not (isinstance(found, tuple) and found[0].endswith("Error")):
                good.append(seed)
        expected = [await one(made(seed)) for seed in good]
        found = await gather(*[future(made(seed))() for seed in good], return_exceptions=True)
        assert list(map(plain, found)) == expected
