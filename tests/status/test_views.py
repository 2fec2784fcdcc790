"""The page and its stream, as clients get them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path

from pgbackend import pools
from pgbackend.status import sampling
from pgbackend.status.views import is_active_staff
from tests.support.server import Server
from tests.support.wrapper import until

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


@pytest.fixture(autouse=True)
def urls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module: Any = ModuleType("urls_of_status")
    module.urlpatterns = [path("status/", include("pgbackend.status.urls"))]
    monkeypatch.setitem(sys.modules, "urls_of_status", module)
    with override_settings(
        ROOT_URLCONF="urls_of_status", MIDDLEWARE=MIDDLEWARE, LOGIN_URL="/login/"
    ):
        yield module


async def staff() -> AsyncClient:
    client = AsyncClient()
    await client.aforce_login(await User.objects.acreate(username="ada", is_staff=True))
    return client


def event(text: str) -> tuple[str, Any]:
    """Return the name and the data of an event."""
    found = re.fullmatch(r"retry: \d+\nevent: (\w+)\ndata: (.*)\n\n", text)
    assert found is not None, text
    return found[1], json.loads(found[2]) if found[2] else None


async def test_page() -> None:
    """The page is under a policy that allows nothing inline, and has nothing inline."""
    response = await (await staff()).get("/status/")
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    text = response.content.decode()
    assert not re.search(r"<style|style=|<script(?! src)|\son\w+=|https?://", text)


async def test_files() -> None:
    """What the page needs is there for all, and not sent again to a browser that has it."""
    client = AsyncClient()
    for name, kind in (("status.css", "text/css"), ("status.js", "text/javascript")):
        response = await client.get(f"/status/{name}")
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith(kind)
        again = await client.get(
            f"/status/{name}", headers={"if-none-match": response.headers["ETag"]}
        )
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("who", ["nobody", "a customer", "formerly staff"])
async def test_others(who: str) -> None:
    """Others than active staff are sent to the login, and no stream is theirs."""
    client = AsyncClient()
    if who != "nobody":
        user = await User.objects.acreate(username=who, is_staff=who == "formerly staff")
        await client.aforce_login(user)
        user.is_active = who == "a customer"
        await user.asave()
    response = await client.get("/status/?x=1")
    assert response.status_code == 302
    assert response.headers["Location"] == "/login/?next=/status/%3Fx%3D1"
    assert (await client.get("/status/events")).status_code == 403
    assert (await client.head("/status/events")).status_code == 403
    assert not sampling._running


async def test_stream(server: Server) -> None:
    """The stream is one of events, which nothing keeps.

    Of 200 clients that go away, some in the middle of an event, no task and no connection is left.
    """
    cookie = (await staff()).cookies["sessionid"].value
    application, tasks = ASGIHandler(), len(asyncio.all_tasks())
    backends = server.backends()

    async def look(stays: bool) -> list[Any]:
        sent: list[Any] = []
        began, asked = asyncio.Event(), iter(["http.request", "http.disconnect"])

        async def receive() -> Any:
            if (kind := next(asked)) == "http.disconnect":
                await began.wait()
            return {"type": kind}

        async def send(message: Any) -> None:
            sent.append(message)
            if message.get("body"):
                began.set()
                # As a socket that takes no more.
                await asyncio.sleep(0 if stays else 1000)

        scope = {
            **{"type": "http", "method": "GET", "path": "/status/events", "query_string": b""},
            "headers": [(b"host", b"testserver"), (b"cookie", f"sessionid={cookie}".encode())],
        }
        await application(scope, receive, send)
        return sent

    found = await asyncio.gather(*(look(bool(number % 2)) for number in range(200)))
    headers = dict(found[0][0]["headers"])
    assert headers[b"Content-Type"] == b"text/event-stream"
    assert headers[b"Cache-Control"] == b"no-store"
    name, data = event(found[0][1]["body"].decode())
    assert name == "snapshot"
    assert data["process"]["aliases"]["default"]
    await until(lambda: not sampling._running)
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 1)
    # What the pool has opened for the 200 users stays in it.
    kept = sum(each.size for each in pools() if each.loop is asyncio.get_running_loop())
    await until(lambda: server.backends() <= backends + kept)


async def test_end_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last event says that the page should ask for the next stream."""
    monkeypatch.setattr(sampling, "LIFETIME", 0.0)
    response = await (await staff()).get("/status/events")
    found = [event(each.decode())[0] async for each in response.streaming_content]
    assert found == ["snapshot", "end"]
    await until(lambda: not sampling._running)


async def test_head() -> None:
    """HEAD has no stream, and starts nothing."""
    client = await staff()
    assert (await client.head("/status/events")).status_code == 200
    assert (await client.head("/status/")).status_code == 200
    assert (await client.post("/status/events")).status_code == 405
    assert not sampling._running


def test_under_wsgi() -> None:
    """Under WSGI the answer is one event, after which the browser asks again."""
    client = Client()
    assert client.get("/status/events").status_code == 403
    client.force_login(User.objects.create(username="ada", is_staff=True))
    assert client.get("/status/").status_code == 200
    response = client.get("/status/events")
    assert not response.streaming
    name, data = event(response.content.decode())
    assert name == "single"
    assert data["servers"]["default"]["answer"]["database"] == "pgbackend_tests"


async def test_without_users() -> None:
    """Without the middleware that knows the user the error names it."""
    with (
        override_settings(MIDDLEWARE=[]),
        pytest.raises(ImproperlyConfigured, match="AuthenticationMiddleware"),
    ):
        await AsyncClient().get("/status/")


def test_is_active_staff() -> None:
    """Both are asked for."""
    assert is_active_staff(User(is_staff=True))
    assert not is_active_staff(User(is_staff=True, is_active=False))
    assert not is_active_staff(User(is_superuser=True))
