"""The HTTP works: one process of uvicorn or gunicorn, loaded by wrk, or by a client of our own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import environments
from tests.benchmarks.measure import INTERVAL, Watch
from tests.benchmarks.peers import PEERS, Peer
from tests.benchmarks.server import Look

CONNECTIONS = 20

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0


@dataclass(frozen=True)
class View:
    """A view under load; *queries* by which CPU time is divided."""

    name: str
    path: str
    queries: int


VIEWS = [
    View("HTTP, JSON, 1 query", "/json/1/", 1),
    View("HTTP, JSON, 5 queries", "/json/5/", 5),
    View("HTTP, JSON, 20 queries", "/json/20/", 20),
    # The session read and written in a transaction, the user, the list.
    View("HTTP, HTML with session, user and template", "/html/", 4),
    View("HTTP, synchronous view, 5 queries", "/sync/", 5),
]


def _environ(peer: Peer, dsn: str, name: str) -> dict[str, str]:
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.benchmarks.settings",
        "PGAPPNAME": name,
        "BENCH_NAME": name,
        "BENCH_DSN": dsn,
        "BENCH_ENGINE": peer.engine,
        "BENCH_OPTIONS": json.dumps(peer.engine_options),
        "BENCH_APPS": json.dumps(peer.apps),
        "BENCH_SYNCHRONOUS": "1" if peer.workers else "",
    }


def _server(peer: Peer, loop: str) -> tuple[str, ...]:
    """Return the command of a server with one process, which says where it listens."""
    if not peer.workers:
        return (
            *("uvicorn", "tests.benchmarks.site:application", "--port=0"),
            *(f"--loop={loop}", "--http=httptools", "--no-access-log", "--lifespan=off"),
        )
    return (
        *("gunicorn", "tests.benchmarks.site:application", "--bind=127.0.0.1:0", "--workers=1"),
        *(f"--worker-class={peer.workers}", f"--threads={peer.threads}", "--keep-alive=75"),
    )


def prepare(dsn: str) -> list[str]:
    """Make Django's tables and a user; return the keys of sessions of the user's."""
    stock = PEERS["django"]
    done = subprocess.run(
        [environments.python(stock.environment), "-m", "tests.benchmarks.prepare_site"],
        cwd=environments.ROOT,
        env=_environ(stock, dsn, "bench-prepare"),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.split()


class Site:
    """A server with the site, for one peer."""

    def __init__(self, peer: Peer, dsn: str, look: Look, loop: str) -> None:
        self.peer = peer
        # Those of other peers stand by.
        name = f"bench-site-{os.getpid()}-{peer.name}"[:63]
        # Not a pipe: nobody reads it while the site is loaded.
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        self.process = subprocess.Popen(
            [str(environments.python(peer.environment)), "-m", *_server(peer, loop)],
            cwd=environments.ROOT,
            env=_environ(peer, dsn, name),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.name, self.look = name, look
        # The process that answers.
        self.pid = self.process.pid
        self.watch = Watch(self.pid, name, look)
        self.port = 0
        self.memory_before: int | None = None

    def wait_until_served(self) -> None:
        """Read where it listens; raise RuntimeError if it ends, or does not within a minute."""
        deadline = time.monotonic() + START_TIMEOUT
        while self.process.poll() is None and time.monotonic() < deadline:
            if address := re.search(r"http://127\.0\.0\.1:(\d+)", self.said()):
                self.port = int(address[1])
                return
            time.sleep(INTERVAL / 2)
        raise RuntimeError(f"the server did not start: {self.said()}")

    def said(self) -> str:
        """Return what it has written so far."""
        # Its own file offset is the process's, too: read without moving it.
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def check(self, path: str, session: str) -> None:
        """Ask for a page; raise for any other status than 200."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", headers={"Cookie": f"sessionid={session}"}
        )
        with urllib.request.urlopen(request, timeout=START_TIMEOUT) as response:
            body = response.read()
        if path == "/html/" and b"<p>bench, visit" not in body:
            raise RuntimeError(f"the page does not know its user: {body[:300]!r}")
        if self.peer.workers and (worker := self._worker()) is not None:
            # gunicorn's first process only looks after its worker.
            self.pid = worker
            self.watch = Watch(self.pid, self.name, self.look)

    def _worker(self) -> int | None:
        """Return the process id of gunicorn's worker; None where there is no /proc."""
        pid = self.process.pid
        try:
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def cpu(self) -> float | None:
        """Return the CPU seconds of the process so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, field: str) -> int | None:
        """Return VmRSS or VmHWM, bytes; None where there is no /proc."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            return None
        found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@contextmanager
def served(
    peer: Peer, view: View, sessions: list[str], dsn: str, look: Look, *, loop: str, warm_up: float
) -> Iterator[Site]:
    """Serve the site for *peer*, whose *view* has answered for *warm_up* seconds."""
    site = Site(peer, dsn, look, loop)
    try:
        site.wait_until_served()
        site.check(view.path, sessions[0])
        site.memory_before = site.memory("VmRSS")
        if warm_up:
            run_client(site, view.path, sessions, warm_up)
        yield site
    finally:
        site.stop()


def load_command(site: Site, path: str, sessions: list[str], seconds: float) -> list[str]:
    """Return the command of a client: wrk's if there is one."""
    if wrk := shutil.which("wrk"):
        return [
            wrk,
            *("--threads", "1", "--connections", str(CONNECTIONS), "--latency"),
            *("--duration", f"{round(seconds)}s", "--timeout", "30s"),
            *("--script", str(Path(__file__).with_name("wrk.lua"))),
            f"http://127.0.0.1:{site.port}{path}",
            "--",
            *sessions,
        ]
    return [
        sys.executable,
        *("-m", "tests.benchmarks.client", str(site.port), path, str(CONNECTIONS)),
        str(seconds),
        *sessions,
    ]


def measure(site: Site, view: View, sessions: list[str], seconds: float) -> dict[str, Any]:
    """Load *view* for *seconds* and return the figures; raise RuntimeError, OSError."""
    cpu = site.cpu()
    figures = run_client(site, view.path, sessions, seconds)
    if not figures["requests"]:
        raise RuntimeError(f"no request ended within {seconds:g} s")
    cpu_after = site.cpu()
    if cpu is not None and cpu_after is not None:
        figures["cpu_per_query"] = (cpu_after - cpu) / figures["requests"] / view.queries
    return figures | {
        "memory_before": site.memory_before,
        "memory_peak": site.memory("VmHWM"),
        "threads": site.watch.threads,
        "connections": site.watch.connections,
    }


def run_client(site: Site, path: str, sessions: list[str], seconds: float) -> dict[str, Any]:
    """Load a page for *seconds*, watching the server meanwhile."""
    command = load_command(site, path, sessions, seconds)
    client = subprocess.Popen(command, cwd=environments.ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + seconds + START_TIMEOUT
    try:
        while True:
            try:
                answer, _ = client.communicate(timeout=INTERVAL)
                break
            except subprocess.TimeoutExpired:
                site.watch.sample()
                if time.monotonic() > deadline:
                    raise RuntimeError("the client did not end") from None
    finally:
        if client.poll() is None:
            client.kill()
            client.communicate()
    if client.returncode:
        raise RuntimeError(f"{command[0]} failed")
    if command[0].endswith("wrk"):
        return of_wrk(answer)
    figures: dict[str, Any] = json.loads(answer)
    return figures


_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


def of_wrk(answer: str) -> dict[str, Any]:
    """Return the figures in what wrk prints."""

    def percentile(share: int) -> float | None:
        found = re.search(rf"^\s+{share}%\s+([\d.]+)(us|ms|s|m)\s*$", answer, re.MULTILINE)
        return float(found[1]) * _UNITS[found[2]] if found else None

    total = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", answer)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", answer)
    if total is None or rate is None:
        raise RuntimeError(f"wrk said: {answer}")
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", answer)
    broken = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", answer
    )
    return {
        "seconds": float(total[2]) * _UNITS[total[3]],
        "requests": int(total[1]),
        "rps": float(rate[1]),
        "p50": percentile(50),
        "p90": percentile(90),
        "p99": percentile(99),
        "errors": (int(errors[1]) if errors else 0)
        + (sum(map(int, broken.groups())) if broken else 0),
        "error": "statuses that are not 200, or broken connections",
    }
