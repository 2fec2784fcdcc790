"""Random values and lookups for each kind of field; some of them wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address
from random import Random
from typing import Any
from uuid import UUID

from django.db.backends.postgresql.psycopg_any import DateTimeTZRange, NumericRange

WORDS = ["", "a", "Ada", "ada", "100%", "_", "\\", "'", '"', "ä€𝄞", "x" * 20, "a b", "%s", "NULL"]
TEXTS = [*WORDS, "line\nline", "\t", "x" * 300, "{}", "--", "$1", "é"]
MOMENTS = [
    datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
]
DATA: list[Any] = [
    {},
    [],
    1,
    "a",
    True,
    {"a": 1, "b": [1, 2, {"c": None}]},
    {"a": "ä"},
    [1, "a", None],
    {"a": 1.5},
    {"a": None},
]
KEYS = [UUID(int=number) for number in (0, 1, 2**127, 2**128 - 1)]

VALUES: dict[str, list[Any]] = {
    "BooleanField": [True, False],
    "CharField": WORDS,
    "TextField": TEXTS,
    "SlugField": ["a", "b-c", "d_1", ""],
    "EmailField": ["a@example.com", "B@Example.com", ""],
    "URLField": ["https://example.com/?a=%20", ""],
    "FileField": ["files/a.txt", ""],
    "IntegerField": [0, 1, -1, 7, 2**31 - 1, -(2**31)],
    "SmallIntegerField": [0, 1, -1, 2**15 - 1, -(2**15)],
    "BigIntegerField": [0, 1, -1, 2**63 - 1, -(2**63), 2**40],
    "PositiveIntegerField": [0, 1, 7, 2**31 - 1],
    "PositiveSmallIntegerField": [0, 1, 2**15 - 1],
    "PositiveBigIntegerField": [0, 1, 2**63 - 1],
    "FloatField": [0.0, 1.5, -1e300, 1e-300, float("inf"), 0.1, float("nan")],
    "DecimalField": [Decimal("0"), Decimal("1.500"), Decimal("-999999.999"), Decimal("0.001")],
    "DateField": [each.date() for each in MOMENTS],
    "DateTimeField": MOMENTS,
    "TimeField": [time(0), time(23, 59, 59, 999999), time(12, 30)],
    "DurationField": [
        timedelta(0),
        timedelta(days=1, seconds=2, microseconds=3),
        timedelta(days=-1, microseconds=1),
        timedelta(days=400),
    ],
    "UUIDField": KEYS,
    "BinaryField": [b"", b"\0\xff", b"abc" * 50],
    "GenericIPAddressField": ["127.0.0.1", "::1", "192.168.0.7", "2001:db8::1"],
    "JSONField": DATA,
    "ArrayField": [[], [1], [1, 2, 3], [None, 1]],
    "IntegerRangeField": [NumericRange(1, 5), NumericRange(None, 3), NumericRange(empty=True)],
    "DateTimeRangeField": [DateTimeTZRange(MOMENTS[1], MOMENTS[0]), DateTimeTZRange(None, None)],
}


class Odd:
    """A value of no field's; Django calls the class, and some fields take the instance's text."""

    def __repr__(self) -> str:
        # Without an address, which differs between the two that are compared.
        return "<Odd>"


# What a field refuses, or the database does, or takes for something else.
WRONG: list[Any] = [
    "wrong",
    "\0",
    "x" * 30,
    2**31,
    2**64,
    -1,
    1.5,
    Decimal("123456789.12345"),
    [],
    {"a": 1},
    b"\xff",
    date(2026, 1, 1),
    Odd,
    "2026-01-02",
    "2026-01-02 03:04:05+02:00",
    "12:00",
    ip_address("127.0.0.1"),
    float("nan"),
    "7",
    True,
    "\ud800",
]

COMPARISONS = ["exact", "gt", "gte", "lt", "lte", "in", "range", "isnull"]
TEXT_LOOKUPS = [
    "iexact",
    "contains",
    "icontains",
    "startswith",
    "istartswith",
    "endswith",
    "iendswith",
    "regex",
    "iregex",
]
TEXT_FIELDS = {"CharField", "TextField", "SlugField", "EmailField", "URLField", "FileField"}
LOOKUPS: dict[str, list[str]] = {
    "DateField": ["year", "month", "day", "week_day", "year__gte", "quarter"],
    "DateTimeField": ["year", "date", "hour", "minute", "date__lt", "time__gt"],
    "TimeField": ["hour", "minute"],
    "JSONField": ["a", "a__gt", "contains", "has_key", "b__1", "a__isnull"],
    "ArrayField": ["contains", "len", "0", "overlap", "contained_by"],
    "IntegerRangeField": ["contains", "overlap", "isempty", "startswith"],
    "DateTimeRangeField": ["contains", "isempty"],
}


def value(rng: Random, field: Any) -> Any:
    """Return a value for a field: mostly one that fits."""
    if field.null and rng.random() < 0.15:
        return None
    if rng.random() < 0.03:
        return rng.choice(WRONG)
    if field.name == "words":
        return rng.choice([[], ["a"], ["ä", "'", '"', ",", "NULL"], [None]])
    return rng.choice(VALUES[field.get_internal_type()])


def condition(rng: Random, field: Any) -> tuple[str, Any]:
    """Return a lookup of a field and what to compare with."""
    kind = field.get_internal_type()
    lookups = [*COMPARISONS, *LOOKUPS.get(kind, [])]
    if kind in TEXT_FIELDS or rng.random() < 0.05:
        lookups += TEXT_LOOKUPS
    lookup = rng.choice(lookups)
    name = f"{field.name}__{lookup}" if lookup != "exact" or rng.random() < 0.5 else field.name
    if lookup == "isnull" or lookup.endswith("isempty") or lookup == "a__isnull":
        return name, rng.random() < 0.5
    if lookup == "in":
        return name, [value(rng, field) for _ in range(rng.randrange(4))]
    if lookup == "range":
        return name, (value(rng, field), value(rng, field))
    if lookup in LOOKUPS.get(kind, []) and kind not in ("JSONField", "ArrayField"):
        return name, rng.choice([1, 12, 2026, 0, value(rng, field)])
    if lookup in ("has_key",):
        return name, rng.choice(["a", "b"])
    if lookup in ("len", "0", "a__gt", "b__1"):
        return name, rng.choice([0, 1, 2])
    return name, value(rng, field)
