"""Django's test runner, which counts statements and writes down how each test ended.

What the suite's parts need to know of each other goes through the environment: the runner
is imported by Django, and by each worker process of a parallel run.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import threading
import unittest
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
from django.test import runner

from pgbackend.bridge import run_bridged
from pgbackend.connection import BridgedConnection

# Statements of this process by where they ran: on asynchronous or synchronous connections of
# the runner itself, or in a thread that a test started.
statements: Counter[str] = Counter()


def count_statements() -> None:
    """Count what every psycopg cursor executes, by the kind of its connection."""
    for cls in (psycopg.Cursor, psycopg.ServerCursor):
        for name in ("execute", "executemany"):
            setattr(cls, name, _counted(getattr(cls, name)))


def _counted(method: Any) -> Any:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.connection, BridgedConnection):
            kind = "asynchronous"
        elif threading.current_thread() is threading.main_thread():
            kind = "synchronous"
        else:
            kind = "in threads of tests"
        statements[kind] += 1
        return method(self, *args, **kwargs)

    return call


def report_statements() -> None:
    """Write this process's counts where `total_statements` finds them."""
    path = Path(os.environ["SUITE_REPORT"]) / f"statements-{os.getpid()}.json"
    path.write_text(json.dumps(statements))


def total_statements(folder: Path) -> Counter[str]:
    """Return the counts of all processes of a run."""
    total: Counter[str] = Counter()
    for path in folder.glob("statements-*.json"):
        total.update(json.loads(path.read_text()))
    return total


def run_subsuite(args: Any) -> Any:
    """Run a part of the suite in a worker process, bridged on a loop of its own."""
    run = functools.partial(runner._run_subsuite, args)
    try:
        if os.environ["SUITE_MODE"] == "bridged":
            return asyncio.run(run_bridged(run))
        return run()
    finally:
        report_statements()


class ParallelTestSuite(runner.ParallelTestSuite):
    """Django's, whose workers run their parts by `run_subsuite`."""

    run_subsuite = run_subsuite


class Runner(runner.DiscoverRunner):
    """Django's, which writes outcomes.json: each test's outcome by its dotted name."""

    parallel_test_suite = ParallelTestSuite

    def suite_result(self, suite: Any, result: unittest.TestResult, **kwargs: Any) -> int:
        outcomes = {"ran": result.testsRun, "skipped": {}, "failed": {}}
        for test, reason in result.skipped:
            outcomes["skipped"][_name(test)] = reason
        for test, traceback in result.failures + result.errors:
            outcomes["failed"][_name(test)] = traceback
        for test in result.unexpectedSuccesses:
            outcomes["failed"][_name(test)] = "unexpected success"
        path = Path(os.environ["SUITE_REPORT"]) / "outcomes.json"
        path.write_text(json.dumps(outcomes))
        report_statements()
        return super().suite_result(suite, result, **kwargs)


def _name(test: Any) -> str:
    """Return a test's dotted name, without a subtest's parameters."""
    return str(getattr(test, "test_case", test).id()).split(" ")[0]
