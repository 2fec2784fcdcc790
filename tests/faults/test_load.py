"""The load test in CI: 20,000 operations with 200 faults among them, twice, by a new seed.

PGBACKEND_LOAD_SEED repeats a run whose seed was printed. `python -m tests.faults.load`, or `make
soak`, runs more of it.
"""

import os
import random

import pytest

from tests.faults.load_run import FAULTS, OPERATIONS, Load


@pytest.mark.timeout(900)
def test_invariants_hold_under_load(capfd: pytest.CaptureFixture[str]) -> None:
    """After each of two runs in one process nothing is lost, left over or leaked."""
    seed = int(os.environ.get("PGBACKEND_LOAD_SEED") or random.SystemRandom().getrandbits(32))
    for each in (seed, seed + 1):
        with capfd.disabled():
            print(f"\nload test, seed {each}", flush=True)
        report = Load(each).run()
        with capfd.disabled():
            print(report, flush=True)
        assert report.broken == []
        assert report.operations.total() >= OPERATIONS
        assert report.faults.total() == FAULTS
        assert report.outcomes["lost"] == 0
