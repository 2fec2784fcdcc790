"""Asynchronous code where no event loop runs for long: under WSGI, in Celery's tasks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest
from asgiref.sync import async_to_sync
from celery import Celery
from celery.contrib.testing.worker import start_worker
from django.core.wsgi import get_wsgi_application
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path

from pgbackend.transaction import aon_commit
from tests.models import Author, Book
from tests.support.limits import PATIENCE


def pid() -> int:
    """Return the process id of the backend that serves the caller."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


# WSGI


async def order(request: HttpRequest) -> JsonResponse:
    """Write in a transaction, read what was written, and say what hooks were called."""
    called: list[str] = []

    async def hook() -> None:
        called.append(f"{await Author.objects.acount()} author")

    async with transaction.atomic():
        author = await Author.objects.acreate(name="Ada")
        await Book.objects.acreate(title="Notes", author=author)
        await aon_commit(hook)
        book = await Book.objects.select_related("author").aget()
        within = [*called]
    titles = [book.title async for book in Book.objects.all()]
    return JsonResponse(
        {"author": book.author.name, "titles": titles, "within": within, "after": called}
    )


async def fail(request: HttpRequest) -> HttpResponse:
    await Author.objects.acreate(name="Ada")
    raise RuntimeError("this view fails")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(author.name for author in Author.objects.iterator())


urlpatterns = [path("order/", order), path("fail/", fail), path("stream/", stream)]


class Quiet(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing on stderr."""


@contextmanager
def wsgi_server() -> Iterator[httpx.Client]:
    """Serve this file's views by Python's own WSGI server, in a thread; yield a client."""
    server: WSGIServer = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}") as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def site() -> Iterator[httpx.Client]:
    with (
        override_settings(ALLOWED_HOSTS=["127.0.0.1"], MIDDLEWARE=[], ROOT_URLCONF=__name__),
        wsgi_server() as client,
    ):
        yield client


@pytest.mark.process
def test_asynchronous_view(site: httpx.Client) -> None:
    """An asynchronous view commits, and its hooks are awaited."""
    assert site.get("/order/").raise_for_status().json() == {
        "author": "Ada",
        "titles": ["Notes"],
        "within": [],
        "after": ["1 author"],
    }
    assert Book.objects.get().author.name == "Ada"


@pytest.mark.process
def test_atomic_requests(site: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS rolls an asynchronous view back that fails."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert site.get("/fail/").status_code == 500
    assert not Author.objects.exists()
    assert site.get("/order/").status_code == 200
    assert Author.objects.count() == 1


@pytest.mark.process
def test_synchronous_stream(site: httpx.Client) -> None:
    """A synchronous stream reads on its thread's connection, as ever."""
    Author.objects.create(name="Ada")
    assert site.get("/stream/").text == "Ada"


# Celery

app = Celery("tests", broker="memory://", backend="cache+memory://")


async def transfer(name: str) -> int:
    async with transaction.atomic():
        await Author.objects.acreate(name=name)
        if name == "bad":
            raise ValueError(name)
        return await Author.objects.acount()


@app.task
def synchronous_task(name: str) -> int:
    """Wait for coroutines in the transaction of the task's thread."""
    with transaction.atomic():
        Author.objects.create(name=f"{name} of the thread")
        before = pid()
        count = async_to_sync(transfer)(name)
        assert pid() == before
    connections.close_all()
    return count


@pytest.fixture
def worker() -> Iterator[None]:
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="ERROR"):
        yield


@pytest.mark.usefixtures("worker")
def test_celery() -> None:
    """A task's coroutines are in its transaction, on one connection, and fail with it."""
    assert synchronous_task.delay("Ada").get(timeout=PATIENCE) == 2
    with pytest.raises(ValueError, match="bad"):
        synchronous_task.delay("bad").get(timeout=PATIENCE)
    assert sorted(author.name for author in Author.objects.all()) == [
        "Ada",
        "Ada of the thread",
    ]
