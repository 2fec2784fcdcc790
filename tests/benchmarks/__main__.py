"""``python -m tests.benchmarks``: see README.md here."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, TypeVar

from tests.benchmarks import environments, http, report
from tests.benchmarks.measure import Worker, WorkerFailed
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.server import Look, serve
from tests.benchmarks.works import MORE, SWEEPS, TARGETS, Sweep, Work

T = TypeVar("T")

# Git ignores this folder.
RESULTS = environments.ROOT / ".benchmarks"


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except FileNotFoundError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    made.add_argument(
        "--full",
        action="store_true",
        help="the other works and all sweeps, with plots, instead of what the targets are about",
    )
    made.add_argument("--rounds", type=int, help="7 without, with --full 3")
    made.add_argument("--seconds", type=float, default=0.5, help="of each turn")
    made.add_argument("--warm-up", type=float, default=0.2, help="before each, seconds")
    made.add_argument("--peers", nargs="*", metavar="PEER", help="names: all without")
    made.add_argument(
        "--works",
        nargs="*",
        metavar="WORK",
        help="names: those of the targets without, the others with --full",
    )
    made.add_argument(
        "--views",
        nargs="*",
        metavar="VIEW",
        help="names, over HTTP: all without, none with --full",
    )
    made.add_argument(
        "--sweeps", nargs="*", metavar="SWEEP", help="names: none without, all with --full"
    )
    made.add_argument(
        "--loop", choices=["asyncio", "uvloop"], default="asyncio", help="uvicorn's event loop"
    )
    made.add_argument(
        "--dsn",
        default=os.environ.get("PGBACKEND_BENCH_DSN"),
        help="URL of a PostgreSQL superuser; the database pgbackend_benchmarks is made anew there."
        " Without it a server is started for the run",
    )
    return made


def chosen(names: list[str] | None, known: dict[str, Any]) -> list[Any]:
    """Return those with *names*, all if there are none; exit for an unknown name."""
    if names is None:
        return list(known.values())
    if unknown := sorted(set(names) - known.keys()):
        sys.exit(f"There is no {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in names]


def shuffled(each: list[T], number: int) -> list[T]:
    """Return them in an order of the round's: what one leaves behind shall not be always one's."""
    return random.Random(number).sample(each, len(each))


class Run:
    """All measurements of a run."""

    def __init__(self, options: argparse.Namespace, dsn: str, look: Look) -> None:
        self.options = options
        self.dsn = dsn
        self.look = look
        self.results: list[dict[str, Any]] = []

    def add(self, kind: str, peer: Peer, work: str, number: int, figures: dict[str, Any]) -> None:
        self.results.append(
            {"kind": kind, "peer": peer.name, "work": work, "round": number, **figures}
        )
        words = figures.get("failed") or (
            "not supported"
            if figures.get("unsupported")
            else f"{figures['rps']:9.1f} /s  {(figures.get('cpu_per_query') or 0) * 1e6:7.0f} us"
            + (f"  {figures['errors']} errors: {figures['error']}" if figures["errors"] else "")
        )
        print(f"{number}  {work:32} {peer.name:26} {words}", flush=True)

    def works(self, kind: str, works: list[Work], peers: list[Peer], rounds: int) -> None:
        """Measure each work in rounds, a turn of each peer in each; all processes stand by."""
        peers = [peer for peer in peers if peer.module]
        for work in works:
            with contextlib.ExitStack() as processes:
                workers = []
                for peer in peers:
                    workers.append(Worker(peer, work, self.dsn, self.look))
                    processes.callback(workers[-1].close)
                # All, before any has a turn.
                workers = [worker for worker in workers if self.is_ready(kind, worker)]
                if work.kind == "steady":
                    self.round(kind, work, 0, workers)
                for number in range(1, min(rounds, work.rounds or rounds) + 1):
                    self.round(kind, work, number, workers)
                    self.look.clean_up()

    def is_ready(self, kind: str, worker: Worker) -> bool:
        try:
            if worker.is_ready():
                return True
            figures: dict[str, Any] = {"unsupported": True}
        except WorkerFailed as error:
            figures = {"failed": f"{error}"}
        self.add(kind, worker.peer, worker.work.name, 1, figures)
        return False

    def round(self, kind: str, work: Work, number: int, workers: list[Worker]) -> None:
        """Give each of *workers* a turn, and drop those that fail; the round 0 does not count."""
        for worker in shuffled(workers, number):
            try:
                figures = worker.turn(seconds=self.options.seconds, warm_up=self.options.warm_up)
            except WorkerFailed as error:
                figures = {"failed": f"{error}"}
                workers.remove(worker)
            if number or "failed" in figures:
                self.add(kind, worker.peer, work.name, number, figures)

    def sweep(self, sweep: Sweep, peers: list[Peer], rounds: int) -> None:
        """Do a work at every point of a sweep."""
        peers = [peer for peer in peers if not sweep.peers or peer.name in sweep.peers]
        self.works(f"sweep over {sweep.name}", list(sweep.points.values()), peers, rounds)

    def views(self, views: list[http.View], peers: list[Peer], rounds: int) -> None:
        """Measure each view in rounds, as `works` does."""
        peers = [peer for peer in peers if peer.engine]
        if not peers or not views:
            return
        sessions = http.prepare(self.dsn)
        # wrk counts in whole seconds, and calibrates itself in the first half.
        seconds, warm_up = max(2.0, self.options.seconds), max(1.0, self.options.warm_up)
        for view in views:
            with contextlib.ExitStack() as processes:
                sites = []
                for peer in peers:
                    served = http.served(
                        peer,
                        view,
                        sessions,
                        self.dsn,
                        self.look,
                        loop=self.options.loop,
                        warm_up=warm_up,
                    )
                    try:
                        sites.append(processes.enter_context(served))
                    except (RuntimeError, OSError) as error:
                        self.add("http", peer, view.name, 1, {"failed": f"{error}"})
                for number in range(1, rounds + 1):
                    for site in shuffled(sites, number):
                        try:
                            figures = http.measure(site, view, sessions, seconds)
                        except (RuntimeError, OSError) as error:
                            figures = {"failed": f"{error}"}
                            sites.remove(site)
                        self.add("http", site.peer, view.name, number, figures)


def main() -> None:
    options = parser().parse_args()
    # As Ctrl-C does: what was started ends, and what was measured is kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers: list[Peer] = chosen(options.peers, PEERS)
    if options.peers is None:
        peers = [peer for peer in peers if peer.usual]
    options.rounds = options.rounds or (3 if options.full else 7)
    works: list[Work] = list(MORE if options.full else TARGETS)
    if options.works is not None:
        works = chosen(options.works, {work.name: work for work in [*TARGETS, *MORE]})
    views: list[http.View] = []
    if options.views is not None or not options.full:
        views = chosen(options.views, {view.name: view for view in http.VIEWS})
    sweeps: list[Sweep] = []
    if options.sweeps is not None or options.full:
        sweeps = chosen(options.sweeps, {sweep.name: sweep for sweep in SWEEPS})
    for peer in peers:
        environments.python(peer.environment)
    began = datetime.datetime.now(datetime.UTC)
    folder = RESULTS / began.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    about = machine()
    with serve(options.dsn) as dsn, contextlib.closing(Look(dsn)) as look:
        about["postgresql"] = look.version()
        run = Run(options, dsn, look)
        try:
            run.works("orm", works, peers, options.rounds)
            run.views(views, peers, options.rounds)
            for sweep in sweeps:
                run.sweep(sweep, peers, options.rounds)
        finally:
            # What was measured is kept, also if the run is interrupted.
            document = {
                "date": began.isoformat(timespec="seconds"),
                "minutes": (datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60,
                "command": shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]]),
                "machine": about,
                "commit": environments.commit(),
                "versions": environments.versions(),
                "options": {**vars(options), "dsn": None},
                "results": run.results,
            }
            (folder / "results.json").write_text(json.dumps(document, indent=1))
    text, part = report.markdown(document), report.for_readme(document)
    if sweeps:
        # matplotlib is in the extra `bench`; nothing else needs it.
        from tests.benchmarks import plots

        text += plots.draw(document, folder)
        part += plots.words(document)
    (folder / "report.md").write_text(text)
    (folder / "readme.md").write_text(part + "\n")
    print(f"\n{text}\nWritten to {folder}")


if __name__ == "__main__":
    main()
