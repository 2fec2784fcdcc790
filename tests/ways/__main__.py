"""Print how far three calls go, and how the CPU of calls compares with that of another version.

The versions take turns, round by round, each in a process of its own: the ratio is the median of
those of the rounds, since a machine may change its speed from one second to the next. The other
version is a commit of this repository, exported for the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proj import postgres

ROOT = Path(__file__).parents[2]

# The calls whose way is counted.
NAMES = ("aget", "atomic, aget", "atomic, select_for_update, save")

# What is asked of them: own calls, changes of file, look-ups of the state; None: nothing.
TARGETS: dict[str, tuple[int, int, int] | None] = {
    "aget": (45, 25, 1),
    "atomic, aget": (150, 70, 4),
    "atomic, select_for_update, save": None,
}

# How often one call is made in a round; some take long.
CALLS = 50
LONG = {"aiterator": 1, "iterator": 1, "bulk_create of 100": 10}


class Worker:
    """A process that makes the calls with the package in *folder*."""

    def __init__(self, folder: Path, database: dict[str, object]) -> None:
        # The tests are this version's; `-P` keeps the folder that is worked in from the path.
        path = os.pathsep.join([str(folder), str(ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.ways.worker", json.dumps(database)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process ended: see above")
        return line

    def ask(self, name: str, times: int) -> str:
        """Have the call *name* made so often; return what the process says of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}|{times}\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def exported(commit: str) -> Iterator[Path]:
    """Export the package as it is in *commit* to a folder, and yield that."""
    with tempfile.TemporaryDirectory(prefix="pgbackend-ways-") as folder:
        archive = subprocess.run(
            ["git", "archive", commit, "pgbackend"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)


@contextmanager
def databases(number: int) -> Iterator[list[dict[str, object]]]:
    """Start a server, and yield the settings of so many databases in it."""
    import psycopg

    with tempfile.TemporaryDirectory(prefix="pgbackend-ways-") as folder:
        server = postgres.start(Path(folder), {"fsync": "off"})
        try:
            given = {"HOST": postgres.LOOPBACK, "PORT": server.port, "USER": server.user}
            given["PASSWORD"] = server.password
            names = [f"ways_{number}" for number in range(number)]
            with psycopg.connect(server.url, autocommit=True) as conn:
                for name in names:
                    conn.execute(f"CREATE DATABASE {name}")
            yield [{**given, "NAME": name} for name in names]
        finally:
            postgres.stop(Path(folder))


def show_ways(worker: Worker) -> None:
    print(f"{'':32}{'own calls':>14}{'files':>7}{'changes':>12}{'bridged?':>10}{'whose?':>10}")
    for name in NAMES:
        calls, files, changes, bridged, states = json.loads(worker.ask(name, 0))
        target = TARGETS[name]
        wanted = ("", "", "") if target is None else tuple(f" of {each}" for each in target)
        print(
            f"{name:32}{f'{calls}{wanted[0]}':>14}{files:>7}{f'{changes}{wanted[1]}':>12}"
            f"{bridged:>10}{f'{states}{wanted[2]}':>10}"
        )


def compare(before: Worker, now: Worker, rounds: int, names: Sequence[str]) -> None:
    for name in names:
        times = LONG.get(name, CALLS)
        for worker in (before, now):
            worker.ask(name, times)
        ratios, least = [], [float("inf"), float("inf")]
        for turn in range(rounds):
            found = {}
            for worker in (before, now) if turn % 2 else (now, before):
                found[worker] = float(worker.ask(name, times))
            ratios.append(found[now] / found[before])
            least = [min(least[0], found[before]), min(least[1], found[now])]
        print(
            f"{name:32} CPU {statistics.median(ratios):.3f} of what it was"
            f" (least: {least[0]:.0f} us before, {least[1]:.0f} us now)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ways", description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="compare the CPU with that version's")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", nargs="+", default=NAMES, metavar="NAME", help="compare these")
    arguments = parser.parse_args()
    with databases(2) as (first, second), ExitStack() as stack:
        now = Worker(ROOT, first)
        stack.callback(now.stop)
        show_ways(now)
        if arguments.against:
            before = Worker(stack.enter_context(exported(arguments.against)), second)
            stack.callback(before.stop)
            compare(before, now, arguments.rounds, arguments.calls)


if __name__ == "__main__":
    main()
