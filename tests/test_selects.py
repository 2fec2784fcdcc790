"""The select list that is compiled once: the same columns and values as compiled each time."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import models
from django.db.models import Count, F, QuerySet
from django.test.utils import isolate_apps

from pgbackend import bridged, selects
from tests.models import Author, Book

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
]


@pytest.mark.parametrize("queryset", QUERYSETS, ids=range(len(QUERYSETS)))
async def test_statements(queryset: QuerySet[Any]) -> None:
    """A statement is the same whether its model's select list was kept or not."""

    @bridged
    def statements() -> list[Any]:
        selects._selects.clear()
        return [queryset.all().query.get_compiler("default").as_sql() for _ in range(3)]

    first, second, third = await statements()
    assert first == second == third


async def test_values() -> None:
    """Rows are converted the same, the first time and later."""
    author = await Author.objects.acreate(name="Ada")
    await Book.objects.acreate(title="Notes", author=author, price=3, data={"a": [1]})
    selects._selects.clear()
    for _ in range(3):
        book = await Book.objects.aget()
        assert (book.title, book.author_id, book.price) == ("Notes", author.pk, 3)
        assert book.data == {"a": [1]}


@isolate_apps("tests")
def test_changed_model() -> None:
    """A field that is added later is selected."""

    class Growing(models.Model):
        class Meta:
            app_label = "tests"

    def statement() -> str:
        sql, _ = Growing._default_manager.all().query.get_compiler("default").as_sql()
        return str(sql)

    assert statement() == statement() == 'SELECT "tests_growing"."id" FROM "tests_growing"'
    models.TextField(default="").contribute_to_class(Growing, "text")
    assert statement() == statement()
    assert '"tests_growing"."text"' in statement()


class Marked(models.TextField):
    """A field with SQL of its own in the select list."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return f"upper({sql})", params


@isolate_apps("tests")
def test_fields_with_sql_of_their_own() -> None:
    """A field that formats its column is asked each time, and never kept."""

    class Formatted(models.Model):
        text = Marked()

        class Meta:
            app_label = "tests"

    for _ in range(3):
        sql, _params = Formatted._default_manager.all().query.get_compiler("default").as_sql()
        assert 'upper("tests_formatted"."text")' in sql
    assert selects.known(Formatted) is None
