"""Querysets that a called method returns: what they load beside their columns arrives."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import Count, Value
from django.db.models.functions import Upper
from django.test.utils import CaptureQueriesContext

from pgbackend.rpc import RpcModel
from pgbackend.rpc.client import Client
from pgbackend.rpc.protocol.errors import BadValue
from tests.rpc.site import models as site
from tests.rpc.waiter.models import Dish
from tests.support.rpc import alias


@pytest.fixture(autouse=True)
def rows(service: str) -> None:
    grill = site.Station.objects.create(name="grill")
    soup = site.Dish.objects.create(name="soup", price=3, station=grill, data={"a": [1]})
    steak = site.Dish.objects.create(name="steak", price=30, station=grill)
    site.Dish.objects.create(name="tea", price=2)
    for word in ("hot", "good"):
        soup.labels.add(site.Label.objects.create(word=word))
    ada, bob = (site.Waiter.objects.create(login=login) for login in ("ada", "bob"))
    for dish, waiter, count in ((soup, ada, 1), (soup, bob, 5), (steak, ada, 2)):
        site.Order.objects.create(dish=dish, waiter=waiter, count=count)


def shown(found: Any, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(each, name) for name in ("name", *names)) for each in found]


@contextmanager
def no_message() -> Iterator[None]:
    """Assert that no message is sent."""
    with CaptureQueriesContext(connections["rpc"]) as sent:
        yield
    assert [each["sql"] for each in sent] == []


@contextmanager
def no_message_after(found: list[Any]) -> Iterator[list[Any]]:
    with no_message():
        yield found


class Declared(RpcModel):
    """A dish of which no relation is declared."""

    name = models.CharField(max_length=50)

    class Meta:
        app_label = "rpc_waiter"

    class Rpc:
        app_label = "rpc_site"
        name = "Dish"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("annotated", ("n", "doc", "orders__n")),
        ("extra", ("one", "up")),
        ("joined", ("word",)),
        ("sliced", ("n",)),
        ("union", ("n",)),
        ("distinct", ("n",)),
    ],
)
def test_annotations(service: str, plain: Client, kind: str, names: tuple[str, ...]) -> None:
    """They are attributes of the instances as they are in the service, in the queryset's order."""
    found = Dish.objects.call("loaded", kind)
    theirs = site.Dish.objects.loaded(kind)
    order = list if kind in ("joined", "extra") else sorted
    assert order(shown(found, *names)) == order(shown(theirs, *names))
    assert all(isinstance(each, Dish) for each in found)
    assert not hasattr(found[0], "unseen")
    also = plain.model("rpc_site.Dish").call("loaded", kind).result()
    assert order(shown(also, *names)) == order(shown(theirs, *names))


def test_annotations_of_the_client(service: str) -> None:
    """What the client has annotated, selected and prefetched before the call is there after it."""
    asked = Dish.objects.annotate(n=Count("orders"), big=Upper("name")).alias(x=Value(1))
    found = asked.select_related("station").prefetch_related("labels").call("loaded", "extra")
    with no_message():
        assert [(each.n, each.big, each.up) for each in found] == [
            *((2, "SOUP", "SOUP"), (1, "STEAK", "STEAK"), (0, "TEA", "TEA"))
        ]
        assert [str(each.station) for each in found] == ["grill", "grill", "None"]
        assert len(found[0].labels.all()) == 2
    known = {*vars(site.Dish()), "_prefetched_objects_cache"}
    assert vars(found[0]).keys() - known == {"n", "big", "one", "up"}
    values = Dish.objects.values("name", up=Upper("name")).call("loaded", "none")
    assert values[0] == {"name": "soup", "up": "SOUP"}


def test_selected_rows(service: str) -> None:
    """Rows that were selected are there, and need no further message."""
    with no_message_after(Dish.objects.call("loaded", "selected")) as found:
        assert [each.station and each.station.name for each in found] == ["grill", "grill", None]


def test_prefetched_rows(service: str) -> None:
    """Rows that were prefetched are there, those of a chosen queryset and in an attribute, too."""
    with no_message_after(Dish.objects.call("loaded", "prefetched")) as found:
        assert {each.word for each in found[0].labels.all()} == {"hot", "good"}
        assert [each.waiter.login for each in found[0].orders.all()] == ["ada", "bob"]
    with no_message_after(Dish.objects.call("loaded", "chosen")) as found:
        assert [[each.twice for each in dish.orders.all()] for dish in found] == [[10], [4], []]
    with no_message_after(Dish.objects.call("loaded", "named")) as found:
        assert [[each.twice for each in dish.big] for dish in found] == [[10], [4], []]
        assert found[0].big[0].dish is found[0]
    with no_message_after(Dish.objects.call("loaded", "inner")) as found:
        (label, *_) = found[0].labels.all()
        assert [each.twice for each in label.dishes.all()[0].big] == [10]


def test_rows_of_other_models(service: str) -> None:
    """Their dictionaries have what was loaded with them."""
    first, *_ = Dish.objects.call("loaded", "orders")
    assert (first["twice"], first["dish"]["name"]) == (2, "soup")
    assert first["dish"]["station"]["name"] == "grill"


def test_rows_that_may_not_be_seen(service: str) -> None:
    """Of what was chosen, annotated and prefetched no row is sent that may not be seen."""
    with alias("ada", TRANSPORT="local", PRINCIPAL="ada"):
        dishes = Dish.objects.using("ada")
        assert [each["twice"] for each in dishes.call("loaded", "orders")] == [2, 4]
        found = dishes.call("loaded", "named")
        assert [[each.twice for each in dish.big] for dish in found] == [[], [4], []]
        found = dishes.call("loaded", "prefetched")
        assert [len(dish.orders.all()) for dish in found] == [1, 1, 0]


def test_what_is_not_exposed(service: str, plain: Client) -> None:
    """A relation that is not exposed is left out, as columns are; a slice of one is refused."""
    for kind in ("hidden", "hidden rows"):
        row, *_ = plain.model("rpc_site.Dish").call("loaded", kind).result()
        assert not {"hidden", "more"} & vars(row).keys()
        assert [each.name for each in Dish.objects.call("loaded", kind)] == ["soup", "steak", "tea"]
    with pytest.raises(BadValue, match="'orders' are whole rows"):
        Dish.objects.call("loaded", "slice")


def test_what_the_client_has_not_declared(service: str) -> None:
    """Rows of relations that the client has not are left out, or dictionaries in an attribute."""
    for kind in ("selected", "prefetched", "chosen"):
        found = Declared.objects.call("loaded", kind)
        assert [each.name for each in found] == ["soup", "steak", "tea"]
    found = Declared.objects.call("loaded", "named")
    assert [[each["twice"] for each in dish.big] for dish in found] == [[10], [4], []]
