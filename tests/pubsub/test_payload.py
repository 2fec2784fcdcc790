"""Payloads: every supported annotation makes a round trip, and misfits are named."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional, Union

import pytest
from django.utils.translation import gettext_lazy
from hypothesis import given, settings
from hypothesis import strategies as st

from pgbackend.pubsub import Channel, PayloadError
from pgbackend.pubsub.payload import decode, encode
from tests.support.server import Server


class Colour(enum.Enum):
    RED = "r"
    BLUE = 2
    BOTH = ("r", 2)


class Size(enum.IntEnum):
    S = 1
    L = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Point:
    x: int
    y: Decimal = Decimal(0)
    label: str | None = None


@dataclass
class Node:
    value: int
    children: list[Node] = field(default_factory=list)


Key = NewType("Key", int)

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
dates = st.dates()
# Which of two equal times of an hour that comes twice, ISO 8601 cannot say.
moments = st.datetimes(timezones=st.none() | st.just(datetime.UTC)).map(
    lambda each: each.replace(fold=0)
)
times = st.times().map(lambda each: each.replace(fold=0))
points = st.builds(Point, st.integers(), decimals, st.none() | text)
fractions = st.floats(-1e15, 1e15).filter(lambda each: str(each) != "-0.0")
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(-1e15, 1e15).filter(lambda x: str(x) != "-0.0")
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)

# Annotations, and values of them.
KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False)),
    (str, text),
    (bytes, st.binary()),
    (Decimal, decimals),
    (uuid.UUID, st.uuids()),
    (datetime.datetime, moments),
    (datetime.date, dates),
    (datetime.time, times),
    (datetime.timedelta, st.timedeltas()),
    (Colour, st.sampled_from(Colour)),
    (Size, st.sampled_from(Size)),
    (Right, st.sampled_from([Right.READ, Right.WRITE, Right.READ | Right.WRITE])),
    (None, st.none()),
    (Any, json_values),
    (object, json_values),
    (Key, st.integers()),
    (Annotated[int, "metres"], st.integers()),
    (Literal["a", 1, None], st.sampled_from(["a", 1, None])),
    (Optional[datetime.date], st.none() | dates),  # noqa: UP045
    (int | None, st.none() | st.integers()),
    (Union[int, str, None], st.none() | st.integers() | text),  # noqa: UP007
    (int | float, st.integers() | st.floats(allow_nan=False)),
    (bool | int, st.booleans() | st.integers()),
    (datetime.date | str, dates | text),
    (datetime.date | datetime.datetime, dates | moments),
    (Colour | Size | str, st.sampled_from(Colour) | st.sampled_from(Size) | text),
    (list[int] | dict[str, int], st.lists(st.integers()) | st.dictionaries(text, st.integers())),
    (list[int] | tuple[str, str], st.lists(st.integers()) | st.tuples(text, text)),
    (Point | None, st.none() | points),
    (Point | dict[str, int], points | st.dictionaries(text, st.integers())),
    (list, st.lists(json_values)),
    (list[datetime.date], st.lists(dates)),
    (set[float], st.sets(floats)),
    (frozenset[str], st.frozensets(text)),
    (tuple[str], st.lists(text).map(tuple)),
    (tuple[int, ...], st.lists(st.integers()).map(tuple)),
    (tuple[int, str], st.tuples(st.integers(), text)),
    (tuple[int, Point | None], st.tuples(st.integers(), st.none() | points)),
    (Sequence[Decimal], st.lists(decimals)),
    (collections.deque[int], st.lists(st.integers()).map(collections.deque)),
    (dict, st.dictionaries(text, json_values)),
    (dict[int, int], st.dictionaries(st.integers(), st.integers())),
    (Mapping[datetime.date, bool], st.dictionaries(dates, st.booleans())),
    (dict[bool, int], st.dictionaries(st.booleans(), st.integers())),
    (dict[uuid.UUID, Point], st.dictionaries(st.uuids(), points, max_size=3)),
    (dict[tuple[int, str], str], st.dictionaries(st.tuples(st.integers(), text), text)),
    (dict[int | None, str], st.dictionaries(st.none() | st.integers(), text)),
    (dict[Colour, str], st.dictionaries(st.sampled_from(Colour), text)),
    (dict[Any, int], st.dictionaries(text, st.integers())),
    (Point, points),
    (list[Point], st.lists(points, max_size=3)),
]


def shown(value: Any) -> str:
    """Return *value* with the types of all parts; sets and dictionaries have no order."""
    match value:
        case dict():
            parts = sorted(shown(key) + ": " + shown(each) for key, each in value.items())
        case set() | frozenset():
            parts = sorted(map(shown, value))
        case list() | tuple() | collections.deque():
            parts = [shown(each) for each in value]
        case _:
            return repr(value)
    return f"{type(value).__name__}({', '.join(parts)})"


def channel_of(annotation: Any) -> type[Channel]:
    return make_dataclass("Made", [("value", annotation)], bases=(Channel,))


@pytest.mark.parametrize(("annotation", "values"), KINDS, ids=[str(kind) for kind, _ in KINDS])
def test_round_trip(annotation: Any, values: st.SearchStrategy[Any], server: Server) -> None:
    """A value comes back equal and of its type, over NOTIFY's text and over jsonb."""
    made = channel_of(annotation)

    @settings(max_examples=15, deadline=None, database=None)
    @given(values)
    def run(value: Any) -> None:
        sent = encode(made(value))
        assert sent.isascii()
        (stored,) = server.conn.execute("SELECT %s::jsonb::text", [sent]).fetchone()
        for payload in (sent, stored):
            got = decode(made, payload).value
            assert got == value
            assert shown(got) == shown(value)

    run()


def test_recursive() -> None:
    """A dataclass may contain itself, and annotations may be strings."""

    made = channel_of(Node)
    tree = Node(1, [Node(2), Node(3, [Node(4)])])
    assert decode(made, encode(made(tree))).value == tree


def test_not_finite() -> None:
    """JSON has neither infinity nor NaN; a float field has."""
    made = channel_of(list[float])
    got = decode(made, encode(made([float("inf"), -float("inf"), float("nan")]))).value
    assert repr(got) == "[inf, -inf, nan]"


@pytest.mark.parametrize(
    ("annotation", "given", "got"),
    [
        (int, "5", 5),
        (int, Decimal("5"), 5),
        (str, 5, "5"),
        (str, uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (str, gettext_lazy("Yes"), "Yes"),
        (float, 5, 5.0),
        (Decimal, 0.1, Decimal("0.1")),
        (uuid.UUID, str(uuid.UUID(int=5)), uuid.UUID(int=5)),
        (datetime.date, "2026-01-02", datetime.date(2026, 1, 2)),
        (Size, 2, Size.L),
        (list[int], (1, 2), [1, 2]),
        (set[int], [1, 2], {1, 2}),
    ],
)
def test_conversions(annotation: Any, given: Any, got: Any) -> None:
    """A conversion that loses nothing is made."""
    made = channel_of(annotation)
    found = decode(made, encode(made(given))).value
    assert (found, type(found)) == (got, type(got))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 1.5),
        (int, "many"),
        (int, None),
        (str, None),
        (str, b"bytes"),
        (str, "\ud800"),
        (str, "a\0b"),
        (bool, "False"),
        (bool, 2),
        (float, True),
        (float, "many"),
        (datetime.date, datetime.datetime(2026, 1, 1)),
        (datetime.date, "soon"),
        (datetime.timedelta, "soon"),
        (uuid.UUID, 5),
        (Colour, "green"),
        (Literal["a"], "b"),
        (list[int], "12"),
        (list[int], {1: 2}),
        (list[int], [1, "x"]),
        (tuple[int, str], (1,)),
        (dict[str, int], [1]),
        (dict[str, int], {"a": "x"}),
        (Point, {"x": 1}),
        (Point, Point(1, label=5.5)),  # type: ignore[arg-type]
        (int | None, "x"),
        (Any, object()),
        (Any, {1: 2}),
        (Any, float("nan")),
        (datetime.date | str, 5.5),
        pytest.param(int, 10**5000, id="long"),
        (int, Decimal("1E+5000")),
        pytest.param(str, 10**5000, id="long as text"),
        pytest.param(Any, [10**5000], id="long in a list"),
    ],
)
def test_misfits(annotation: Any, value: Any) -> None:
    """A value that does not fit is refused, by class and field."""
    made = channel_of(annotation)
    with pytest.raises(PayloadError, match=r"Made\.value: "):
        encode(made(value))


def test_too_deep() -> None:
    """A value that is nested more deeply than Python can follow is refused."""
    value: Any = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(PayloadError, match=r"Made: a value is nested too deeply"):
        encode(channel_of(Any)(value))


@pytest.mark.parametrize(
    ("annotation", "data"),
    [
        (int, "x"),
        (int, None),
        (bool, "x"),
        (bytes, "?"),
        (list[int], 1),
        (list[int], ["x"]),
        (tuple[int, str], [1]),
        (dict[str, int], []),
        (dict[int, int], {"x": 1}),
        (Point, 1),
        (Point, {"y": "1"}),
        (Point, {"x": "?"}),
        (Colour, "green"),
        (datetime.date | str, "2026-01-01"),
        (datetime.date | str, [7, "x"]),
        (int | None, "x"),
    ],
)
def test_misfits_received(annotation: Any, data: Any) -> None:
    """A payload that does not fit its class is an error that names class and field."""
    with pytest.raises(PayloadError, match=r"(Made\.value|Point): "):
        decode(channel_of(annotation), {"kwargs": {"value": data}})


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "5", '"5"', '{"app": 1}', "null"),
        pytest.param("[" * 200_000, id="deep"),
    ],
)
def test_no_payload(text: str) -> None:
    """What is no payload is an error that names the channel."""
    with pytest.raises(PayloadError, match=r"The payload of \S+Made"):
        decode(channel_of(int), text)


def test_two_versions_of_the_code() -> None:
    """A field that the class no longer has is left out; one that it has since has its default."""
    old = make_dataclass("Made", [("a", int), ("gone", int)], bases=(Channel,))
    new = make_dataclass("Made", [("a", int), ("b", int, 7)], bases=(Channel,))
    assert decode(new, encode(old(1, 2))) == new(1, 7)
    needs = make_dataclass("Made", [("a", int), ("b", int)], bases=(Channel,))
    with pytest.raises(PayloadError, match=r"Made: .*missing 1 required .*'b'"):
        decode(needs, encode(old(1, 2)))


def test_stored_twice_as_json() -> None:
    """Triggers of django-pgpubsub before 1.1 stored a string with the JSON inside."""
    made = channel_of(int)
    assert decode(made, json.dumps(encode(made(5)))).value == 5


def test_no_dataclass() -> None:
    """A class whose fields nobody made into a dataclass is refused by name."""

    class Bare(Channel):
        value: int

    with pytest.raises(PayloadError, match=r"Bare is no dataclass"):
        encode(Bare())


def test_unknown_names() -> None:
    """An annotation whose name is nowhere at run time is refused, with the fix."""
    made = make_dataclass("Made", [("value", "Nowhere")], bases=(Channel,))
    with pytest.raises(PayloadError, match=r"Made names 'Nowhere'.*import it there"):
        encode(made(1))


def test_without_form() -> None:
    """A class that has no form in JSON is refused, with the fix."""

    class Thing: ...

    with pytest.raises(PayloadError, match=r"Made\.value: .*Thing has no form .* dataclass"):
        encode(channel_of(Thing)(Thing()))
