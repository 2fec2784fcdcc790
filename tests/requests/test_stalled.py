"""Clients that do not read: what is on loan for them goes back, and the others are served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from pgbackend import bridged
from pgbackend.asgi import BridgedApplication
from tests.models import Author
from tests.support.client import Client, Exchange, serving
from tests.support.limits import PATIENCE
from tests.support.loops import EACH_NAME, new_loop
from tests.support.server import Server
from tests.support.wrapper import until, use_wrapper

pytestmark = pytest.mark.process

SIZE = 2

# Seconds within which everything here ends, on a busy machine.

# What ended, and how.
ended: list[str] = []


async def rows() -> AsyncIterator[bytes]:
    try:
        async for author in Author.objects.order_by("pk").aiterator(chunk_size=10):
            yield author.name.encode().ljust(4000)
    finally:
        ended.append("rows")


async def in_transaction() -> AsyncIterator[bytes]:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        async for part in rows():
            yield part


async def produced() -> AsyncIterator[bytes]:
    """Yield what another task reads, ahead by one."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(1)

    async def produce() -> None:
        async for part in rows():
            await queue.put(part)

    task = asyncio.create_task(produce())
    try:
        while True:
            yield await queue.get()
    finally:
        task.cancel()


async def produced_on() -> AsyncIterator[bytes]:
    """Do so, but leave the other task alone."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(1)

    async def produce() -> None:
        async for author in Author.objects.order_by("pk").aiterator(chunk_size=10):
            await queue.put(author.name.encode())

    left.append(asyncio.create_task(produce()))
    while True:
        yield await queue.get()


# Tasks that a body leaves.
left: list[asyncio.Task[None]] = []


async def nothing_on_loan() -> AsyncIterator[bytes]:
    await Author.objects.acount()
    for _ in range(50):
        yield b"part"


BODIES = {
    each.__name__: each for each in (rows, in_transaction, produced, produced_on, nothing_on_loan)
}


async def stream(request: HttpRequest, name: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(BODIES[name]())


async def session(request: HttpRequest) -> HttpResponse:
    """Answer with a session of its own, which lasts until the request ends."""
    await bridged(lambda: connection.cursor().execute("SET application_name TO 'other'"))()
    return HttpResponse(b"x" * 4000)


async def count(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Author.objects.acount()))


urlpatterns = [
    path("stream/<name>/", stream),
    path("session/", session),
    path("count/", count),
]


class Stalling(Exchange):
    """A request whose client reads *parts* messages, and no more until `resumed` is set."""

    parts = 3

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stalled = asyncio.Event()
        self.resumed = asyncio.Event()

    async def _send(self, message: dict[str, Any]) -> None:
        if len(self.sent) >= self.parts:
            self.stalled.set()
            await self.resumed.wait()
        await super()._send(message)


class StallingClient(Client):
    """A client whose requests stall."""

    def stall(self, address: str, *, parts: int = 3) -> Stalling:
        request = self.open(address)
        stalling = Stalling(request.application, request.scope, b"")
        stalling.parts = parts
        return stalling


@contextmanager
def site(application: Any = None, *, timeout: float = 20.0, **settings: Any) -> Iterator[Any]:
    """Serve these views with a pool of SIZE and 50 authors."""
    conf = connections.settings["default"]
    pool = {"max_size": SIZE, "timeout": timeout}
    # Each request makes wrappers of its own, with the same pool.
    connections.settings["default"] = use_wrapper(options={"pool": pool}).settings_dict
    ended.clear()
    left.clear()
    try:
        with serving(ROOT_URLCONF=__name__, MIDDLEWARE=[], **settings):
            yield StallingClient(application or ASGIHandler())
    finally:
        connections.settings["default"] = conf


@pytest.fixture(params=EACH_NAME)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of each loop."""
    with asyncio.Runner(loop_factory=lambda: new_loop(request.param)) as runner:
        yield runner


@pytest.fixture(autouse=True)
def authors(server: Server) -> None:
    server.all(
        "INSERT INTO tests_author (name) SELECT 'author ' || n FROM generate_series(1, 50) n"
    )


async def check_whole() -> None:
    """Check that the pool lends all its places, and that nobody waits."""

    @bridged
    def whole() -> bool:
        stats = connection.async_pool.get_stats()
        return (
            stats["pool_size"] == stats["pool_available"]
            and not stats["requests_waiting"]
            and not stats["pool_resetting"]
        )

    async with asyncio.timeout(PATIENCE):
        while not await whole():
            await asyncio.sleep(0.01)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(Author.objects.acount() for _ in range(10)))


def run(runner: asyncio.Runner, main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(PATIENCE):
            await main()

    runner.run(limited())


STALLS = [f"/stream/{name}/" for name in BODIES if name != "nothing_on_loan"]


@pytest.mark.parametrize("address", STALLS)
def test_the_response_to_a_client_that_does_not_read(
    address: str, runner: asyncio.Runner, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It is ended after the setting's seconds, not as if it were whole, and the pool is."""

    async def main() -> None:
        with site(PGBACKEND_CLIENT_TIMEOUT=0.2) as client:
            exchanges = [client.stall(address) for _ in range(SIZE)]
            await asyncio.gather(*(each.run() for each in exchanges))
            await check_whole()
            for each in exchanges:
                assert len(each.sent) == 3
                assert each.sent[-1]["more_body"]
            if "produced_on" not in address:
                await until(lambda: len(ended) == SIZE)
            for task in left:
                task.cancel()
            assert await Author.objects.acount() == 50
            await bridged(connection.close_pool)()

    run(runner, main)
    assert len([each for each in caplog.messages if "PGBACKEND_CLIENT_TIMEOUT" in each]) == SIZE
    assert server.one("SELECT count(*) FROM tests_author WHERE name = 'lost'") == 0


def test_a_session_of_a_client_that_does_not_read(runner: asyncio.Runner) -> None:
    """A connection that a request keeps for its session goes back, too, whatever it answers."""

    async def main() -> None:
        with site(PGBACKEND_CLIENT_TIMEOUT=0.2) as client:
            exchanges = [client.stall("/session/", parts=1) for _ in range(SIZE)]
            await asyncio.gather(*(each.run() for each in exchanges))
            await check_whole()
            assert [len(each.sent) for each in exchanges] == [1] * SIZE
            await bridged(connection.close_pool)()

    run(runner, main)


def test_others_are_served(runner: asyncio.Runner) -> None:
    """Where others wait for a connection, a client has half of their time at most."""

    async def main() -> None:
        with site(timeout=3.0) as client:
            exchanges = [client.stall("/stream/rows/") for _ in range(SIZE)]
            tasks = [asyncio.create_task(each.run()) for each in exchanges]
            for each in exchanges:
                await each.stalled.wait()
            answers = await asyncio.gather(*(client.open("/count/").run() for _ in range(20)))
            assert [(each.status, each.text) for each in answers] == [(200, "50")] * 20
            for each in exchanges:
                each.resumed.set()
            await asyncio.wait(tasks)
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)


def test_a_client_that_reads_slowly(runner: asyncio.Runner) -> None:
    """A client that reads on in time gets all of it, however long that takes as a whole."""

    class Slow(Exchange):
        async def _send(self, message: dict[str, Any]) -> None:
            # What the client needs for a part.
            await asyncio.sleep(0.03)
            await super()._send(message)

    async def main() -> None:
        with site(PGBACKEND_CLIENT_TIMEOUT=1) as client:
            request = client.open("/stream/rows/")
            answer = await Slow(request.application, request.scope, b"").run()
            assert answer.text.count("author") == 50
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)


@pytest.mark.parametrize(
    ("address", "seconds"), [("/stream/nothing_on_loan/", 0.05), ("/stream/rows/", None)]
)
def test_a_client_that_may_take_its_time(
    address: str, seconds: float | None, runner: asyncio.Runner
) -> None:
    """Where nothing is on loan, or the setting is None, a response waits for its client."""

    async def main() -> None:
        with site(PGBACKEND_CLIENT_TIMEOUT=seconds) as client:
            exchange = client.stall(address)
            task = asyncio.create_task(exchange.run())
            await exchange.stalled.wait()
            await asyncio.wait([task], timeout=0.5)
            assert not task.done()
            exchange.resumed.set()
            await task
            assert exchange.sent[-1] == {"type": "http.response.body"}
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)


@pytest.mark.parametrize("address", STALLS)
def test_a_client_that_goes_while_it_does_not_read(address: str, runner: asyncio.Runner) -> None:
    """A client that stalls, and goes, leaves nothing on loan, without the collector's help."""

    async def main() -> None:
        with site() as client:
            exchanges = [client.stall(address) for _ in range(SIZE)]
            tasks = [asyncio.create_task(each.application(*each.protocol)) for each in exchanges]
            for each in exchanges:
                await each.stalled.wait()
                each.disconnect()
            await asyncio.wait(tasks)
            assert [task.exception() for task in tasks] == [None] * SIZE
            for task in left:
                task.cancel()
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)


def test_other_applications(runner: asyncio.Runner, caplog: pytest.LogCaptureFixture) -> None:
    """In a BridgedApplication ``send()`` raises OSError, as for a client that has gone."""
    raised: list[type[BaseException]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            async for part in rows():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except OSError as error:
            raised.append(type(error))
            raise

    async def main() -> None:
        with site(BridgedApplication(application), PGBACKEND_CLIENT_TIMEOUT=0.2) as client:
            exchanges = [client.stall("/") for _ in range(SIZE)]
            await asyncio.gather(*(each.run() for each in exchanges))
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)
    assert len(raised) == SIZE
    assert len([each for each in caplog.messages if "PGBACKEND_CLIENT_TIMEOUT" in each]) == SIZE


def test_sockets_that_nobody_reads(runner: asyncio.Runner) -> None:
    """Behind uvicorn, as many clients as the pool has places open a stream and read nothing."""

    async def main() -> None:
        with site(timeout=4.0) as client, socket.create_server(("127.0.0.1", 0)) as listener:
            await Author.objects.abulk_create(Author(name=f"more {n}") for n in range(5000))
            port = listener.getsockname()[1]
            config = uvicorn.Config(
                client.application,
                log_level="critical",
                lifespan="off",
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve([listener]))
            silent = []
            for _ in range(SIZE):
                each = socket.socket()
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await asyncio.to_thread(each.connect, ("127.0.0.1", port))
                each.sendall(b"GET /stream/rows/ HTTP/1.1\r\nHost: testserver\r\n\r\n")
                silent.append(each)
            await until(lambda: len(connections["default"].async_pool.borrowers()) == SIZE)
            for _ in range(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(
                    b"GET /count/ HTTP/1.1\r\nHost: testserver\r\nConnection: close\r\n\r\n"
                )
                assert (await reader.read()).splitlines()[0] == b"HTTP/1.1 200 OK"
                writer.close()
            for each in silent:
                each.close()
            server.should_exit = True
            await serving
            await check_whole()
            await bridged(connection.close_pool)()

    run(runner, main)
