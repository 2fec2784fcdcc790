"""Django's test runner, which counts statements and writes down how each test ended.

What the suite's parts need to know of each other goes through the environment: the runner
is imported by Django, and by each worker process of a parallel run.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import os
import re
import sys
import threading
import unittest
from collections import Counter
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import psycopg
from django.test import runner

from pgbackend.pool.face import BridgedConnection
from pgbackend.test import ParallelTestSuite as BridgedParallelTestSuite
from pgbackend.test import renew_pools

# Statements of this process by where they ran: on asynchronous or synchronous connections of
# the runner itself, or in a thread that a test started.
statements: Counter[str] = Counter()

# What this process was told outside any test: exceptions that could not be raised, to which
# Django's runtests.py turns each ResourceWarning and "never awaited", and what asyncio logs.
complaints: list[str] = []


def watch() -> None:
    """Count what every psycopg cursor executes, by its connection, and collect complaints."""
    for cls in (psycopg.Cursor, psycopg.ServerCursor):
        for name in ("execute", "executemany"):
            setattr(cls, name, _counted(getattr(cls, name)))
    hook = sys.unraisablehook

    def unraisable(found: Any) -> None:
        complaints.append(f"{found.err_msg or 'Exception ignored in'}: {found.exc_value!r}")
        hook(found)

    sys.unraisablehook = unraisable
    logging.getLogger("asyncio").addHandler(_Complaints(logging.ERROR))


class _Complaints(logging.Handler):
    """Takes what a loop's exception handler, a lost task or an unclosed transport logs."""

    def emit(self, record: logging.LogRecord) -> None:
        complaints.append(f"asyncio: {record.getMessage()}")


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


def report() -> None:
    """Write what this process counted and heard where `reported` finds it."""
    gc.collect()
    path = Path(os.environ["SUITE_REPORT"]) / f"process-{os.getpid()}.json"
    path.write_text(json.dumps({"statements": statements, "complaints": complaints}))


def reported(folder: Path) -> tuple[Counter[str], list[str]]:
    """Return what all processes of a run counted and heard."""
    total: Counter[str] = Counter()
    heard: list[str] = []
    for path in folder.glob("process-*.json"):
        process = json.loads(path.read_text())
        total.update(process["statements"])
        heard += process["complaints"]
    return total, heard


if os.environ.get("SUITE_LOOP") == "uvloop":
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

BRIDGED = os.environ["SUITE_MODE"] == "bridged"
Suite: Any = BridgedParallelTestSuite if BRIDGED else runner.ParallelTestSuite


def init_worker(*args: Any, **kwargs: Any) -> None:
    """Prepare a worker process as the mode's own suite does, and have it report at its end."""
    Suite.init_worker(*args, **kwargs)
    # What the worker was forked with is neither its own nor searched for garbage. Garbage is looked
    # for less often, which saves a twentieth of the time; `report` looks for the rest.
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)
    statements.clear()
    complaints.clear()
    # After the worker's loop was closed.
    Finalize(None, report, exitpriority=-1)


class ParallelTestSuite(Suite):
    """The mode's own, whose workers are prepared by `init_worker`."""

    init_worker = init_worker


class Runner(runner.DiscoverRunner):
    """Django's, which writes outcomes.json: each test's outcome by its dotted name."""

    parallel_test_suite = ParallelTestSuite

    def setup_databases(self, **kwargs: Any) -> Any:
        created = super().setup_databases(**kwargs)
        renew_pools()
        return created

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        class Result(super().get_resultclass() or unittest.TextTestResult):  # type: ignore[misc]
            passed = 0

            def addSuccess(self, test: unittest.TestCase) -> None:
                self.passed += 1
                super().addSuccess(test)

        return Result

    def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> int:
        outcomes: dict[str, Any] = {"ran": result.testsRun, "passed": result.passed}
        outcomes |= {"skipped": {}, "failed": {}}
        for test, reason in result.skipped:
            outcomes["skipped"][_name(test)] = reason
        for test, traceback in result.failures + result.errors:
            outcomes["failed"][_name(test)] = traceback
        for test in result.unexpectedSuccesses:
            outcomes["failed"][_name(test)] = "unexpected success"
        path = Path(os.environ["SUITE_REPORT"]) / "outcomes.json"
        path.write_text(json.dumps(outcomes))
        return super().suite_result(suite, result, **kwargs)


def _name(test: Any) -> str:
    """Return a test's dotted name, without a subtest's parameters; or its class's or module's."""
    name = str(getattr(test, "test_case", test).id())
    fixture = re.fullmatch(r"(?:setUp|tearDown)(?:Class|Module) \((.*)\)", name)
    return fixture[1] if fixture else name.split(" ")[0]
