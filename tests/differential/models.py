"""Models of some thirty kinds of fields, as many sets of them as programs that run at once."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.apps.registry import Apps
from django.contrib.postgres.fields import ArrayField, DateTimeRangeField, IntegerRangeField
from django.db import connections, models


class Reversed(models.CharField):
    """Text that the database has the other way round: converters of a project's own."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return value if value is None else f"{value[::-1]}"

    def get_prep_value(self, value: Any) -> Any:
        value = super().get_prep_value(value)
        return value if value is None else f"{value[::-1]}"


class Wrapped(models.IntegerField):
    """A number with converters and SQL in the select list of its own."""

    def get_db_converters(self, connection: Any) -> Any:
        return [lambda value, expression, connection: value if value is None else value + 1]

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return f"({sql} - 1)", params


class Models(NamedTuple):
    """One set of models, with tables of their own."""

    label: Any
    plain: Any
    thing: Any
    special: Any
    part: Any

    def create_tables(self, alias: str) -> None:
        with connections[alias].schema_editor() as editor:
            for model in self:
                editor.create_model(model)


# The fields of a thing that values are made for; see `values`.
def fields() -> dict[str, models.Field[Any, Any]]:
    return {
        "truth": models.BooleanField(default=False),
        "maybe": models.BooleanField(null=True),
        "word": models.CharField(max_length=20, default=""),
        "unique": models.CharField(max_length=20, null=True, unique=True),
        "text": models.TextField(default=""),
        "slug": models.SlugField(max_length=20, default=""),
        "email": models.EmailField(default=""),
        "url": models.URLField(default=""),
        "file": models.FileField(default="", upload_to="files"),
        "number": models.IntegerField(default=0),
        "small": models.SmallIntegerField(null=True),
        "big": models.BigIntegerField(null=True),
        "positive": models.PositiveIntegerField(default=0),
        "positive_small": models.PositiveSmallIntegerField(null=True),
        "positive_big": models.PositiveBigIntegerField(null=True),
        "real": models.FloatField(null=True),
        "exact": models.DecimalField(max_digits=9, decimal_places=3, null=True),
        "day": models.DateField(null=True),
        "moment": models.DateTimeField(null=True),
        "clock": models.TimeField(null=True),
        "span": models.DurationField(null=True),
        "key": models.UUIDField(null=True),
        "raw": models.BinaryField(null=True),
        "address": models.GenericIPAddressField(null=True),
        "data": models.JSONField(null=True),
        "numbers": ArrayField(models.IntegerField(), null=True),
        "words": ArrayField(models.CharField(max_length=9), null=True),
        "between": IntegerRangeField(null=True),
        "during": DateTimeRangeField(null=True),
        "turned": Reversed(max_length=20, null=True),
        "wrapped": Wrapped(null=True),
    }


# A model of these is what statements are kept for: none has a hand in its column.
PLAIN = ("truth", "word", "text", "number", "big", "real", "exact", "day", "moment", "data")


def make_models(prefix: str) -> Models:
    """Return a set of models whose tables begin with *prefix*."""
    registry = Apps(["tests.differential"])

    def make(name: str, /, *bases: type, **members: Any) -> Any:
        meta = type(
            "Meta",
            (),
            {"apps": registry, "app_label": "differential", "db_table": f"{prefix}_{name}".lower()},
        )
        return type(
            name, bases or (models.Model,), {"Meta": meta, "__module__": __name__} | members
        )

    label = make("Label", name=models.CharField(max_length=20, unique=True))
    plain = make("Plain", **{name: field for name, field in fields().items() if name in PLAIN})
    thing = make(
        "Thing",
        **fields(),
        owner=models.ForeignKey(label, models.SET_NULL, null=True, related_name="things"),
        labels=models.ManyToManyField(label, related_name="labelled"),
    )
    special = make("Special", thing, extra=models.CharField(max_length=20, default=""))
    part = make(
        "Part",
        id=models.UUIDField(primary_key=True),
        thing=models.ForeignKey(thing, models.CASCADE, related_name="parts"),
        size=models.SmallIntegerField(default=0),
    )
    return Models(label, plain, thing, special, part)
