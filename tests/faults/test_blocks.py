"""The fuzz of blocks in CI: as much of it as 15 seconds hold, by a new seed.

PGBACKEND_BLOCKS_SEED repeats a run whose seed was printed. `python -m tests.faults.blocks` runs
more of it.
"""

import os
import random

import pytest

from tests.faults.blocks_run import Fuzz
from tests.support.loops import LOOPS


@pytest.mark.parametrize("loop", ["asyncio", pytest.param("uvloop", marks=pytest.mark.load)])
def test_39_40_fuzz_of_blocks(loop: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What raised is not there, what was acknowledged is; nothing hangs, and the pool is whole."""
    seed = int(os.environ.get("PGBACKEND_BLOCKS_SEED") or random.SystemRandom().getrandbits(32))
    report = Fuzz(seed, 10_000, seconds=7).run(LOOPS[loop])
    with capfd.disabled():
        print(f"\n{loop}: {report}", flush=True)
    assert report.broken == []
    assert report.counts["blocks raised"] > 50
    assert report.counts["kills"]
