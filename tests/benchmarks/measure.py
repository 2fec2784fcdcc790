"""The processes of peers, watched from outside while they work."""

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable
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

# So long it may take to end, seconds.
STOP_TIMEOUT = 10.0


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


class WorkerFailed(Exception):
    """A process of a peer ended, or said nothing for too long."""


class Process:
    """A process that answers lines of JSON with lines of JSON: ``-m`` *module* with a *spec*.

    *watch* is called with its id; what that returns is called ten times a second while it works.
    """

    def __init__(
        self,
        python: Path,
        module: str,
        spec: dict[str, Any],
        environment: dict[str, str],
        watch: Callable[[int], Callable[[], None]] = lambda pid: lambda: None,
    ) -> None:
        # Not a pipe: nobody reads it meanwhile.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self._process = subprocess.Popen(
            [str(python), "-m", module, json.dumps(spec)],
            cwd=environments.ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        self._said = b""
        self._sample = watch(self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, words: dict[str, Any]) -> None:
        """Send a line; raise `WorkerFailed` if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self._last_words()) from None

    def answer(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the next line that it says, watching it meanwhile; raise `WorkerFailed`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            line, newline, rest = self._said.partition(b"\n")
            if newline:
                self._said = rest
                answer: dict[str, Any] = json.loads(line)
                return answer
            if not select.select([self._process.stdout], [], [], INTERVAL)[0]:
                self._sample()
                if time.monotonic() > deadline:
                    raise WorkerFailed(f"it took more than {timeout:g} s")
            elif not (read := os.read(self._process.stdout.fileno(), 65536)):
                raise WorkerFailed(self._last_words())
            else:
                self._said += read

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "no answer")

    def close(self) -> None:
        """End the process, by the end of what it reads; kill one that goes on."""
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=STOP_TIMEOUT)
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self._stderr.close()


class Worker(Process):
    """A process of *peer* for *work*, which is asked for one turn after the other."""

    def __init__(self, peer: Peer, work: Work, dsn: str, look: Look) -> None:
        self.peer = peer
        self.work = work
        # Those of other peers stand by.
        name = f"bench-{os.getpid()}-{peer.name}"[:63]
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
        }

        def watch(pid: int) -> Callable[[], None]:
            self._watch = Watch(pid, name, look)
            return self._watch.sample

        python = environments.python(peer.environment)
        names = {"PGAPPNAME": name, "BENCH_NAME": name}
        super().__init__(python, "tests.benchmarks.worker", spec, names, watch)

    def is_ready(self) -> bool:
        """Wait until it is; return False if the peer cannot do that, raise `WorkerFailed`."""
        return "ready" in self.answer()

    def turn(self, *, seconds: float, warm_up: float) -> dict[str, Any]:
        """Return what was measured in a turn; raise `WorkerFailed`."""
        self.tell({"seconds": seconds, "warm_up": warm_up})
        figures = self.answer()
        figures |= {"threads": self._watch.threads, "connections": self._watch.connections}
        if self.work.rows and figures.get("rps"):
            figures["rows_per_second"] = figures["rps"] * self.work.rows
        return figures
