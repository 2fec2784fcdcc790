"""What the works look for and write; the same for every peer."""

import datetime
import random
import uuid
from decimal import Decimal
from typing import Any

from tests.benchmarks.schema import AUTHORS, HOT

# Rows of a list, and authors of a prefetch.
ROWS = 20
PREFETCHED = 10

# Rows of one `bulk_create`.
BULK = 1_000

# The rows that an aggregate looks at.
AGGREGATED = 1_000


def key() -> int:
    """Return the primary key of some row."""
    return random.randint(1, HOT)


def start(rows: int) -> int:
    """Return a key that *rows* rows of the hot ones begin with."""
    return random.randint(1, max(1, HOT - rows))


def some_author() -> int:
    """Return the key of an author that `PREFETCHED` authors begin with."""
    return random.randint(1, AUTHORS - PREFETCHED + 1)


def new_name() -> str:
    return f"name {random.getrandbits(40)}"


def new_row(table: str) -> dict[str, Any]:
    """Return the values of a new row of "item" or "wide"."""
    row: dict[str, Any] = {"name": new_name()}
    if table == "wide":
        row.update(
            author_id=1, n1=1, n2=2, n3=3, n4=4, big=5, s2="s2", s3="s3", s4="s4", t="t" * 40,
            f1=0.5, f2=1.5, b1=True, b2=False, d=datetime.date(2026, 1, 1),
            ts=datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC), price=Decimal("9.99"),
            u=uuid.UUID(int=1),
        )  # fmt: skip
    return row
