"""Trees of the right form at random, which name what is exposed and, if hostile, what is not."""

from __future__ import annotations

from decimal import Decimal
from random import Random
from typing import Any

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.names import AGGREGATES, FUNCTIONS, OPERATORS
from tests.support.rpc_server import op, q, tree

# Of Dish: what is exposed, and what is not, or is not there.
OPEN = (
    *("pk", "id", "name", "price", "station", "station_id", "station__name", "station__id"),
    *("labels", "labels__word", "orders", "orders__count", "orders__waiter__login", "data"),
    *("data__a__b", "listed", "created", "created__year", "orders__status"),
)
CLOSED = (
    *("recipe", "recipe__startswith", "station__safe_code", "orders__waiter__password", "hidden"),
    *("hidden__word", "orders__receipts", "orders__receipts__paid", "orders__dish__recipe"),
    *("labels__dishes__recipe", "station__dishes__recipe", "nothing", "station__nothing"),
    *("name__nothing", "orders__waiter__badge__number", "station__dishes__hidden__word"),
    *("orders__waiter__password__startswith", "name__regex", "created__hour"),
)
LOOKUPS = ("exact", "in", "gt", "lte", "contains", "startswith", "isnull", "range", "iexact")
BAD_LOOKUPS = ("regex", "iregex", "search", "has_key", "unaccent", "trigram_similar", "hour")
# Columns and tables that no statement of a read may have.
SECRETS = ('"recipe"', '"password"', '"safe_code"', "rpc_site_hidden", "rpc_site_receipt")


class Trees:
    """Makes trees from *random*. `is_hostile` says whether the last one named what is closed."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.hostility = 0.0
        self.is_hostile = False

    def tree(self, hostility: float) -> nodes.Tree:
        """Return a tree; each name in it is closed with the probability *hostility*."""
        self.hostility, self.is_hostile = hostility, False
        ops = [self.op(3) for _ in range(self.random.randint(0, 4))]
        if hostility and not self.is_hostile:
            self.hostility = 1.0
            ops.insert(self.random.randint(0, len(ops)), self.closed_op())
        return tree("Dish", *ops, end=self.end())

    def path(self) -> str:
        if self.random.random() < self.hostility:
            self.is_hostile = True
            return self.random.choice(CLOSED)
        return self.random.choice(OPEN)

    def lookup(self) -> str:
        if self.random.random() < 0.4:
            return self.path()
        return f"{self.path()}__{self.random.choice((*LOOKUPS, *BAD_LOOKUPS[:1]))}"

    def value(self, depth: int) -> Any:
        return self.random.choice(
            (
                lambda: None,
                lambda: True,
                lambda: self.random.randint(-(2**40), 2**40),
                lambda: 0.5,
                lambda: Decimal("1.5"),
                lambda: "soup",
                lambda: "2017-01-01",
                lambda: [1, "a", None],
                lambda: {"a": "b"},
                lambda: b"\x00",
                lambda: nodes.Object("rpc_site.Station", 1),
                lambda: nodes.Object("rpc_site.Waiter", 1),
                lambda: nodes.Range(1, 2),
                lambda: nodes.Delayed(self.inner(depth - 1)) if depth > 0 else 1,
                lambda: self.expression(depth - 1) if depth > 0 else 2,
            )
        )()

    def inner(self, depth: int) -> nodes.Tree:
        ops = [self.op(depth) for _ in range(self.random.randint(0, 2))]
        return tree("Dish", *ops)

    def condition(self, depth: int) -> nodes.Q:
        children: list[Any] = []
        for _ in range(self.random.randint(0, 3)):
            if depth > 0 and self.random.random() < 0.3:
                children.append(self.condition(depth - 1))
            elif depth > 0 and self.random.random() < 0.15:
                children.append(nodes.Exists(self.inner(depth - 1)))
            else:
                children.append((self.lookup(), self.value(depth)))
        connector = self.random.choice(("and", "or", "xor"))
        return q(*children, connector=connector, negated=self.random.random() < 0.3)

    def expression(self, depth: int) -> Any:
        if depth <= 0 or self.random.random() < 0.35:
            return nodes.F(self.path())
        part = lambda: self.expression(depth - 1)  # noqa: E731
        return self.random.choice(
            (
                lambda: nodes.Operation(self.random.choice(sorted(OPERATORS)), part(), part()),
                lambda: nodes.Function(self.random.choice(sorted(FUNCTIONS)), (part(),)),
                lambda: nodes.Function("Coalesce", (part(), part())),
                lambda: nodes.Aggregate(
                    self.random.choice(sorted(AGGREGATES)),
                    (part(),),
                    self.random.random() < 0.2,
                    self.condition(depth - 1) if self.random.random() < 0.3 else None,
                ),
                lambda: nodes.Aggregate("Count", (part(),)),
                lambda: nodes.Case((nodes.When(self.condition(depth - 1), part()),), part()),
                lambda: nodes.Value(self.value(0)),
                lambda: nodes.OuterRef(self.path()),
                lambda: nodes.Subquery(self.inner(depth - 1)),
            )
        )()

    def closed_op(self) -> nodes.Op:
        """Return a call that surely names something that is closed."""
        path = self.path()
        return self.random.choice(
            (
                lambda: op("filter", q((path, 1))),
                lambda: op("exclude", q(("name", nodes.F(path)))),
                lambda: op("order_by", f"-{path}"),
                lambda: op("values", "name", path),
                lambda: op("values_list", path, flat=True),
                lambda: op("annotate", a=nodes.F(path)),
                lambda: op("annotate", a=nodes.Aggregate("Max", (nodes.F(path),))),
                lambda: op("distinct", path),
                lambda: op("only", path),
                lambda: op("prefetch_related", path),
                lambda: op("select_related", path),
                lambda: op("filter", q(nodes.Exists(tree("Hidden")))),
                lambda: op("union", nodes.Delayed(tree("Waiter"))),
                lambda: op("filter", q(("pk__in", nodes.Delayed(tree("Receipt"))))),
            )
        )()

    def op(self, depth: int) -> nodes.Op:
        return self.random.choice(
            (
                lambda: op("filter", self.condition(depth)),
                lambda: op("exclude", self.condition(depth)),
                lambda: op("annotate", **{self.random.choice("abn"): self.expression(depth)}),
                lambda: op("alias", **{self.random.choice("abn"): self.expression(depth)}),
                lambda: op("order_by", self.random.choice(("", "-")) + self.path()),
                lambda: op("order_by", nodes.OrderBy(self.expression(depth), True, "last")),
                lambda: op("values", self.path(), self.path()),
                lambda: op("values_list", self.path(), self.expression(depth)),
                lambda: op("distinct"),
                lambda: op("distinct", self.path()),
                lambda: op("only", self.path()),
                lambda: op("defer", self.path()),
                lambda: op("select_related", "station"),
                lambda: op("select_related", self.path()),
                lambda: op("prefetch_related", "orders"),
                lambda: op("prefetch_related", self.path()),
                lambda: op("reverse"),
                lambda: op("slice", self.random.choice((None, 0, 1)), self.random.choice((1, 2))),
                lambda: op("dates", self.path(), "year"),
                lambda: op(
                    self.random.choice(("union", "and", "or", "xor", "difference")),
                    nodes.Delayed(self.inner(depth - 1) if depth > 0 else tree("Dish")),
                ),
            )
        )()

    def end(self) -> nodes.Op:
        # Called only where chosen: a path that is made makes the tree a hostile one.
        called = self.random.choice(
            (
                *("rows", "rows", "get", "first", "last", "count", "exists", "in_bulk"),
                *("latest", "contains", "aggregate"),
            )
        )
        if called == "latest":
            return op("latest", self.path())
        if called == "contains":
            return op("contains", 1)
        if called == "aggregate":
            return op("aggregate", n=nodes.Aggregate("Count", (nodes.F(self.path()),)))
        return op(called)
