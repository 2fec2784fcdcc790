"""Querysets at random, as the text of Python that builds and ends them.

The text is run with a client's models, and with the service's: both have to give the same.
"""

from __future__ import annotations

import datetime
import os
from random import Random
from typing import Any

from django.db import models
from django.db.models import functions

from tests.rpc.site import models as site

NAMES = ("soup", "Steak", "salad", "pie", "tea")

# What the texts may name beside the models.
DJANGO = {
    **{name: getattr(models, name) for name in ("Q", "F", "Value", "Case", "When", "Exists")},
    **{name: getattr(models, name) for name in ("OuterRef", "Subquery", "Prefetch")},
    **{name: getattr(models, name) for name in ("Count", "Sum", "Max", "Min", "Avg")},
    **{name: getattr(functions, name) for name in ("Lower", "Length", "Coalesce", "Concat")},
}

# Fields of Dish and values that they are compared with.
FIELDS = {
    "pk": range(8),
    "name": NAMES,
    "price": range(-1, 25),
    "listed": (True, False),
    "station": (None, 1, 2, 3),
    "station__id": (1, 2),
    "station__name": ("grill", "cold"),
    "labels": (1, 2),
    "labels__pk": (1, 2),
    "labels__word": ("hot", "new", "none"),
    "orders__count": range(5),
    "orders__waiter__login": ("ada", "bob"),
    "created__year": (2025, 2026),
    "data__n": (1, 2),
}
LOOKUPS = {
    "pk": ("__gt", "__lte"),
    "price": ("__lt", "__gte"),
    "orders__count": ("__gt", "__lte"),
    "name": ("__icontains", "__startswith"),
    "station__name": ("__contains",),
    "labels__word": ("__startswith",),
}
NULLS = ("station", "station__name", "labels", "labels__word", "orders", "orders__count", "created")
ORDERS = (
    *("name", "-name", "price", "-price", "listed", "-pk", "station__name", "station", "created"),
    *("-station__pk", "labels__word", "-orders__count"),
)
COLUMNS = (
    *("pk", "name", "price", "listed", "station", "station_id", "station__name", "station__pk"),
    *("labels__word", "orders__count", "labels", "data", "data__n", "created__year"),
)
GROUPS = ("listed", "station", "station__name", "name", "labels__word")
AGGREGATES = (
    *("Count('pk')", "Count('labels')", "Sum('price')", "Max('orders__count')", "Count('*')"),
    *("Count('orders', distinct=True)", "Avg('price')", "Min('name')", "Sum('orders__count')"),
)


class Querysets:
    """Makes texts from *random*: the parts of one that can be left out, each a call."""

    def __init__(self, random: Random) -> None:
        self.random = random
        # Aliases that were annotated in the queryset that is being made.
        self.aliases: list[str] = []
        self.has_prefetch = False

    def one_of(self, *texts: str) -> str:
        return self.random.choice(texts)

    def some(self, names: tuple[str, ...], most: int) -> str:
        chosen = self.random.sample(names, self.random.randint(1, most))
        return ", ".join(map(repr, chosen))

    # Conditions

    def leaf(self) -> str:
        chance = self.random.random()
        if chance < 0.1:
            return f"Q(price__gt=F('pk') * {self.random.randint(1, 4)})"
        if chance < 0.2:
            return f"Q({self.random.choice(NULLS)}__isnull={self.random.random() < 0.5})"
        if chance < 0.3 and self.aliases:
            alias = self.random.choice(self.aliases)
            return f"Q({alias}{self.one_of('', '__gt', '__lte')}={self.random.randint(0, 3)})"
        if chance < 0.35:
            return f"Q(Exists({self.orders()}.filter(dish=OuterRef('pk'))))"
        field = self.random.choice(sorted(FIELDS))
        values = FIELDS[field]
        if chance < 0.5:
            known = [each for each in values if each is not None]
            chosen = self.random.sample(known, self.random.randint(0, min(3, len(known))))
            return f"Q({field}__in={chosen!r})"
        value = self.random.choice(values)
        lookup = "" if value is None else self.one_of("", *LOOKUPS.get(field, ()))
        return f"Q({field}{lookup}={value!r})"

    def condition(self, depth: int = 2) -> str:
        chance = self.random.random()
        if depth == 0 or chance < 0.5:
            return self.leaf()
        if chance < 0.65:
            return f"~{self.condition(depth - 1)}"
        sign = self.one_of("&", "&", "|", "|", "^")
        return f"({self.condition(depth - 1)} {sign} {self.condition(depth - 1)})"

    def orders(self) -> str:
        return self.one_of(
            "Order.objects.all()",
            f"Order.objects.filter(count__gt={self.random.randint(0, 3)})",
            "Order.objects.filter(waiter__login='ada')",
        )

    # Expressions

    def expression(self) -> str:
        return self.one_of(
            "F('price')",
            "F('price') * 2 + 1",
            "F('station__name')",
            "F('labels__word')",
            "Lower('name')",
            "Length('name')",
            "Coalesce('station__name', Value('none'))",
            "Concat('name', Value('/'), 'station__name')",
            "Value(3)",
            f"Case(When({self.condition(1)}, then=Value(1)), default=Value(0))",
            f"Subquery({self.orders()}.filter(dish=OuterRef('pk')).order_by('pk')"
            ".values('count')[:1])",
            f"Exists({self.orders()}.filter(dish=OuterRef('pk')))",
        )

    def aggregate(self) -> str:
        if self.random.random() < 0.2:
            return f"Count('pk', filter={self.condition(1)})"
        return self.random.choice(AGGREGATES)

    # Calls

    def call(self) -> str:
        kind = self.random.randrange(13)
        match kind:
            case 0 | 1 | 2:
                return f".filter({self.condition()})"
            case 3:
                return f".exclude({self.condition()})"
            case 4:
                return f".order_by({self.some(ORDERS, 2)}, 'pk')"
            case 5:
                return ".reverse()"
            case 6:
                return ".select_related('station')"
            case 7:
                names = ("name", "data", "price", "created", "station", "listed", "station__name")
                return f".{self.one_of('only', 'defer')}({self.some(names, 3)})"
            case 8:
                if self.has_prefetch:
                    # With another queryset for the same rows Django fails when it fetches.
                    return ".all()"
                self.has_prefetch = True
                return self.one_of(
                    ".prefetch_related('orders', 'labels')",
                    f".prefetch_related(Prefetch('orders', {self.orders()}))",
                    ".prefetch_related('orders__waiter')",
                )
            case 9:
                alias = self.one_of("a", "b", "price__twice")
                self.aliases.append(alias)
                return f".{self.one_of('annotate', 'alias')}({alias}={self.expression()})"
            case 10:
                alias, aggregate = self.one_of("c", "labels__count"), self.aggregate()
                self.aliases.append(alias)
                return f".annotate({alias}={aggregate})"
            case 11:
                return ".distinct()"
        return f".filter(pk__in={self.orders()}.values('dish'))"

    def ending(self) -> list[str]:
        start = self.random.randint(0, 4)
        part = f"[{start}:{start + self.random.randint(1, 5)}]"
        aliases = tuple(self.aliases)
        other = f"Dish.objects.order_by().filter({self.condition(1)})"
        match self.random.randrange(20):
            case 0:
                return [".count()"]
            case 1:
                return [f".values_list({self.some((*COLUMNS, *aliases), 3)})", part]
            case 2:
                return [f".values({self.some((*COLUMNS, *aliases), 3)})", ".distinct()"]
            case 3 | 4:
                grouped = self.random.choice(GROUPS)
                # By both columns: rows that are alike in one have no order among them.
                again = f".order_by('-n', '{grouped}')"
                more = self.one_of("", ".filter(n__gt=1)", again, ".count()")
                order = f".order_by('{grouped}', 'n')"
                return [f".values('{grouped}')", f".annotate(n={self.aggregate()})", order, more]
            case 5 | 6:
                cut = self.one_of("", "", ".distinct()", "[1:4]")
                return [cut, f".aggregate(n={self.aggregate()}, m={self.aggregate()})"]
            case 7:
                return [".distinct()", ".count()"]
            case 8:
                flat = self.one_of("Lower('name')", "F('price') + 1", "Length('name')")
                return [f".values_list({flat}, flat=True)"]
            case 9:
                return [".exists()"]
            case 10:
                return [self.one_of(".first()", ".last()", ".get()")]
            case 11:
                return [f".{self.one_of('latest', 'earliest')}({self.some(ORDERS[:7], 2)}, 'pk')"]
            case 12:
                return [".in_bulk([1, 2, 9])"]
            case 13 if not aliases:
                end = self.one_of("", ".count()", "[1:3]", ".exists()", ".first()")
                return [f".{self.one_of('union', 'difference')}({other})", ".order_by('pk')", end]
            case 14:
                column = self.one_of("'name'", "'listed'", "'station'")
                values = f".values_list({column})"
                return [".order_by()", values, f".intersection({other}{values})", ".count()"]
            case 15:
                return [f" {self.one_of('&', '|', '^')} {other}"]
            case 16:
                return [
                    ".order_by('station', 'pk')",
                    ".distinct('station')",
                    self.one_of("", ".count()"),
                ]
            case 17:
                return [".dates('created', 'month')"]
        return [part]

    def queryset(self) -> list[str]:
        """Return the parts of one text; without any of them, but the first, it still is one."""
        while True:
            self.aliases, self.has_prefetch = [], False
            calls = [self.call() for _ in range(self.random.randint(0, 4))]
            parts = ["Dish.objects.order_by('pk')", *calls, *self.ending()]
            if not _is_strange("".join(parts)):
                return parts


def _is_strange(text: str) -> bool:
    """Return whether Django's own answer is none: a union of one part has duplicates."""
    return ".union(" in text and "__in=[]" in text


def make_rows() -> None:
    """Make what the querysets are of: five dishes, some orders of ada's and bob's."""
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


def seconds(otherwise: float) -> float:
    """Return how long a long form may last: as PGBACKEND_SECONDS says."""
    return float(os.environ.get("PGBACKEND_SECONDS", otherwise))


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
    if is_ordered(parts):
        return repr(ours) == repr(theirs)
    if any(each.startswith(PICKED) for each in parts) and isinstance(theirs, list | dict):
        if type(ours) is not type(theirs):
            return False
        if isinstance(theirs, dict):
            return bool(ours.keys() == theirs.keys())
        return len(ours) == len(theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        return sorted(map(repr, ours)) == sorted(map(repr, theirs))
    return repr(ours) == repr(theirs)


# What takes some of the rows: the first ones, or the first or last one of each key.
PICKED = ("[", ".first", ".last", ".latest", ".earliest", ".in_bulk", ".distinct('")


def is_ordered(parts: list[str]) -> bool:
    """Return whether the order of the rows is said wholly: once for each dish, at the end."""
    for each in reversed(parts):
        if each.startswith((".union", ".difference", ".intersection", " ", ".values('")):
            return False
        if each.startswith(".order_by"):
            break
    # Joins make several rows of a dish, which have no order among them.
    many = ("labels", "orders__", "distinct()", "distinct=")
    return not any(each in "".join(parts) for each in many)
