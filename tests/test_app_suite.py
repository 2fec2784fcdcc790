"""The table of packages whose own suites `make app-suite` runs."""

import re

import pytest

from tests.app_suite.__main__ import PACKAGES
from tests.support.script import ROOT


@pytest.mark.parametrize("name", PACKAGES)
def test_entries(name: str) -> None:
    """Each says what it needs and how it is run, by one of the two ways, and nothing unknown."""
    suite = PACKAGES[name]
    assert suite.keys() <= {"needs", "folder", "script", "pytest", "env"}
    assert ("script" in suite) != ("pytest" in suite)
    assert isinstance(suite["needs"], list)


def test_documented() -> None:
    """Each of them is on the page of the documentation that has the figures."""
    page = (ROOT / "docs" / "reference" / "packages.md").read_text()
    assert set(PACKAGES) <= set(re.findall(r"`([a-z-]+)`", page))
