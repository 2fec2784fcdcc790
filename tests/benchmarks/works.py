"""What is measured: each work is an operation of a peer, done so often by so many clients."""

from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.schema import FIELDS, ITEMS, WIDES
from tests.benchmarks.values import BULK


@dataclass(frozen=True)
class Work:
    """A request calls *operation* of the peer's with *arguments* once."""

    name: str
    operation: str
    clients: int = 20
    # How many times a request repeats the operation, one after the other.
    repeat: int = 1
    # Statements of one operation, by which CPU time is divided.
    queries: int = 1
    arguments: dict[str, Any] = field(default_factory=dict)
    pool: int = 20
    # "steady": clients go on for the time given. "burst": each sends one request.
    kind: str = "steady"
    # Rows of a request, where rows per second are of interest.
    rows: int = 0
    # At most so many rounds of a run; None: all.
    rounds: int | None = None


def _both(name: str, operation: str, **more: Any) -> list[Work]:
    """Return a work on the table of 2 columns and on that of 20."""
    return [
        Work(name, operation, arguments={"table": "item"}, **more),
        Work(f"{name}, 20 fields", operation, arguments={"table": "wide"}, **more),
    ]


ITEM = {"table": "item"}

# The targets of the README are about these.
TARGETS = [
    Work("1 get", "get", arguments=ITEM),
    Work("1 get, 500 at once", "get", clients=500, arguments=ITEM),
    Work("5 gets", "get", repeat=5, arguments=ITEM),
    Work("5 lists of 20", "rows", repeat=5, arguments=ITEM),
    Work("5 updates", "update", repeat=5, queries=2, arguments=ITEM),
    Work("1 query of 20 ms", "slow", clients=1, arguments={"count": 1}),
    Work("10 queries of 20 ms, gathered", "slow", clients=1, queries=10, arguments={"count": 10}),
    # No request around them: what a query alone costs, for the comparison with `get`.
    Work("gets in one task", "get", repeat=20, arguments=ITEM),
    Work("1,000 waiting for 100 ms", "wait", clients=1_000, pool=50, kind="burst", rounds=3),
]

MORE = [
    *_both("1 get", "get")[1:],
    *_both("5 lists of 20", "rows", repeat=5)[1:],
    *_both("5 updates", "update", repeat=5, queries=2)[1:],
    *_both("create", "create"),
    *_both(f"bulk_create of {BULK:,}", "bulk_create", clients=4, rows=BULK),
    *_both("update_or_create", "update_or_create", queries=2),
    *_both("prefetch of 2 levels", "prefetch", queries=3),
    *_both("aggregate", "aggregate"),
    Work("5 savepoints", "savepoints", queries=5),
    Work(
        f"aiterator over {ITEMS:,}",
        "iterate",
        clients=1,
        arguments={"table": "item"},
        kind="burst",
        rows=ITEMS,
        rounds=2,
    ),
    Work(
        f"aiterator over {WIDES:,}, 20 fields",
        "iterate",
        clients=1,
        arguments={"table": "wide"},
        kind="burst",
        rows=WIDES,
        rounds=2,
    ),
]


@dataclass(frozen=True)
class Sweep:
    """How a work changes with one figure; each point is a work of its own."""

    name: str
    axis: str
    points: dict[int, Work]
    peers: tuple[str, ...] = ()


_DJANGOS = ("pgbackend", "django-sync", "django+pool", "django-async-backend")

SWEEPS = [
    Sweep(
        "concurrency",
        "requests at once",
        {
            clients: Work(f"1 get, {clients} at once", "get", clients=clients, arguments=ITEM)
            for clients in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
        },
    ),
    Sweep(
        "pool size",
        "connections in the pool",
        {
            size: Work(f"1 get, pool of {size}", "get", clients=100, pool=size, arguments=ITEM)
            for size in (1, 2, 5, 10, 20, 50, 100)
        },
        ("pgbackend", "django+pool", "django-async-backend", "sqlalchemy+psycopg", "psycopg"),
    ),
    Sweep(
        "rows",
        "rows of a list",
        {
            rows: Work(f"list of {rows}", "rows", arguments={"table": "item", "rows": rows})
            for rows in (1, 10, 20, 100, 500, 1000)
        },
    ),
    Sweep(
        "fields",
        "fields of the model",
        {
            count + 1: Work(
                f"get of {count + 1} fields", "get", arguments={"table": f"fields{count}"}
            )
            for count in FIELDS
        },
        _DJANGOS,
    ),
]
