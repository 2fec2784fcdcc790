"""Services of pgbackend.rpc that run beside a test, one for each transport, and ways to them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from pgbackend.rpc.protocol.errors import RemoteError
from pgbackend.rpc.transports.base import Transport
from tests.faults.fix_servers import free_port
from tests.support.brokers import Broker, Redis, shared_rabbit
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.logged import Logged
from tests.support.script import ROOT
from tests.support.server import Server


class Worker(Logged):
    """A process of a service."""

    def __init__(self, command: list[str], **environ: str) -> None:
        self.command = command
        self.environ = environ

    def __enter__(self) -> Self:
        self.log = tempfile.TemporaryFile("w+")  # closed with the block
        self.process = subprocess.Popen(
            [sys.executable, *self.command],
            cwd=ROOT,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.rpc.site.settings_service",
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
                **self.environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        return self

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Ask the process to end, and return its exit code."""
        self.process.terminate()
        return self.process.wait(AT_ONCE)


class Service:
    """A service that is reached by one transport.

    It answers by `site.plain`; with *real* by what `site.rpc` exposes.
    """

    broker: Broker | None = None

    def __init__(self, *, real: bool = False) -> None:
        self.real = real

    def settings(self) -> dict[str, Any]:
        """Return the settings of an alias for it."""
        raise NotImplementedError

    def worker(self, **environ: str) -> Worker:
        """Return a process of the service, which is started by `with`."""
        raise NotImplementedError

    def transport(self) -> Transport:
        """Return a new way to the service."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until the service answers."""
        with closing(self.transport()) as transport:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    ask(transport, "ping", 1.0)
                    return
                except RemoteError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    @contextmanager
    def running(self, **environ: str) -> Iterator[Worker]:
        """Run a process of the service, which answers when the block begins."""
        with self.worker(**environ) as worker:
            try:
                self.wait()
            except RemoteError:
                print(worker.text())
                raise
            yield worker


class CeleryService(Service):
    """Workers of Celery, with a Redis or a RabbitMQ."""

    def __init__(self, broker: Broker, *, real: bool = False) -> None:
        super().__init__(real=real)
        self.broker = broker

    def settings(self) -> dict[str, Any]:
        """Return the settings of an alias for it."""
        assert self.broker is not None
        return {"BROKER_URL": self.broker.url}

    @property
    def module(self) -> str:
        """The module of the application."""
        return "pgbackend.rpc.celery" if self.real else "tests.rpc.site.plain_celery"

    def worker(self, *, pool: str = "", queue: str = "rpc", **environ: str) -> Worker:
        """Return a worker of the default *pool*, or another one, and of *queue*."""
        assert self.broker is not None
        if queue != "rpc":
            environ["RPC_QUEUE"] = queue
        options = ["-P", pool] if pool else []
        return Worker(
            [
                *("-m", "celery", "-A", self.module, "worker"),
                *("-Q", f"{queue},{queue}.high", "-n", f"{time.monotonic_ns()}@tests", *options),
                # It would wait a second for others of its kind.
                *("--without-mingle", "--without-gossip"),
            ],
            RPC_BROKER_URL=self.broker.url,
            **environ,
        )

    def transport(self) -> Transport:
        """Return a new way to the workers."""
        from pgbackend.rpc.transports.celery import CeleryTransport

        assert self.broker is not None
        return CeleryTransport(self.broker.url)


class PostgresService(Service):
    """Processes that listen in the database of the tests."""

    def worker(self, **environ: str) -> Worker:
        """Return a process with the command `listen`."""
        if self.real:
            return Worker(["-m", "django", "listen", "--concurrency", "10"], **environ)
        return Worker(["-m", "tests.rpc.site.plain_listen"], **environ)

    def settings(self) -> dict[str, Any]:
        """Return the settings of an alias for it."""
        return {"TRANSPORT": "postgres", "DATABASE": "default"}

    def transport(self) -> Transport:
        """Return a new way to those who listen."""
        from pgbackend.rpc.transports.postgres import PostgresTransport

        return PostgresTransport("default")


class HttpService(Service):
    """A process of uvicorn."""

    def __init__(self, *, real: bool = False) -> None:
        super().__init__(real=real)
        self.port = free_port()

    def settings(self) -> dict[str, Any]:
        """Return the settings of an alias for it."""
        return {"TRANSPORT": "http", "URL": f"http://127.0.0.1:{self.port}/rpc/"}

    def worker(self, **environ: str) -> Worker:
        """Return a process that serves a view."""
        return Worker(
            [
                *("-m", "uvicorn"),
                "tests.rpc.site.asgi:application"
                if self.real
                else "tests.rpc.site.plain_http:application",
                *("--port", f"{self.port}", "--log-level", "warning"),
            ],
            **environ,
        )

    def transport(self) -> Transport:
        """Return a new way to the view."""
        from pgbackend.rpc.transports.http import HttpTransport

        return HttpTransport(f"http://127.0.0.1:{self.port}/rpc/")


# How to make each service; a Redis ends with the block.
@contextmanager
def redis_service(*, real: bool = False) -> Iterator[Service]:
    with Redis() as broker:
        yield CeleryService(broker, real=real)


@contextmanager
def rabbit_service(*, real: bool = False) -> Iterator[Service]:
    yield CeleryService(shared_rabbit(), real=real)


@contextmanager
def postgres_service(*, real: bool = False) -> Iterator[Service]:
    yield PostgresService(real=real)


@contextmanager
def http_service(*, real: bool = False) -> Iterator[Service]:
    yield HttpService(real=real)


SERVICES: dict[str, Callable[[], Any]] = {
    "redis": redis_service,
    "rabbit": rabbit_service,
    "postgres": postgres_service,
    "http": http_service,
}


@contextmanager
def closing(transport: Transport) -> Iterator[Transport]:
    """Close *transport* at the end of the block."""
    try:
        yield transport
    finally:
        transport.close()


def send(transport: Transport, wire: str, seconds: float = AT_ONCE, *, urgent: bool = False) -> Any:
    """Send a message that may take so many *seconds*; return the future of its answer."""
    return transport.send(wire, urgent=urgent, deadline=time.time() + seconds)


def ask(transport: Transport, wire: str, seconds: float = AT_ONCE, *, urgent: bool = False) -> str:
    """Send a message and return its answer. Raise RemoteError."""
    answer: str = send(transport, wire, seconds, urgent=urgent).result(seconds + AT_ONCE)
    return answer


@contextmanager
def asleep(server: Server, count: int = 1) -> Iterator[None]:
    """Wait until the service answers *count* messages ``sleep:`` that were sent in the block.

    Several are not taken in the order in which they were sent.
    """
    began = server.one("SELECT clock_timestamp()")
    yield
    running = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%%' AND query_start > %s"
    )
    deadline = time.monotonic() + PATIENCE
    while server.one(running, began) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
