"""What a principal of few rights cannot find out by errors: of rows that it may not see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.nodes import F, Operation, Value
from tests.rpc.site.models import Dish, Order, Receipt, Waiter
from tests.support.rpc_server import code, op, q, tree, where


@pytest.fixture(autouse=True)
def rows() -> Iterator[None]:
    """Ada's orders of 1, and one of bob's, of 7."""
    soup = Dish.objects.create(name="soup")
    ada, bob = (Waiter.objects.create(login=login) for login in ("ada", "bob"))
    for _ in range(3):
        Order.objects.create(dish=soup, waiter=ada, count=1)
    Order.objects.create(dish=soup, waiter=bob, count=7)
    # As for large tables: all rows are read, and conditions on a table come before its joins.
    names = ["nestloop", "indexscan", "bitmapscan", "indexonlyscan"]
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"SET enable_{name} = off")
        yield
        for name in names:
            cursor.execute(f"RESET enable_{name}")


def failing(path: str, operator: str) -> Operation:
    """Return arithmetic that fails where the value of *path* is 7, and for no other one."""
    match operator:
        case "/" | "%":
            return Operation(operator, Value(1), Operation("-", F(path), Value(7)))
        case "+":
            return Operation("+", F(path), Value(2**31 - 1 - 6))
    return Operation("*", F(path), Value(2**31 // 7 + 1))


@pytest.mark.parametrize("operator", ["/", "%", "+", "*"])
def test_errors_of_hidden_rows(operator: str) -> None:
    """An expression is not evaluated for a row that may not be seen: its error would tell of it."""
    own, over = failing("count", operator), failing("orders__count", operator)
    asked = [
        tree("Order", op("filter", q(("pk", own)))),
        tree("Order", op("annotate", a=own), op("filter", q(("a__gt", 0)))),
        tree("Order", op("alias", a=own), op("order_by", "a")),
        tree("Order", op("exclude", q(("pk", own)))),
        tree("Order", end=op("aggregate", n=nodes.Aggregate("Sum", (own,)))),
        tree("Dish", op("filter", q(("pk", over)))),
        tree("Dish", op("annotate", a=over), op("filter", q(("a__gt", 0)))),
        tree("Dish", op("annotate", n=nodes.Aggregate("Sum", (over,)))),
        tree(
            "Dish",
            op(
                "filter",
                q(
                    (
                        "pk__in",
                        nodes.Delayed(
                            tree("Order", op("filter", q(("pk", own))), op("values", "dish"))
                        ),
                    )
                ),
            ),
        ),
        tree(
            "Order",
            op(
                "filter",
                q(("pk", nodes.Case((nodes.When(q(("count", own)), Value(1)),), Value(2)))),
            ),
        ),
        tree("Order", op("filter", q(("pk", own))), end=op("update", status="x")),
        tree("Order", op("filter", q(("pk", own))), end=op("delete")),
    ]
    found = [code(each, principal="ada") for each in asked]
    assert found == [None] * len(asked)


def test_protected_rows_are_not_counted() -> None:
    """The error of a row that is referred to does not say by how many."""
    Receipt.objects.create(order=Order.objects.filter(waiter__login="ada").first(), paid=1)
    assert code(tree("Order", where(count=1), end=op("delete")), principal="ada") in (
        "ProtectedError",
        "PermissionDenied",
    )
