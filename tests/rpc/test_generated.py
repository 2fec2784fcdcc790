"""Generated querysets: what a client gets over the messages is what the service's own gives."""

from typing import Any

import pytest
from django.db.models import Case, Count, Exists, F, Max, OuterRef, Q, Value, When
from django.db.models.functions import Lower, Upper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.rpc.site import models as site
from tests.rpc.waiter.models import Dish, Order

NAMES = ["soup", "Steak", "salad", "pie", "tea"]

FIELDS = {
    "pk": st.integers(0, 7),
    "name": st.sampled_from(NAMES),
    "price": st.integers(-1, 25),
    "listed": st.booleans(),
    "station": st.none() | st.integers(1, 3),
    "station__name": st.sampled_from(["grill", "cold"]),
    "labels__word": st.sampled_from(["hot", "new", "none"]),
    "orders__count": st.integers(0, 4),
}
LOOKUPS = {
    "pk": ["", "__gt", "__lte"],
    "price": ["", "__lt", "__gte"],
    "name": ["", "__icontains", "__startswith"],
}


@st.composite
def leaves(draw: Any) -> Any:
    """Return a condition on one field, or between two."""
    if draw(st.integers(0, 5)) == 0:
        return Q(price__gt=F("pk") * draw(st.integers(1, 4)))
    field = draw(st.sampled_from(sorted(FIELDS)))
    if draw(st.integers(0, 5)) == 0:
        return Q(**{f"{field}__in": draw(st.lists(FIELDS[field].filter(bool), max_size=3))})
    value = draw(FIELDS[field])
    lookup = "" if value is None else draw(st.sampled_from(LOOKUPS.get(field, [""])))
    return Q(**{field + lookup: value})


conditions = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        inner.map(lambda q: ~q),
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
    ),
    max_leaves=4,
)
orderings = st.lists(
    st.sampled_from(["name", "-name", "price", "-price", "listed", "-pk"]), max_size=2, unique=True
)


@st.composite
def steps(draw: Any) -> Any:
    """Return a function that builds a queryset of a dish's model, and of its order's model."""
    calls: list[Any] = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 7))
        chosen = draw(conditions)
        if kind == 0:
            calls.append(lambda qs, _o, q=chosen: qs.filter(q))
        elif kind == 1:
            calls.append(lambda qs, _o, q=chosen: qs.exclude(q))
        elif kind == 2:
            names = draw(orderings)
            calls.append(lambda qs, _o, names=names: qs.order_by(*names, "pk"))
        elif kind == 3:
            most = draw(st.integers(0, 3))
            calls.append(
                lambda qs, order, most=most: qs.filter(
                    Exists(order.objects.filter(dish=OuterRef("pk"), count__gt=most))
                )
            )
        elif kind == 4:
            calls.append(lambda qs, _o: qs.reverse())
        elif kind == 5:
            calls.append(lambda qs, _o: qs.select_related("station"))
        elif kind == 6:
            calls.append(lambda qs, _o: qs.defer("data", "created"))
        else:
            calls.append(lambda qs, _o: qs.prefetch_related("orders", "labels"))
    last = draw(st.integers(0, 8))
    start = draw(st.integers(0, 4))
    stop = start + draw(st.integers(0, 5))
    last_q = draw(conditions)

    def finish(qs: Any, order: Any) -> Any:
        match last:
            case 0:
                return qs.count()
            case 1:
                return qs.values_list("name", "price")[start:stop]
            case 2:
                return (
                    qs.values("listed").annotate(n=Count("pk"), m=Max("price")).order_by("listed")
                )
            case 3:
                return qs.annotate(
                    kind=Case(When(last_q, then=Upper("name")), default=Value("none"))
                ).values_list("pk", "kind")
            case 4:
                return qs.aggregate(n=Count("pk", filter=last_q), m=Max("price"))
            case 5:
                return qs.filter(pk__in=order.objects.filter(count__gt=1).values("dish"))
            case 6:
                return qs.annotate(low=Lower("name")).values_list("low", flat=True)
            case 7:
                return qs.exists()
        return qs[start:stop]

    def build(dish: Any, order: Any) -> Any:
        found = dish.objects.order_by("pk")
        for call in calls:
            found = call(found, order)
        return finish(found, order)

    return build


def plain(value: Any) -> Any:
    """Return rows as what both models have."""
    if hasattr(value, "_meta"):
        kept = value.__dict__
        names = ("id", "name", "price", "station_id", "listed", "data", "created")
        row = {name: kept[name] for name in names if name in kept}
        cache = value._state.fields_cache
        if "station" in cache:
            row["station"] = cache["station"] and cache["station"].name
        for name in ("orders", "labels"):
            if name in getattr(value, "_prefetched_objects_cache", {}):
                row[name] = sorted(each.pk for each in getattr(value, name).all())
        return row
    if isinstance(value, dict | int):
        return value
    if isinstance(value, tuple | str):
        return value
    return [plain(each) for each in value]


def outcome(build: Any, dish: Any, order: Any) -> Any:
    try:
        return plain(build(dish, order))
    except Exception as error:
        return type(error).__name__


@pytest.fixture
def _rows(service: str) -> None:
    stations = [site.Station.objects.create(name=name) for name in ("grill", "cold")]
    labels = [site.Label.objects.create(word=word) for word in ("hot", "new")]
    waiter = site.Waiter.objects.create(login="ada")
    for number, name in enumerate(NAMES):
        station = None if number == 4 else stations[number % 2]
        dish = site.Dish.objects.create(
            name=name, price=5 * number, station=station, listed=number != 3
        )
        dish.labels.set(labels[: number % 3])
        for count in range(number % 3):
            site.Order.objects.create(dish=dish, waiter=waiter, count=count + number)


def compare(examples: int) -> None:
    seen: list[Any] = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps())
    def same(build: Any) -> None:
        ours, theirs = outcome(build, Dish, Order), outcome(build, site.Dish, site.Order)
        seen.append(theirs)
        assert ours == theirs

    same()
    assert len(seen) >= examples
    # Most of them are no errors, and not empty.
    assert sum(1 for each in seen if each and not isinstance(each, str)) > len(seen) / 3


@pytest.mark.usefixtures("_rows")
def test_generated_querysets() -> None:
    """Some querysets, in each run."""
    compare(100)


@pytest.mark.load
@pytest.mark.usefixtures("_rows")
def test_many_generated_querysets() -> None:
    """2,000 querysets."""
    compare(2000)
