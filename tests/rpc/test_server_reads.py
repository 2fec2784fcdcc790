"""Reads of the service: each gives what the service's own queryset gives."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.db.models import Count, Q, Sum
from django.db.models.functions import Lower

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.errors import DoesNotExist, MultipleObjectsReturned
from tests.rpc.site.models import Badge, Dish, Kinds, Label, Order, Station, Waiter
from tests.support.rpc_server import ask, code, op, q, tree, values, where

F = nodes.F


@pytest.fixture(autouse=True)
def rows() -> None:
    """A few rows of each model."""
    grill, cold = Station.objects.create(name="grill"), Station.objects.create(name="cold")
    soup = Dish.objects.create(name="soup", price="5.00", station=grill, data={"a": {"b": 1}})
    fish = Dish.objects.create(name="fish", price="20.00", station=cold)
    Dish.objects.create(name="salt", price="0.50", listed=False)
    hot, cheap = Label.objects.create(word="hot"), Label.objects.create(word="cheap")
    soup.labels.add(hot, cheap)
    fish.labels.add(hot)
    ada, bob = Waiter.objects.create(login="ada"), Waiter.objects.create(login="bob")
    Badge.objects.create(waiter=ada, number=7)
    for waiter, dish, count in (
        *((ada, soup, 1), (ada, soup, 2), (bob, soup, 3)),
        *((bob, soup, 4), (bob, fish, 9)),
    ):
        Order.objects.create(dish=dish, waiter=waiter, count=count)


CASES: dict[str, tuple[list[nodes.Op], Any]] = {
    "all": ([op("all")], Dish.objects.all()),
    "filter": ([where(name="soup")], Dish.objects.filter(name="soup")),
    "lookup": ([where(price__gte=Decimal(5))], Dish.objects.filter(price__gte=5)),
    "in": ([where(name__in=["soup", "fish"])], Dish.objects.filter(name__in=["soup", "fish"])),
    "isnull": ([where(station__isnull=True)], Dish.objects.filter(station=None)),
    "over a relation": (
        [where(station__name="grill")],
        Dish.objects.filter(station__name="grill"),
    ),
    "exclude": (
        [op("exclude", q(("station__name", "grill")))],
        Dish.objects.exclude(station__name="grill"),
    ),
    "exclude to many": (
        [op("exclude", q(("labels__word", "cheap")))],
        Dish.objects.exclude(labels__word="cheap"),
    ),
    "or": (
        [op("filter", q(("name", "soup"), ("price__lt", 1), connector="or"))],
        Dish.objects.filter(Q(name="soup") | Q(price__lt=1)),
    ),
    "xor": (
        [op("filter", q(("name", "soup"), ("price__lt", 10), connector="xor"))],
        Dish.objects.filter(Q(name="soup") ^ Q(price__lt=10)),
    ),
    "order": ([op("order_by", "-price")], Dish.objects.order_by("-price")),
    "reverse": ([op("order_by", "price"), op("reverse")], Dish.objects.order_by("-price")),
    "slice": ([op("order_by", "name"), op("slice", 1, 3)], Dish.objects.order_by("name")[1:3]),
    "json keys": ([where(data__a__b=1)], Dish.objects.filter(data__a__b=1)),
    "union": (
        [where(name="soup"), op("union", nodes.Delayed(tree("Dish", where(name="fish"))))],
        Dish.objects.filter(name__in=["soup", "fish"]),
    ),
    "or of querysets": (
        [where(name="soup"), op("or", nodes.Delayed(tree("Dish", where(name="fish"))))],
        Dish.objects.filter(name__in=["soup", "fish"]),
    ),
    "delayed": (
        [where(station__in=nodes.Delayed(tree("Station", where(name="cold"))))],
        Dish.objects.filter(station__name="cold"),
    ),
    "exists": (
        [
            op(
                "filter",
                q(nodes.Exists(tree("Order", where(dish=nodes.OuterRef("pk"), count=9)))),
            )
        ],
        Dish.objects.filter(name="fish"),
    ),
    "aggregate in a filter": (
        [
            op("annotate", n=nodes.Aggregate("Count", (F("orders"),))),
            where(n__gt=1),
        ],
        Dish.objects.annotate(n=Count("orders")).filter(n__gt=1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rows(name: str) -> None:
    """The names of the dishes are those of the same queryset here."""
    ops, local = CASES[name]
    combined = {"union"} & {each.name for each in ops}
    found = [row[1] for row in ask(tree("Dish", *ops)).rows]
    wanted = [each.name for each in local.all()]
    if combined:
        found, wanted = sorted(found), sorted(wanted)
    assert found == wanted
    assert ask(tree("Dish", *ops, end=op("count"))) == local.count()
    assert ask(tree("Dish", *ops, end=op("exists"))) == local.exists()


def test_values() -> None:
    """Rows of values have the labels and the order that were asked for."""
    found = ask(
        tree(
            "Dish",
            op("order_by", "name"),
            op("values", "station__name", low=nodes.Function("Lower", (F("name"),))),
        )
    )
    assert (found.kind, found.shape.fields) == ("dict", ("station__name", "low"))
    local = Dish.objects.order_by("name").values_list("station__name", Lower("name"))
    assert [tuple(row) for row in found.rows] == list(local)
    grouped = [
        op("values", "station__name"),
        op("annotate", total=nodes.Aggregate("Sum", (F("price"),))),
        op("order_by", "total"),
    ]
    local = Dish.objects.values("station__name").annotate(total=Sum("price")).order_by("total")
    found = ask(tree("Dish", *grouped)).rows
    assert found == [[each["station__name"], each["total"]] for each in local]


def test_ends() -> None:
    """first, last, latest, earliest, get, contains, aggregate and in_bulk."""
    name = lambda rows: rows.rows[0][1]  # noqa: E731
    assert name(ask(tree("Dish", end=op("first")))) == "soup"
    assert name(ask(tree("Dish", end=op("last")))) == "salt"
    assert ask(tree("Dish", where(name="x"), end=op("first"))) is None
    assert name(ask(tree("Dish", end=op("latest", "price")))) == "fish"
    assert name(ask(tree("Dish", end=op("earliest", "price")))) == "salt"
    assert name(ask(tree("Dish", where(name="fish"), end=op("get")))) == "fish"
    with pytest.raises(DoesNotExist):
        ask(tree("Dish", where(name="x"), end=op("get")))
    with pytest.raises(MultipleObjectsReturned):
        ask(tree("Dish", end=op("get")))
    soup = Dish.objects.get(name="soup")
    there = op("contains", nodes.Object("rpc_site.Dish", soup.pk))
    assert ask(tree("Dish", end=there)) is True
    assert ask(tree("Dish", where(name="fish"), end=there)) is False
    total = op("aggregate", total=nodes.Aggregate("Sum", (F("price"),)))
    assert ask(tree("Dish", end=total)) == {"total": Decimal("25.50")}
    bulk = ask(tree("Dish", end=op("in_bulk", [soup.pk])))
    assert {key: name(rows) for key, rows in bulk.items()} == {soup.pk: "soup"}
    assert " Scan " in ask(tree("Dish", end=op("explain")))


def test_related() -> None:
    """Related rows come nested, prefetched ones as lists, to any depth."""
    found = ask(
        tree(
            "Dish",
            where(name="soup"),
            op("select_related", "station"),
            op("prefetch_related", "labels", "orders__waiter"),
            end=op("get"),
        )
    )
    shape, (row,) = found.shape, found.rows
    ends = len(shape.fields)
    assert row[ends][1:] == ["grill"]
    labels, orders = row[ends + 1 :]
    assert sorted(each[1] for each in labels) == ["cheap", "hot"]
    assert [(each[3], each[-1][0][1]) for each in orders] == [
        *((1, "ada"), (2, "ada")),
        *((3, "bob"), (4, "bob")),
    ]


def test_fields() -> None:
    """Only the fields that were asked for come, and the key; never one that is not exposed."""
    shape = ask(tree("Dish")).shape
    assert shape.fields == ("id", "name", "price", "station_id", "data", "listed", "created")
    assert shape.pk == ("id",)
    assert ask(tree("Dish", fields=("name",))).shape.fields == ("id", "name")
    assert ask(tree("Dish", op("only", "name"))).shape.fields == ("id", "name")
    assert "name" not in ask(tree("Dish", op("defer", "name"))).shape.fields
    assert code(tree("Dish", fields=("name", "recipe"))) == "FieldNotAllowed"
    assert code(tree("Dish", op("only", "recipe"))) == "FieldNotAllowed"


def test_all_kinds() -> None:
    """A value of each kind of field arrives as it is in the database."""
    Kinds.objects.create()
    found = ask(tree("Kinds", end=op("get")))
    local = Kinds.objects.values_list(*found.shape.fields).get()
    for name, there, here in zip(found.shape.fields, found.rows[0], local, strict=True):
        if isinstance(there, nodes.Range):
            there = (there.lower, there.upper)
            here = (here.lower, here.upper)
        assert there == (bytes(here) if isinstance(here, memoryview) else here), name


def test_what_a_principal_sees() -> None:
    """Rows beyond the predicate are as none, in whatever way they are asked for."""
    ada = {"principal": "ada"}
    assert values("Order", path="count", **ada) == [1, 2]
    assert values("Waiter", path="login", **ada) == ["ada"]
    many = where(orders__count__gt=2)
    assert values("Dish", many, op("distinct")) == ["soup", "fish"]
    assert values("Dish", many, **ada) == []
    assert values("Dish", where(orders__isnull=True), **ada) == ["fish", "salt"]
    assert values("Dish", op("exclude", q(("orders__count", 3))), **ada) == [
        *("soup", "fish", "salt")
    ]
    assert values("Dish", op("exclude", q(("orders__count", 2))), **ada) == ["fish", "salt"]
    counted = op("annotate", n=nodes.Aggregate("Count", (F("orders"),)))
    own = op("annotate", m=F("orders__count"), n=nodes.Aggregate("Count", (F("id"),)))
    assert sorted(values("Dish", counted, path="n", **ada)) == [0, 0, 2]
    # What is counted are the joined rows: the two of soup that are hidden are not joined.
    assert sorted(values("Dish", own, path="n", **ada)) == [1, 1, 2]
    assert values("Dish", op("order_by", "orders__count"), **ada) == [
        "soup",
        "soup",
        "fish",
        "salt",
    ]
    assert values("Dish", where(orders__waiter__login="bob"), **ada) == []
    assert values("Dish", where(orders__waiter__login__startswith="a"), **ada) == ["soup", "soup"]
    assert values("Dish", path="orders__waiter__login", **ada) == ["ada", "ada", None, None]
    assert values("Badge", path="waiter__login", principal="bob") == [None]
    assert values("Badge", where(waiter__login="ada"), path="number", principal="bob") == []
    assert values("Badge", where(waiter__login__isnull=True), path="number", principal="bob") == [7]
    assert values(
        "Badge", op("exclude", q(("waiter__login", "ada"))), path="number", principal="bob"
    ) == [7]
    prefetched = ask(tree("Dish", op("prefetch_related", "orders")), **ada)
    assert [len(row[-1]) for row in prefetched.rows] == [2, 0, 0]
    selected = ask(tree("Badge", op("select_related", "waiter")), principal="bob")
    assert selected.rows[0][-1] is None
    total = op("aggregate", total=nodes.Aggregate("Sum", (F("orders__count"),)))
    assert ask(tree("Dish", end=total), **ada) == {"total": 3}
    inner = tree("Order", where(count__gt=2), op("values", "dish"))
    assert values("Dish", where(pk__in=nodes.Delayed(inner)), **ada) == []
    exists = nodes.Exists(tree("Order", where(dish=nodes.OuterRef("pk"), count=3)))
    assert values("Dish", op("filter", q(exists)), **ada) == []
