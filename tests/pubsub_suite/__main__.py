"""Run django-pgpubsub's own tests: ``python -m tests.pubsub_suite [--mode MODE] [ARGUMENT ...]``.

The tests come unmodified from the wheel of the release that `RELEASE` names, which pip downloads
once. Arguments that are not ours go to pytest. Without a mode they run three times: bridged, plain,
and on Django's own backend. The exit status is 1 if a test failed, was skipped, or did not run.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from pgbackend import is_bridged
from pgbackend.bridge.greenlets import run_bridged
from tests.django_suite.__main__ import CACHE, ROOT
from tests.django_suite.outcomes import Outcomes
from tests.django_suite.server import leftovers, name_connections, serve
from tests.drf_suite.plugin import Record

PACKAGE = "django-pgpubsub"
RELEASE = "1.3.1"

# How many tests the release has.
TESTS = 40

MODES = ("bridged", "plain", "stock")


def wheel() -> Path:
    """Return the folder with the contents of the wheel, downloaded if need be."""
    sources = CACHE / f"{PACKAGE}-{RELEASE}"
    if not sources.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--only-binary", ":all:", "--dest", folder, f"{PACKAGE}=={RELEASE}"),
                ],
                check=True,
            )
            (archive,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(archive) as files:
                files.extractall(Path(folder, "contents"))
            # Another run beside this one may have been quicker.
            with suppress(OSError):
                Path(folder, "contents").rename(sources)
    return sources


class Bridge:
    """A pytest plugin that fails a test which does not run in the bridge, or should not."""

    def __init__(self, mode: str) -> None:
        self.bridged = mode == "bridged"

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        assert is_bridged() == self.bridged

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        # Here, when the settings have been imported.
        from tests.pubsub_suite.shim import opened

        while opened:
            opened.pop().stop()


def run(mode: str, sources: Path, arguments: list[str]) -> int:
    """Run pytest and return its exit status."""
    record = Record()
    command = [
        *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio", "-c", os.devnull),
        *("--rootdir", str(sources), "--ds", "tests.pubsub_suite.settings", "-q"),
        *("-W", "error::ResourceWarning", "-W", "error:coroutine:RuntimeWarning"),
        str(sources / "pgpubsub" / "tests"),
        *arguments,
    ]

    def main() -> int:
        return int(pytest.main(command, plugins=[record, Bridge(mode)]))

    return asyncio.run(run_bridged(main)) if mode == "bridged" else main()


def run_mode(mode: str, sources: Path, arguments: list[str]) -> bool:
    """Run the tests in this process and print what came of it; return if all is well."""
    with tempfile.TemporaryDirectory(prefix="pgbackend-report-") as report:
        os.environ.update(
            SUITE_MODE=mode,
            SUITE_OPTIONS="{}",
            SUITE_REPORT=report,
            SUITE_SOURCES=str(sources),
        )
        name = name_connections()
        status = run(mode, sources, arguments)
        if status > pytest.ExitCode.TESTS_FAILED:
            return False
        left = leftovers(os.environ["PGBACKEND_TEST_DSN"], name)
        for each in left:
            print(f"Left behind: {each}")
        outcomes = Outcomes.read(Path(report))
        print(f"{PACKAGE} {RELEASE}: {outcomes.line(mode)}", flush=True)
        whole = bool(arguments) or outcomes.ran == TESTS
        if not whole:
            print(f"{TESTS} tests should have run.")
        return whole and not (left or outcomes.failed or outcomes.skipped)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.pubsub_suite")
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="bridged: the whole of pytest in one greenlet on one event loop; plain: as any"
        " synchronous project runs its tests; stock: so, with Django's own backend as ENGINE",
    )
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()
    sources = wheel()
    with serve(options.dsn) as dsn:
        os.environ["PGBACKEND_TEST_DSN"] = dsn
        if options.mode:
            return 0 if run_mode(options.mode, sources, arguments) else 1
        ended = [
            subprocess.run(
                [sys.executable, "-m", "tests.pubsub_suite", "--mode", mode, *arguments],
                cwd=ROOT,
                check=False,
            ).returncode
            for mode in MODES
        ]
    return max(ended)


if __name__ == "__main__":
    sys.exit(main())
