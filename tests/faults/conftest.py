"""What the tests of faults share: event loops, and the proxy."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.loops import EACH_LOOP, LOOPS


@pytest.fixture(params=EACH_LOOP)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of each kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner
