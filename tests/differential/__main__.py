"""Compare random ORM programs on this backend and on Django's own.

    python -m tests.differential --operations 20000 --seed 7 [--uvloop]

Programs of 40 operations run alone and twenty at once, on a server that is started for them.
Compared are values with their types, exceptions with what they say, and the tables after each
program. The exit status is 1 if anything differed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import warnings

import django

from tests.differential.comparison import Comparison
from tests.faults.load import server_of_its_own, set_up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--uvloop", action="store_true")
    arguments = parser.parse_args()
    loop_factory = None
    if arguments.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    # Wrong values are among them, which Django warns of.
    warnings.simplefilter("ignore")
    with server_of_its_own() as dsn:
        set_up(dsn)
        with Comparison(dsn) as comparison, asyncio.Runner(loop_factory=loop_factory) as runner:
            report = runner.run(comparison.run(arguments.seed, arguments.operations))
    for difference in report.differences[:50]:
        print(difference)
    loop = "uvloop" if arguments.uvloop else "asyncio"
    print(f"Python {sys.version.split()[0]}, Django {django.get_version()}, {loop}: {report}")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
