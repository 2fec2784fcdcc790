"""What is recorded of Django's expressions, and what cannot be sent."""

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import FieldError
from django.db import models
from django.db.models import (
    Avg,
    Case,
    Count,
    Exists,
    ExpressionWrapper,
    F,
    OuterRef,
    Prefetch,
    Q,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Lower, Trunc
from django.utils.translation import gettext_lazy

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.errors import BadValue
from pgbackend.rpc.protocol.zones import zone_name
from pgbackend.rpc.recording import expression, recorded
from tests.rpc.waiter.models import ClientModel, Dish, Order, Station, Tag

ROWS = nodes.Op("rows")


def ops(queryset: Any) -> tuple[nodes.Op, ...]:
    recorded: tuple[nodes.Op, ...] = queryset.query.recorded
    return recorded


def q(*children: Any, connector: str = "and", negated: bool = False) -> nodes.Q:
    return nodes.Q(connector, children, negated)


class Colour(models.TextChoices):
    RED = "r"


class Number(models.IntegerChoices):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Q(a=1) | ~Q(b=2), q(("a", 1), q(("b", 2), negated=True), connector="or")),
        (Q(a=1) ^ Q(b=2), q(("a", 1), ("b", 2), connector="xor")),
        (F("a") + 1, nodes.Operation("+", nodes.F("a"), nodes.Value(1))),
        (F("a") % 2, nodes.Operation("%", nodes.F("a"), nodes.Value(2))),
        (F("a").bitxor(2), nodes.Operation("#", nodes.F("a"), nodes.Value(2))),
        (F("a").bitleftshift(2), nodes.Operation("<<", nodes.F("a"), nodes.Value(2))),
        (Count("*"), nodes.Aggregate("Count", ("*",))),
        (
            Count("a", distinct=True, filter=Q(b=1)),
            nodes.Aggregate("Count", (nodes.F("a"),), True, q(("b", 1))),
        ),
        (
            Sum("a", default=0),
            nodes.Aggregate("Sum", (nodes.F("a"),), default=nodes.Value(0)),
        ),
        (Lower("a"), nodes.Function("Lower", (nodes.F("a"),))),
        (
            Coalesce("a", Value("x")),
            nodes.Function("Coalesce", (nodes.F("a"), nodes.Value("x"))),
        ),
        (Trunc("a", "year"), nodes.Function("TruncYear", (nodes.F("a"),))),
        (
            Case(When(a=1, then=Value("x")), default=F("b")),
            nodes.Case((nodes.When(q(("a", 1)), nodes.Value("x")),), nodes.F("b")),
        ),
        (
            F("a").desc(nulls_last=True),
            nodes.OrderBy(nodes.F("a"), True, "last"),
        ),
        (OuterRef("a"), nodes.OuterRef("a")),
        (ExpressionWrapper(F("a") - 1, models.IntegerField()), recorded(F("a") - 1)),
        (Value(datetime.date.min), nodes.Value(datetime.date.min)),
    ],
)
def test_expressions(value: Any, wanted: Any) -> None:
    """Each expression has its node."""
    assert recorded(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (Colour.RED, "r"),
        (Number.ONE, 1),
        (gettext_lazy("word"), "word"),
        (memoryview(b"x"), b"x"),
        ({1: Colour.RED}.values(), ["r"]),
        (range(3), [0, 1, 2]),
        ({"a": (1, {2})}, {"a": (1, {2})}),
        (Dish(pk=3), nodes.Object("rpc_site.Dish", 3)),
        (Tag(pk=3), nodes.Object("rpc_site.Label", 3)),
        (ClientModel(pk=3), nodes.Object("rpc_site.ServerModel", 3)),
        (Dish.objects.filter(), nodes.Delayed(nodes.Tree("rpc_site.Dish"))),
    ],
)
def test_values(value: Any, wanted: Any) -> None:
    """Each value is plain, and of no subclass."""
    found = recorded(value)
    assert found == wanted
    assert type(found) is type(wanted)


def test_subqueries() -> None:
    """A queryset inside another is a tree that ends with rows."""
    tags = Tag.objects.filter(dishes=OuterRef("pk"))
    inner = nodes.Tree(
        "rpc_site.Label", (nodes.Op("filter", (q(("dishes", nodes.OuterRef("pk"))),)),), ROWS
    )
    assert recorded(Exists(tags)) == nodes.Exists(inner)
    assert recorded(~Exists(tags)) == q(nodes.Exists(inner), negated=True)
    words = nodes.Tree(inner.model, (*inner.ops, nodes.Op("values", ("word",))), ROWS)
    assert recorded(Subquery(tags.values("word"))) == nodes.Subquery(words)
    assert ops(Dish.objects.filter(labels__in=tags.values("word").delayed())) == (
        nodes.Op("filter", (q(("labels__in", nodes.Delayed(words))),)),
    )


def test_refused() -> None:
    """What has no node, is unsaved, or is of another database, is refused when it is recorded."""
    from tests.models import Author

    with pytest.raises(BadValue, match="FilteredRelation"):
        expression(models.FilteredRelation("labels"))
    with pytest.raises(BadValue, match="cannot be sent"):
        recorded(models.Window(Avg("price")))
    with pytest.raises(BadValue, match="zone"):
        recorded(Trunc("created", "year", tzinfo=datetime.UTC))
    with pytest.raises(ValueError, match="unsaved"):
        Dish.objects.filter(station=Station())
    with pytest.raises(ValueError, match="no RpcModel"):
        Dish.objects.filter(station=Author(pk=1))
    with pytest.raises(FieldError):
        Dish.objects.order_by(3)
    with pytest.raises(TypeError, match="_connector"):
        Dish.objects.filter(_connector="OR")
    with pytest.raises(ValueError, match="expected a number"):
        Dish.objects.filter(pk="no number")


def test_calls(nowhere: str) -> None:
    """Slices become one, a related manager's filter joins the next, undeclared fields pass."""
    assert ops(Dish.objects.all()[2:9][1:3]) == (nodes.Op("slice", (3, 5)),)
    assert ops(Dish.objects.all()[:5]) == (nodes.Op("slice", (None, 5)),)
    assert ops(Dish.objects.filter(unknown__deep=1)) == (
        nodes.Op("filter", (q(("unknown__deep", 1)),)),
    )
    labels = Dish(pk=1).labels
    one = q(("dishes", nodes.Object("rpc_site.Dish", 1)))
    assert ops(labels.filter(word="x")) == (nodes.Op("filter", (q(one, q(("word", "x"))),)),)
    assert ops(labels.all().all().filter(word="x")) == (
        nodes.Op("filter", (one,)),
        nodes.Op("filter", (q(("word", "x")),)),
    )
    mine = q(("dish", nodes.Object("rpc_site.Dish", 1)))
    assert ops(Dish(pk=1).orders.all()) == (nodes.Op("filter", (mine,)),)
    some = Order.objects.filter(count=1)
    assert ops(Dish.objects.prefetch_related("labels", Prefetch("orders", some, "ones"))) == (
        nodes.Op(
            "prefetch_related",
            ("labels", ("orders", nodes.Delayed(some.query.tree()), "ones")),
        ),
    )
    assert ops(Dish.objects.filter(pk=1) | Dish.objects.all())[-1] == nodes.Op(
        "or", (nodes.Delayed(nodes.Tree("rpc_site.Dish")),)
    )
    assert str(Dish.objects.reverse().query) == "rpc_site.Dish.reverse()"


def test_zones() -> None:
    """Zones have names in messages."""
    assert zone_name(None) is None
    assert zone_name(ZoneInfo("Europe/Moscow")) == "Europe/Moscow"
    assert zone_name(datetime.UTC) == "UTC"
    assert zone_name(datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))) == "-03:30"
