"""Each transport to a service in a process of its own: what is promised on good days."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pgbackend.bridge.greenlets import run_bridged
from pgbackend.rpc.protocol.errors import DeadlinePassed, RemoteError, TooLarge, Unavailable
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.transports.base import Transport
from pgbackend.rpc.transports.http import HttpTransport
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.rpc_services import SERVICES, Service, ask, closing, send
from tests.support.server import Server

pytestmark = pytest.mark.process


# A RabbitMQ takes seconds to start.
LATER = {"rabbit": pytest.mark.load}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=LATER.get(name, ())) for name in SERVICES],
)
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service by each transport."""
    with SERVICES[request.param]() as service:
        yield service


@pytest.fixture(scope="module")
def answering(service: Service) -> Iterator[Service]:
    """The service, one process of which runs."""
    with service.running():
        yield service


@pytest.fixture
def transport(answering: Service) -> Iterator[Transport]:
    """A way to the service, which is closed after the test."""
    with closing(answering.transport()) as transport:
        yield transport
    assert not [each for each in threading.enumerate() if each.name.startswith("rpc")]


def queued(service: Service) -> bool:
    """Whether messages wait for a worker, which those of HTTP do not."""
    return not type(service).__name__.startswith("Http")


def test_in_a_thread(transport: Transport) -> None:
    """A thread waits for its answers, one after another."""
    for text in ("a", "ü€𝄞", "it's %s \\ \" ; --", "a\n\tb"):
        assert ask(transport, f"v1.{text}") == f"v1.{text}"


async def test_on_a_loop(transport: Transport) -> None:
    """Tasks await their answers, each its own, while the loop goes on."""
    texts = [f"v1.{number}" for number in range(100)]
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await asyncio.gather(*(send(transport, each) for each in texts)) == texts
    ticking.cancel()
    assert ticks


async def test_in_the_bridge(transport: Transport) -> None:
    """Bridged code waits without holding the loop."""

    def call() -> str:
        return ask(transport, "v1.a")

    assert await asyncio.gather(*(run_bridged(call) for _ in range(3))) == ["v1.a"] * 3


async def test_many_at_once(transport: Transport) -> None:
    """One process of a service waits for many messages at once."""
    await send(transport, "ping")
    began = time.monotonic()
    await send(transport, "sleep:0.3")
    one = time.monotonic() - began
    began = time.monotonic()
    await asyncio.gather(*(send(transport, "sleep:0.3") for _ in range(8)))
    assert time.monotonic() - began < 6 * one


def test_large_ones(transport: Transport) -> None:
    """A message and an answer of megabytes arrive; one next to what NOTIFY takes, too."""
    text = "v1." + "ü" * 1_000_000
    assert ask(transport, text) == text
    for count in (3900, 3930, 3960, 3990, 4100, 7900, 8100):
        assert ask(transport, f"large:{count}").removeprefix("v1.") == "ü" * count


@pytest.mark.parametrize("service", ["http"], indirect=True)
def test_an_answer_that_is_too_large(answering: Service) -> None:
    """Of an answer over HTTP no more is read than may be; the others bring it as a whole."""
    url = answering.settings()["URL"]
    with closing(HttpTransport(url, limits=Limits(max_answer_bytes=2003))) as transport:
        assert ask(transport, "v1." + "ü" * 1000) == "v1." + "ü" * 1000
    with closing(HttpTransport(url, limits=Limits(max_answer_bytes=2002))) as transport:
        with pytest.raises(TooLarge) as raised:
            ask(transport, "v1." + "ü" * 1000)
        assert raised.value.details == {"max_answer_bytes": 2002}


def test_deadline(transport: Transport) -> None:
    """A message that takes longer than its deadline ends then, and nothing waits."""
    began = time.monotonic()
    with pytest.raises(DeadlinePassed):
        ask(transport, "sleep:5", 0.3)
    assert time.monotonic() - began < 5
    with pytest.raises(DeadlinePassed):
        ask(transport, "a", -1.0)
    assert ask(transport, "v1.a") == "v1.a"
    assert not transport.pending  # type: ignore[attr-defined]


def test_cancel(transport: Transport) -> None:
    """A future that is cancelled waits no longer."""
    future = send(transport, "sleep:2")
    assert future.cancel()
    assert ask(transport, "v1.a") == "v1.a"
    assert not transport.pending  # type: ignore[attr-defined]


def test_close(answering: Service) -> None:
    """What waits at the close ends as unavailable; the transport can be used again."""
    transport = answering.transport()
    assert ask(transport, "v1.a") == "v1.a"
    future = send(transport, "sleep:2")
    transport.close()
    with pytest.raises(Unavailable):
        future.result(AT_ONCE)
    assert ask(transport, "v1.b") == "v1.b"
    transport.close()
    transport.close()


def test_fork(transport: Transport) -> None:
    """A process that is forked has a thread and connections of its own."""
    assert ask(transport, "v1.a") == "v1.a"
    pid = os.fork()
    if not pid:
        code = 1
        # Whatever becomes of it.
        signal.alarm(60)
        try:
            code = 0 if ask(transport, "v1.child") == "v1.child" else 2
            transport.close()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert ask(transport, "v1.b") == "v1.b"


def test_a_service_that_fails(transport: Transport) -> None:
    """A message that the service cannot answer ends by its deadline, and the next one is answered.

    `handle` answers each failure itself: it is a defect of the service.
    """
    with pytest.raises(RemoteError):
        ask(transport, "raise", 0.5)
    assert ask(transport, "v1.a") == "v1.a"


def unacknowledged(service: Service) -> set[bytes]:
    """Return the tags of messages that a Redis keeps for workers."""
    if not hasattr(service.broker, "client"):
        return set()
    with service.broker.client() as client:
        return set(client.hkeys("unacked"))


def test_answers_nobody_fetches(answering: Service, server: Server) -> None:
    """An answer that nobody waits for ends by itself, and so does what carries it."""
    if not queued(answering):
        pytest.skip("the answer is that of a request")
    transport = answering.transport()
    # Of a service that has failed: such a message is delivered again and again.
    failed = unacknowledged(answering)
    ask(transport, "large:9000")
    future = send(transport, "sleep:2")
    late = send(transport, "large:9001")
    # What would fetch them is gone; the second answer may have come already.
    transport.close()
    with pytest.raises(RemoteError):
        future.result(AT_ONCE)
    with suppress(RemoteError):
        assert late.result(AT_ONCE)
    # A message is acknowledged after its answer was stored.
    deadline = time.monotonic() + AT_ONCE
    if answering.broker is None:
        states = "SELECT DISTINCT state FROM pgpubsub_notification"
        while server.all(states) not in ([], [("plain",)]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    elif hasattr(answering.broker, "client"):
        with answering.broker.client() as client:
            while unacknowledged(answering) - failed or client.exists("rpc"):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for key in client.keys("celery-task-meta-*"):
                assert 0 < client.ttl(key) <= 120


async def test_urgent_first(transport: Transport, answering: Service) -> None:
    """An urgent message is answered before those that wait already."""
    if not queued(answering):
        pytest.skip("nothing waits there")
    order: list[str] = []

    async def note(wire: str, urgent: bool = False) -> None:
        await send(transport, wire, PATIENCE, urgent=urgent)
        order.append(wire)

    tasks = [asyncio.create_task(note("sleep:0.5")) for _ in range(60)]
    await asyncio.sleep(0.1)
    tasks.append(asyncio.create_task(note("v1.urgent", urgent=True)))
    await asyncio.gather(*tasks)
    assert order.index("v1.urgent") < 45
