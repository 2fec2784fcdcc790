"""What the detector has found lately."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgbackend import findings
from pgbackend.findings import latest, note


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    findings._findings.clear()
    yield
    findings._findings.clear()


def test_latest() -> None:
    """The latest come first, and no more are kept than `KEPT`."""
    for number in range(findings.KEPT + 3):
        note(f"place {number}", number)
    assert len(latest()) == findings.KEPT
    assert [each.place for each in latest()[:2]] == ["place 22", "place 21"]
    assert latest()[0].seconds == 22


def test_goes_on() -> None:
    """A function that was told of while it held the loop is one finding."""
    note("a", 2.0)
    note("b", 1.0)
    note("a", 5.0, goes_on=True)
    assert [(each.place, each.seconds) for each in latest()] == [("a", 5.0), ("b", 1.0)]
