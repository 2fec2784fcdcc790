"""The load test: a bank under load and faults, and whether its invariants hold afterwards.

    python -m tests.faults.load --seed 7 --operations 20000 --faults 200
    python -m tests.faults.load --minutes 60      # the same mix for an hour, or until Ctrl-C

200 tasks share a pool of 8. The seed decides each operation and each fault: what it is, which
operation it befalls, and at which suspension of it. Who meets whom is the server's business.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psycopg

from proj import postgres
from tests.support.loops import NAMES


def say(words: str) -> None:
    print(words, flush=True)


@contextmanager
def server_of_its_own() -> Iterator[str]:
    """Start a server and return its URL; stop it when the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="pgbackend-load-"))
    try:
        server = postgres.start(folder, {"max_connections": 200, "fsync": "off"})
        try:
            yield server.url
        finally:
            postgres.stop(folder)
    finally:
        shutil.rmtree(folder)


def set_up(dsn: str) -> None:
    """Make the database anew and set Django up for it."""
    from tests.support.server import DATABASES

    os.environ["PGBACKEND_TEST_DSN"] = dsn
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {DATABASES[0]} WITH (FORCE)")
        conn.execute(f"CREATE DATABASE {DATABASES[0]}")
    import django

    django.setup()


def main() -> int:
    """Run the load on the server that --dsn or PGBACKEND_TEST_DSN names, or on one of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--faults", type=int, default=200, help="among --operations")
    parser.add_argument("--loop", choices=NAMES, default=NAMES[0])
    parser.add_argument("--minutes", type=float, help="run so long, whatever --operations says")
    parser.add_argument("--dsn", default=os.environ.get("PGBACKEND_TEST_DSN"))
    given = parser.parse_args()
    say(f"seed {given.seed}")
    with nullcontext(given.dsn) if given.dsn else server_of_its_own() as dsn:
        set_up(dsn)
        # Its models need the applications.
        from tests.faults.load_run import Load

        report = Load(
            given.seed,
            given.operations,
            given.faults,
            loop=given.loop,
            minutes=given.minutes,
            progress=say,
        ).run()
    say(str(report))
    return bool(report.broken)


if __name__ == "__main__":
    sys.exit(main())
