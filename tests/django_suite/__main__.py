"""Run Django's own tests: ``python -m tests.django_suite [--mode MODE] [LABEL ...]``.

The suite comes from the unmodified sdist of the installed Django, which pip downloads once.
Arguments that are not ours go to Django's ``runtests.py``.
"""

import argparse
import asyncio
import json
import os
import re
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

from pgbackend.bridge import run_bridged
from proj import postgres

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".django-suite"


def suite() -> Path:
    """Return the ``tests`` folder of the installed Django's sdist, downloaded if need be."""
    version = django.get_version()
    tests = CACHE / f"django-{version}" / "tests"
    if not tests.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", "django", "--dest", folder, f"django=={version}"),
                ],
                check=True,
            )
            (sdist,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(sdist) as archive:
                archive.extractall(CACHE, filter="data")
    return tests


def system_postgres() -> Path | None:
    """Return the folder above the bin/ of the newest PostgreSQL with contrib, if there is one.

    Parts of the suite need extensions and ICU collations that the embedded one lacks.
    """
    patterns = ("usr/lib/postgresql/*", "usr/pgsql-*", "usr/local/pgsql", "opt/homebrew")
    for initdb in sorted(
        (each for pattern in patterns for each in Path("/").glob(f"{pattern}/bin/initdb")),
        key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))],
        reverse=True,
    ):
        sharedir = subprocess.run(
            [initdb.with_name("pg_config"), "--sharedir"], capture_output=True, text=True
        ).stdout.strip()
        if Path(sharedir, "extension", "hstore.control").exists():
            return initdb.parents[1]
    return None


def run(mode: str, script: Path) -> None:
    """Run Django's ``runtests.py``, which ends in SystemExit."""
    from tests.django_suite import runner

    runner.count_statements()
    if mode == "bridged":
        asyncio.run(run_bridged(lambda: runpy.run_path(str(script), run_name="__main__")))
    else:
        runpy.run_path(str(script), run_name="__main__")


def summarize(report: Path, mode: str) -> bool:
    """Print what ran and on which kind of connection; return whether the path is proven."""
    from tests.django_suite import runner

    outcomes = json.loads((report / "outcomes.json").read_text())
    total = runner.total_statements(report)
    print(
        f"Django {django.get_version()}, Python {sys.version.split()[0]}, {mode}:"
        f" ran {outcomes['ran']}, failed {len(outcomes['failed'])},"
        f" skipped {len(outcomes['skipped'])};"
        f" statements: {total['asynchronous']} asynchronous, {total['synchronous']} synchronous,"
        f" {total['in threads of tests']} in threads of tests"
    )
    return mode != "bridged" or not total["synchronous"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite")
    parser.add_argument(
        "--mode",
        choices=["bridged", "plain", "stock"],
        default="bridged",
        help="bridged: the whole runner in one greenlet on one event loop; plain: as any"
        " synchronous project runs its tests; stock: so, on Django's own backend",
    )
    parser.add_argument("--options", default="{}", help="OPTIONS of both databases, a dict")
    parser.add_argument("--report", type=Path, help="a folder to keep outcomes.json in")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()

    script = suite() / "runtests.py"
    os.chdir(script.parent)
    sys.path[:0] = [str(script.parent), str(ROOT)]
    sys.argv = [str(script), "--settings=tests.django_suite.settings", "--noinput", *arguments]
    if not any(each.startswith("--parallel") for each in arguments):
        sys.argv.append("--parallel=1")

    with tempfile.TemporaryDirectory(prefix="pgbackend-suite-") as folder:
        report = options.report or Path(folder) / "report"
        report.mkdir(parents=True, exist_ok=True)
        dsn = options.dsn
        if not dsn:
            binaries = system_postgres()
            server = postgres.start(
                Path(folder), {"max_connections": 200, "fsync": "off"}, binaries
            )
            print(f"PostgreSQL: {binaries or 'embedded, without contrib extensions'}")
            dsn = (
                f"postgresql://{server.user}:{server.password}@{postgres.LOOPBACK}:{server.port}"
                f"/{server.dbname}"
            )
        # Child processes that tests start read these too.
        os.environ.update(
            PGBACKEND_TEST_DSN=dsn,
            PYTHONPATH=str(ROOT),
            SUITE_MODE=options.mode,
            SUITE_OPTIONS=options.options,
            SUITE_REPORT=str(report),
        )
        status = 0
        try:
            run(options.mode, script)
        except SystemExit as ended:
            status = int(ended.code or 0)
        finally:
            if not options.dsn:
                postgres.stop(Path(folder))
        if not summarize(report, options.mode):
            print("Bridged, every statement of the runner belongs on an asynchronous connection.")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
