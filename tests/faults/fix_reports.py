"""What the sweeps and the load tests found, at the end of a run.

A worker of pytest-xdist hands its own to the process that prints.
"""

from dataclasses import asdict
from typing import Any

import pytest

from tests.faults.report import Report, loads, reports


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what this worker found."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["loads"] = loads
        output["reports"] = [asdict(each) for each in reports]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take what a worker found; one that died has nothing to hand over."""
    output = getattr(node, "workeroutput", {})
    loads.extend(output.get("loads", []))
    reports.extend(Report(**each) for each in output.get("reports", []))


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
        for line in str(report).splitlines():
            terminalreporter.line(line)
    cancelled = sum(each.once + each.twice for each in reports)
    closed = sum(each.closed for each in reports)
    broken = sum(len(each.broken) for each in reports)
    terminalreporter.line(
        f"all: cancelled {cancelled} times, closed {closed} times, {broken} invariants broken"
    )
