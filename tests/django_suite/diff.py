"""Compare this backend with Django's own: ``python -m tests.django_suite.diff [LABEL ...]``.

Runs the suite on Django's backend, then on this one bridged and plainly, on the same server,
and prints the tests that end worse here: failed, or skipped for a reason that Django's backend
does not have. Exit status 1 if one failed.
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path

from tests.django_suite.outcomes import Outcomes, run_suite
from tests.django_suite.server import serve


def worse(ours: Outcomes, theirs: Outcomes) -> tuple[list[str], dict[str, list[str]]]:
    """Return the tests that failed only in *ours*, and those skipped only there, by reason."""
    failed = sorted(ours.failed.keys() - theirs.failed.keys())
    skipped = defaultdict(list)
    for name, reason in sorted(ours.skipped.items()):
        if name not in theirs.skipped:
            skipped[reason].append(name)
    return failed, skipped


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.django_suite.diff")
    parser.add_argument("--modes", nargs="+", default=["bridged", "plain"])
    parser.add_argument("--logs", type=Path, help="a folder to keep what the runs print in")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    options, arguments = parser.parse_known_args()
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)

    status = 0
    with serve(options.dsn) as dsn:

        def run(mode: str) -> Outcomes:
            log = options.logs and options.logs / f"{mode}.log"
            outcomes = run_suite(mode, dsn, arguments, log)
            print(outcomes.line(mode), flush=True)
            return outcomes

        theirs = run("stock")
        print(f"Failed on Django's own backend, the machine's: {len(theirs.failed)}")
        for name in sorted(theirs.failed):
            print(f"  {name}")
        for mode in options.modes:
            ours = run(mode)
            failed, skipped = worse(ours, theirs)
            print(f"Failed only here, {mode}: {len(failed)}")
            for name in failed:
                print(f"  {name}")
                print("    " + ours.failed[name].strip().splitlines()[-1][:200])
            print(f"Skipped only here, {mode}: {sum(map(len, skipped.values()))}")
            for reason, names in skipped.items():
                print(f"  {reason}")
                for name in names:
                    print(f"    {name}")
            status = status or int(bool(failed))
    return status


if __name__ == "__main__":
    sys.exit(main())
