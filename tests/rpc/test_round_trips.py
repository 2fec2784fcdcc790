"""Generated values, trees, messages and answers are the same after their way as text."""

from __future__ import annotations

import math
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.answers import Answer, Outcome, open_answer, seal_answer
from pgbackend.rpc.protocol.errors import ERRORS, error_of
from pgbackend.rpc.protocol.json_text import dumped, loaded
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import Message, Sender, open_message, seal_message
from pgbackend.rpc.protocol.names import (
    AGGREGATES,
    CONNECTORS,
    ENDS,
    FUNCTIONS,
    OPERATIONS,
    OPERATORS,
)
from pgbackend.rpc.protocol.values import decode, encode

KEYS = Keys("k", {"k": "s" * 32})
LIMITS = Limits(max_bytes=2**24, max_nodes=10**6, max_deadline=1e15, max_skew=1e15)

ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds))),
)
DATETIMES = st.datetimes(timezones=ZONES)  # type: ignore[arg-type]  # fixed offsets alone
NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(10**999), 10**999),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False, places=4).filter(lambda each: _short(each)),
    st.decimals(allow_nan=False).filter(lambda each: _short(each)),
)
HASHABLE = st.one_of(
    st.none(),
    st.text(),
    st.integers(),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.binary(),
    st.ip_addresses(),
    DATETIMES,
)
NAMES = st.text("abz059_", max_size=20).map("a{}".format)
MODELS = st.tuples(NAMES, NAMES).map(".".join)
DOCUMENTS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.text(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda below: st.one_of(st.lists(below), st.dictionaries(st.text(), below)),
    max_leaves=5,
)


def _short(value: Decimal) -> bool:
    _, digits, exponent = value.as_tuple()
    return not isinstance(exponent, int) or (abs(exponent) <= 1000 and len(digits) <= 1000)


def _tuples(each: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(each, max_size=3).map(tuple)


def _above(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return values and nodes that hold values and nodes of *below*."""
    conditions = st.builds(
        nodes.Q,
        st.sampled_from(sorted(CONNECTORS)),
        _tuples(st.tuples(NAMES, below)),
        st.booleans(),
    )
    operations = st.builds(
        nodes.Op,
        st.sampled_from(sorted(OPERATIONS)),
        _tuples(below),
        st.dictionaries(NAMES, below, max_size=2),
    )
    inner = st.builds(nodes.Tree, MODELS, _tuples(operations))
    return st.one_of(
        st.lists(below, max_size=4),
        _tuples(below),
        st.dictionaries(HASHABLE, below, max_size=3),
        st.sets(HASHABLE, max_size=4),
        conditions,
        st.builds(nodes.Q, st.just("or"), _tuples(conditions), st.booleans()),
        st.builds(nodes.F, NAMES),
        st.builds(nodes.OuterRef, NAMES),
        st.builds(nodes.Value, below),
        st.builds(nodes.Operation, st.sampled_from(sorted(OPERATORS)), below, below),
        st.builds(
            nodes.Aggregate,
            st.sampled_from(sorted(AGGREGATES)),
            _tuples(below),
            st.booleans(),
            st.one_of(st.none(), conditions),
            below,
        ),
        st.builds(nodes.Function, st.sampled_from(sorted(FUNCTIONS)), _tuples(below)),
        st.builds(nodes.Case, _tuples(st.builds(nodes.When, conditions, below)), below),
        st.builds(nodes.OrderBy, below, st.booleans(), st.sampled_from([None, "first", "last"])),
        st.builds(nodes.Object, MODELS, below),
        st.builds(nodes.Range, below, below, st.sampled_from(["[]", "[)", "(]", "()"])),
        *(st.builds(kind, inner) for kind in (nodes.Exists, nodes.Subquery, nodes.Delayed)),
    )


LEAVES = st.one_of(HASHABLE, NUMBERS, st.booleans())
# To a fixed depth: st.recursive draws anew and anew what has many children, which may take minutes.
VALUES = st.one_of(LEAVES, _above(LEAVES), _above(st.one_of(LEAVES, _above(LEAVES))))

TREES = st.builds(
    nodes.Tree,
    MODELS,
    _tuples(
        st.builds(
            nodes.Op,
            st.sampled_from(sorted(OPERATIONS)),
            _tuples(VALUES),
            st.dictionaries(NAMES, VALUES, max_size=2),
        )
    ),
    st.builds(nodes.Op, st.sampled_from(sorted(ENDS)), _tuples(VALUES)),
    st.one_of(st.none(), _tuples(NAMES)),
)

many = pytest.mark.parametrize(
    "examples", [15, pytest.param(500, marks=pytest.mark.load)], ids=["short", "long"]
)


def check(examples: int, test: Any) -> None:
    """Run *test*, a function of Hypothesis's, with that many examples."""
    settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(test)()


def through(value: Any) -> Any:
    """Return *value* after its way as text."""
    return decode(loaded(dumped(encode(value)).encode(), 128))


@many
def test_values(examples: int) -> None:
    """Each value is itself after its way, of the same type, and is written alike again."""

    @given(VALUES)
    def test(value: Any) -> None:
        read = through(value)
        assert read == value
        assert type(read) is type(value)
        # Where == is too kind: True and 1, 1 and 1.0, 1.0 and Decimal(1).
        assert dumped(encode(read)) == dumped(encode(value))

    check(examples, test)


@many
def test_documents(examples: int) -> None:
    """A JSON document is itself after its way."""

    @given(DOCUMENTS)
    def test(value: Any) -> None:
        assert repr(through(nodes.Json(value))) == repr(value)

    check(examples, test)


@many
def test_messages(examples: int) -> None:
    """A message is itself after it was sealed and opened."""

    @given(st.lists(TREES, min_size=1, max_size=3), st.booleans(), st.booleans())
    def test(trees: list[nodes.Tree], atomic: bool, dry: bool) -> None:
        message = Message(
            trees=tuple(trees),
            time=1000,
            deadline=2000,
            client=Sender("host", 1),
            atomic=atomic,
            dry=dry,
        )
        assert open_message(seal_message(message, KEYS), KEYS, LIMITS, 1.5) == message

    check(examples, test)


@many
def test_answers(examples: int) -> None:
    """The results and errors of an answer are themselves after it was sealed and opened."""

    @given(st.lists(st.one_of(VALUES, st.sampled_from(sorted(ERRORS)).map(error_of)), max_size=3))
    def test(results: list[Any]) -> None:
        outcomes = [
            Outcome(error=each) if isinstance(each, Exception) else Outcome(each)
            for each in results
        ]
        answer = Answer(id=uuid.uuid4().hex, time=1, outcomes=tuple(outcomes))
        opened = open_answer(seal_answer(answer, KEYS, "k"), KEYS, LIMITS, answer.id)
        assert [each.value for each in opened.outcomes] == [each.value for each in outcomes]
        assert [type(each.error) for each in opened.outcomes] == [
            type(each.error) for each in outcomes
        ]

    check(examples, test)


def test_shapes_of_an_answer() -> None:
    """Each result has its own shape, whatever those before it have."""
    flat = nodes.Shape("a.B", ("id", "name"), pk=("id",))
    shapes = [
        flat,
        flat,
        nodes.Shape("a.B", ("id", "other"), pk=("id",)),
        nodes.Shape("a.C", ("id", "name"), pk=("id",)),
        nodes.Shape("a.B", ("id", "name"), pk=("name",)),
        nodes.Shape(None, ("id", "name")),
        nodes.Shape("a.B", ("id", "name"), {"c": flat}, pk=("id",)),
        nodes.Shape("a.B", ("id", "name"), {"d": flat}, pk=("id",)),
        nodes.Shape("a.B", ("id", "name"), {}, (nodes.Prefetched("c", flat),), ("id",)),
        nodes.Shape(
            "a.B", ("id", "name"), {}, (nodes.Prefetched("c", flat, single=True),), ("id",)
        ),
        flat,
    ]
    outcomes = tuple(
        Outcome(
            nodes.Rows(
                "model",
                each,
                [[1, "x", *([2, "y"] for _ in each.related), *([] for _ in each.prefetched)]],
            )
        )
        for each in shapes
    )
    wire = seal_answer(Answer(id="0" * 32, time=1, outcomes=outcomes), KEYS, "k")
    assert open_answer(wire, KEYS, LIMITS, "0" * 32).outcomes == outcomes


def test_nan() -> None:
    """What is not equal to itself is what it was."""
    assert math.isnan(through(math.nan))
    assert through(Decimal("NaN")).is_nan()


def test_subclasses() -> None:
    """A subclass travels as what it derives from: an enumeration's member as its value."""
    import enum

    class Color(enum.StrEnum):
        RED = "red"

    class Old(str, enum.Enum):  # noqa: UP042  # whose str() is not its value
        RED = "red"

    class Number(enum.IntEnum):
        ONE = 1

    class Money(Decimal):
        pass

    class Moment(datetime):
        pass

    assert [through(each) for each in (Color.RED, Old.RED, Number.ONE)] == ["red", "red", 1]
    assert through(Money("1.50")) == Decimal("1.50")
    assert type(through(Moment(2017, 1, 1))) is datetime
