"""What pytest needs to run the suite unchanged: other databases, and a record of outcomes."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

# Of tests that REST framework's conftest skips on every ENGINE but Django's own.
POSTGRES_MARK = "requires_postgres"
POSTGRES_APP = "django.contrib.postgres"


def replace_databases(databases: dict[str, Any]) -> None:
    """Let ``settings.configure()`` take *databases*, whatever DATABASES it is called with.

    REST framework's conftest calls it, and ``django.setup()`` right after. It adds
    `POSTGRES_APP` only for the ENGINE named as Django's own is, so that is done here.
    """
    configure = LazySettings.configure

    def configured(self: LazySettings, *args: Any, **options: Any) -> None:
        apps = [each for each in options["INSTALLED_APPS"] if each != POSTGRES_APP]
        if databases["default"]["ENGINE"] != "django.db.backends.postgresql":
            apps.append(POSTGRES_APP)
        options |= {"DATABASES": databases, "INSTALLED_APPS": tuple(apps)}
        configure(self, *args, **options)

    LazySettings.configure = configured


class Record:
    """A pytest plugin that writes outcomes.json: each test's outcome by its node id."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None]:
        """Undo the skips that a conftest adds for want of Django's ENGINE."""
        marks = {item: [*item.own_markers] for item in items if POSTGRES_MARK in item.keywords}
        yield
        for item, own in marks.items():
            item.own_markers[:] = own

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran.add(report.nodeid)
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed:
            self.failed[report.nodeid] = report.longreprtext
        elif report.skipped:
            # The second is a tuple: file, line, reason.
            reason = getattr(report, "wasxfail", None) or report.longrepr[2]
            self.skipped[report.nodeid] = reason

    def pytest_sessionfinish(self) -> None:
        outcomes = {
            "ran": len(self.ran),
            "passed": len(self.ran - self.failed.keys() - self.skipped.keys()),
            "failed": self.failed,
            "skipped": self.skipped,
        }
        path = Path(os.environ["SUITE_REPORT"]) / "outcomes.json"
        path.write_text(json.dumps(outcomes))
