"""One run of a package's suite, in a process of its own.

It imports nothing of this backend's where the suite runs on Django's own.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import sys
import unittest
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from django.conf import LazySettings, Settings

from tests.drf_suite.plugin import Record

MODE = os.environ["SUITE_MODE"]
REPORT = Path(os.environ["SUITE_REPORT"])

# A fast one: most of a suite's time may go into passwords otherwise.
HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# What was heard outside any test.
complaints: list[str] = []


def database(alias: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what takes the place of the suite's own database for *alias*."""
    dsn = urlsplit(os.environ["PGBACKEND_TEST_DSN"])
    changes = {
        "ENGINE": "django.db.backends.postgresql" if MODE == "stock" else "pgbackend_postgresql",
        "NAME": f"suite_{MODE}_{alias}",
        "USER": unquote(dsn.username or ""),
        "PASSWORD": unquote(dsn.password or ""),
        "HOST": dsn.hostname,
        "PORT": dsn.port,
        "OPTIONS": json.loads(os.environ["SUITE_OPTIONS"]),
    }
    test = {name: value for name, value in (given.get("TEST") or {}).items() if name != "NAME"}
    kept = {name: given[name] for name in ("ATOMIC_REQUESTS", "TIME_ZONE") if name in given}
    return {**kept, **changes, "TEST": test}


def replace_databases() -> None:
    """Let settings, however they are made, have our databases, and quick passwords."""
    configure, load = LazySettings.configure, Settings.__init__

    def replaced(databases: dict[str, Any]) -> dict[str, Any]:
        return {alias: database(alias, given) for alias, given in databases.items()}

    def configured(self: Any, *args: Any, **options: Any) -> None:
        options["DATABASES"] = replaced(options.get("DATABASES") or {"default": {}})
        options["PASSWORD_HASHERS"] = HASHERS
        configure(self, *args, **options)

    def loaded(self: Any, *args: Any) -> None:
        load(self, *args)
        self.DATABASES = replaced(self.DATABASES)
        self.PASSWORD_HASHERS = HASHERS

    LazySettings.configure = configured  # type: ignore[method-assign]
    Settings.__init__ = loaded  # type: ignore[method-assign]


def record_django() -> None:
    """Let Django's test runner, or ours in its place, write down how each test ended."""
    from django.test import runner

    base: Any = runner.DiscoverRunner
    if MODE == "bridged":
        from pgbackend.test import DiscoverRunner

        base = DiscoverRunner
    outcomes: dict[str, Any] = {"ran": 0, "passed": 0, "failed": {}, "skipped": {}}

    class Runner(base):  # type: ignore[misc]
        def suite_result(self, suite: Any, result: Any, **kwargs: Any) -> Any:
            failed = {name(test): text for test, text in result.failures + result.errors}
            failed |= {name(test): "unexpected success" for test in result.unexpectedSuccesses}
            skipped = {name(test): reason for test, reason in result.skipped}
            outcomes["ran"] += result.testsRun
            outcomes["passed"] += result.testsRun - len(failed.keys() | skipped.keys())
            outcomes["failed"] |= failed
            outcomes["skipped"] |= skipped
            (REPORT / "outcomes.json").write_text(json.dumps(outcomes))
            return super().suite_result(suite, result, **kwargs)

    runner.DiscoverRunner = Runner


def name(test: Any) -> str:
    """Return the name of a test, that of a subtest's test."""
    case: unittest.TestCase = getattr(test, "test_case", test)
    return case.id()


def listen() -> None:
    """Take down what cannot be raised, and what asyncio logs."""
    hook = sys.unraisablehook

    def unraisable(found: Any) -> None:
        complaints.append(f"{found.err_msg or 'Exception ignored in'}: {found.exc_value!r}")
        hook(found)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            complaints.append(f"asyncio: {record.getMessage()}")

    sys.unraisablehook = unraisable
    logging.getLogger("asyncio").addHandler(Handler(logging.ERROR))


def run(suite: dict[str, Any], labels: list[str]) -> int:
    """Run the suite in the current folder and return its exit status."""
    for each in [each for each in sys.modules if each.partition(".")[0] == "tests"]:
        # The suite may have a package of that name.
        del sys.modules[each]
    # In place of the folder of this file.
    sys.path[0] = os.getcwd()
    sys.path.append(str(Path(__file__).with_name("engine")))
    if "pytest" in suite:
        # Not as an installed plugin: the stock run is to load nothing of ours.
        arguments = ["-p", "no:pgbackend", "--continue-on-collection-errors"]
        if MODE == "bridged":
            arguments += ["-p", "pgbackend.pytest_plugin", "--pgbackend"]
        arguments += labels or suite["pytest"]
        return int(pytest.main(arguments, plugins=[Record()]))
    record_django()
    script, *arguments = suite["script"]
    try:
        if script == "-m":
            module, *arguments = arguments
            sys.argv = [module, *arguments, *labels]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [script, *arguments, *labels]
            runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def main() -> int:
    suite, labels = json.loads(sys.argv[1]), sys.argv[2:]
    replace_databases()
    listen()
    try:
        return run(suite, labels)
    finally:
        (REPORT / "complaints.json").write_text(json.dumps(complaints))


if __name__ == "__main__":
    sys.exit(main())
