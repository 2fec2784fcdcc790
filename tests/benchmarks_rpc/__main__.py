"""``python -m tests.benchmarks_rpc``: see README.md here."""

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

from tests.benchmarks import environments
from tests.benchmarks.__main__ import RESULTS, chosen, machine
from tests.benchmarks.server import Look, make_database, superuser
from tests.benchmarks_rpc import report
from tests.benchmarks_rpc.peers import PEERS
from tests.benchmarks_rpc.run import Run
from tests.benchmarks_rpc.works import WORKS
from tests.support.brokers import Redis

PACKAGES = ("django", "psycopg", "greenlet", "celery", "kombu", "redis", "httpx", "uvicorn")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks_rpc")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    made.add_argument("--warm-up", type=float, default=0.2, help="before each, seconds")
    made.add_argument("--peers", nargs="*", metavar="PEER", help="names: all without")
    made.add_argument("--works", nargs="*", metavar="WORK", help="begins of names: all without")
    made.add_argument(
        "--dsn",
        default=os.environ.get("PGBACKEND_BENCH_DSN"),
        help="URL of a PostgreSQL superuser; the database bench_rpc is made anew there. Without it"
        " a server is started for the run",
    )
    return made


def main() -> None:
    options = parser().parse_args()
    # As Ctrl-C does: what was started ends, and what was measured is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = chosen(options.peers, PEERS)
    begins = tuple(options.works or [""])
    works = [work for work in WORKS if work.name.startswith(begins)]
    began = datetime.datetime.now(datetime.UTC)
    folder = RESULTS / began.strftime("rpc-%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    about: dict[str, Any] = machine()
    with (
        superuser(options.dsn) as dsn,
        contextlib.closing(Look(dsn)) as look,
        Redis() as broker,
    ):
        about["postgresql"] = look.version()
        run = Run(make_database(dsn, "bench_rpc"), broker.url, options)
        run.prepare()
        try:
            run.measure(peers, works)
        finally:
            report.compare(run.results)
            document = {
                "date": began.isoformat(timespec="seconds"),
                "minutes": (datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60,
                "command": shlex.join(["python", "-m", "tests.benchmarks_rpc", *sys.argv[1:]]),
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
