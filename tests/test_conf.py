"""The settings of a project: implicit I/O switched off, synchronous code on the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path

from tests.models import Author, Book
from tests.site import pages
from tests.site.library import log_in, make_library
from tests.support.client import SITE, serving
from tests.support.loop import ThreadStarts, pool_size
from tests.support.sampler import BackendSampler
from tests.support.server import NAME, Server

REQUESTS = 100

# Views and middleware of this file


async def explicit(request: HttpRequest) -> JsonResponse:
    """Say what implicit access raises, and use everything that is awaited."""
    book = await Book.objects.aget()
    try:
        name = book.author.name
    except SynchronousOnlyOperation as error:
        name = str(error)
    user = await request.auser()
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    groups = [group.name async for group in user.groups.all()]
    return JsonResponse({"name": name, "user": user.username, "visits": visits, "groups": groups})


class Threads:
    """What a template shows: the name of the thread that renders it."""

    def __str__(self) -> str:
        return threading.current_thread().name


def template(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "word.html", {"word": Threads()})


def streamed(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield threading.current_thread().name
        for book in Book.objects.all():
            yield f"; {book.author.name}"

    return StreamingHttpResponse(body())


urlpatterns = [
    *pages.urlpatterns,
    path("explicit/", explicit),
    path("streamed-synchronously/", streamed),
    path("template/", template),
]


class ThirdPartyMiddleware:
    """Synchronous middleware that queries."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        response["X-Thread"] = threading.current_thread().name
        response["X-Books"] = str(Book.objects.count())
        return response


# Implicit I/O


async def test_implicit_io_off() -> None:
    """PGBACKEND_IMPLICIT_IO = False: a lazy relation raises and names the fix; awaiting works."""
    await make_library()
    with (
        serving(ROOT_URLCONF=__name__, PGBACKEND_IMPLICIT_IO=False) as client,
        ThreadStarts() as starts,
    ):
        await log_in(client)
        first = (await client.get("/explicit/")).json()
        second = (await client.get("/explicit/")).json()
    assert "alias 'default'" in first["name"]
    assert "await" in first["name"]
    assert "@pgbackend.bridged" in first["name"]
    assert first["user"] == "grace"
    assert first["groups"] == ["navy", "pioneers"]
    assert (first["visits"], second["visits"]) == (1, 2)
    assert starts.names == []


async def test_implicit_io_off_in_a_template() -> None:
    """PGBACKEND_IMPLICIT_IO = False: render() in an asynchronous view does not query, either."""
    await make_library()
    with serving(PGBACKEND_IMPLICIT_IO=False) as client:
        assert (await client.get("/groups/rendered/")).status == 500


async def test_bridged_with_implicit_io_off() -> None:
    """PGBACKEND_IMPLICIT_IO = False: what is decorated with bridged still walks relations."""
    await make_library()
    with serving(PGBACKEND_IMPLICIT_IO=False) as client, ThreadStarts() as starts:
        assert (await client.get("/gathered/")).text == "Ada;Ada"
        assert (await client.get("/bridged-thread/")).text == "MainThread"
    assert starts.names == []


# Synchronous code on the loop


async def test_sync_on_loop() -> None:
    """PGBACKEND_SYNC_ON_LOOP = True: synchronous code of a request runs on the loop's thread."""
    await make_library()
    ran: list[threading.Thread] = []

    def receive(**kwargs: Any) -> None:
        ran.append(threading.current_thread())

    middleware = [*SITE["MIDDLEWARE"][:4], f"{__name__}.ThirdPartyMiddleware"]
    middleware += SITE["MIDDLEWARE"][4:]
    changes = {"MIDDLEWARE": middleware, "ROOT_URLCONF": __name__}
    for signal in (request_started, request_finished):
        signal.connect(receive)
    try:
        with serving(PGBACKEND_SYNC_ON_LOOP=True, **changes) as client, ThreadStarts() as starts:
            await log_in(client)
            for address, text in (
                ("/books/", "A by Ada;"),
                ("/foreign-key/", "Ada"),
                ("/thread/", "MainThread"),
                ("/template/", "MainThread"),
                ("/me/", "grace"),
                ("/visit/", "1"),
            ):
                answer = await client.get(address)
                assert (answer.status, answer.text) == (200, text)
                assert (answer["X-Thread"], answer["X-Books"]) == ("MainThread", "1")
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(receive)
    assert starts.names == []
    assert set(ran) == {threading.main_thread()}
    # At the start and the end of each of eight requests.
    assert len(ran) == 16


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
async def test_synchronous_body_on_the_loop() -> None:
    """PGBACKEND_SYNC_ON_LOOP = True: a synchronous iterator is read on the loop's thread."""
    await make_library()
    with serving(PGBACKEND_SYNC_ON_LOOP=True, ROOT_URLCONF=__name__) as client:
        with ThreadStarts() as starts:
            answer = await client.get("/streamed-synchronously/")
        assert (answer.status, answer.text) == (200, "MainThread; Ada")
    assert starts.names == []


async def test_sync_on_loop_without_implicit_io() -> None:
    """PGBACKEND_IMPLICIT_IO = False leaves synchronous views on the loop as they are."""
    await make_library()
    switches = {"PGBACKEND_SYNC_ON_LOOP": True, "PGBACKEND_IMPLICIT_IO": False}
    with serving(**switches) as client, ThreadStarts() as starts:
        assert (await client.get("/books/")).text == "A by Ada;"
        assert (await client.get("/foreign-key/")).status == 500
        assert (await client.get("/thread/")).text == "MainThread"
    assert starts.names == []


async def test_100_requests_of_a_synchronous_view(server: Server) -> None:
    """PGBACKEND_SYNC_ON_LOOP = True: they share the loop's thread and the pool's backends."""
    for number in range(5):
        author = await Author.objects.acreate(name=f"author {number}")
        await Book.objects.acreate(title=str(number), author=author)
    expected = "".join(f"{number} by author {number};" for number in range(5))
    with (
        serving(PGBACKEND_SYNC_ON_LOOP=True) as client,
        BackendSampler(server.dsn, NAME) as sampler,
        ThreadStarts() as starts,
    ):
        answers = await asyncio.gather(*(client.get("/books/") for _ in range(REQUESTS)))
    assert {(answer.status, answer.text) for answer in answers} == {(200, expected)}
    assert starts.names == []
    assert 2 <= sampler.peak <= pool_size()


async def test_one_view_on_the_loop() -> None:
    """A synchronous view decorated with bridged runs on the loop's thread, others do not."""
    with serving() as client:
        with ThreadStarts() as starts:
            assert (await client.get("/bridged-thread/")).text == "MainThread"
        assert starts.names == []
        assert (await client.get("/thread/")).text != "MainThread"


# Values


@pytest.mark.parametrize("name", ["PGBACKEND_IMPLICIT_IO", "PGBACKEND_SYNC_ON_LOOP"])
@pytest.mark.parametrize("value", ["False", 0, None])
async def test_switch_of_a_wrong_type(name: str, value: Any) -> None:
    """A switch that is neither True nor False is refused with its name and value."""
    with (
        serving(**{name: value}) as client,
        pytest.raises(ImproperlyConfigured, match=f"^{name} is True or False, not {value!r}$"),
    ):
        await client.get("/me/")


@pytest.mark.parametrize("name", ["PGBACKEND_BLOCKING_TIME", "PGBACKEND_CLIENT_TIMEOUT"])
@pytest.mark.parametrize("value", ["0.1", 0, -1.0, True, [0.1]])
async def test_time_of_a_wrong_type(name: str, value: Any) -> None:
    """A setting that is a time and is none is refused with its name and value."""
    with (
        serving(**{name: value}) as client,
        pytest.raises(ImproperlyConfigured, match=rf"^{name} is a number") as told,
    ):
        await client.get("/me/")
    assert repr(value) in str(told.value)


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({"DEBUG": True}, ["pgbackend-detector"]),
        ({"DEBUG": True, "PGBACKEND_BLOCKING_TIME": None}, []),
        ({"PGBACKEND_BLOCKING_TIME": 5}, ["pgbackend-detector"]),
        ({}, []),
    ],
)
async def test_blocking_time_starts_the_detector(
    settings: dict[str, Any], threads: list[str]
) -> None:
    """The loop is watched in DEBUG and where a time is set, and not where it is None."""
    with serving(**settings) as client, ThreadStarts() as starts:
        for _ in range(2):
            assert (await client.get("/me/")).status == 200
    assert starts.names == threads
