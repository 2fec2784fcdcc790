"""Run REST framework's own tests: ``python -m tests.drf_suite [--mode MODE] [ARGUMENT ...]``.

The suite comes from the unmodified sdist of the installed djangorestframework, which pip
downloads once. Arguments that are not ours go to pytest. What fails or is skipped here is run
once more on Django's own backend, on the same server: the exit status is 1 if something that
failed passes there, or if the run was bridged and something went by another path or was left
behind.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from pgbackend.bridge.greenlets import run_bridged
from tests.django_suite.__main__ import CACHE, ROOT, summarize
from tests.django_suite.diff import worse
from tests.django_suite.outcomes import Outcomes
from tests.django_suite.server import leftovers, name_connections, serve
from tests.drf_suite.plugin import Record, replace_databases

PACKAGE = "djangorestframework"

# Beside the suite's own configuration: a resource left open, or a coroutine that was never
# awaited, is an error, and those that cannot be raised go to the runner's complaints.
ARGUMENTS = [
    *("-p", "no:unraisableexception"),
    *("-W", "error::ResourceWarning"),
    *("-W", "error:coroutine:RuntimeWarning"),
    "--continue-on-collection-errors",
]


def sdist() -> Path:
    """Return the folder of the installed REST framework's sdist, downloaded if need be."""
    release = version(PACKAGE)
    sources = CACHE / f"{PACKAGE}-{release}"
    if not sources.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                    *("--no-binary", PACKAGE, "--dest", folder, f"{PACKAGE}=={release}"),
                ],
                check=True,
            )
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as files:
                files.extractall(CACHE, filter="data")
    return sources


def run(mode: str, arguments: list[str]) -> int:
    """Run pytest in the current folder and return its exit status."""
    from tests.django_suite import runner
    from tests.django_suite.settings import DATABASES

    aliases = {"default": "default", "secondary": "other"}
    replace_databases(
        {
            alias: {**DATABASES[source], "NAME": f"drf_{mode}_{alias}"}
            for alias, source in aliases.items()
        }
    )

    def main() -> int:
        return int(pytest.main([*ARGUMENTS, *arguments], plugins=[Record()]))

    runner.watch()
    ours = forget_tests()
    try:
        return asyncio.run(run_bridged(main)) if mode == "bridged" else main()
    finally:
        forget_tests()
        sys.modules.update(ours)
        runner.report()


def forget_tests() -> dict[str, ModuleType]:
    """Forget the package called ``tests``, ours or REST framework's, and return its modules."""
    names = [name for name in sys.modules if name.partition(".")[0] == "tests"]
    return {name: sys.modules.pop(name) for name in names}


def run_stock(dsn: str, names: list[str]) -> Outcomes:
    """Run tests on Django's own backend in a process of its own and return their outcomes."""
    with tempfile.TemporaryDirectory(prefix="pgbackend-report-") as report:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "tests.drf_suite", "--mode", "stock"),
                *("--dsn", dsn, "--report", report, *names),
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        try:
            return Outcomes.read(Path(report))
        except FileNotFoundError:
            sys.stdout.write(ended.stdout + ended.stderr)
            raise RuntimeError(f"The stock run ended with {ended.returncode}.") from None


def compare(ours: Outcomes, dsn: str) -> bool:
    """Print how what failed or was skipped here ends on Django's backend; return if it is fair."""
    again = [*ours.failed, *ours.skipped]
    theirs = run_stock(dsn, again) if again else Outcomes(0, 0, {}, {})
    failed, skipped = worse(ours, theirs)
    print(f"Skipped only here: {sum(map(len, skipped.values()))}")
    for reason, names in skipped.items():
        print(f"  {reason}")
        for name in names:
            print(f"    {name}")
    shared = sorted(ours.failed.keys() & theirs.failed.keys())
    print(f"Failed on Django's own backend as well: {len(shared)}")
    for name in shared:
        print(f"  {name}")
    print(f"Failed only here: {len(failed)}")
    for name in failed:
        print(f"  {name}")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drf_suite")
    parser.add_argument(
        "--mode",
        choices=["bridged", "plain", "stock"],
        default="bridged",
        help="bridged: the whole of pytest in one greenlet on one event loop; plain: as any"
        " synchronous project runs its tests; stock: so, on Django's own backend",
    )
    parser.add_argument("--options", default="{}", help="OPTIONS of both databases, a dict")
    parser.add_argument("--report", type=Path, help="a folder to write outcomes to; no comparison")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()

    if options.report:
        options.report = options.report.resolve()
    os.chdir(sdist())
    with (
        tempfile.TemporaryDirectory(prefix="pgbackend-report-") as folder,
        serve(options.dsn) as dsn,
    ):
        report = options.report or Path(folder)
        os.environ.update(
            PGBACKEND_TEST_DSN=dsn,
            SUITE_MODE=options.mode,
            SUITE_OPTIONS=options.options,
            SUITE_REPORT=str(report),
        )
        name = name_connections()
        status = run(options.mode, arguments)
        if status > pytest.ExitCode.TESTS_FAILED:
            return status
        print(f"{PACKAGE} {version(PACKAGE)}")
        proven = summarize(report, options.mode, leftovers(dsn, name))
        ours = Outcomes.read(report)
        if options.mode != "stock" and not options.report:
            status = 0 if compare(ours, dsn) else 1
        return status if proven else 1


if __name__ == "__main__":
    sys.exit(main())
