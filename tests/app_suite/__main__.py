"""Run a package's own tests: ``python -m tests.app_suite NAME [--modes MODE ...] [LABEL ...]``.

The suite comes from the package's unmodified sdist, which pip downloads once, of the release that
is installed. It runs on Django's own backend, on this one as any synchronous project runs its tests
("plain"), and in the bridge ("bridged"), on one server; each run is a process of its own. Exit
status 1 if something fails here only, or if a run left something behind.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.django_suite.diff import worse
from tests.django_suite.outcomes import Outcomes
from tests.django_suite.server import leftovers, serve

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".django-suite"
CHILD = Path(__file__).with_name("child.py")
PACKAGES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("packages.toml").read_text(encoding="utf-8")
)


def install(name: str) -> str:
    """Install the package and what its suite needs, if it is not there; return its release."""
    try:
        return version(name)
    except PackageNotFoundError:
        print(f"Installing {name} and what its tests need; this may take a minute.", flush=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "pytest", name]
            + PACKAGES[name]["needs"],
            check=True,
        )
        return version(name)


def sdist(name: str, release: str) -> Path:
    """Return the folder of the package's sdist, downloaded if need be."""
    for folder in (f"{name}-{release}", f"{name.replace('-', '_')}-{release}"):
        if (CACHE / folder).exists():
            return CACHE / folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", name, "--dest", folder, f"{name}=={release}"),
            ],
            check=True,
        )
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(CACHE, filter="data")
        return CACHE / archive.name.removesuffix(".tar.gz")


def run(
    name: str, sources: Path, mode: str, dsn: str, options: str, labels: list[str], logs: Path
) -> tuple[Outcomes, list[str]]:
    """Run the suite in a process of its own; return its outcomes and what it left behind."""
    suite = PACKAGES[name]
    # A name that tells its connections from others.
    application = f"pgbackend-{name}-{mode}"
    log = logs / f"{name}-{mode}.log"
    with tempfile.TemporaryDirectory(prefix="pgbackend-report-") as report:
        with log.open("w") as output:
            ended = subprocess.run(
                # Not by its module's name: the suite's folder may have a package of that name.
                [sys.executable, str(CHILD), json.dumps(suite), *labels],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=sources / suite.get("folder", "."),
                env={
                    **os.environ,
                    **suite.get("env", {}),
                    "PYTHONPATH": str(ROOT),
                    "PGBACKEND_TEST_DSN": dsn,
                    "PGAPPNAME": application,
                    "SUITE_MODE": mode,
                    "SUITE_OPTIONS": "{}" if mode == "stock" else options,
                    "SUITE_REPORT": report,
                },
                check=False,
            )
        try:
            outcomes = Outcomes.read(Path(report))
            heard = json.loads(Path(report, "complaints.json").read_text())
        except FileNotFoundError:
            print("".join(log.read_text().splitlines(keepends=True)[-40:]))
            raise SystemExit(f"The {mode} run ended with {ended.returncode}: {log}") from None
    return outcomes, heard + leftovers(dsn, application)


def compare(mode: str, ours: Outcomes, theirs: Outcomes) -> bool:
    """Print what ends worse in *ours*; return whether nothing fails there only."""
    failed, skipped = worse(ours, theirs)
    print(f"Failed only here, {mode}: {len(failed)}")
    for each in failed:
        print(f"  {each}")
        print("    " + ours.failed[each].strip().splitlines()[-1][:200])
    print(f"Skipped only here, {mode}: {sum(map(len, skipped.values()))}")
    for reason, names in skipped.items():
        print(f"  {reason}: {len(names)}")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.app_suite")
    parser.add_argument("name", choices=sorted(PACKAGES))
    parser.add_argument("--modes", nargs="+", default=["plain", "bridged"])
    parser.add_argument("--options", default="{}", help="OPTIONS of the databases, as JSON")
    parser.add_argument("--logs", type=Path, default=CACHE, help="a folder for the runs' output")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, labels = parser.parse_known_args()
    name, release = options.name, install(options.name)
    sources = sdist(name, release)
    options.logs.mkdir(parents=True, exist_ok=True)
    fair = True
    with serve(options.dsn) as dsn:
        print(f"{name} {release}", flush=True)
        theirs: Outcomes | None = None
        for mode in ["stock", *options.modes]:
            ours, left = run(name, sources, mode, dsn, options.options, labels, options.logs)
            print(f"{ours.line(mode)}; left behind: {len(left)}", flush=True)
            for each in left:
                print(f"  {each}")
            if theirs is None:
                theirs = ours
            else:
                fair = compare(mode, ours, theirs) and not left and fair
    return 0 if fair else 1


if __name__ == "__main__":
    sys.exit(main())
