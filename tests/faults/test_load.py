"""The load test in CI: 20,000 operations with 200 faults among them, by a new seed, on each loop.

PGBACKEND_LOAD_SEED repeats a run whose seed was printed. `python -m tests.faults.load`, or `make
soak`, runs more of it.
"""

import os
import random

import pytest

from tests.faults.load_run import FAULTS, OPERATIONS, Load
from tests.support.loops import NAMES


@pytest.mark.timeout(900)
def test_invariants_hold_under_load(capfd: pytest.CaptureFixture[str]) -> None:
    """After a run on each loop, in one process, nothing is lost, left over or leaked."""
    seed = int(os.environ.get("PGBACKEND_LOAD_SEED") or random.SystemRandom().getrandbits(32))
    for each, loop in enumerate(NAMES, seed):
        with capfd.disabled():
            print(f"\nload test, seed {each}, {loop}", flush=True)
        report = Load(each, loop=loop).run()
        with capfd.disabled():
            print(report, flush=True)
        assert report.broken == []
        assert report.operations.total() >= OPERATIONS
        assert report.faults.total() == FAULTS
        assert report.outcomes["lost"] == 0
