"""The select list that is compiled once: the same columns and values as compiled each time."""

from __future__ import annotations

from typing import Any

from django.db import models
from django.test.utils import isolate_apps

from pgbackend.sql import select_lists
from tests.models import Author, Book


async def test_values() -> None:
    """Rows are converted the same, the first time and later."""
    author = await Author.objects.acreate(name="Ada")
    await Book.objects.acreate(title="Notes", author=author, price=3, data={"a": [1]})
    vars(Book._meta).pop("_pgbackend_select", None)
    for _ in range(3):
        book = await Book.objects.aget()
        assert (book.title, book.author_id, book.price) == ("Notes", author.pk, 3)
        assert book.data == {"a": [1]}
    # A foreign key keeps nothing from being kept.
    assert select_lists.kept_select_list(Book) is not None


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
    assert select_lists.kept_select_list(Formatted) is None
