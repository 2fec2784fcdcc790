"""The fuzz of blocks, by itself and as long as one likes; see `blocks_run`.

    python -m tests.faults.blocks --blocks 10000 --loop uvloop
    python -m tests.faults.blocks --seed 7 --blocks 500

It ends when so many blocks have raised. Its exit status is 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from contextlib import nullcontext

from tests.faults.load import say, server_of_its_own, set_up


def main() -> int:
    """Run the fuzz on the server that --dsn or PGBACKEND_TEST_DSN names, or on one of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--blocks", type=int, default=10_000, help="that raise")
    parser.add_argument("--loop", default="asyncio", help="asyncio or uvloop")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    given = parser.parse_args()
    say(f"seed {given.seed}")
    with nullcontext(given.dsn) if given.dsn else server_of_its_own() as dsn:
        set_up(dsn)
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", run_syncdb=True, verbosity=0)
        for each in connections.all():
            each.close()
            each.close_pool()
        # Its models need the applications.
        from tests.faults.blocks_run import Fuzz
        from tests.support.loops import LOOPS

        report = Fuzz(given.seed, given.blocks, progress=say).run(LOOPS[given.loop])
    say(str(report))
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())
