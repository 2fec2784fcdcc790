"""Run Django's own tests: ``python -m tests.django_suite [--mode plain] LABEL ...``.

The suite comes from the unmodified sdist of the installed Django, which pip downloads once.
Arguments that are not ours go to Django's ``runtests.py``.
"""

import argparse
import asyncio
import os
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
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                + ["--no-binary", "django", "--dest", folder, f"django=={version}"],
                check=True,
            )
            (sdist,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(sdist) as archive:
                archive.extractall(CACHE, filter="data")
    return tests


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite")
    parser.add_argument(
        "--mode",
        choices=["bridged", "plain"],
        default="bridged",
        help="bridged: the whole runner in one greenlet on one event loop; plain: as any"
        " synchronous project runs its tests",
    )
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()

    script = suite() / "runtests.py"
    os.chdir(script.parent)
    sys.path[:0] = [str(script.parent), str(ROOT)]
    sys.argv = [str(script), "--settings=tests.django_suite.settings", "--noinput", *arguments]
    if not any(each.startswith("--parallel") for each in arguments):
        sys.argv.append("--parallel=1")

    def run() -> None:
        runpy.run_path(str(script), run_name="__main__")

    with tempfile.TemporaryDirectory(prefix="pgbackend-suite-") as folder:
        dsn = options.dsn
        if not dsn:
            server = postgres.start(Path(folder), {"max_connections": 200, "fsync": "off"})
            dsn = (
                f"postgresql://{server.user}:{server.password}@{postgres.LOOPBACK}:{server.port}"
                f"/{server.dbname}"
            )
        # Child processes that tests start read these too.
        os.environ["PGBACKEND_TEST_DSN"] = dsn
        os.environ["PYTHONPATH"] = str(ROOT)
        print(f"Django {django.get_version()} in {script.parent}, mode {options.mode}", flush=True)
        try:
            if options.mode == "bridged":
                asyncio.run(run_bridged(run))
            else:
                run()
        finally:
            if not options.dsn:
                postgres.stop(Path(folder))


main()
