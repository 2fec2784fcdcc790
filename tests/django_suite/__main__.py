"""Run Django's own tests: ``python -m tests.django_suite [--mode MODE] [LABEL ...]``.

The suite comes from the unmodified sdist of the installed Django, which pip downloads once.
Arguments that are not ours go to Django's ``runtests.py``. What fails here is run once more on
Django's own backend, on the same server: the exit status is 1 if something of it passes there,
or if the run was bridged and something went by another path or was left behind.
"""

import argparse
import os
import runpy
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

from pgbackend.runner import Runner
from tests.django_suite.outcomes import Outcomes, reasons, run_suite
from tests.django_suite.server import leftovers, name_connections, serve

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


def run(mode: str, script: Path) -> None:
    """Run Django's ``runtests.py``, which ends in SystemExit."""
    from tests.django_suite import runner

    runner.watch()
    try:
        if mode == "bridged":
            with Runner() as bridge:
                bridge.run(runpy.run_path, str(script), run_name="__main__")
        else:
            runpy.run_path(str(script), run_name="__main__")
    finally:
        runner.report()


def compare(ours: Outcomes, mode: str, dsn: str, arguments: list[str]) -> bool:
    """Print how what failed or was skipped here ends on Django's backend; return if it is fair.

    Each of these runs has the same *arguments*. What fails only here is run here once more, by
    itself: some tests of Django's are about time, and fail on a busy machine.
    """
    skipped = reasons(ours)
    again = [*ours.failed, *(name for names in skipped.values() for name in names)]
    theirs = run_suite("stock", dsn, arguments + again).failed if again else {}
    worse = sorted(ours.failed.keys() - theirs.keys())
    still = run_suite(mode, dsn, arguments + worse).failed if worse else {}
    for reason, names in skipped.items():
        _print_names(f"Skipped only here: {reason}", names)
    _print_names("Failed on Django's own backend as well", sorted(ours.failed.keys() - set(worse)))
    _print_names("Failed only here, but not when run again", sorted(set(worse) - still.keys()))
    _print_names("Failed only here", sorted(still.keys()))
    return not still


def _print_names(title: str, names: list[str]) -> None:
    print(f"{title}: {len(names)}")
    for name in names:
        print(f"  {name}")


def summarize(report: Path, mode: str, left: list[str]) -> bool:
    """Print what ran, by which path and what it left; return whether a bridged run is proven."""
    from tests.django_suite import runner

    total, heard = runner.reported(report)
    heard += left
    for complaint in heard:
        print(f"Left behind: {complaint}")
    print(Outcomes.read(report).line(mode))
    print(
        f"Statements: {total['asynchronous']} asynchronous, {total['synchronous']} synchronous,"
        f" {total['in threads of tests']} in threads of tests; left behind: {len(heard)}"
    )
    if mode == "bridged" and total["synchronous"]:
        print("Bridged, every statement of the runner belongs on an asynchronous connection.")
    return mode != "bridged" or not (total["synchronous"] or heard)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite")
    parser.add_argument(
        "--mode",
        choices=["bridged", "plain", "stock"],
        default="bridged",
        help="bridged: the whole runner in one greenlet on one event loop; plain: as any"
        " synchronous project runs its tests; stock: so, on Django's own backend",
    )
    parser.add_argument(
        "--loop",
        choices=["asyncio", "uvloop"],
        default=os.environ.get("SUITE_LOOP", "asyncio"),
        help="whose event loops the runner and the tests get",
    )
    parser.add_argument("--options", default="{}", help="OPTIONS of both databases, a dict")
    parser.add_argument("--report", type=Path, help="a folder to write outcomes to; no comparison")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()

    script = suite() / "runtests.py"
    os.chdir(script.parent)
    sys.path[:0] = [str(script.parent), str(ROOT)]
    sys.argv = [str(script), "--settings=tests.django_suite.settings", "--noinput", *arguments]
    if not any(each.startswith("--parallel") for each in arguments):
        sys.argv.append("--parallel=1")

    with (
        tempfile.TemporaryDirectory(prefix="pgbackend-report-") as folder,
        serve(options.dsn) as dsn,
    ):
        report = options.report or Path(folder)
        report.mkdir(parents=True, exist_ok=True)
        # Child processes that tests start read these too.
        os.environ.update(
            PGBACKEND_TEST_DSN=dsn,
            PYTHONPATH=str(ROOT),
            SUITE_LOOP=options.loop,
            SUITE_MODE=options.mode,
            SUITE_OPTIONS=options.options,
            SUITE_REPORT=str(report),
        )
        name = name_connections()
        status = 0
        try:
            run(options.mode, script)
        except SystemExit as ended:
            status = int(ended.code or 0)
        if not (report / "outcomes.json").exists():
            return status or 1
        ours = Outcomes.read(report)
        proven = summarize(report, options.mode, leftovers(dsn, name))
        if options.mode != "stock" and not options.report:
            given = [f"--options={options.options}"]
            status = 0 if compare(ours, options.mode, dsn, given) else 1
        return status if proven else 1


if __name__ == "__main__":
    sys.exit(main())
