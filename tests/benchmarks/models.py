"""The tables of `schema` as Django's models, for all peers that are Django."""

from typing import Any

from django.conf import settings
from django.db import models

from tests.benchmarks.schema import FIELDS

if "django_async_backend" in settings.INSTALLED_APPS:
    from django_async_backend.db.models.base import AsyncModelMixin as Base
else:

    class Base:
        """No more than Django's own model."""


class Item(Base, models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = "bench_item"


class Author(Base, models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = "bench_author"


class Book(Base, models.Model):
    name = models.CharField(max_length=100)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books")

    class Meta:
        managed = False
        db_table = "bench_book"


class Chapter(Base, models.Model):
    name = models.CharField(max_length=100)
    book = models.ForeignKey(Book, models.CASCADE, related_name="chapters")

    class Meta:
        managed = False
        db_table = "bench_chapter"


class TwentyFields(Base, models.Model):
    """The key, and nineteen more."""

    author = models.ForeignKey(Author, models.CASCADE, related_name="%(class)ss")
    n1 = models.IntegerField()
    n2 = models.IntegerField()
    n3 = models.IntegerField()
    n4 = models.IntegerField()
    big = models.BigIntegerField()
    name = models.CharField(max_length=100)
    s2 = models.CharField(max_length=100)
    s3 = models.CharField(max_length=100)
    s4 = models.CharField(max_length=100)
    t = models.TextField()
    f1 = models.FloatField()
    f2 = models.FloatField()
    b1 = models.BooleanField()
    b2 = models.BooleanField()
    d = models.DateField()
    ts = models.DateTimeField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    u = models.UUIDField()

    class Meta:
        abstract = True


class Wide(TwentyFields):
    class Meta:
        managed = False
        db_table = "bench_wide"


class WideBook(TwentyFields):
    class Meta:
        managed = False
        db_table = "bench_widebook"


class WideNote(TwentyFields):
    book = models.ForeignKey(WideBook, models.CASCADE, related_name="notes")

    class Meta:
        managed = False
        db_table = "bench_widenote"


class Slow20(Base, models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = "bench_slow20"


class Slow100(Base, models.Model):
    name = models.CharField(max_length=100)

    class Meta:
        managed = False
        db_table = "bench_slow100"


def _of_integers(count: int) -> Any:
    """Return the model of the table with so many integer columns."""

    class Meta:
        managed = False
        db_table = f"bench_fields{count}"

    columns = {f"c{i}": models.IntegerField() for i in range(count)}
    return type(
        f"Fields{count}", (Base, models.Model), {"__module__": __name__, "Meta": Meta, **columns}
    )


# By the names that the works use.
TABLES: dict[str, Any] = {
    "item": Item,
    "wide": Wide,
    **{f"fields{count}": _of_integers(count) for count in FIELDS},
}
