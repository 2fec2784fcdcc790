"""Messages of the right form that ask for what is not exposed: none gets it.

The long forms send ten thousand of each kind, as far as PGBACKEND_SECONDS, 10, last.

The statements that the service sends are looked at, too: no column and no table of theirs is a
secret one, whether a message is hostile or not.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from random import Random
from typing import Any

import pytest
from django.db import connection

from tests.rpc.generated import seconds
from tests.rpc.hostile_trees import SECRETS, Trees
from tests.rpc.site.models import Dish, Hidden, Label, Order, Station, Waiter
from tests.support.rpc_server import op, outcomes, tree

# Django warns of text for a moment and, from 6.1, of None for a document; here warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:DateTimeField .* received a naive datetime:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Using None as the right-hand side of an exact lookup"),
]

LONG = pytest.param(10_000, marks=[pytest.mark.load, pytest.mark.timeout(900)], id="long")


@pytest.fixture(autouse=True)
def rows() -> None:
    """A few rows, of which ada may see some."""
    grill = Station.objects.create(name="grill")
    soup = Dish.objects.create(name="soup", price="5.00", station=grill, data={"a": {"b": 1}})
    Dish.objects.create(name="fish", price="20.00")
    soup.labels.add(Label.objects.create(word="hot"))
    Hidden.objects.create(word="x", dish=soup)
    for login in ("ada", "bob"):
        waiter = Waiter.objects.create(login=login)
        Order.objects.create(dish=soup, waiter=waiter, count=len(login))


class Statements:
    """Collects what is sent to the server."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.sent.append(str(sql))
        return execute(sql, params, many, context)


def seed() -> int:
    return int(os.environ.get("PGBACKEND_SEED", Random().randrange(10**9)))


@pytest.mark.parametrize("number", [pytest.param(400, id="short"), LONG])
@pytest.mark.parametrize("hostility", [0.0, 0.3], ids=["plain", "hostile"])
def test_reads(number: int, hostility: float) -> None:
    """A hostile message ends with a coded error; and no statement has a secret, ever."""
    used = seed()
    made = Trees(Random(used))
    codes: Counter[str | None] = Counter()
    until = time.monotonic() + seconds(10)
    for count in range(number):
        if time.monotonic() > until:
            break
        asked = made.tree(hostility)
        principal = "ada" if count % 2 else "chef"
        statements = Statements()
        with connection.execute_wrapper(statements):
            (outcome,) = outcomes(asked, principal=principal)
        code = outcome.error.code if outcome.error else None
        codes[code] += 1
        where = f"seed {used}, message {count}: {asked}"
        assert code != "ServerError", where
        if made.is_hostile:
            assert code is not None, where
        for secret in SECRETS:
            assert secret not in " ".join(statements.sent), where
    assert codes[None] > 0 or hostility
    print(codes)


@pytest.mark.parametrize("number", [pytest.param(150, id="short"), LONG])
def test_writes(number: int) -> None:
    """Hostile writes end with a coded error, and change nothing of what is not exposed."""
    used = seed()
    random = Random(used)
    made = Trees(random)
    before = secrets()
    until = time.monotonic() + seconds(10)
    for count in range(number):
        if time.monotonic() > until:
            break
        made.hostility, made.is_hostile = 1.0, False
        closed = random.choice(("recipe", "id", "pk", "hidden", "orders", "nothing"))
        row = {"name": f"dish {count}", closed: random.choice(("x", 1, None))}
        end = random.choice(
            (
                op("create", **row),
                op("insert", row),
                op("save", None, row),
                op("bulk_create", [row]),
                op("bulk_update", [{"pk": 1, closed: 1}], [closed]),
                op("update", **{closed: made.expression(2)}),
                op("get_or_create", name=f"new {count}", defaults={closed: 1}),
                op("update_or_create", name="soup", defaults={closed: 7}),
                op("related_set", 1, closed, [1]),
                op("call", random.choice(("burn", "raw", "delete", "update", "__init__"))),
            )
        )
        (outcome,) = outcomes(tree("Dish", end=end), principal=random.choice(("ada", "chef")))
        where = f"seed {used}, message {count}: {end}"
        assert outcome.error is not None, where
        assert outcome.error.code != "ServerError", where
    assert secrets() == before


def secrets() -> list[Any]:
    return [
        list(Dish.objects.order_by("pk").values_list("pk", "recipe", "name")),
        list(Waiter.objects.order_by("pk").values_list("pk", "password")),
        list(Hidden.objects.values_list("pk", "word", "dish")),
        list(Order.objects.order_by("pk").values_list("pk", "dish", "waiter")),
    ]
