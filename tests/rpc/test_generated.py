"""Generated querysets: what a client gets over the messages is what the service's own gives."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from django.db import connection

from tests.rpc.generated import Querysets, is_error, is_same, make_rows, outcome, seconds
from tests.rpc.site import models as site
from tests.rpc.waiter import models as client
from tests.support.rpc import alias


@pytest.fixture(autouse=True)
def _rows() -> Iterator[None]:
    make_rows()
    with connection.cursor() as cursor:
        # Hundreds of statements on a few rows: plans that are compiled take longer.
        cursor.execute("SET jit = off")
        with alias(TRANSPORT="local"):
            yield
        cursor.execute("RESET jit")


def shortest(parts: list[str]) -> list[str]:
    """Return *parts* without those that the difference does not need."""
    for number in range(len(parts) - 1, 0, -1):
        fewer = [*parts[:number], *parts[number + 1 :]]
        if not is_same(outcome(fewer, client), outcome(fewer, site), fewer):
            return shortest(fewer)
    return parts


def compare(number: int) -> None:
    """Compare as many, as far as the time lasts; PGBACKEND_SEED chooses which."""
    until = time.monotonic() + seconds(20)
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
