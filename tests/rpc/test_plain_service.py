"""The plain client and a real service: each result equals that of the service's own queryset."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import models
from django.db.models.functions import Length, Lower

from pgbackend.rpc.client import (
    Avg,
    Case,
    Client,
    Count,
    Exists,
    F,
    Max,
    OuterRef,
    Q,
    Row,
    Subquery,
    Sum,
    Value,
    When,
    function,
)
from pgbackend.rpc.protocol.errors import (
    DoesNotExist,
    FieldNotAllowed,
    MethodNotAllowed,
    MultipleObjectsReturned,
    NotExposed,
    NotRun,
    OperationNotAllowed,
    TooManyAffected,
    ValidationError,
)
from tests.rpc.site.models import Dish, Label, Order, Station, Waiter


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
    for waiter, dish, count in ((ada, soup, 1), (ada, fish, 2), (bob, soup, 3)):
        Order.objects.create(dish=dish, waiter=waiter, count=count)


@pytest.fixture
def client(plain: Client) -> Client:
    """A client without Django, by each transport."""
    return plain


def names(found: Any) -> list[str]:
    return [each.name for each in found]


READS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[], Any]]] = {
    "filter": (
        lambda d, o: d.filter(Q(name="soup") | Q(price__lt=1)),
        lambda: Dish.objects.filter(models.Q(name="soup") | models.Q(price__lt=1)),
    ),
    "exclude": (
        lambda d, o: d.exclude(labels__word="cheap"),
        lambda: Dish.objects.exclude(labels__word="cheap"),
    ),
    "not": (
        lambda d, o: d.filter(~Q(name="soup") & ~Q(name="fish")),
        lambda: Dish.objects.filter(~models.Q(name="soup") & ~models.Q(name="fish")),
    ),
    "order and slice": (
        lambda d, o: d.order_by("-price", F("name").asc())[1:3],
        lambda: Dish.objects.order_by("-price", models.F("name").asc())[1:3],
    ),
    "reverse": (
        lambda d, o: d.order_by("name").reverse(),
        lambda: Dish.objects.order_by("name").reverse(),
    ),
    "delayed": (
        lambda d, o: d.filter(pk__in=o.filter(count__gt=2).values("dish").delayed()),
        lambda: Dish.objects.filter(pk__in=Order.objects.filter(count__gt=2).values("dish")),
    ),
    "exists": (
        lambda d, o: d.filter(Exists(o.filter(dish=OuterRef("pk"), count=2))),
        lambda: Dish.objects.filter(
            models.Exists(Order.objects.filter(dish=models.OuterRef("pk"), count=2))
        ),
    ),
    "union": (
        lambda d, o: d.filter(name="soup").union(d.filter(name="fish")).order_by("name"),
        lambda: Dish.objects.filter(name__in=["soup", "fish"]).order_by("name"),
    ),
    "and": (
        lambda d, o: d.filter(price__gt=1) & d.filter(price__lt=10),
        lambda: Dish.objects.filter(price__gt=1, price__lt=10),
    ),
    "case": (
        lambda d, o: d.annotate(
            level=Case(When(price__lt=1, then=Value(1)), default=Value(2))
        ).filter(level=1),
        lambda: Dish.objects.filter(price__lt=1),
    ),
    "function": (
        lambda d, o: d.annotate(size=function("Length", function("Lower", "name"))).filter(size=4),
        lambda: Dish.objects.annotate(size=Length(Lower("name"))).filter(size=4),
    ),
    "none": (lambda d, o: d.none(), lambda: Dish.objects.none()),
}


@pytest.mark.parametrize("case", READS)
def test_rows(client: Client, case: str) -> None:
    """The rows are those of the service's own queryset, in its order."""
    asked, own = READS[case]
    found = asked(client.model("rpc_site.Dish"), client.model("rpc_site.Order"))
    expected = list(own())
    assert [(row.pk, row.name, row.price) for row in found] == [
        (row.pk, row.name, row.price) for row in expected
    ]
    assert found.count().result() == len(expected)
    assert found.exists().result() is bool(expected)


def test_shapes_of_rows(client: Client) -> None:
    """values, values_list, related and prefetched rows, dates: as the service's own."""
    dishes = client.model("rpc_site.Dish")
    assert dishes.values("name", "price").result() == list(Dish.objects.values("name", "price"))
    assert dishes.values_list("name", flat=True).result() == ["soup", "fish", "salt"]
    assert dishes.values_list("pk", "name").result() == list(Dish.objects.values_list("pk", "name"))
    named = dishes.values_list("name", named=True).first().result()
    assert named.name == "soup"
    related = dishes.select_related("station").order_by("name").result()
    assert [row.station and row.station.name for row in related] == ["cold", None, "grill"]
    fetched = dishes.prefetch_related("labels").get(name="soup").result()
    assert sorted(label.word for label in fetched.labels) == ["cheap", "hot"]
    orders = client.model("rpc_site.Order")
    assert orders.dates("placed", "month").result() == [datetime.date(2026, 1, 1)]


def test_aggregates(client: Client) -> None:
    """Aggregates have the names and the values of Django's."""
    dishes = client.model("rpc_site.Dish")
    assert dishes.aggregate(m=Max("price"), n=Count("*")).result() == {"m": 20, "n": 3}
    assert dishes.aggregate(a=Avg("price"), s=Sum("price", filter=Q(price__gt=1))).result() == (
        Dish.objects.aggregate(
            a=models.Avg("price"), s=models.Sum("price", filter=models.Q(price__gt=1))
        )
    )
    counted = dishes.annotate(n=Count("orders")).order_by("name").values_list("name", "n")
    assert counted.result() == [("fish", 1), ("salt", 0), ("soup", 2)]
    latest = client.model("rpc_site.Order").filter(dish=OuterRef("pk")).order_by("-count")
    most = dishes.annotate(m=Subquery(latest.values("count")[:1])).order_by("name")
    assert [row.m for row in most] == [2, None, 3]


def test_one_row(client: Client) -> None:
    """get, first, last, latest, earliest, in_bulk, contains."""
    dishes = client.model("rpc_site.Dish")
    soup = dishes.get(name="soup").result()
    assert (soup.pk, soup.data) == (Dish.objects.get(name="soup").pk, {"a": {"b": 1}})
    with pytest.raises(DoesNotExist):
        dishes.get(name="none").result()
    with pytest.raises(MultipleObjectsReturned):
        dishes.get().result()
    assert dishes.filter(name="none").first().result() is None
    assert dishes.order_by("name").last().result().name == "soup"
    assert dishes.latest("price").result().name == "fish"
    assert dishes.earliest("price").result().name == "salt"
    assert dishes.in_bulk([soup.pk]).result() == {soup.pk: soup}
    assert dishes.contains(soup).result() is True
    assert dishes.filter(name="fish").contains(soup.pk).result() is False


def test_writes(client: Client) -> None:
    """Each write does what Django's does, and its result is the same."""
    dishes = client.model("rpc_site.Dish")
    grill = Station.objects.get(name="grill").pk
    made = dishes.create(name="tea", price=Decimal("2.00"), station=grill).result()
    assert Dish.objects.get(pk=made.pk).name == "tea"
    assert dishes.filter(name="tea").update(price=F("price") + 1).result() == 1
    assert Dish.objects.get(name="tea").price == 3
    assert dishes.save(made.pk, {"name": "chai"}, update_fields=["name"]).result().name == "chai"
    row, created = dishes.get_or_create({"station": grill, "price": 1}, name="chai").result()
    assert (row, created) == (made, False)
    row, created = dishes.update_or_create({"price": 4, "station": grill}, name="milk").result()
    assert (row.name, created) == ("milk", True)
    new = [{"name": name, "station": grill} for name in ("a", "b")]
    assert names(dishes.bulk_create(new).result()) == ["a", "b"]
    changed = [{"pk": each.pk, "price": Decimal(9)} for each in Dish.objects.filter(name="a")]
    assert dishes.bulk_update(changed, ["price"]).result() == 1
    label = Label.objects.get(word="cheap")
    dishes.related_add(made.pk, "labels", label.pk).result()
    assert list(Dish.objects.get(pk=made.pk).labels.all()) == [label]
    dishes.related_clear(made.pk, "labels").result()
    assert not Dish.objects.get(pk=made.pk).labels.exists()
    number, by_model = dishes.filter(name="b").delete().result()
    assert (number, by_model) == (1, {"rpc_site.Dish": 1})


def test_methods(client: Client) -> None:
    """An exposed method of the manager is called, on the rows that were asked for."""
    dishes = client.model("rpc_site.Dish")
    assert names(dishes.call("cheap", below=3).result()) == ["salt"]
    assert dishes.call("total_price", "soup", factor=2).result() == Decimal("10.00")
    assert dishes.call("rename", "soup", "broth").result().name == "broth"
    inside = dishes.call("inside", "broth").result()
    (dish, number), twice = inside["pair"], inside["twice"]
    assert (dish.name, number, twice, inside["none"]) == ("broth", 2, [dish, dish], [])
    with pytest.raises(ValidationError) as raised:
        dishes.call("refuse", "Closed.").result()
    assert raised.value.details == {
        "messages": ["Closed."],
        "errors": ("Closed.", None, None),
    }
    with pytest.raises(MethodNotAllowed):
        dishes.call("burn").result()


def test_batches(client: Client) -> None:
    """Later trees use results of earlier ones; an atomic batch is all or nothing."""
    dishes, orders = client.model("rpc_site.Dish"), client.model("rpc_site.Order")
    grill, ada = Station.objects.get(name="grill").pk, Waiter.objects.get(login="ada").pk
    made = dishes.create(name="tea", station=grill)
    order = orders.create(dish=made.ref("id"), waiter=ada)
    tea, ordered = client.gather(made, order, atomic=True).result()
    assert Order.objects.get(pk=ordered.pk).dish_id == tea.pk
    found = client.gather(
        dishes.create(name="milk", station=grill),
        dishes.get(name="none"),
        dishes.count(),
        atomic=True,
        return_exceptions=True,
    ).result()
    assert [type(each) for each in found] == [NotRun, DoesNotExist, NotRun]
    with pytest.raises(DoesNotExist):
        client.gather(dishes.count(), dishes.get(name="none"), atomic=True).result()
    assert not Dish.objects.filter(name="milk").exists()
    client.gather(dishes.create(name="milk", station=grill), dry=True).result()
    assert not Dish.objects.filter(name="milk").exists()


def test_refusals(client: Client) -> None:
    """What is not exposed is refused by code, whatever the client can write."""
    dishes = client.model("rpc_site.Dish")
    for asked, error in (
        (client.model("rpc_site.Hidden").count(), NotExposed),
        (client.model("auth.User").count(), NotExposed),
        (dishes.filter(recipe__startswith="s").count(), FieldNotAllowed),
        (dishes.filter(orders__waiter__password="x").count(), FieldNotAllowed),
        (client.model("rpc_site.Station").create(name="x"), OperationNotAllowed),
        (dishes.create(name="nothing", station=Station.objects.first().pk), ValidationError),
        (dishes.get(name="x"), DoesNotExist),
    ):
        with pytest.raises(error):
            asked.result()
    waiter, soup = Waiter.objects.get(login="ada"), Dish.objects.get(name="soup")
    for _ in range(4):
        Order.objects.create(dish=soup, waiter=waiter)
    with pytest.raises(TooManyAffected):
        client.model("rpc_site.Order").update(count=1).result()


def test_describe(client: Client) -> None:
    """The service says what may be done."""
    assert "rpc_site.Dish" in client.describe().result()["models"]
    assert "price" in client.model("rpc_site.Dish").describe().result()["properties"]


async def test_awaited(client: Client) -> None:
    """The same in asynchronous code, many calls at once."""
    dishes = client.model("rpc_site.Dish")
    assert sorted([row.name async for row in dishes]) == ["fish", "salt", "soup"]
    found = await client.gather(*(dishes.get(name=name) for name in ("soup", "fish")))
    assert names(found) == ["soup", "fish"]
    assert isinstance(await dishes.first(), Row)


# Those that give values, with the service's own querysets in Django's words.
VALUES: dict[str, Callable[[Any, Any], Any]] = {
    "distinct": lambda d, m: d.order_by("listed").values("listed").distinct(),
    "distinct on": lambda d, m: (
        d.order_by("listed", "-pk").distinct("listed").values_list("pk", flat=True)
    ),
    "datetimes": lambda d, m: d.datetimes("created", "day"),
    "default alias": lambda d, m: (
        d.annotate(m.Count("orders"))
        .filter(orders__count__gt=1)
        .values_list("name", "orders__count")
    ),
    "grouped": lambda d, m: d.values("listed").annotate(m.Sum("price")).order_by("price__sum"),
    "key of a key": lambda d, m: d.filter(station__id__gt=0).values_list(
        "station__pk", "labels__id"
    ),
    "union": lambda d, m: (
        d.values_list("name").union(d.values_list("station__name")).order_by("name")
    ),
    "xor": lambda d, m: d.filter(m.Q(listed=True) ^ m.Q(orders__count__lte=2)).values_list("name"),
    "f": lambda d, m: d.filter(price__gt=m.F("pk") * 2).values_list("name"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values(client: Client, case: str) -> None:
    """Values are those of the service's own queryset, whatever their order."""
    from pgbackend.rpc import client as plain

    ours = VALUES[case](client.model("rpc_site.Dish"), plain).result()
    theirs = list(VALUES[case](Dish.objects.all(), models))
    assert sorted(map(repr, ours)) == sorted(map(repr, theirs))


def test_traps(client: Client) -> None:
    """django_rpc_backend's wrong answers: in_bulk of all, a blank first, steps, wrong keys."""
    dishes, stations = client.model("rpc_site.Dish"), client.model("rpc_site.Station")
    fish, grill = Dish.objects.get(name="fish"), Station.objects.get(name="grill")
    assert list(dishes.in_bulk([fish.pk]).result()) == [fish.pk]
    assert dishes.filter(pk=-1).first().result() is None
    with pytest.raises(TypeError):
        dishes.all()[::2]
    assert names(dishes.filter(station=grill.pk)) == ["soup"]
    fetched = stations.prefetch_related("dishes").get(name="grill").result()
    assert names(fetched.dishes) == ["soup"]
    assert dishes.get(name="fish").result().station_id == fish.station_id
    assert dishes.filter(labels__word="hot").count().result() == 2
