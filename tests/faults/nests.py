"""The comparison of nests, by itself and as long as one likes; see `nests_run`.

    python -m tests.faults.nests --programs 5000 --loop uvloop
    python -m tests.faults.nests --seed 7 --only 123

Its exit status is 1 if something differs from Django's own backend.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from contextlib import nullcontext

from tests.faults.load import say, server_of_its_own, set_up


def main() -> int:
    """Compare on the server that --dsn or PGBACKEND_TEST_DSN names, or on one of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--programs", type=int, default=5_000)
    parser.add_argument("--only", type=int, help="the number of one program")
    parser.add_argument("--loop", default="asyncio", help="as tests/support/loops.py names them")
    parser.add_argument("--binding", action="store_true", help="with server_side_binding")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    given = parser.parse_args()
    say(f"seed {given.seed}")
    with nullcontext(given.dsn) if given.dsn else server_of_its_own() as dsn:
        set_up(dsn)
        # Its models need the applications.
        from tests.faults.nests_run import Nests
        from tests.support.loops import LOOPS

        with Nests(dsn, binding=given.binding) as nests:
            report = nests.run(
                LOOPS[given.loop],
                given.seed,
                programs=given.programs,
                only=given.only,
                progress=say,
            )
    say(str(report))
    return bool(report.differences)


if __name__ == "__main__":
    sys.exit(main())
