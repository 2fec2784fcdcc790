"""Compare this backend with Django's own: ``python -m tests.django_suite.diff [LABEL ...]``.

Runs the suite on Django's backend, then on this one bridged and plainly, each on a server of
its own making with the same settings, and prints the tests that end worse here: failed, or
skipped for a reason that Django's backend does not have. Exit status 1 if one failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

Outcomes = dict[str, Any]


def run(mode: str, report: Path, arguments: list[str]) -> Outcomes:
    """Run the suite in one mode and return its outcomes; the last lines of it are printed."""
    log = report.with_suffix(".log")
    with log.open("w") as output:
        subprocess.run(
            [
                *(sys.executable, "-m", "tests.django_suite"),
                *("--mode", mode, "--report", str(report), *arguments),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    print(log.read_text().splitlines()[-1], flush=True)
    outcomes: Outcomes = json.loads((report / "outcomes.json").read_text())
    return outcomes


def worse(ours: Outcomes, theirs: Outcomes) -> tuple[list[str], dict[str, list[str]]]:
    """Return the tests that failed only in *ours*, and those skipped only there, by reason."""
    failed = sorted(ours["failed"].keys() - theirs["failed"].keys())
    skipped = defaultdict(list)
    for name, reason in sorted(ours["skipped"].items()):
        if name not in theirs["skipped"]:
            skipped[reason].append(name)
    return failed, skipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite.diff")
    parser.add_argument("--modes", nargs="+", default=["bridged", "plain"])
    options, arguments = parser.parse_known_args()
    status = 0
    with tempfile.TemporaryDirectory(prefix="pgbackend-diff-") as folder:
        theirs = run("stock", Path(folder) / "stock", arguments)
        both = sorted(theirs["failed"])
        print(f"Failed on Django's own backend, the machine's: {len(both)}")
        for name in both:
            print(f"  {name}")
        for mode in options.modes:
            ours = run(mode, Path(folder) / mode, arguments)
            failed, skipped = worse(ours, theirs)
            print(f"Failed only here, {mode}: {len(failed)}")
            for name in failed:
                print(f"  {name}")
                print("    " + ours["failed"][name].strip().splitlines()[-1][:200])
            print(f"Skipped only here, {mode}: {sum(map(len, skipped.values()))}")
            for reason, names in skipped.items():
                print(f"  {reason}")
                for name in names:
                    print(f"    {name}")
            status = status or int(bool(failed))
    return status


if __name__ == "__main__":
    sys.exit(main())
