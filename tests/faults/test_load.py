"""The load test in CI: 20,000 operations with 200 faults among them, by a new seed.

It runs on uvloop in `make test-load`, and a quarter of it on asyncio's own loop in `make test`.

PGBACKEND_LOAD_SEED repeats a run whose seed was printed. `python -m tests.faults.load`, or `make
soak`, runs more of it.
"""

import os
import random

import pytest

from tests.faults.load_run import FAULTS, OPERATIONS, Load
from tests.faults.report import loads


@pytest.mark.process
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("loop", "parts"), [("asyncio", 4), pytest.param("uvloop", 1, marks=pytest.mark.load)]
)
def test_invariants_hold_under_load(
    loop: str, parts: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """After a run on each loop nothing is lost, left over or leaked."""
    seed = int(os.environ.get("PGBACKEND_LOAD_SEED") or random.SystemRandom().getrandbits(32))
    with capfd.disabled():
        print(f"\nload test, seed {seed}, {loop}", flush=True)
    report = Load(seed, OPERATIONS // parts, FAULTS // parts, loop=loop).run()
    with capfd.disabled():
        print(report, flush=True)
    loads.append(f"load test: {report}")
    assert report.broken == []
    assert report.operations.total() >= OPERATIONS // parts
    assert report.faults.total() == FAULTS // parts
    assert report.outcomes["lost"] == 0
