"""The comparison of nests in CI: as much of it as some seconds hold, by a new seed.

PGBACKEND_NESTS_SEED repeats a run whose seed was printed. `python -m tests.faults.nests` runs more
of it.
"""

import os
import random

import pytest

from tests.faults.nests_run import Nests
from tests.support.loops import EACH_LOOP, LOOPS


def compare(loop: str, seconds: float, *, binding: bool, capfd: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("PGBACKEND_NESTS_SEED") or random.SystemRandom().getrandbits(32))
    with Nests(os.environ["PGBACKEND_TEST_DSN"], binding=binding) as nests:
        report = nests.run(LOOPS[loop], seed, seconds=seconds)
    with capfd.disabled():
        print(f"\n{loop}: {report}", flush=True)
    assert report.differences == []
    assert report.programs > seconds


def test_nests(capfd: pytest.CaptureFixture[str]) -> None:
    """Nested blocks return, raise and store what they do with Django's own backend."""
    compare("asyncio", 4, binding=False, capfd=capfd)


@pytest.mark.load
@pytest.mark.parametrize("binding", [False, True], ids=["", "server_side_binding"])
@pytest.mark.parametrize("loop", EACH_LOOP)
def test_more_nests(loop: str, binding: bool, capfd: pytest.CaptureFixture[str]) -> None:
    """So they do on each loop, and with parameters that the server binds."""
    compare(loop, 8, binding=binding, capfd=capfd)
