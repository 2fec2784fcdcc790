"""Each limit of a service, by each way to it: as much as it allows is done, one more is refused."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.errors import RemoteError
from pgbackend.rpc.server.running import handle
from tests.rpc.site.models import Dish, Order, ServerModel, Waiter
from tests.rpc.waiter.models import ClientModel
from tests.settings import PGBACKEND_RPC
from tests.support.rpc import alias
from tests.support.rpc_server import answer_of, ask, code, op, outcomes, sealed, tree, where


def limited(**limits: Any) -> Any:
    return override_settings(PGBACKEND_RPC={**PGBACKEND_RPC, "LIMITS": limits})


@pytest.fixture(autouse=True)
def _rows() -> None:
    """Four dishes, of which each has an order."""
    waiter = Waiter.objects.create(login="ada")
    for name in "abcd":
        dish = Dish.objects.create(name=name, price=1)
        Order.objects.create(dish=dish, waiter=waiter)


# Trees, and how many rows each is answered by.
ANSWERED = {
    "rows": (tree("Dish"), 4),
    "values": (tree("Dish", op("values", "name")), 4),
    "values_list": (tree("Dish", op("values_list", "name", "price")), 4),
    "flat": (tree("Dish", op("values_list", "name", flat=True)), 4),
    "slice": (tree("Dish", op("slice", 1, 4)), 3),
    "union": (tree("Dish", op("union", nodes.Delayed(tree("Dish")), all=True)), 8),
    "in_bulk": (tree("Dish", end=op("in_bulk")), 4),
    # Rows and those that were fetched with them.
    "prefetch": (tree("Dish", op("prefetch_related", "orders")), 8),
    "select": (tree("Order", op("select_related", "dish")), 4),
    "get": (tree("Dish", where(name="a"), end=op("get")), 1),
    "first": (tree("Dish", end=op("first")), 1),
    "latest": (tree("Dish", end=op("latest", "name")), 1),
    "create": (tree("Dish", end=op("create", name="e", price=1)), 1),
    "get_or_create": (tree("Dish", end=op("get_or_create", name="a", defaults={})), 1),
    "bulk_create": (tree("Dish", end=op("bulk_create", [{"name": "e"}, {"name": "f"}])), 2),
    "call: a queryset": (tree("Dish", end=op("call", "menu", "queryset")), 4),
    "call: values": (tree("Dish", end=op("call", "menu", "values")), 4),
    "call: a list": (tree("Dish", end=op("call", "menu", "list")), 4),
    "call: a set": (tree("Dish", end=op("call", "menu", "set")), 4),
    "call: a dictionary": (tree("Dish", end=op("call", "menu", "dict")), 4),
    # Two of the dish in lists of it, one in each other place, and the order twice.
    "call: a row twice": (tree("Dish", end=op("call", "inside", "a")), 6),
}


@pytest.mark.parametrize("name", list(ANSWERED))
def test_rows(name: str) -> None:
    """An answer has max_rows rows, whatever brings them; with one more it has none."""
    asked, count = ANSWERED[name]
    if count > 1:
        with limited(max_rows=count - 1), pytest.raises(RemoteError) as raised:
            ask(asked)
        assert (raised.value.code, raised.value.details) == ("TooManyRows", {"max_rows": count - 1})
        assert Dish.objects.count() == 4
    with limited(max_rows=count):
        assert code(asked) is None


@pytest.mark.parametrize("name", list(ANSWERED))
def test_rows_of_a_batch(name: str) -> None:
    """The rows of all trees of a message are counted together."""
    asked, count = ANSWERED[name]
    one = tree("Dish", op("slice", 0, 1))
    for most, last in ((count + 1, None), (count, "TooManyRows")):
        with limited(max_rows=most):
            found = outcomes(asked, one, dry=True)
            assert [each.error and each.error.code for each in found] == [None, last]


def test_affected() -> None:
    """A write changes max_affected rows, whatever it is; with one more it changes none."""
    dish, waiter = Dish.objects.get(name="a"), Waiter.objects.get()
    new = {"dish": dish.pk, "waiter": waiter.pk}
    changed = [{"pk": each.pk, "count": 7} for each in Order.objects.all()]
    for end, count in (
        (op("update", status="done"), 4),
        (op("bulk_update", changed, ["count"]), 4),
        (op("bulk_create", [new] * 3), 3),
        (op("delete"), 4),
    ):
        with limited(max_affected=count - 1), pytest.raises(RemoteError) as raised:
            ask(tree("Order", end=end), dry=True)
        details = {"max_affected": count - 1}
        assert (raised.value.code, raised.value.details) == ("TooManyAffected", details), end.name
        with limited(max_affected=count):
            assert code(tree("Order", end=end), dry=True) is None, end.name
    assert set(Order.objects.values_list("status", "count")) == {("placed", 1)}


def test_affected_by_a_deletion() -> None:
    """Rows that go with others, or forget them, are counted."""
    root = ServerModel.objects.create(some_field="root")
    for name in "ab":
        ServerModel.objects.create(some_field=name, parent=root)
    deletion = tree("ServerModel", where(some_field="root"), end=op("delete"))
    for most, wanted in ((2, "TooManyAffected"), (3, None)):
        with limited(max_affected=most):
            assert code(deletion) == wanted
    assert not ServerModel.objects.exists()


@pytest.mark.parametrize("name", ["friends", "children"])
def test_affected_relations(name: str) -> None:
    """Rows that are added to a relation or removed from it are counted, and no others."""
    row = ServerModel.objects.create(some_field="row")
    keys = [ServerModel.objects.create(some_field=f"{number}").pk for number in range(6)]

    def change(called: str, *args: Any, most: int, **kwargs: Any) -> str | None:
        with limited(max_affected=most):
            return code(tree("ServerModel", end=op(called, row.pk, name, *args, **kwargs)))

    def related() -> set[int]:
        return set(getattr(row, name).values_list("pk", flat=True))

    assert change("related_add", keys[:3], most=2) == "TooManyAffected"
    assert change("related_add", keys[:3], most=3) is None
    # There are more than may be changed, of which one is.
    assert change("related_remove", [keys[0]], most=1) is None
    assert change("related_add", [keys[0]], most=1) is None
    assert related() == set(keys[:3])
    # One goes, two come.
    assert change("related_set", keys[1:5], most=2) == "TooManyAffected"
    assert change("related_set", keys[1:5], most=4) is None
    assert related() == set(keys[1:5])
    assert change("related_set", keys[:2], most=2) == "TooManyAffected"
    assert change("related_set", [], most=3) == "TooManyAffected"
    assert change("related_clear", most=3) == "TooManyAffected"
    assert related() == set(keys[1:5])
    assert change("related_clear", most=4) is None
    assert related() == set()


def test_limits_of_a_client() -> None:
    """A client has limits of its own, of what it sends and of what it is answered."""
    ServerModel.objects.create(some_field="x")

    def gather() -> None:
        counts = [ClientModel.objects.future().count() for _ in range(3)]
        connections["rpc"].cursor().gather(*counts)

    for limits, refused, call in (
        ({"max_bytes": 500}, "TooLarge", lambda: ClientModel.objects.get(some_field="x" * 500)),
        ({"max_answer_bytes": 100}, "TooLarge", lambda: ClientModel.objects.count()),
        ({"max_depth": 5}, "TooDeep", lambda: ClientModel.objects.first()),
        ({"max_batch": 2}, "BatchTooLarge", gather),
    ):
        with alias(TRANSPORT="local", LIMITS=limits), pytest.raises(RemoteError) as raised:
            call()
        assert (raised.value.code, raised.value.details) == (refused, limits)


def test_answer_bytes() -> None:
    """An answer has max_answer_bytes bytes, its seal included; a larger one is an error."""
    wire = [sealed(tree("Dish", fields=["name"])) for _ in range(3)]
    size = len(handle(wire[0]).encode())
    with limited(max_answer_bytes=size):
        assert answer_of(wire[1]).error is None
    with limited(max_answer_bytes=size - 1):
        error = answer_of(wire[2]).error
    assert error is not None
    assert (error.code, error.details) == ("TooLarge", {"max_answer_bytes": size - 1})
