"""Statements that are compiled once: Django's own, with the parameters of each query."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from types import FrameType
from typing import Any

import pytest
from django.contrib.postgres.fields import ArrayField, HStoreField
from django.core.exceptions import EmptyResultSet
from django.db import models, transaction
from django.db.backends.postgresql.compiler import SQLCompiler, SQLUpdateCompiler
from django.db.models import Count, F, Q, QuerySet, Value
from django.db.models.functions import Lower, Upper
from django.db.models.sql import UpdateQuery
from django.db.models.sql.compiler import SQLCompiler as DjangosCompiler
from django.db.models.sql.compiler import SQLUpdateCompiler as DjangosUpdateCompiler
from django.test.utils import isolate_apps, register_lookup

from pgbackend import bridged, compiler
from pgbackend.sql import select_lists
from tests.models import Author, Book, Tag
from tests.support.kept import caught, forget

QUERYSETS = [
    Book.objects.all(),
    Book.objects.filter(title="Notes").order_by("-title"),
    Book.objects.only("title"),
    Book.objects.defer("title"),
    Book.objects.select_related("author"),
    Book.objects.annotate(n=Count("readers")),
    Book.objects.extra(select={"one": "1"}),
    Book.objects.values("title"),
    Book.objects.values_list("pk", "title"),
    Book.objects.filter(author__name="Ada"),
    Book.objects.filter(pk__in=Book.objects.filter(author__name="Ada")),
    Book.objects.all().union(Book.objects.all()),
    Book.objects.filter(pk=F("pk")).distinct(),
    Author.objects.all()[:3],
    Author.objects.filter(name="Ada", pk=7),
    Author.objects.filter(pk__gt=1, pk__lte=9).order_by("name", "-pk")[5:8],
    Author.objects.filter(Q(name="Ada") | Q(name="Bob", pk__lt=7)),
    Author.objects.exclude(name="Ada").exclude(Q(pk=1) | Q(pk=2)),
    Author.objects.filter(name__startswith="100%", name__icontains="_"),
    Author.objects.order_by("?"),
    Author.objects.order_by("name").reverse(),
    Author.objects.order_by(F("name").desc()),
    Author.objects.filter(pk__in=[3, 1, 2]),
    Author.objects.filter(pk__in=[]),
    Author.objects.filter(pk__in=[None]),
    Author.objects.filter(pk__in=[1, None, 2, 1]),
    Author.objects.filter(pk__in=[1, 10**30]),
    Author.objects.filter(pk__in=[1, F("pk")]),
    Author.objects.filter(pk__in=[1, 2], name__in=["a", "b"]),
    Author.objects.exclude(pk__in={1, 2}).filter(name="IN (%s, %s)"),
    Author.objects.extra(where=["id IN (1, 2)"]).filter(pk__in=[1, 2]),
    Author.objects.filter(name=Upper("name")),
    Author.objects.filter(name=Value("Ada")),
    Author.objects.none(),
    Author.objects.extra(where=["name = 'Ada'"]),
    Author.objects.extra(where=["name = %s"], params=["Ada"]),
    Author.objects.extra(tables=["tests_book"]),
    Author.objects.extra(order_by=["tests_author.name"]),
    Author.objects.distinct(),
    Author.objects.filter(pk=10**30),
    Author.objects.filter(pk__gte=-(10**30)),
    Author.objects.exclude(pk=10**30),
    Author.objects.filter(pk=3.5),
    Author.objects.filter(pk__gte=3.5),
    Book.objects.filter(author=7),
    Book.objects.filter(author_id=7, on_loan=False),
    Book.objects.filter(author=Author(pk=7)),
    Book.objects.filter(author=10**30),
    Book.objects.filter(author__pk=7),
    Book.objects.filter(author__in=[Author(pk=7), 8]),
    Book.objects.filter(author_id__in=[7, 8], price__in=[1]).order_by("author_id", "-pk"),
    Book.objects.filter(author__in=Author.objects.filter(name="Ada")),
    Book.objects.filter(author=7, author__name="Ada"),
    Book.objects.filter(author=7).order_by("author__name"),
    Book.objects.filter(author=7).order_by("author"),
    Book.objects.filter(author=7).select_related("author"),
    Book.objects.filter(Q(author=7) | Q(author__name="Ada")),
    Book.objects.filter(author=None),
    Book.objects.filter(author__isnull=False, published__isnull=True),
    Book.objects.filter(published=datetime(2026, 1, 2, tzinfo=UTC)),
    Book.objects.filter(published__year=2026),
    Book.objects.filter(data={"a": [1]}),
    Book.objects.filter(data__a=1),
    Book.objects.filter(price=F("price")),
    Book.objects.order_by("author"),
    Book.objects.order_by("author__name"),
    Book.objects.filter(readers=1),
    Tag.objects.filter(content_type__model="book", object_id=3),
    Tag.objects.filter(object_id=-1),
]


def of_django(queryset: QuerySet[Any]) -> Any:
    """Return the statement that Django's own compiler makes."""
    query = queryset.all().query
    compiler = SQLCompiler(query, transaction.get_connection(), "default")
    return caught(compiler.as_sql)


def compiled(queryset: QuerySet[Any]) -> Any:
    """Return the query of *queryset* as Django's own compiler leaves it."""
    query = queryset.all().query
    caught(SQLCompiler(query, transaction.get_connection(), "default").as_sql)
    return query


@pytest.mark.parametrize("queryset", QUERYSETS, ids=range(len(QUERYSETS)))
async def test_statements(queryset: QuerySet[Any]) -> None:
    """A statement is Django's own, whether it or its model's select list was kept or not."""

    @bridged
    def compare() -> None:
        forget()
        for each in (
            queryset,
            queryset.order_by("pk") if not queryset.query.is_sliced else queryset,
        ):
            expected = of_django(each)
            query = vars(compiled(each))
            for _ in range(3):
                compiler = each.all().query.get_compiler("default")
                found = caught(compiler.as_sql)
                assert found == expected
                if found is not EmptyResultSet:
                    assert len(compiler.select) == compiler.col_count > 0
                assert compiler.query.alias_map.keys() == query["alias_map"].keys()
                assert compiler.query.alias_refcount == query["alias_refcount"]

    await compare()


@pytest.mark.parametrize(
    "made",
    [
        lambda value: Author.objects.filter(pk=value),
        lambda value: Author.objects.filter(pk__gte=value).exclude(pk=value + 1),
        lambda value: Author.objects.filter(Q(pk=value) | Q(name=str(value))),
        lambda value: Author.objects.filter(name__contains=f"{value}%"),
        lambda value: Author.objects.filter(pk=value if value != 2 else 10**30),
        lambda value: Author.objects.order_by("pk")[value:10],
        lambda value: Author.objects.order_by(["pk", "-pk", "name"][value]),
        lambda value: Book.objects.filter(on_loan=bool(value)),
        lambda value: Book.objects.filter(published__isnull=bool(value)),
        lambda value: Book.objects.filter(author=[1, None, 2][value]),
        lambda value: Book.objects.filter(author=[1, Author(pk=2), 3][value]),
        lambda value: Book.objects.filter(**{["author", "author__pk", "author_id"][value]: 1}),
        lambda value: Book.objects.filter(author__in=[[1], [2, 3, 2], [None, 4, 5, 6]][value]),
        lambda value: Book.objects.filter(pk__in=[[1], [], [2, F("pk")]][value]),
        lambda value: Book.objects.filter(pk__in=range(value + 1), title="%s" * value),
        lambda value: Book.objects.exclude(title__in=["IN (%s)", "(%s)"][: value + 1]),
        lambda value: [Author, Book, Tag][value].objects.filter(pk=1),
    ],
)
async def test_values_of_a_structure(made: Callable[[int], QuerySet[Any]]) -> None:
    """A kept statement has the parameters of the query that it is made for."""

    @bridged
    def compare() -> None:
        forget()
        for _ in range(2):
            for value in range(3):
                queryset = made(value)
                expected = of_django(queryset)
                assert caught(queryset.query.get_compiler("default").as_sql) == expected

    await compare()


async def test_lookup_on_a_transform() -> None:
    """A column that a transform is applied to is no plain one."""

    @bridged
    def compare() -> None:
        with register_lookup(models.CharField, Lower):
            for queryset in [Author.objects.filter(name__lower=name) for name in ("ada", "bob")]:
                expected = of_django(queryset)
                assert caught(queryset.query.get_compiler("default").as_sql) == expected

    await compare()


async def test_many_structures() -> None:
    """Statements of ever new structures are not kept without end."""

    @bridged
    def compile_many() -> int:
        for offset in range(1200):
            Author.objects.all()[offset : offset + 1].query.get_compiler("default").as_sql()
        select = select_lists.kept_select_list(Author)
        assert select is not None
        return len(select.statements)

    assert 0 < await compile_many() <= 500


async def test_statement_of_many_lookups() -> None:
    """A condition that is put together by a loop is compiled each time."""

    @bridged
    def compile_it() -> int:
        forget()
        for number in (10, 100):
            where = reduce(or_, (Q(pk=each) for each in range(number)))
            for _ in range(2):
                queryset = Author.objects.filter(where)
                expected = of_django(queryset)
                assert caught(queryset.query.get_compiler("default").as_sql) == expected
        select = select_lists.kept_select_list(Author)
        assert select is not None
        return len(select.statements)

    assert await compile_it() == 1


@bridged
def test_kept_of_relations() -> None:
    """What related managers and prefetches ask is compiled once, for lists of any length."""
    author = Author(pk=7)
    forget()
    Book.objects.all().query.get_compiler("default").as_sql()
    for number in range(1, 4):
        author.books.all().query.get_compiler("default").as_sql()
        keys = range(number)
        Book.objects.filter(author__in=keys).query.get_compiler("default").as_sql()
        Book.objects.filter(pk__in=keys).query.get_compiler("default").as_sql()
    select = select_lists.kept_select_list(Book)
    assert select is not None
    assert len(select.statements) == 3


async def test_select_for_update() -> None:
    """A locking statement that was kept is refused outside of a transaction as before."""
    author = await Author.objects.acreate(name="Ada")
    for _ in range(2):
        async with transaction.atomic():
            assert await Author.objects.select_for_update(nowait=True).aget() == author
            assert await Author.objects.select_for_update(skip_locked=True).aget() == author
        with pytest.raises(transaction.TransactionManagementError):
            await Author.objects.select_for_update(nowait=True).aget()


async def test_ordering_of_a_model() -> None:
    """What a model is ordered by may change, to None as well."""

    @bridged
    def compare() -> None:
        for ordering in (None, [], ["pk"], ["-price"], None):
            for _ in range(2):
                Book._meta.ordering = ordering
                queryset = Book.objects.filter(price=1)
                expected = of_django(queryset)
                assert caught(queryset.query.get_compiler("default").as_sql) == expected

    before = Book._meta.ordering
    try:
        await compare()
    finally:
        Book._meta.ordering = before


async def test_replaced_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever replaces Django's ``as_sql`` sees every query."""
    original = SQLCompiler.as_sql
    seen: list[Any] = []

    def as_sql(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.query)
        return original(self, *args, **kwargs)

    @bridged
    def compile_twice() -> None:
        for _ in range(2):
            Author.objects.filter(pk=1).query.get_compiler("default").as_sql()

    await compile_twice()
    monkeypatch.setattr(DjangosCompiler, "as_sql", as_sql)
    await compile_twice()
    assert len(seen) == 2


UPDATES: list[tuple[QuerySet[Any], Callable[[int], dict[str, Any]]]] = [
    (Author.objects.filter(pk=1), lambda n: {"name": f"Ada {n}"}),
    (Author.objects.filter(pk=10**30), lambda n: {"name": f"Ada {n}"}),
    (Author.objects.filter(name__contains="%"), lambda n: {"name": "100%", "id": n}),
    (Author.objects.all(), lambda n: {"name": f"Ada {n}"}),
    (Author.objects.none(), lambda n: {"name": f"Ada {n}"}),
    (Author.objects.filter(pk=1), lambda n: {"name": Value(f"Ada {n}")}),
    (Author.objects.filter(pk=1), lambda n: {"name": ["Ada", Upper("name")][n % 2]}),
    (Author.objects.extra(where=["name = 'Ada'"]), lambda n: {"name": f"Ada {n}"}),
    (Author.objects.filter(books__title="Notes"), lambda n: {"name": f"Ada {n}"}),
    (Book.objects.filter(pk=1), lambda n: {"price": n, "title": f"Notes {n}"}),
    (Book.objects.filter(pk=1), lambda n: {"title": n}),
    (Book.objects.filter(pk=1), lambda n: {"price": F("price") + n}),
    (Book.objects.filter(pk=1), lambda n: {"price": [1, F("price"), None][n % 3]}),
    (Book.objects.filter(pk=1), lambda n: {"price": "a number"}),
    (Book.objects.filter(pk=1), lambda n: {"author": [None, 7][n % 2]}),
    (Book.objects.filter(pk=1), lambda n: {"author": Author(pk=n)}),
    (Book.objects.filter(pk=1), lambda n: {"author_id": n, "on_loan": bool(n % 2)}),
    (Book.objects.filter(pk=1), lambda n: {"data": {"a": n}}),
    (Book.objects.filter(pk=1), lambda n: {"data": [None, Value(None, models.JSONField())][n % 2]}),
    (Book.objects.filter(pk=1), lambda n: {"published": datetime(2026, 1, 1 + n, tzinfo=UTC)}),
    (Book.objects.filter(author=7).exclude(price=3), lambda n: {"published": None}),
    (Book.objects.filter(author__name="Ada"), lambda n: {"price": n}),
    (Book.objects.filter(author=Author(pk=7)), lambda n: {"price": n}),
    (Book.objects.filter(author=7, author__name="Ada"), lambda n: {"price": n}),
    (Book.objects.filter(author__in=[7, 8]), lambda n: {"price": n}),
    (Book.objects.filter(pk__in=[1, None, 2]), lambda n: {"author": n}),
    (Book.objects.select_for_update().filter(pk=1), lambda n: {"price": n}),
    (Book.objects.annotate(n=F("price")).filter(n=1), lambda n: {"price": n}),
    (Book.objects.extra(tables=["tests_author"]).filter(pk=1), lambda n: {"price": n}),
    (Book.objects.order_by("-price").distinct(), lambda n: {"price": n}),
]


def updating(queryset: QuerySet[Any], **values: Any) -> UpdateQuery:
    """Return the query that ``queryset.update()`` runs."""
    query = queryset.all().query.chain(UpdateQuery)
    query.add_update_values(values)
    return query


def of_update(query: UpdateQuery, cls: type[Any]) -> Any:
    """Return the statement that a compiler of *cls* makes of a query, or the exception."""
    try:
        sql, params = cls(query, transaction.get_connection(), "default").as_sql()
    except (EmptyResultSet, ValueError) as error:
        return type(error), str(error)
    parameters = [getattr(each, "obj", each) for each in params]
    return str(sql), type(params), parameters, query.alias_map.keys(), query.alias_refcount


@pytest.mark.parametrize(("queryset", "values"), UPDATES, ids=range(len(UPDATES)))
async def test_updates(queryset: QuerySet[Any], values: Callable[[int], dict[str, Any]]) -> None:
    """An UPDATE is Django's own, with the parameters of its query, whether it was kept or not."""

    @bridged
    def compare() -> None:
        forget()
        queryset.model._base_manager.filter(pk=1).query.get_compiler("default").as_sql()
        for number in (0, 1, 2, 1, 0, 3):
            expected, found = (
                of_update(updating(queryset, **values(number)), cls)
                for cls in (SQLUpdateCompiler, compiler.SQLUpdateCompiler)
            )
            assert found == expected

    await compare()


async def test_update_with_placeholders_of_its_fields() -> None:
    """What a field puts into the statement may depend on the value."""

    @bridged
    @isolate_apps("tests")
    def compare() -> None:
        class Shelf(models.Model):
            numbers = ArrayField(models.IntegerField())
            sizes = HStoreField()

            class Meta:
                app_label = "tests"

        Shelf.objects.all().query.get_compiler("default").as_sql()
        select = select_lists.kept_select_list(Shelf)
        for number in range(3):
            expected, found = (
                of_update(updating(Shelf.objects.filter(pk=1), numbers=[number]), cls)
                for cls in (SQLUpdateCompiler, compiler.SQLUpdateCompiler)
            )
            assert found == expected
        assert select is not None
        assert not select.statements

    await compare()


async def test_saved_values() -> None:
    """What asave() and aupdate() write by a kept statement is each row's own."""
    books = [await Book.objects.acreate(title=f"Book {n}") for n in range(4)]
    for number, book in enumerate([book async for book in Book.objects.all()]):
        book.price, book.data, book.on_loan = number, {"n": [number]}, number > 1
        await book.asave()
    for number, book in enumerate(books):
        changed = Book.objects.filter(pk=book.pk, price=number)
        assert await changed.aupdate(title=f"Title {number}") == 1
        assert await changed.filter(price=-1).aupdate(title="none") == 0
    rows = Book.objects.values_list("pk", "title", "price", "data", "on_loan")
    found = [row async for row in rows]
    assert found == [(book.pk, f"Title {n}", n, {"n": [n]}, n > 1) for n, book in enumerate(books)]


async def test_updates_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """save() compiles an UPDATE of the same columns once; who replaces ``as_sql`` sees each."""
    author = await Author.objects.acreate(name="Ada")
    compiled: list[Any] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is DjangosUpdateCompiler.pre_sql_setup.__code__:
            compiled.append(frame.f_code)

    async def save_as(*names: str) -> int:
        compiled.clear()
        # Replaced, the method would be seen each time.
        sys.setprofile(note)
        try:
            for name in names:
                author.name = name
                await author.asave()
        finally:
            sys.setprofile(None)
        await author.arefresh_from_db()
        assert author.name == names[-1]
        return len(compiled)

    await author.arefresh_from_db()
    assert await save_as("Bob", "Eve", "Ada") <= 1
    assert await save_as("Bob", "Eve") == 0
    original = DjangosUpdateCompiler.as_sql
    seen: list[Any] = []

    def as_sql(self: Any) -> Any:
        seen.append(self)
        return original(self)

    monkeypatch.setattr(DjangosUpdateCompiler, "as_sql", as_sql)
    assert await save_as("Ada", "Bob") == 2
    assert len(seen) == 2


async def test_changed_table() -> None:
    """A model whose table is renamed, as migrations' tests do, is asked for by the new name."""
    opts = Author._meta
    name = opts.db_table

    def statement() -> str:
        return str(Author.objects.filter(pk=1).query.get_compiler("default").as_sql()[0])

    before = await bridged(statement)()
    opts.db_table = "renamed"
    try:
        Author._meta.get_field("id").__dict__.pop("cached_col", None)
        assert '"renamed"' in await bridged(statement)()
    finally:
        opts.db_table = name
        Author._meta.get_field("id").__dict__.pop("cached_col", None)
    assert await bridged(statement)() == before
