"""What the tests of faults share: event loops, the proxy, and what the sweeps found."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.faults.loops import NAMES, new_loop
from tests.faults.report import loads, reports


def _eager(make: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop = make()
    # asyncio.eager_task_factory of 3.12 does not take what uvloop hands it.
    loop.set_task_factory(
        lambda loop, coro, **names: asyncio.Task(coro, loop=loop, **{**names, "eager_start": True})
    )
    return loop


# Loops, by name: of asyncio and uvloop, with ordinary and with eager tasks (Python 3.12).
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    name: partial(new_loop, name) for name in NAMES
}
if sys.version_info >= (3, 12):
    LOOPS |= {f"{name}, eager": partial(_eager, make) for name, make in LOOPS.items()}


@pytest.fixture(params=list(LOOPS))
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of each kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often the sweeps cancelled, what the load met, and what did not hold."""
    if loads:
        terminalreporter.section("load")
        for each in loads:
            terminalreporter.line(each)
    if not reports:
        return
    terminalreporter.section("cancel sweep")
    for report in reports:
        terminalreporter.line(str(report))
    cancelled = sum(each.once + each.twice for each in reports)
    closed = sum(each.closed for each in reports)
    broken = sum(len(each.broken) for each in reports)
    terminalreporter.line(
        f"all: cancelled {cancelled} times, closed {closed} times, {broken} invariants broken"
    )
