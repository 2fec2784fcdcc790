"""Generated querysets: what a client gets over the messages is what the service's own gives."""

import datetime
import os
import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from django.db import connection, models
from django.db.models import functions

from tests.rpc.generated import NAMES, Querysets
from tests.rpc.site import models as site
from tests.rpc.waiter import models as client

# What the texts may name beside the models.
DJANGO = {
    **{name: getattr(models, name) for name in ("Q", "F", "Value", "Case", "When", "Exists")},
    **{name: getattr(models, name) for name in ("OuterRef", "Subquery", "Prefetch")},
    **{name: getattr(models, name) for name in ("Count", "Sum", "Max", "Min", "Avg")},
    **{name: getattr(functions, name) for name in ("Lower", "Length", "Coalesce", "Concat")},
}


@pytest.fixture(autouse=True)
def _rows(service: str) -> Iterator[None]:
    stations = [site.Station.objects.create(name=name) for name in ("grill", "cold")]
    labels = [site.Label.objects.create(word=word) for word in ("hot", "new")]
    waiters = [site.Waiter.objects.create(login=login) for login in ("ada", "bob")]
    for number, name in enumerate(NAMES):
        station = None if number == 4 else stations[number % 2]
        dish = site.Dish.objects.create(
            name=name,
            price=5 * number,
            station=station,
            listed=number != 3,
            data={"n": number},
            created=datetime.datetime(2026, 1 + number, 2, tzinfo=datetime.UTC) if number else None,
        )
        dish.labels.set(labels[: number % 3])
        for count in range(number % 3):
            site.Order.objects.create(dish=dish, waiter=waiters[count % 2], count=count + number)
    with connection.cursor() as cursor:
        # Hundreds of statements on a few rows: plans that are compiled take longer.
        cursor.execute("SET jit = off")
        yield
        cursor.execute("RESET jit")


def plain(value: Any) -> Any:
    """Return rows as what both models have."""
    if hasattr(value, "_meta"):
        kept = value.__dict__
        names = ("id", "name", "price", "station_id", "listed", "data", "created")
        row = {name: kept[name] for name in names if name in kept}
        row |= {name: kept[name] for name in ("a", "b", "c", "labels__count") if name in kept}
        cache = value._state.fields_cache
        if "station" in cache:
            row["station"] = cache["station"] and cache["station"].__dict__.get("name")
        for name in ("orders", "labels"):
            if name in getattr(value, "_prefetched_objects_cache", {}):
                row[name] = sorted(each.pk for each in getattr(value, name).all())
        return row
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, models.QuerySet):
        return [plain(each) for each in value]
    return value


def outcome(parts: list[str], where: Any) -> Any:
    """Return what the text gives with the models of *where*; "error" where Django raises one."""
    named = {**DJANGO, "Dish": where.Dish, "Order": where.Order}
    try:
        return plain(eval("".join(parts), named))
    except Exception as error:
        return f"error: {type(error).__name__}: {error}"


def is_error(found: Any) -> bool:
    return isinstance(found, str) and found.startswith("error: ")


def is_same(ours: Any, theirs: Any, parts: list[str]) -> bool:
    """Return whether both are the same; rows that have no order may come in any."""
    if is_error(theirs):
        # For some unions Django's own statement is wrong, and the service's, of its own columns,
        # is not. Nor does it select what a count does not need.
        better = "ProgrammingError", "both deferred and traversed"
        return is_error(ours) or any(each in theirs for each in better)
    if not isinstance(theirs, list) or is_ordered(parts):
        return repr(ours) == repr(theirs)
    if not isinstance(ours, list) or any(each.startswith("[") for each in parts):
        return isinstance(ours, list) and len(ours) == len(theirs)
    return sorted(map(repr, ours)) == sorted(map(repr, theirs))


def is_ordered(parts: list[str]) -> bool:
    """Return whether the order of the rows is said wholly: once for each dish, at the end."""
    for each in reversed(parts):
        if each.startswith((".union", ".difference", ".intersection", " ", ".values('")):
            return False
        if each.startswith(".order_by"):
            break
    # Joins make several rows of a dish, which have no order among them.
    return not any(many in "".join(parts) for many in ("labels", "orders__", "distinct"))


def shortest(parts: list[str]) -> list[str]:
    """Return *parts* without those that the difference does not need."""
    for number in range(len(parts) - 1, 0, -1):
        fewer = [*parts[:number], *parts[number + 1 :]]
        if not is_same(outcome(fewer, client), outcome(fewer, site), fewer):
            return shortest(fewer)
    return parts


def compare(number: int, seconds: float = 40.0) -> None:
    """Compare as many, as far as *seconds* last; PGBACKEND_SEED chooses which."""
    until = time.monotonic() + seconds
    seed = int(os.environ.get("PGBACKEND_SEED", Random().randrange(10**9)))
    made = Querysets(Random(seed))
    seen: Counter[str] = Counter()
    for compared in range(number):
        if time.monotonic() > until:
            number = compared
            break
        parts = made.queryset()
        ours, theirs = outcome(parts, client), outcome(parts, site)
        if not is_same(ours, theirs, parts):
            short = shortest(parts)
            pytest.fail(
                f"seed {seed}: {''.join(parts)}\nin short: {''.join(short)}\n"
                f"ours: {outcome(short, client)}\ntheirs: {outcome(short, site)}"
            )
        assert "ServerError" not in str(ours), f"seed {seed}: {''.join(parts)}"
        seen["error" if is_error(theirs) else "rows" if theirs else "nothing"] += 1
    print(f"seed {seed}: {seen}")
    # Most of them are no errors, and not empty.
    assert seen["rows"] > number / 3, seen
    assert seen["error"] < number / 4, seen


def test_generated_querysets() -> None:
    """Some querysets, in each run."""
    compare(150)


@pytest.mark.load
def test_many_generated_querysets() -> None:
    """2,000 querysets, if the machine is quick enough."""
    compare(2000)
