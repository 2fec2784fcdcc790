"""Columns, counts and a mere 1, whose statements are compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.db.backends.postgresql.compiler import SQLCompiler
from django.db.models import Avg, Count, F, Max, Min, Q, Sum, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Upper

from pgbackend import bridged
from pgbackend.sql import select_lists
from tests.models import Author, Book
from tests.support.books import library
from tests.support.kept import caught, forget


def aggregate(filters: Any = (), **expressions: Any) -> Any:
    """Return the query that ``aggregate()`` runs."""
    query = Book.objects.filter(*filters).query.clone()
    query.select, query.default_cols = (), False
    for alias, each in expressions.items():
        query.add_annotation(each, alias)
    query.clear_ordering(force=True)
    return query


# Each makes the query of a number, of one structure or of several.
QUERIES: list[Callable[[int], Any]] = [
    lambda n: Book.objects.filter(price=n).query.exists(),
    lambda n: Book.objects.filter(author=n)[: n + 1].query.exists(),
    lambda n: Book.objects.all().query.exists(limit=bool(n)),
    lambda n: Book.objects.none().query.exists(),
    lambda n: Book.objects.filter(author__name="Ada").query.exists(),
    lambda n: Book.objects.distinct().query.exists(),
    lambda n: Book.objects.annotate(n=Count("readers")).query.exists(),
    lambda n: aggregate([Q(price=n)], n=Count("*")),
    lambda n: aggregate([Q(price=n)], n=[Count("pk"), Count("*"), Sum("price")][n]),
    lambda n: aggregate(n=Count("author", distinct=bool(n)), m=Max("price"), o=Min("title")),
    lambda n: aggregate(n=Count("pk", filter=Q(price=n)), m=Avg("price")),
    lambda n: aggregate(n=Sum(F("price")), m=Count(Value(n))),
    lambda n: aggregate(n=Sum("price", default=n)),
    lambda n: aggregate(n=Count("author__name")),
    lambda n: aggregate(n=Count("pk", filter=Q(pk__in=[]))),
    lambda n: aggregate(**{f"n{n}": Count("*")}),
    lambda n: Book.objects.filter(price=n).values("title").query,
    lambda n: Book.objects.values(*["title", "author", "price"][n:]).query,
    lambda n: Book.objects.values_list("price", "pk", "author_id").order_by("title").query,
    lambda n: Book.objects.values_list(["price", "title", "pk"][n]).order_by("title").query,
    lambda n: Book.objects.values("price").order_by("-price", "title")[n:5].query,
    lambda n: Book.objects.values("author__pk").filter(author__in=range(n + 1)).query,
    lambda n: Book.objects.values("author__name").query,
    lambda n: Book.objects.values("title", n=Value(n)).query,
    lambda n: Book.objects.values(n=F("title")).query,
    lambda n: Book.objects.values(n=Upper("title")).query,
    lambda n: Book.objects.values("title").distinct().query,
    lambda n: Book.objects.values("title").annotate(n=Count("pk")).query,
    lambda n: Book.objects.values("data__a").query,
    lambda n: Book.objects.annotate(n=RawSQL("1", ())).values("n").query,
    lambda n: Book.objects.extra(select={"one": "1"}).values("one", "title").query,
    lambda n: Book.objects.select_for_update().values("title").query,
    lambda n: Book.objects.values("pk").union(Book.objects.values("pk")).order_by("pk").query,
    lambda n: Book.objects.filter(pk__in=Book.objects.filter(price=n).values("pk")).query,
    lambda n: Author.objects.filter(pk__in=Book.objects.filter(price=n).values("author")).query,
]


@pytest.mark.parametrize("made", QUERIES, ids=range(len(QUERIES)))
async def test_statements(made: Callable[[int], Any]) -> None:
    """The statement and what it leaves in compiler and query are Django's, kept or not."""

    def state(cls: type[Any], number: int) -> Any:
        query = made(number)
        compiler = cls(query, transaction.get_connection(), "default")
        found = caught(compiler.as_sql)
        if type(found) is type:
            return found
        names = ("klass_info", "annotation_col_map", "col_count", "has_extra_select", "select")
        return (
            found,
            repr([getattr(compiler, name) for name in names]),
            query.alias_map.keys(),
            query.alias_refcount,
        )

    @bridged
    def compare() -> None:
        forget()
        for model in (Author, Book):
            model._base_manager.all().query.get_compiler("default").as_sql()
        ours = type(Book.objects.all().query.get_compiler("default"))
        with transaction.atomic():
            for number in (0, 1, 0, 2, 2, 1):
                assert state(ours, number) == state(SQLCompiler, number)

    await compare()


async def test_they_are_kept() -> None:
    """What exists(), count(), values() and values_list() ask is compiled once."""
    await library()

    @bridged
    def ask() -> int:
        forget()
        list(Book.objects.all())
        for number in range(3):
            books = Book.objects.filter(price=number)
            books.exists()
            books.count()
            books.aggregate(Sum("price"))
            list(books.values("title"))
            list(books.values_list("pk", flat=True))
        select = select_lists.kept_select_list(Book)
        assert select is not None
        return len(select.statements)

    assert await ask() == 5


async def test_results() -> None:
    """What comes of such statements is right each time."""
    await library()
    for _ in range(3):
        books = Book.objects.order_by("title")
        assert await books.filter(title="A1").aexists()
        assert not await books.filter(title="A3").aexists()
        assert await books.filter(title__in=["A1", "B1"]).acount() == 2
        assert await books.aaggregate(n=Count("*"), last=Max("title")) == {"n": 3, "last": "B1"}
        assert [each async for each in books.values("title")[:1]] == [{"title": "A1"}]
        assert [each async for each in books.values_list("title", flat=True)[2:]] == ["B1"]
        assert await books.filter(title="none").aaggregate(n=Count("pk")) == {"n": 0}


async def test_query_without_a_model() -> None:
    """What is asked of the server without any table is compiled as ever."""
    check = bridged(Q(number__gt=1).check)
    for _ in range(2):
        assert await check({"number": 2})
        assert not await check({"number": 1})
