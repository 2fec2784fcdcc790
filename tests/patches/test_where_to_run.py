"""Places: what of a request runs on the event loop's thread, and what keeps a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import django
import pytest
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import PermissionDenied
from django.core.signals import request_finished, request_started
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import path

from tests.models import Elsewhere
from tests.site import pages
from tests.site.library import log_in, make_library
from tests.support.client import SITE, serving
from tests.support.loop import ThreadStarts
from tests.support.places import connections_elsewhere, in_a_thread, note, ran
from tests.support.server import Server
from tests.support.wrapper import until


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    ran.clear()


# Views of this file


class Body:
    """The body of a streaming response, which notes where it is closed."""

    async def __aiter__(self) -> AsyncIterator[str]:
        note("body")
        yield "streamed"

    def close(self) -> None:
        note("close")


async def closing(request: HttpRequest) -> StreamingHttpResponse:
    note("view")
    return StreamingHttpResponse(Body())


async def count(request: HttpRequest) -> HttpResponse:
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    return HttpResponse(visits)


def synchronous(request: HttpRequest) -> HttpResponse:
    note("view")
    return HttpResponse(Elsewhere.objects.count())


class Noting:
    """What a template shows and notes where it is rendered."""

    def __str__(self) -> str:
        note("render")
        return str(Elsewhere.objects.count())


def synchronous_template(request: HttpRequest) -> TemplateResponse:
    note("view")
    return TemplateResponse(request, "word.html", {"word": Noting()})


urlpatterns = [
    *pages.urlpatterns,
    path("closing/", closing),
    path("count/", count),
    path("synchronous/", synchronous),
    path("synchronous/template/", synchronous_template),
]

# What needs no thread


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/me/", 200),
        ("/visit/", 200),
        ("/members/", 200),
        ("/staff/", 403),
        ("/me", 301),
        ("/nowhere/", 404),
        ("/forbidden/", 403),
        ("/failing/", 500),
        ("/streamed/", 200),
        ("/groups/template-response/", 200),
    ],
)
async def test_default_middleware_needs_no_thread(address: str, status: int) -> None:
    """A user's request through startproject's middleware starts no thread, however it ends."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        await log_in(client)
        answer = await client.get(address)
        assert (answer.status, answer["X-Content-Type-Options"]) == (status, "nosniff")
        # The session was saved: the next request knows the user.
        assert (await client.get("/me/")).text == "grace"
    assert starts.names == []


async def test_refused_without_a_thread() -> None:
    """Redirects to the login page and CSRF failures start no thread."""
    await make_library()
    with serving() as client, ThreadStarts() as starts:
        answer = await client.get("/members/")
        assert (answer.status, answer["Location"]) == (302, "/login/?next=/members/")
        answer = await client.post("/login/", {"username": "grace"}, csrf=False)
        assert answer.status == 403
        assert "CSRF" in answer.text
    assert starts.names == []


# What keeps its thread


class NotingHasher(MD5PasswordHasher):
    """Notes where a password is verified."""

    def verify(self, password: str, encoded: str) -> bool:
        note("hasher")
        return bool(super().verify(password, encoded))


@pytest.mark.skipif(django.VERSION < (6, 0), reason="hashes on the loop before Django 6.0")
async def test_password_hashing_keeps_its_thread() -> None:
    """aauthenticate() in a view hashes in a thread."""
    with serving(PASSWORD_HASHERS=[f"{__name__}.NotingHasher"]) as client:
        await make_library()
        ran.clear()
        assert (await client.get("/password/?password=secret")).text == "grace"
        assert (await client.get("/password/?password=wrong")).text == "wrong"
    assert len(ran["hasher"]) == 2
    assert in_a_thread("hasher")


class ThirdPartyMiddleware:
    """Synchronous middleware that uses the second database."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        note("middleware")
        Elsewhere.objects.create(name="by middleware")
        return self.get_response(request)

    def process_view(self, *args: Any) -> None:
        note("process_view")

    def process_exception(self, *args: Any) -> None:
        note("process_exception")


def receive(**kwargs: Any) -> None:
    note("receiver")


@contextmanager
def received(signal: Signal) -> Iterator[None]:
    """Connect `receive` while the block runs."""
    signal.connect(receive)
    try:
        yield
    finally:
        signal.disconnect(receive)


def with_middleware(index: int, name: str) -> list[str]:
    """Return startproject's middleware and one of this file, at an index."""
    middleware = list(SITE["MIDDLEWARE"])
    middleware.insert(index, f"{__name__}.{name}")
    return middleware


# First, somewhere between Django's, and last.
@pytest.mark.parametrize("index", [0, 4, 7])
async def test_synchronous_middleware_keeps_its_thread(server: Server, index: int) -> None:
    """In it the response is closed, too, and nothing is left of that thread's connection."""
    middleware = with_middleware(index, "ThirdPartyMiddleware")
    with (
        serving(ROOT_URLCONF=__name__, MIDDLEWARE=middleware) as client,
        received(request_finished),
    ):
        assert (await client.get("/closing/")).text == "streamed"
        assert (await client.get("/failing/")).status == 500
    assert set(ran["view"] + ran["body"]) == {threading.main_thread()}
    for name in ("middleware", "process_view", "process_exception", "close", "receiver"):
        assert in_a_thread(name), name
    # The thread of the first request closed its response.
    assert ran["close"] == ran["middleware"][:1]
    assert ran["receiver"] == ran["middleware"]
    await until(lambda: connections_elsewhere(server) == 0)
    assert await Elsewhere.objects.acount() == 2


@pytest.mark.parametrize("index", [0, 4, 7])
async def test_synchronous_access_below_synchronous_middleware(index: int) -> None:
    """An asynchronous view walks relations below synchronous middleware as well."""
    await make_library()
    with serving(MIDDLEWARE=with_middleware(index, "ThirdPartyMiddleware")) as client:
        answer = await client.get("/foreign-key/")
    assert (answer.status, answer.text) == (200, "Ada")
    assert in_a_thread("middleware")


@pytest.mark.parametrize("signal", [request_started, request_finished], ids=["start", "end"])
async def test_receivers_of_request_signals_keep_their_thread(signal: Signal) -> None:
    """A receiver that is not Django's own runs in a thread; without it the request has none."""
    with serving() as client:
        with received(signal), ThreadStarts() as starts:
            assert (await client.get("/visit/")).text == "1"
        assert in_a_thread("receiver")
        assert starts.names
        with ThreadStarts() as starts:
            assert (await client.get("/visit/")).text == "2"
        assert starts.names == []


class ThirdPartyCache(LocMemCache):
    """A cache that asks a server for each key."""

    def get(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        note("cache")
        return super().get(key, *args, **kwargs)

    def set(self, key: Any, *args: Any, **kwargs: Any) -> None:
        note("cache")
        super().set(key, *args, **kwargs)

    def add(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        note("cache")
        return super().add(key, *args, **kwargs)


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
async def test_sessions_in_another_cache_keep_their_thread(engine: str) -> None:
    """The a-methods of a session that is kept in a third-party cache use it in a thread."""
    caches = {"default": {"BACKEND": f"{__name__}.ThirdPartyCache", "LOCATION": engine}}
    session_engine = f"django.contrib.sessions.backends.{engine}"
    with serving(ROOT_URLCONF=__name__, CACHES=caches, SESSION_ENGINE=session_engine) as client:
        assert (await client.get("/count/")).text == "1"
        assert (await client.get("/count/")).text == "2"
    assert in_a_thread("cache")


@pytest.mark.parametrize(
    "engine", ["db", "signed_cookies", "cache", "cached_db"], ids=lambda engine: str(engine)
)
async def test_sessions_that_need_no_thread(engine: str) -> None:
    """Sessions in the database, its cache or cookies are loaded and saved without a thread."""
    session_engine = f"django.contrib.sessions.backends.{engine}"
    with (
        serving(ROOT_URLCONF=__name__, SESSION_ENGINE=session_engine) as client,
        ThreadStarts() as starts,
    ):
        assert (await client.get("/count/")).text == "1"
        assert (await client.get("/count/")).text == "2"
    assert starts.names == []


class ThirdPartyBackend(BaseBackend):
    """Asks a directory server whether the password is right."""

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User:
        note("authenticate")
        if credentials["password"] != "secret":
            raise PermissionDenied
        return User(username="from the directory")


async def test_authentication_backends_keep_their_thread() -> None:
    """aauthenticate() calls a third-party backend's synchronous method in a thread."""
    with serving(AUTHENTICATION_BACKENDS=[f"{__name__}.ThirdPartyBackend"]) as client:
        assert (await client.get("/password/?password=secret")).text == "from the directory"
        assert (await client.get("/password/?password=wrong")).text == "wrong"
    assert len(ran["authenticate"]) == 2
    assert in_a_thread("authenticate")


@pytest.mark.parametrize(
    ("address", "names"),
    [("/synchronous/", ["view"]), ("/synchronous/template/", ["view", "render"])],
)
async def test_synchronous_views_keep_their_thread(
    server: Server, address: str, names: list[str]
) -> None:
    """A synchronous view, and what renders its template, run in one thread.

    The connection of that thread is closed with the request.
    """
    with serving(ROOT_URLCONF=__name__) as client, received(request_finished):
        for _ in range(2):
            assert (await client.get(address)).text == "0"
    for name in names:
        assert in_a_thread(name)
        assert ran[name] == ran["receiver"]
    await until(lambda: connections_elsewhere(server) == 0)
