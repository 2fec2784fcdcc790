"""How the tests of a run ended, and runs in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import django

from pgbackend.features import BRIDGED_TEST_SKIPS, TEST_SKIPS


@dataclass(frozen=True)
class Outcomes:
    """What a run wrote: how many ran and passed, tracebacks and reasons by a test's name."""

    ran: int
    passed: int
    failed: dict[str, str]
    skipped: dict[str, str]

    @classmethod
    def read(cls, report: Path) -> Outcomes:
        """Return what the run with this report folder wrote."""
        return cls(**json.loads((report / "outcomes.json").read_text()))

    def line(self, mode: str) -> str:
        """Return the run in one line."""
        return (
            f"Django {django.get_version()}, Python {sys.version.split()[0]}, {mode}:"
            f" ran {self.ran}, passed {self.passed},"
            f" failed {len(self.failed)}, skipped {len(self.skipped)}"
        )


def reasons(outcomes: Outcomes) -> dict[str, list[str]]:
    """Return the tests that were skipped for reasons of this backend, by reason."""
    skipped = defaultdict(list)
    for name, reason in sorted(outcomes.skipped.items()):
        if reason in TEST_SKIPS or reason in BRIDGED_TEST_SKIPS:
            skipped[reason].append(name)
    return skipped


def run_suite(mode: str, dsn: str, arguments: list[str], log: Path | None = None) -> Outcomes:
    """Run the suite in a process of its own and return its outcomes; its output goes to *log*."""
    with tempfile.TemporaryDirectory(prefix="pgbackend-report-") as report:
        with (log or Path(report, "log")).open("w") as output:
            ended = subprocess.run(
                [
                    *(sys.executable, "-m", "tests.django_suite"),
                    *("--mode", mode, "--dsn", dsn, "--report", report, *arguments),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).resolve().parents[2],
                check=False,
            )
        try:
            return Outcomes.read(Path(report))
        except FileNotFoundError:
            sys.stdout.write(Path(output.name).read_text())
            raise RuntimeError(f"The {mode} run ended with {ended.returncode}.") from None
