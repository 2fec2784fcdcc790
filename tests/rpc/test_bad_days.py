"""Bad days of each transport: nobody answers, the broker goes away, a worker dies."""

import time
from collections.abc import Iterator

import pytest

from pgbackend.rpc.protocol.errors import DeadlinePassed, RemoteError, Unavailable
from pgbackend.rpc.transports.base import Transport
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.rpc_services import SERVICES, Service, ask, asleep, closing, send
from tests.support.server import Server

pytestmark = pytest.mark.process

LATER = {"rabbit": pytest.mark.load}


@pytest.fixture(params=[pytest.param(each, marks=LATER.get(each, ())) for each in SERVICES])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service of which nothing runs."""
    with SERVICES[request.param]() as service:
        yield service


def test_nobody_answers(service: Service) -> None:
    """Without a process of the service a message ends by its deadline."""
    with closing(service.transport()) as transport:
        began = time.monotonic()
        with pytest.raises((DeadlinePassed, Unavailable)):
            ask(transport, "v1.nobody", 0.5)
        assert time.monotonic() - began < AT_ONCE


@pytest.mark.load
@pytest.mark.parametrize("name", ["redis", "rabbit"])
def test_the_broker_goes_away(name: str) -> None:
    """What is sent meanwhile is unavailable; when the broker is back, all goes on by itself."""
    with SERVICES[name]() as service, service.running(), closing(service.transport()) as transport:
        assert ask(transport, "v1.a") == "v1.a"
        service.broker.stop()
        with pytest.raises((Unavailable, DeadlinePassed)):
            ask(transport, "v1.b", 5.0)
        service.broker.start()
        ask_until_answered(transport, "v1.c")


@pytest.mark.load
@pytest.mark.parametrize("name", ["redis", "rabbit", "postgres"])
def test_a_worker_dies(name: str, server: Server) -> None:
    """A message whose worker was killed is answered by another one, which knows of it."""
    with SERVICES[name]() as service, closing(service.transport()) as transport:
        with service.running() as first:
            if name == "postgres":
                server.all("TRUNCATE pgpubsub_notification")
            with asleep(server, 2):
                lost = [send(transport, wire, PATIENCE) for wire in ("sleep:6", "again:6.5")]
            # What it is only taking from a Redis when it dies is lost: docs/howto/rpc-transports.md
            first.kill()
        with service.running():
            assert [each.result(PATIENCE) for each in lost] == ["sleep:6", "True"]
            assert not transport.pending


def ask_until_answered(transport: Transport, wire: str) -> None:
    """Ask again until an answer comes, as clients do after an outage."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            assert ask(transport, wire, 3.0) == wire
            return
        except RemoteError:
            assert time.monotonic() < deadline


@pytest.mark.load
def test_connections_are_lost(server: Server) -> None:
    """Client and service of the postgres transport connect again, by themselves."""
    with (
        SERVICES["postgres"]() as service,
        service.running(),
        closing(service.transport()) as transport,
    ):
        assert ask(transport, "v1.a") == "v1.a"
        for _ in range(3):
            server.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            ask_until_answered(transport, "v1.b")
        assert not transport.pending


@pytest.mark.load
def test_a_view_goes_away(server: Server) -> None:
    """A message that a view had when its process ended is unavailable; the next process answers."""
    with SERVICES["http"]() as service, closing(service.transport()) as transport:
        with service.running() as first:
            assert ask(transport, "v1.a") == "v1.a"
            with asleep(server):
                lost = send(transport, "sleep:6")
            first.kill()
            with pytest.raises(Unavailable):
                lost.result(AT_ONCE)
        with pytest.raises(Unavailable):
            ask(transport, "v1.c")
        with service.running():
            assert ask(transport, "v1.d") == "v1.d"
