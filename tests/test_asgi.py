"""Applications: synchronous ORM access in asynchronous code, lifespan, and by uvicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from websockets.asyncio.client import connect

from pgbackend.asgi import BridgedApplication, LifespanApplication, Receive, Scope, Send
from tests.models import Author, Book
from tests.site import pages
from tests.site.library import log_in, make_library
from tests.support.answers import found, meet_in
from tests.support.client import SITE, Client, serving
from tests.support.fix_uvicorn import ROOT, Process
from tests.support.limits import PATIENCE
from tests.support.loop import ThreadStarts
from tests.support.server import DATABASES, NAME, Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import until

# Synchronous access in asynchronous code


@pytest.mark.parametrize(
    ("address", "table", "expected"),
    [
        ("/foreign-key/", "tests_author", "Ada"),
        ("/deferred-field/", "tests_author", "Ada"),
        ("/length/", "tests_author", "1"),
        ("/truth/", "tests_author", "some"),
        ("/iteration/", "tests_author", "Ada"),
        ("/index/", "tests_author", "Ada"),
        ("/groups/rendered/", "auth_group", "navy;pioneers;"),
        ("/groups/template-response/", "auth_group", "navy;pioneers;"),
        ("/walking/", "tests_author", "Ada"),
        ("/streamed/", "tests_author", "Ada wrote A, says Ada"),
    ],
)
async def test_synchronous_access_in_a_view(
    server: Server, address: str, table: str, expected: str
) -> None:
    """It waits for the database without a thread, and the loop goes on meanwhile."""
    await make_library()
    with serving() as client, TableLock(server, table) as lock, ThreadStarts() as starts:
        answer = await lock.passed_by(client.get(address))
    assert (answer.status, answer.text) == (200, expected)
    assert starts.names == []


async def test_session(server: Server) -> None:
    """What a view writes into request.session, the next request finds there."""
    with serving() as client, ThreadStarts() as starts:
        assert (await client.get("/visit/")).text == "1"
        with TableLock(server, "django_session") as lock:
            answer = await lock.passed_by(client.get("/visit/"))
        assert answer.text == "2"
        assert (await client.get("/visit/")).text == "3"
    assert starts.names == []


async def test_user(server: Server) -> None:
    """request.user is the one who logged in, fetched when it is used."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        assert (await client.get("/me/")).text == "nobody"
        await log_in(client)
        with TableLock(server, "auth_user") as lock:
            answer = await lock.passed_by(client.get("/me/"))
        assert answer.text == "grace"
    assert starts.names == []


async def test_asynchronous_middleware() -> None:
    """Asynchronous middleware walks relations, too."""
    await make_library()
    middleware = [*SITE["MIDDLEWARE"], "tests.site.pages.walk_asynchronously"]
    with serving(MIDDLEWARE=middleware) as client, ThreadStarts() as starts:
        answer = await client.get("/visit/")
    assert (answer.text, answer["X-Author"]) == ("1", "Ada")
    assert starts.names == []


async def test_helpers_in_tasks() -> None:
    """An asynchronous helper decorated with bridged walks relations in a task of its own."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        assert (await client.get("/gathered/")).text == "Ada;Ada"
    assert starts.names == []


def error_handlers(synchronous: bool) -> ModuleType:
    """Return a URLconf with handlers of errors that walk relations."""
    urls = ModuleType("urls")
    urls.urlpatterns = pages.urlpatterns
    for status in (404, 403, 500):

        def handler(request: HttpRequest, status: int = status, **kwargs: Any) -> HttpResponse:
            return HttpResponse(Book.objects.get().author.name, status=status)

        async def ahandler(request: HttpRequest, status: int = status, **kw: Any) -> HttpResponse:
            book = await Book.objects.aget()
            return HttpResponse(book.author.name, status=status)

        setattr(urls, f"handler{status}", handler if synchronous else ahandler)
    return urls


@pytest.mark.parametrize("synchronous", [False, True], ids=["asynchronous", "synchronous"])
@pytest.mark.parametrize(
    ("address", "status"), [("/nowhere/", 404), ("/forbidden/", 403), ("/failing/", 500)]
)
async def test_error_handlers(address: str, status: int, synchronous: bool) -> None:
    """handler404, handler403 and handler500 walk relations, without a thread."""
    await make_library()
    with (
        serving(ROOT_URLCONF=error_handlers(synchronous)) as client,
        ThreadStarts() as starts,
    ):
        answer = await client.get(address)
    assert (answer.status, answer.text) == (status, "Ada")
    assert starts.names == []


# Other applications


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI application without Django's handler, which walks a relation."""
    book = await Book.objects.aget()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": book.author.name.encode()})


async def test_bridged_application(server: Server) -> None:
    """BridgedApplication lets any ASGI application walk relations, without a thread."""
    await make_library()
    with pytest.raises(SynchronousOnlyOperation):
        await Client(plain).get("/")
    client = Client(BridgedApplication(plain))
    with TableLock(server, "tests_author") as lock, ThreadStarts() as starts:
        answer = await lock.passed_by(client.get("/"))
    assert (answer.status, answer.text) == (200, "Ada")
    assert starts.names == []


async def test_bridged_application_with_implicit_io_off() -> None:
    """PGBACKEND_IMPLICIT_IO = False holds in a BridgedApplication, too."""
    await make_library()
    with (
        override_settings(PGBACKEND_IMPLICIT_IO=False),
        pytest.raises(SynchronousOnlyOperation, match=r"@pgbackend\.bridged"),
    ):
        await Client(BridgedApplication(plain)).get("/")


async def test_bridged_application_around_django() -> None:
    """BridgedApplication may be around Django's own application."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        client.application = BridgedApplication(client.application)
        assert (await client.get("/foreign-key/")).text == "Ada"
        assert (await client.get("/visit/")).text == "1"
        assert (await client.get("/visit/")).text == "2"
    assert starts.names == []


async def test_bridged_application_passes_lifespan_on() -> None:
    """A BridgedApplication leaves lifespan events to its application."""
    application = BridgedApplication(Supporting())
    lifespan = Lifespan(application)
    assert (await lifespan.start())["type"] == "lifespan.startup.complete"
    assert (await lifespan.stop())["type"] == "lifespan.shutdown.complete"


# Lifespan


class Lifespan:
    """A server's side of a lifespan scope."""

    def __init__(self, application: Any) -> None:
        self.scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._server = ApplicationCommunicator(application, self.scope)

    async def start(self) -> Any:
        """Send the start-up event and return the answer."""
        await self._server.send_input({"type": "lifespan.startup"})
        return await self._server.receive_output(timeout=PATIENCE)

    async def stop(self) -> Any:
        """Send the shutdown event and return the answer."""
        await self._server.send_input({"type": "lifespan.shutdown"})
        return await self._server.receive_output(timeout=PATIENCE)

    async def end(self) -> None:
        """Wait until the application has returned."""
        await self._server.wait(timeout=PATIENCE)


class Supporting:
    """An application that supports lifespan, and fails at an event if it is given one."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.events: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        scope["state"]["tenants"] = await Author.objects.acount()
        for event in ("lifespan.startup", "lifespan.shutdown"):
            message = await receive()
            assert message == {"type": event}
            self.events.append(event)
            if event == self.failing:
                await send({"type": f"{event}.failed", "message": "no tenants"})
                return
            await send({"type": f"{event}.complete"})


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that returns at once."""


def databases(server: Server) -> list[str]:
    """Return the databases that we have connections to."""
    query = "SELECT DISTINCT datname FROM pg_stat_activity WHERE application_name = %s ORDER BY 1"
    return [name for (name,) in server.all(query, NAME)]


@pytest.mark.parametrize(
    "make",
    [ASGIHandler, Supporting, lambda: silent],
    ids=["Django", "supports lifespan", "returns"],
)
async def test_lifespan(server: Server, make: Callable[[], Any]) -> None:
    """Each database has a connection after start-up, and none after shutdown."""
    application = make()
    lifespan = Lifespan(LifespanApplication(application))
    assert await lifespan.start() == {"type": "lifespan.startup.complete"}
    assert databases(server) == list(DATABASES)
    assert await lifespan.stop() == {"type": "lifespan.shutdown.complete"}
    server.wait_for_backends(0)
    if isinstance(application, Supporting):
        assert application.events == ["lifespan.startup", "lifespan.shutdown"]
        assert lifespan.scope["state"] == {"tenants": 0}


async def test_lifespan_leaves_requests_alone() -> None:
    """A LifespanApplication hands everything but lifespan to its application."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        client.application = LifespanApplication(client.application)
        assert (await client.get("/foreign-key/")).text == "Ada"
    assert starts.names == []


async def test_application_fails_to_start(server: Server) -> None:
    """What the application answers to start-up is the answer; the pools are closed again."""
    lifespan = Lifespan(LifespanApplication(Supporting("lifespan.startup")))
    assert await lifespan.start() == {"type": "lifespan.startup.failed", "message": "no tenants"}
    server.wait_for_backends(0)


async def test_application_fails_to_stop(server: Server) -> None:
    """What the application answers to shutdown is the answer; the pools are closed."""
    lifespan = Lifespan(LifespanApplication(Supporting("lifespan.shutdown")))
    assert await lifespan.start() == {"type": "lifespan.startup.complete"}
    assert await lifespan.stop() == {"type": "lifespan.shutdown.failed", "message": "no tenants"}
    server.wait_for_backends(0)


def unused_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("PORT", unused_port(), "Connection refused"),
        ("NAME", "pgbackend_nowhere", 'database "pgbackend_nowhere" does not exist'),
        ("USER", "pgbackend_nobody", "pgbackend_nobody"),
    ],
    ids=["PORT", "NAME", "USER"],
)
async def test_server_cannot_be_reached(
    server: Server, monkeypatch: pytest.MonkeyPatch, setting: str, value: Any, words: str
) -> None:
    """Start-up fails with what the server, or libpq, says; the other pools are closed again."""
    monkeypatch.setitem(connections.settings["other"], setting, value)
    application = Supporting()
    lifespan = Lifespan(LifespanApplication(application))
    answer = await lifespan.start()
    assert answer["type"] == "lifespan.startup.failed"
    assert words in answer["message"]
    server.wait_for_backends(0)
    assert application.events == []


async def test_wrong_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start-up fails with the server's message where the password is wrong."""
    monkeypatch.setitem(connections.settings["default"], "PASSWORD", "wrong")
    lifespan = Lifespan(LifespanApplication(ASGIHandler()))
    answer = await lifespan.start()
    if answer["type"] == "lifespan.startup.complete":
        await lifespan.stop()
        pytest.skip("the server given by --dsn asks for no password")
    assert answer["type"] == "lifespan.startup.failed"
    assert "password authentication failed for user" in answer["message"]
    await lifespan.end()


async def test_shutdown_waits_for_statements(server: Server) -> None:
    """The pools are closed when the statements in flight have ended."""
    lifespan = Lifespan(LifespanApplication(ASGIHandler()))
    await lifespan.start()
    with TableLock(server, "tests_author") as lock:
        statement = asyncio.create_task(Author.objects.acount())
        await lock.waited_for()
        shutdown = asyncio.create_task(lifespan.stop())
        # The other pool has nothing to wait for.
        await until(lambda: databases(server) == [DATABASES[0]])
        assert not shutdown.done()
        assert lock.waiting() == 1
        lock.release()
        # The server may end the loop as soon as it has the answer.
        assert (await shutdown)["type"] == "lifespan.shutdown.complete"
        assert statement.done()
        assert await statement == 0
    server.wait_for_backends(0)


async def test_shutdown_waits_no_longer_than_its_timeout(server: Server) -> None:
    """After *timeout* seconds the pools are closed in any case."""
    lifespan = Lifespan(LifespanApplication(ASGIHandler(), timeout=0.1))
    await lifespan.start()
    with TableLock(server, "tests_author") as lock:
        statement = asyncio.create_task(Author.objects.acount())
        await lock.waited_for()
        assert (await lifespan.stop())["type"] == "lifespan.shutdown.complete"
        # It goes on, but nobody gets its connection after it.
        assert not statement.done()
        lock.release()
        assert await statement == 0
    server.wait_for_backends(0)


# By uvicorn

UVICORN = ("-m", "uvicorn", "tests.site.app:application", "--port=0", "--lifespan=on")
SERVED = "pgbackend-requests"


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process of uvicorn, with changes."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.site.settings",
        "PYTHONUNBUFFERED": "1",
        **changes,
    }


def backends(server: Server, condition: str = "true") -> int:
    """Return how many backends the process of uvicorn has, those that meet a condition."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND {condition}"
    return int(server.one(query, SERVED))


@pytest.fixture
def process(server: Server) -> Iterator[Process]:
    """uvicorn with `site.app`; it may tell of no trouble, and leaves no backend."""
    process = Process([*UVICORN, "--timeout-graceful-shutdown=1"], environment())
    try:
        process.wait_until_served()
        # Of the first and the second database, since start-up.
        assert backends(server) == 2
        yield process
        assert process.terminate() in (0, -signal.SIGTERM), process.output
        assert process.trouble() == [], process.output
        asyncio.run(until(lambda: not backends(server)))
    finally:
        process.kill()


@pytest.mark.process
async def test_websockets(server: Server, process: Process) -> None:
    """A WebSocket of a BridgedApplication walks relations, while the loop goes on."""
    await make_library()
    address = process.url.replace("http", "ws", 1)
    async with connect(address) as first, connect(address) as second:
        with TableLock(server, "tests_author") as lock:
            await first.send("A")
            await second.send("A")
            await lock.waited_for(2)
            async with httpx.AsyncClient(base_url=process.url) as client:
                assert (await client.get("/thread/")).status_code == 200
            lock.release()
            assert [await first.recv(), await second.recv()] == ["Ada", "Ada"]
        await first.send("A")
        assert await first.recv() == "Ada"
    await until(lambda: not backends(server, "state <> 'idle'"))


@pytest.mark.process
async def test_plain_application_by_uvicorn(process: Process) -> None:
    """A plain HTTP application and Django's walk relations side by side."""
    await make_library()
    async with httpx.AsyncClient(base_url=process.url, timeout=PATIENCE) as client:
        answers = await asyncio.gather(
            *(client.get(path) for path in ("/plain/", "/foreign-key/", "/streamed/"))
        )
    assert [answer.text for answer in answers] == ["Ada", "Ada", "Ada wrote A, says Ada"]


@pytest.mark.process
@pytest.mark.parametrize(
    "address",
    [
        "/tenant/",
        pytest.param("/execute-wrappers/", marks=pytest.mark.load),
        pytest.param("/on-commit/", marks=pytest.mark.load),
    ],
)
async def test_isolation_by_uvicorn(process: Process, address: str) -> None:
    """Requests share nothing of a wrapper that was there when the application was imported."""
    async with httpx.AsyncClient(base_url=process.url, timeout=PATIENCE) as client:
        for meeting in ("first", "second"):
            seen = await meet_in(client, address, meeting)
            assert [set(names) for names in seen] == [{"Ada"}, {"Grace"}, {"Edith"}]


@pytest.mark.process
async def test_disconnect_by_uvicorn(server: Server, process: Process) -> None:
    """A client that goes away cancels its request's view, statement and transaction."""
    with TableLock(server, "tests_book") as lock:
        async with httpx.AsyncClient(base_url=process.url, timeout=PATIENCE) as client:
            request = asyncio.create_task(client.get("/wait/"))
            await lock.waited_for()
            request.cancel()
            await until(lambda: not lock.waiting())
            await until(lambda: found(server) == ["/wait/"])
            async with client.stream("GET", "/wait/streaming/") as answer:
                # Kept: collected, it would end the answer.
                words = answer.aiter_text()
                assert await anext(words) == "first"
                await lock.waited_for()
            await until(lambda: not lock.waiting())
            await until(lambda: found(server) == ["/wait/", "/wait/streaming/"])


@pytest.mark.process
async def test_sigterm_cancels_requests(server: Server) -> None:
    """A request that outlasts uvicorn's grace is cancelled, with its statement; the pools close."""
    process = Process([*UVICORN, "--timeout-graceful-shutdown=1"], environment())
    try:
        process.wait_until_served()
        with TableLock(server, "tests_book") as lock:
            async with httpx.AsyncClient(base_url=process.url, timeout=PATIENCE) as client:
                request = asyncio.create_task(client.get("/wait/"))
                await lock.waited_for()
                status = await asyncio.to_thread(process.terminate)
                await asyncio.wait([request])
            assert status in (0, -signal.SIGTERM), process.output
            await until(lambda: not backends(server))
        assert found(server) == ["/wait/"]
    finally:
        process.kill()


@pytest.mark.process
def test_uvicorn_tells_why_it_does_not_start(server: Server) -> None:
    """uvicorn ends with a status other than 0 and prints why there is no connection."""
    port = str(unused_port())
    dsn = urlsplit(server.dsn)
    assert dsn.port is not None
    dsn = dsn._replace(netloc=dsn.netloc.replace(str(dsn.port), port))
    done = subprocess.run(
        [sys.executable, "-W", "error", *UVICORN],
        cwd=ROOT,
        env=environment(PGBACKEND_TEST_DSN=dsn.geturl()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode > 0
    assert f"port {port} failed: Connection refused" in done.stderr
    assert "Application startup failed" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
