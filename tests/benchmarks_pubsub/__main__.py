"""``python -m tests.benchmarks_pubsub``: see README.md here."""

import argparse
import contextlib
import datetime
import json
import os
import shlex
import signal
import sys
from importlib.metadata import version
from typing import Any

import psycopg

from tests.benchmarks import environments
from tests.benchmarks.__main__ import RESULTS, chosen, machine
from tests.benchmarks.server import Look, make_database, superuser
from tests.benchmarks_pubsub import report
from tests.benchmarks_pubsub.peers import PEERS, RAW, Peer
from tests.benchmarks_pubsub.run import Run
from tests.benchmarks_pubsub.works import FULL, WORKS, Work, Writers

# What is measured, or below it.
PACKAGES = (
    "django",
    "django-pgpubsub",
    "django-pgtrigger",
    "procrastinate",
    "pgqueuer",
    "django-tasks-db",
    "psycopg",
    "psycopg-pool",
    "greenlet",
    "asyncpg",
    "uvloop",
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks_pubsub")
    made.add_argument("--full", action="store_true", help="also the drain of 1,000,000 rows")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    made.add_argument("--warm-up", type=float, default=0.3, help="before each, seconds")
    made.add_argument("--limit", type=float, help="of a drain, seconds; 10, with --full 120")
    made.add_argument("--rate", type=float, help="messages a second where latency is measured")
    made.add_argument("--peers", nargs="*", metavar="PEER", help="names: all without")
    made.add_argument("--works", nargs="*", metavar="WORK", help="begins of names: all without")
    made.add_argument(
        "--dsn",
        default=os.environ.get("PGBACKEND_BENCH_DSN"),
        help="URL of a PostgreSQL superuser; databases bench_* are made anew there. Without it a"
        " server is started for the run",
    )
    return made


def selected(begins: list[str] | None, full: bool) -> list[Work]:
    """Return the works whose names begin so; exit if there are none for one of *begins*."""
    works = FULL if full else WORKS
    if begins is None:
        return works
    for begin in begins:
        if not any(work.name.startswith(begin) for work in FULL):
            sys.exit(f"There is no {begin}; there are: {', '.join(work.name for work in FULL)}")
    return [
        work
        for work in FULL
        if work.name in begins or (work in works and work.name.startswith(tuple(begins)))
    ]


@contextlib.contextmanager
def durable(dsn: str, given: bool) -> Any:
    """Have commits wait for the disk in the block, on a server that the run has started itself.

    What a NOTIFY costs is a lock that is held during the commit.
    """
    if given:
        yield
        return
    with psycopg.connect(dsn, autocommit=True) as conn:
        for value in (b"on", b"off"):
            for setting in (b"fsync", b"synchronous_commit"):
                conn.execute(b"ALTER SYSTEM SET %s = %s" % (setting, value))
            conn.execute("SELECT pg_reload_conf()")
            if value == b"on":
                yield


def main() -> None:
    options = parser().parse_args()
    # As Ctrl-C does: what was started ends, and what was measured is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers: list[Peer] = chosen(options.peers, PEERS)
    if options.peers is None:
        peers = [peer for peer in peers if peer.usual]
    options.limit = options.limit or (120.0 if options.full else 10.0)
    works = selected(options.works, options.full)
    began = datetime.datetime.now(datetime.UTC)
    folder = RESULTS / began.strftime("pubsub-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    about = machine()
    with superuser(options.dsn) as dsn, contextlib.closing(Look(dsn)) as look:
        about["postgresql"] = look.version()
        # A NOTIFY wakes all processes that listen in its database: each peer has its own.
        names = {peer.name: peer.database for peer in [*peers, PEERS[RAW]]}
        run = Run({name: make_database(dsn, each) for name, each in names.items()}, options)
        try:
            peers = run.prepare(peers)
            for work in works:
                if not isinstance(work, Writers):
                    run.work(work, peers)
            with durable(dsn, options.dsn is not None):
                for work in works:
                    if isinstance(work, Writers):
                        run.work(work, peers)
        finally:
            document = {
                "date": began.isoformat(timespec="seconds"),
                "minutes": (datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60,
                "command": shlex.join(["python", "-m", "tests.benchmarks_pubsub", *sys.argv[1:]]),
                "machine": about,
                "commit": environments.commit(),
                "versions": {name: version(name) for name in PACKAGES},
                "options": {**vars(options), "dsn": None},
                "results": run.results,
            }
            (folder / "results.json").write_text(json.dumps(document, indent=1))
    text = report.markdown(document)
    (folder / "report.md").write_text(text + "\n")
    print(f"\n{text}\n\nWritten to {folder}")


if __name__ == "__main__":
    main()
