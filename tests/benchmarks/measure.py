"""One measurement: a process of a peer, watched from outside while it works."""

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.benchmarks import environments
from tests.benchmarks.peers import Peer
from tests.benchmarks.server import Look
from tests.benchmarks.works import Work

# How often a process is looked at, seconds.
INTERVAL = 0.1

# A process that takes longer than this, seconds, hangs.
TIMEOUT = 300.0


class Watch:
    """The most threads that a process had, and the most connections of its name."""

    def __init__(self, pid: int, name: str, look: Look) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._name = name
        self._look = look
        self.threads = 0
        self.connections = 0

    def sample(self) -> None:
        # The process may end meanwhile, and on macOS there is no /proc.
        with suppress(FileNotFoundError, ProcessLookupError):
            for line in self._status.read_text().splitlines():
                if line.startswith("Threads:"):
                    self.threads = max(self.threads, int(line.split()[1]))
        self.connections = max(self.connections, self._look.connections(self._name))


def measure(
    peer: Peer, work: Work, dsn: str, look: Look, *, seconds: float, warm_up: float
) -> dict[str, Any]:
    """Run *work* in a new process of *peer*; return its figures, or what went wrong."""
    name = f"bench-{os.getpid()}"
    spec = {
        "module": peer.module,
        "options": peer.options,
        "dsn": f"{dsn}",
        "pool": work.pool,
        "operation": work.operation,
        "arguments": work.arguments,
        "clients": work.clients,
        "repeat": work.repeat,
        "queries": work.queries,
        "kind": work.kind,
        "seconds": seconds,
        "warm_up": warm_up,
    }
    process = subprocess.Popen(
        [
            str(environments.python(peer.environment)),
            "-m",
            "tests.benchmarks.worker",
            json.dumps(spec),
        ],
        cwd=environments.ROOT,
        env={**os.environ, "PGAPPNAME": name, "BENCH_NAME": name},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watch = Watch(process.pid, name, look)
    deadline = time.monotonic() + TIMEOUT
    try:
        while True:
            try:
                answer, words = process.communicate(timeout=INTERVAL)
                break
            except subprocess.TimeoutExpired:
                watch.sample()
                if time.monotonic() > deadline:
                    return {"failed": f"it took more than {TIMEOUT:g} s"}
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    lines = answer.splitlines()
    if process.returncode or not lines:
        return {"failed": (words.strip().splitlines() or ["no answer"])[-1], "stderr": words}
    figures: dict[str, Any] = json.loads(lines[-1])
    if not figures.get("unsupported"):
        figures |= {"threads": watch.threads, "connections": watch.connections}
        if work.rows and figures.get("rps"):
            figures["rows_per_second"] = figures["rps"] * work.rows
    return figures
