"""The measurements of a run: rounds in which each peer has a turn, on one server."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks.__main__ import shuffled
from tests.benchmarks.measure import Process, WorkerFailed
from tests.benchmarks_pubsub.peers import PEERS, RAW, Peer
from tests.benchmarks_pubsub.works import RATE, Channels, Drain, Latency, Work, Writers

# How long to wait for messages that did not come, seconds.
PATIENCE = 5.0

# How long it may take until a worker hears its first message, seconds.
START = 60.0

# How long any answer may take, seconds; that a queue of a million rows was filled among them.
ANSWER = 1800.0

Turn = Callable[[], dict[str, Any]]


def start(peer: Peer, role: str, dsn: str, connections: int = 2, **spec: Any) -> Process:
    """Return a process of *peer*, which will say when it is ready."""
    return Process(
        Path(sys.executable),
        "tests.benchmarks_pubsub.worker",
        {
            "peer": peer.apps or peer.name,
            "module": peer.module,
            "options": peer.options,
            "engine": peer.engine,
            "dsn": dsn,
            "role": role,
            "connections": connections,
            **spec,
        },
        {},
    )


def ask(process: Process, **words: Any) -> dict[str, Any]:
    """Return the answer to a line."""
    process.tell(words)
    return process.answer(ANSWER)


class Run:
    """All measurements of a run; *databases* are the addresses of the peers' own."""

    def __init__(self, databases: dict[str, str], options: Any) -> None:
        self.databases = databases
        self.options = options
        self.results: list[dict[str, Any]] = []
        # What each can do, which it says when it makes its tables.
        self.abilities: dict[str, dict[str, Any]] = {}

    def prepare(self, peers: list[Peer]) -> list[Peer]:
        """Make the tables; return the peers that could."""
        able = []
        for peer in peers:
            with contextlib.closing(start(peer, "prepare", self.databases[peer.name])) as process:
                try:
                    self.abilities[peer.name] = process.answer()
                except WorkerFailed as error:
                    print(f"{peer.name}: no tables: {error}", flush=True)
                else:
                    able.append(peer)
        return able

    def add(self, work: Work, peer: Peer, number: int, figures: dict[str, Any]) -> None:
        """Keep what was measured, and say it."""
        self.results.append(
            {"kind": "pubsub", "peer": peer.name, "work": work.name, "round": number, **figures}
        )
        words = figures.get("failed")
        if words is None:
            shown = ("p50", "p99", "rps", "first", "last", "lost", "listening", "cut")
            words = "  ".join(f"{each}={figures[each]:.5g}" for each in shown if figures.get(each))
        print(f"{number}  {work.name:42} {peer.name:20} {words}", flush=True)

    def work(self, work: Work, peers: list[Peer]) -> None:
        """Measure a work: all peers that can, in rounds."""
        able = [peer for peer in peers if self._can(peer, work)]
        with contextlib.ExitStack() as processes:
            turns: dict[str, Turn] = {}
            for peer in able:
                try:
                    turns[peer.name] = processes.enter_context(self._turn(peer, work))
                except WorkerFailed as error:
                    self.add(work, peer, 1, {"failed": f"{error}"})
            rounds = min(self.options.rounds, getattr(work, "rounds", None) or 100)
            for number in range(1, rounds + 1):
                for name in shuffled(list(turns), number):
                    try:
                        figures = turns[name]()
                    except WorkerFailed as error:
                        figures = {"failed": f"{error}"}
                        del turns[name]
                    self.add(work, PEERS[name], number, figures)

    def _can(self, peer: Peer, work: Work) -> bool:
        ability = self.abilities[peer.name]
        match work:
            case Latency():
                return work.kind in ability["kinds"]
            case Drain():
                return bool(ability["can_drain"])
            case Channels():
                return bool(ability["many"])
            case Writers():
                return work.wake in ability["wakes"]

    @contextlib.contextmanager
    def _turn(self, peer: Peer, work: Work) -> Iterator[Turn]:
        """Yield what gives the peer a turn; its processes stand by until the block ends."""
        match work:
            case Latency():
                made = self._latency(peer, work)
            case Drain():
                made = self._drain(peer, work)
            case Channels():
                made = self._channels(peer, work)
            case Writers():
                made = self._writers(peer, work)
        with made as turn:
            yield turn

    @contextlib.contextmanager
    def _latency(self, peer: Peer, work: Latency) -> Iterator[Turn]:
        dsn = self.databases[peer.name]
        with contextlib.ExitStack() as processes:
            plain = work.kind == "plain"
            sender = start(PEERS[RAW] if plain else peer, "send", dsn)
            processes.callback(sender.close)
            worker = start(peer, "listen", dsn, kind=work.kind)
            processes.callback(worker.close)
            words: dict[str, Any] = {"do": "send", "kind": work.kind}
            began = worker.answer()["began"]
            sender.answer()
            if plain:
                words["wire"] = ask(worker, do="wire", count=1)["wire"]
            # It listens when it hears the first message.
            once = {**words, "rate": 1e3, "warm_up": 0.0, "seconds": 0.001}
            deadline = time.monotonic() + START
            while not ask(worker, do="samples", since=began, count=1, timeout=0.1)["messages"]:
                ask(sender, **once)
                if time.monotonic() > deadline:
                    raise WorkerFailed("its handler was never called")

            def turn() -> dict[str, Any]:
                sent = ask(
                    sender,
                    **words,
                    rate=self.options.rate or RATE,
                    warm_up=self.options.warm_up,
                    seconds=self.options.seconds,
                )
                return ask(worker, do="samples", timeout=PATIENCE, **sent)

            yield turn

    @contextlib.contextmanager
    def _drain(self, peer: Peer, work: Drain) -> Iterator[Turn]:
        dsn = self.databases[peer.name]
        processes: list[Process] = []

        def process() -> Process:
            if not processes:
                processes.append(start(peer, "drain", dsn))
                processes[0].answer()
                # What is imported and compiled at the first use.
                ask(processes[0], do="clear")
                ask(processes[0], do="fill", rows=200)
                ask(processes[0], do="drain", limit=60.0)
            return processes[0]

        def turn() -> dict[str, Any]:
            with contextlib.ExitStack() as stack:
                ask(process(), do="clear")
                ask(process(), do="fill", rows=work.rows)
                ask(process(), do="settle")
                if work.beside:
                    other = stack.enter_context(psycopg.connect(dsn))
                    other.execute("SELECT pg_current_xact_id(), pg_current_snapshot()")
                figures = ask(process(), do="drain", limit=self.options.limit)
            if figures.get("cut"):
                processes.pop().close()
            elif figures["messages"] != work.rows:
                raise WorkerFailed(f"{figures['messages']} of {work.rows} were handled")
            return figures

        try:
            yield turn
        finally:
            for each in processes:
                each.close()

    @contextlib.contextmanager
    def _channels(self, peer: Peer, work: Channels) -> Iterator[Turn]:
        dsn = self.databases[peer.name]

        def turn() -> dict[str, Any]:
            with contextlib.ExitStack() as stack:
                sender = start(PEERS[RAW], "send", dsn)
                stack.callback(sender.close)
                sender.answer()
                worker = start(peer, "many", dsn, channels=work.channels)
                stack.callback(worker.close)
                began = worker.answer()["began"]
                return self._many(worker, sender, work, began)

        yield turn

    def _many(self, worker: Process, sender: Process, work: Channels, began: int) -> dict[str, Any]:
        """Return when all channels were listened to, and how long messages to any of them took."""
        wire = ask(worker, do="wire", count=work.channels)["wire"]
        probe = {"do": "send", "kind": "plain", "wire": wire[-1:], "warm_up": 0.0}
        deadline = time.monotonic() + START
        while True:
            # The first probes find nobody.
            last = ask(sender, **probe, rate=1e3, seconds=0.001)["since"]
            if ask(worker, do="samples", since=began, count=1, timeout=0.02)["messages"]:
                break
            if time.monotonic() > deadline:
                raise WorkerFailed("its handler was never called")
        listening = (last - began) / 1e9
        words = {"do": "send", "kind": "plain", "wire": wire, "rate": self.options.rate or RATE}
        sent = ask(sender, **words, warm_up=self.options.warm_up, seconds=self.options.seconds * 2)
        figures = ask(worker, do="samples", timeout=PATIENCE, **sent)
        return {**figures, "listening": listening}

    @contextlib.contextmanager
    def _writers(self, peer: Peer, work: Writers) -> Iterator[Turn]:
        with contextlib.closing(
            start(peer, "send", self.databases[peer.name], connections=work.writers)
        ) as process:
            process.answer()

            def turn() -> dict[str, Any]:
                ask(process, do="clear")
                return ask(
                    process,
                    do="send",
                    writers=work.writers,
                    wake=work.wake,
                    warm_up=self.options.warm_up,
                    seconds=self.options.seconds,
                )

            yield turn
