"""The measurements of a run: rounds in which each peer has a turn, on the same servers."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks import environments
from tests.benchmarks.__main__ import shuffled
from tests.benchmarks.measure import Process, WorkerFailed
from tests.benchmarks_rpc.client import ROWS
from tests.benchmarks_rpc.peers import Peer
from tests.benchmarks_rpc.works import WORKS, Work
from tests.faults.fix_servers import free_port

# How long a service may take to start, seconds.
START = 60.0

_ROWS = f"""
INSERT INTO rpc_site_station (name, safe_code)
SELECT 'station ' || n, '0000' FROM generate_series(1, {ROWS}) AS n
"""


class Run:
    """All measurements of a run, with the database at *dsn* and the Redis at *broker*."""

    def __init__(self, dsn: str, broker: str, options: Any) -> None:
        self.options = options
        self.environ = {
            "BENCH_DSN": dsn,
            "BENCH_BROKER": broker,
            "BENCH_ENGINE": "pgbackend",
            "DJANGO_SETTINGS_MODULE": "tests.benchmarks_rpc.settings",
            "PYTHONPATH": str(environments.ROOT),
        }
        self.results: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Make the tables, and their rows."""
        command = [
            sys.executable,
            "-m",
            "django",
            "migrate",
            "--run-syncdb",
            "-v",
            "0",
            "--skip-checks",
        ]
        environ = {**os.environ, **self.environ}
        subprocess.run(command, env=environ, cwd=environments.ROOT, check=True)
        with psycopg.connect(self.environ["BENCH_DSN"], autocommit=True) as conn:
            conn.execute(_ROWS.encode())
            conn.execute("ANALYZE")

    @contextlib.contextmanager
    def _service(self, peer: Peer) -> Iterator[tuple[int, dict[str, Any]]]:
        """Run the service of *peer*; yield its process id and the settings of its clients."""
        options = dict(peer.options)
        command = list(peer.service)
        if options.get("TRANSPORT") == "http":
            port = free_port()
            command += ["--port", f"{port}"]
            options["URL"] = f"http://127.0.0.1:{port}/rpc/"
        elif options.get("TRANSPORT") == "postgres":
            options["DATABASE"] = "default"
        if "celery" in command:
            command += ["-n", f"{time.monotonic_ns()}@bench"]
        environ = {**os.environ, **self.environ, "BENCH_ENGINE": peer.engine}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=environ,
                cwd=environments.ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                yield process.pid, options
            finally:
                process.terminate()
                try:
                    process.wait(START)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                log.seek(0)
                for line in log.read().decode(errors="replace").splitlines():
                    if "ERROR" in line or "Traceback" in line:
                        print(f"{peer.name}: {line}", flush=True)

    def _client(self, peer: Peer, options: dict[str, Any]) -> Process:
        is_ours = "TRANSPORT" in options
        spec = {
            "module": peer.module,
            "options": {} if is_ours else options,
            "kinds": [work.kind for work in WORKS],
        }
        environ = {**self.environ, "BENCH_ENGINE": peer.engine}
        if is_ours:
            environ["BENCH_SERVICE"] = json.dumps({**options, "TIMEOUT": START})
        return Process(Path(sys.executable), "tests.benchmarks_rpc.client", spec, environ)

    def measure(self, peers: list[Peer], works: list[Work]) -> None:
        """Give each peer its turn in each work, round by round; all services stand by."""
        with contextlib.ExitStack() as stack:
            clients: dict[str, tuple[Process, list[str], int]] = {}
            for peer in peers:
                pid, options = stack.enter_context(self._service(peer))
                client = self._client(peer, options)
                stack.callback(client.close)
                clients[peer.name] = client, client.answer()["kinds"], pid
            for client, *_ in clients.values():
                # The first answer comes when the service has started.
                client.tell({"kind": "thread", "size": 1, "warm_up": 0.0, "seconds": 0.01})
                client.answer(START)
            for work in works:
                able = [name for name, (_, kinds, _) in clients.items() if work.kind in kinds]
                for number in range(1, self.options.rounds + 1):
                    for name in shuffled(able, number):
                        client, _, pid = clients[name]
                        self._turn(client, pid, name, work, number)

    def _turn(self, client: Process, pid: int, name: str, work: Work, number: int) -> None:
        before = cpu(pid)
        client.tell(
            {
                "kind": work.kind,
                "size": work.size,
                "warm_up": self.options.warm_up,
                "seconds": self.options.seconds,
            }
        )
        try:
            figures: dict[str, Any] = client.answer()
            reads = figures.pop("reads")
            figures["cpu_client"] /= reads
            figures["cpu_service"] = (cpu(pid) - before) / reads
        except WorkerFailed as error:
            figures = {"failed": f"{error}"}
        self.results.append(
            {"kind": "rpc", "peer": name, "work": work.name, "round": number, **figures}
        )
        words = figures.get("failed") or "  ".join(
            f"{each}={figures[each]:.5g}"
            for each in ("p50", "p99", "rps", "cpu_service", "cpu_client")
        )
        print(f"{number}  {work.name:36} {name:20} {words}", flush=True)


def cpu(pid: int) -> float:
    """Return the CPU time of a process and of those that it has started, seconds; 0 elsewhere.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # After the name, which may have spaces: state, parent, ...
            fields = path.read_text().rpartition(") ")[2].split()
            if path.parent.name == f"{pid}" or fields[1] == f"{pid}":
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
