"""What a principal is answered is what it would be if there were no other rows at all.

Generated querysets are run by ada, who may see her own orders, and by the service's own querysets
after all rows that she may not see were deleted.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from tests.rpc.generated import Querysets, is_error, is_same, make_rows, outcome, seconds
from tests.rpc.site import models as site
from tests.rpc.waiter import models as client
from tests.support.rpc import alias

# What is not possible over rows of which some are hidden: said by a code.
NOT_POSSIBLE = ("OperationNotAllowed", "FieldNotAllowed", "OrderingNotAllowed", "PermissionDenied")


@pytest.fixture(autouse=True)
def _ada() -> Iterator[None]:
    """Rows of ada's and bob's, and a client for whom ada's are all."""
    make_rows()
    bob, soup = site.Waiter.objects.get(login="bob"), site.Dish.objects.get(name="soup")
    for count in range(3):
        site.Order.objects.create(dish=soup, waiter=bob, count=count)
    with alias(TRANSPORT="local", PRINCIPAL="ada"):
        yield


def compare(number: int) -> None:
    """Compare as many, as far as the time lasts; PGBACKEND_SEED chooses which."""
    until = time.monotonic() + seconds(15)
    seed = int(os.environ.get("PGBACKEND_SEED", Random().randrange(10**9)))
    made = Querysets(Random(seed))
    answers = []
    while len(answers) < number and time.monotonic() < until:
        parts = made.queryset()
        answers.append((parts, outcome(parts, client)))
    assert len(answers) > 20
    site.Order.objects.exclude(waiter__login="ada").delete()
    site.Waiter.objects.exclude(login="ada").delete()
    seen: Counter[str] = Counter()
    for parts, ours in answers:
        theirs = outcome(parts, site)
        if is_error(ours) and any(each in ours for each in NOT_POSSIBLE):
            seen["not possible"] += 1
            continue
        assert is_same(ours, theirs, parts), f"seed {seed}: {''.join(parts)}"
        seen["error" if is_error(theirs) else "rows" if theirs else "nothing"] += 1
    print(f"seed {seed}: {seen}")
    assert seen["rows"] > len(answers) / 3, seen
    assert seen["not possible"] < len(answers) / 3, seen


def test_some() -> None:
    """Some querysets, in each run."""
    compare(60)


@pytest.mark.load
def test_many() -> None:
    """2,000 querysets, if the machine is quick enough."""
    compare(2000)
