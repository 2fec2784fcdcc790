"""Reads by key that are alike are one statement: each answers as it does when sent alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import connection
from django.db import models as models_of_django
from django.db.models import F, IntegerField
from django.db.models.functions import Cast
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from pgbackend.rpc.protocol import nodes
from tests.rpc.generated import make_rows
from tests.rpc.site import models
from tests.support.rpc_server import exposed, op, outcomes, q, tree, where

GET = op("get")


@pytest.fixture(autouse=True)
def _rows() -> None:
    make_rows()


def get(model: str, key: Any, *ops: nodes.Op, **options: Any) -> nodes.Tree:
    return tree(model, *ops, where(pk=key), end=GET, **options)


def told(outcome: Any) -> Any:
    """Return what an outcome tells a client, as text: True and 1 differ."""
    error = outcome.error
    return repr((error.code, error.message, error.details) if error else outcome.value)


def compare(*trees: nodes.Tree, **options: Any) -> list[Any]:
    """Compare what a message of *trees* gives with a message of each; return it."""
    together = [told(each) for each in outcomes(*trees, **options)]
    alone = [told(each) for one in trees for each in outcomes(one, **options)]
    assert together == alone
    return together


@contextmanager
def selects(table: str, number: int) -> Iterator[None]:
    """Check how many statements read *table*."""
    with CaptureQueriesContext(connection) as captured:
        yield
    found = [each["sql"] for each in captured if f'FROM "rpc_site_{table}"' in each["sql"]]
    assert len(found) == number, found


def keys(model: Any) -> list[int]:
    return list(model.objects.order_by("pk").values_list("pk", flat=True))


def test_one_statement() -> None:
    """Alike reads are one statement, the missing row and the one that comes twice included."""
    found = keys(models.Station)
    with selects("station", 1):
        given = outcomes(*(get("Station", key) for key in (*found, 0, found[0])))
    assert [each.error.code if each.error else None for each in given] == [
        *(None for _ in found),
        "DoesNotExist",
        None,
    ]
    names = [each.value.rows[0][1] for each in given if not each.error]
    assert names == ["grill", "cold", "grill"]


def test_kinds_are_apart() -> None:
    """Reads of two models and of two conditions are a statement each, whatever their order."""
    stations, dishes = keys(models.Station), keys(models.Dish)
    listed, cheap = where(listed=True), where(price__lt=10)
    trees = [
        each
        for station, dish in zip(stations, dishes, strict=False)
        for each in (get("Station", station), get("Dish", dish, listed), get("Dish", dish, cheap))
    ]
    with selects("station", 1), selects("dish", 2):
        outcomes(*trees)
    compare(*trees)


def test_values_of_two_types_are_apart() -> None:
    """1 and true are equal to Python, and not in JSON."""
    for key in keys(models.Dish):
        models.Dish.objects.filter(pk=key).update(data={"n": 1})
    found = keys(models.Dish)
    one, true = (where(data__n=nodes.Json(each)) for each in (1, True))
    given = compare(*(get("Dish", key, each) for key in found for each in (one, true)))
    assert sum("DoesNotExist" in each for each in given) == len(found)


def test_fields_are_apart() -> None:
    """Each read has the fields that it asks for."""
    asked = [None, ("name",), ("id", "price"), ()]
    compare(*(get("Dish", key, fields=each) for key in keys(models.Dish) for each in asked))


def test_other_conditions_on_keys() -> None:
    """All rows but one, one row or another, and two keys at once are no reads of one key."""
    first, second, *_ = keys(models.Station)
    for condition in (
        q(("pk", first), negated=True),
        q(("pk", first), ("pk", second), connector="or"),
        q(("pk", first), ("pk", second)),
        q(("pk", first), ("name", "cold"), connector="xor"),
        q(("pk", first), ("pk", first)),
    ):
        compare(*[tree("Station", op("filter", condition), end=GET)] * 2)


def test_rows_that_depend_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a manager's rows are some for others, each read is by itself."""

    class Manager(models_of_django.Manager[models.Dish]):
        def get_queryset(self) -> Any:
            # One dish of each station.
            return super().get_queryset().order_by("station").distinct("station")

    manager = Manager()
    manager.model = models.Dish
    monkeypatch.setattr(models.Dish, "of_stations", manager, raising=False)
    with exposed(models.Dish, manager="of_stations", methods={}):
        given = compare(*(get("Dish", key) for key in keys(models.Dish)))
    assert all("Rows(" in each for each in given)


def test_a_write_stands_between() -> None:
    """A read that comes after a write sees it."""
    first, second, *_ = keys(models.Dish)
    rename = tree("Dish", where(pk=second), end=op("update", name="stew"))
    given = outcomes(
        get("Dish", first), get("Dish", second), rename, get("Dish", first), get("Dish", second)
    )
    names = [each.value.rows[0][1] for each in given if isinstance(each.value, nodes.Rows)]
    assert names[1] != "stew"
    assert names[3] == "stew"


def test_a_read_that_names_an_earlier_one() -> None:
    """A condition may name the result of a read just before it."""
    dish = models.Dish.objects.filter(station__name="grill").first()
    other = models.Dish.objects.filter(station__name="cold").first()
    assert dish is not None
    assert other is not None
    named = where(station=nodes.Ref(0, ("station_id",)))
    given = outcomes(
        get("Dish", dish.pk), *(get("Dish", each.pk, named) for each in (dish, other, dish))
    )
    assert [each.error.code if each.error else None for each in given] == [
        None,
        None,
        "DoesNotExist",
        None,
    ]


def test_rows_of_others() -> None:
    """Each principal gets the rows that it may see: the others are missing."""
    found = keys(models.Order)
    own = set(models.Order.objects.filter(waiter__login="ada").values_list("pk", flat=True))
    assert own
    assert own < set(found)
    with selects("order", 1):
        given = outcomes(*(get("Order", key) for key in found), principal="ada")
    assert {key for key, each in zip(found, given, strict=True) if not each.error} == own
    assert {each.error.code for each in given if each.error} == {"DoesNotExist"}
    compare(*(get("Order", key) for key in found), principal="ada")


def test_permission_is_asked_for_each() -> None:
    """A permission is asked for each read, and may end before the last one."""
    asked: list[str] = []

    def permission(principal: Any, operation: str, model: Any) -> bool:
        asked.append(operation)
        return len(asked) < 4

    found = keys(models.Dish)
    with exposed(models.Dish, permission=permission):
        given = outcomes(*(get("Dish", key) for key in found))
    codes = [each.error.code if each.error else None for each in given]
    assert codes == [None, None, "PermissionDenied", "PermissionDenied", "PermissionDenied"]


def test_error_of_one_row() -> None:
    """An error that the database has for one row is that of the read of this row alone."""

    def rows(principal: Any, queryset: Any) -> Any:
        # The name of one dish is no number.
        return queryset.alias(number=Cast(F("recipe"), IntegerField())).filter(number__gte=0)

    found = keys(models.Dish)
    models.Dish.objects.update(recipe="1")
    models.Dish.objects.filter(pk=found[1]).update(recipe="no number")
    with exposed(models.Dish, rows=rows):
        given = compare(*(get("Dish", key) for key in found))
    assert ["ServerError" in each or "DataError" in each for each in given] == [
        key == found[1] for key in found
    ]


def test_rows_that_come_twice() -> None:
    """A condition on rows to many, of which several fit, makes get() find several."""
    given = compare(*(get("Dish", key, where(orders__count__gte=0)) for key in keys(models.Dish)))
    assert any("MultipleObjectsReturned" in each for each in given)
    assert any("Rows(" in each for each in given)
    assert any("DoesNotExist" in each for each in given)


def test_limit_of_rows() -> None:
    """The rows of all reads of a message are counted, up to the one that is past the limit."""
    found = keys(models.Dish)
    rpc = {**settings.PGBACKEND_RPC, "LIMITS": {"max_rows": 3}}
    with override_settings(PGBACKEND_RPC=rpc):
        given = outcomes(*(get("Dish", key) for key in (0, *found, 0)))
    assert [each.error.code if each.error else None for each in given] == [
        *("DoesNotExist", None, None, None),
        *("TooManyRows" for _ in found[3:]),
        "DoesNotExist",
    ]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_limit_of_rows_of_a_model(most: int) -> None:
    """What a model allows is for each read."""
    with exposed(models.Dish, max_rows=most):
        given = compare(*(get("Dish", key) for key in keys(models.Dish)))
    assert all("TooManyRows" in each for each in given) is (most == 0)


class Generated:
    """Trees of reads: most are alike, each otherwise than the others in some way."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.keys = {
            "Station": keys(models.Station),
            "Dish": keys(models.Dish),
            "Order": keys(models.Order),
            "Kinds": keys(models.Kinds),
        }

    def key(self, model: str) -> Any:
        odd = [0, 10**6, 2**31, 2**63, -1, 2**70, "1", "x", None, True, 1.0, 1.5, UUID(int=1), [1]]
        if self.random.random() < 0.15:
            return self.random.choice([*odd, nodes.Value(self.keys["Dish"][0]), nodes.F("pk")])
        return self.random.choice(self.keys[model] or [0])

    def condition(self, model: str) -> nodes.Op:
        key = self.key(model)
        path = self.random.choice(["pk", "pk", "pk", "id", "id__exact", "pk__in"])
        if path == "pk__in":
            key = [key]
        return self.random.choice(
            [
                where(**{path: key}),
                op("filter", **{path: key}),
                op("filter", q((path, key)), q((path, key))),
                where(**{path: key, "pk__gte": 0}),
                op("filter", q((path, key), negated=self.random.random() < 0.1)),
                op("filter", q((path, key), ("pk", 0), connector="or")),
            ]
        )

    def ops(self, model: str) -> list[nodes.Op]:
        any_model = [
            op("all"),
            op("order_by", "-pk"),
            op("reverse"),
            op("only", "pk"),
            op("defer", "pk"),
            op("exclude", q(("pk", 0))),
            op("distinct"),
            op("slice", 0, 1),
            op("slice", 0, 3),
            op("values", "pk"),
            op("annotate", a=nodes.Aggregate("Count", ("pk",))),
            op("none"),
            where(password="x"),
            op("select_for_update"),
        ]
        of_dish = [
            where(listed=self.random.choice([True, 1, False])),
            where(orders__count__gte=1),
            where(labels__word="hot"),
            where(station__name="grill"),
            where(data__n=nodes.Json(self.random.choice([1, True, "1"]))),
            op("exclude", q(("orders__count__gte", 2))),
            op("select_related", "station"),
            op("prefetch_related", "orders"),
            op("only", "name"),
            op("defer", "name", "price"),
            op("order_by", "orders__count"),
            op("filter", nodes.Exists(tree("Order", where(dish=nodes.OuterRef("pk"))))),
        ]
        of_order = [
            where(count__gte=2),
            where(dish__name="soup"),
            op("select_related", "dish", "waiter"),
            op("only", "count"),
        ]
        more = {"Dish": of_dish * 2, "Order": of_order * 3}.get(model, [])
        return self.random.sample([*any_model, *more], self.random.choice([0, 0, 1, 1, 2]))

    def trees(self) -> list[nodes.Tree]:
        """Return the trees of a message, in runs of the same calls with other keys."""
        found = []
        while len(found) < 8:
            model = self.random.choice(["Station", "Dish", "Dish", "Order", "Order", "Kinds"])
            ops = self.ops(model)
            place = self.random.randint(0, len(ops))
            fields = self.random.choice([None, None, (), ("id",), ("name",), ("unknown",)])
            end = self.random.choice([*[GET] * 12, op("first"), op("count"), op("get", 1)])
            for _ in range(self.random.randint(1, 6)):
                calls = [*ops[:place], self.condition(model), *ops[place:]]
                found.append(tree(model, *calls, end=end, fields=fields))
        if self.random.random() < 0.5:
            self.random.shuffle(found)
        return found


def compare_generated(number: int) -> None:
    seed = int(os.environ.get("PGBACKEND_SEED", Random().randrange(10**9)))
    generated = Generated(Random(seed))
    seen: Counter[str] = Counter()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL jit = off")
    for _ in range(number):
        trees = generated.trees()
        principal = generated.random.choice(["chef", "ada", "bob", "nobody"])
        try:
            given = compare(*trees, principal=principal)
        except AssertionError:
            pytest.fail(f"seed {seed}: {principal}: {trees}")
        seen.update("rows" if each.startswith("Rows(") else "others" for each in given)
    print(f"seed {seed}: {seen}")
    assert seen["rows"] > sum(seen.values()) / 10, seen


def test_generated_messages() -> None:
    """Messages of reads answer as their reads alone do."""
    compare_generated(25)


@pytest.mark.load
def test_many_generated_messages() -> None:
    """Many of them."""
    compare_generated(400)
