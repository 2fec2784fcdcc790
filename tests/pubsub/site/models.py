"""Tables with triggers."""

import datetime
import uuid
from decimal import Decimal
from importlib import import_module
from typing import Any

from django.contrib.postgres.fields import ArrayField, DateRangeField, IntegerRangeField
from django.db import models
from django.db.backends.postgresql.psycopg_any import DateRange, NumericRange


class Author(models.Model):
    name = models.TextField()
    alternative = models.TextField(db_column="other", null=True)
    rating = models.DecimalField(max_digits=40, decimal_places=20, null=True)


class Post(models.Model):
    author = models.ForeignKey(Author, models.CASCADE)
    content = models.TextField()


class Child(Author):
    age = models.IntegerField()

    @classmethod
    def channel(cls) -> Any:
        """Return the channel of the table."""
        return import_module("tests.pubsub.site.channels").ChildStored


class Colour(models.TextChoices):
    RED = "r"


def some_json() -> Any:
    return {"a": [1.5, None, "x"]}


def some_array() -> Any:
    return [[datetime.date.min]]


class Kinds(models.Model):
    """A column of each kind."""

    integer = models.BigIntegerField(default=-(2**60))
    boolean = models.BooleanField(default=True)
    text = models.TextField(default='it\'s "quoted" \\ \u2603')
    choice = models.CharField(max_length=1, choices=Colour.choices, default=Colour.RED.value)
    real = models.FloatField(default=0.1)
    infinite = models.FloatField(default=float("inf"))
    exact = models.DecimalField(max_digits=30, decimal_places=10, default=Decimal("1.10"))
    binary = models.BinaryField(default=b"\x00\xff")
    day = models.DateField(default=datetime.date(2026, 1, 2))
    time = models.TimeField(default=datetime.time(1, 2, 3, 4))
    moment = models.DateTimeField(
        default=datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    )
    span = models.DurationField(default=datetime.timedelta(days=-3, microseconds=5))
    uuid = models.UUIDField(default=uuid.UUID(int=5))
    address = models.GenericIPAddressField(default="::1")
    json = models.JSONField(default=some_json)
    array = ArrayField(ArrayField(models.DateField()), default=some_array)
    numbers = IntegerRangeField(default=NumericRange(1, 5))
    days = DateRangeField(default=DateRange(datetime.date(2026, 1, 1), None))
    nothing = models.TextField(null=True)
    later = models.GeneratedField(
        expression=models.F("day") + datetime.timedelta(days=1),
        output_field=models.DateTimeField(),
        db_persist=True,
    )

    @classmethod
    def check(cls, **kwargs: Any) -> list[Any]:
        """Return nothing: Django 6.1 would ask each server whether it has generated columns."""
        return []

    @classmethod
    def make(cls) -> Any:
        """Insert a row."""
        return cls.objects.create()

    @classmethod
    def channel(cls) -> Any:
        """Return the channel of the table."""
        return import_module("tests.pubsub.site.channels").KindsStored


class Effect(models.Model):
    """What a listener wrote."""

    number = models.IntegerField()
    note = models.TextField(default="")
    pid = models.IntegerField(default=0)


class Line(models.Model):
    """A table whose key has two columns."""

    pk = models.CompositePrimaryKey("author_id", "number")
    author = models.ForeignKey(Author, models.CASCADE)
    number = models.IntegerField()

    @classmethod
    def channel(cls) -> Any:
        """Return the channel of the table."""
        return import_module("tests.pubsub.site.channels").LineStored
