"""The how-to page of subscriptions: its examples send what it says."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, connections
from django.test import RequestFactory, override_settings

from pgbackend import bridged
from pgbackend.rpc.client import Client
from pgbackend.rpc.server import registry
from pgbackend.rpc.server.settings import service
from tests.pages.examples import example
from tests.rpc.site import models as site
from tests.rpc.waiter.models import Dish
from tests.support.limits import AT_ONCE
from tests.support.rpc import alias

pgtrigger = pytest.importorskip("pgtrigger")

PAGE = "docs/howto/rpc-subscriptions.md"
EXPOSED = example(PAGE, "subscribe=True")
FOLLOW = example(PAGE, "async def follow()")
EVENTS = example(PAGE, "def menu_events")
PLAIN = example(PAGE, "def follow_by")


@pytest.fixture
def dishes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's client has the dishes of the tests' service, of which two are there."""
    site.Dish.objects.create(name="soup", price=5)
    site.Dish.objects.create(name="fish", price=20)
    counter = ModuleType("counter.models")
    vars(counter)["Dish"] = Dish
    monkeypatch.setitem(sys.modules, "counter", ModuleType("counter"))
    monkeypatch.setitem(sys.modules, "counter.models", counter)
    routers = ["pgbackend.rpc.RpcRouter", *settings.DATABASE_ROUTERS]
    with override_settings(DATABASE_ROUTERS=routers), alias(TRANSPORT="local"):
        yield


@pytest.fixture
def printed() -> asyncio.Queue[list[str]]:
    """What the examples print, in its order."""
    return asyncio.Queue()


async def test_expose(kitchen: None) -> None:
    """The table gets one trigger, which tells of it."""
    kept = dict(registry._exposures)
    for each in kept:
        if each._meta.app_label == "kitchen":
            registry.unregister(each)
    model = EXPOSED.run().Dish
    try:
        (trigger,) = [
            each
            for found, each in pgtrigger.registered()
            if found is model and each.name == "rpc_changed"
        ]
        await bridged(pgtrigger.install)(trigger.get_uri(model))
        with_trigger = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'kitchen_dish'::regclass"
        assert await bridged(_count)(f"{with_trigger} AND tgname LIKE '%rpc_changed%'") == 1
        await bridged(pgtrigger.uninstall)(trigger.get_uri(model))
    finally:
        trigger.unregister(model)
        for each in kept.values():
            registry.register(each, anew=True)


def _count(statement: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


async def test_follow(dishes: None, printed: asyncio.Queue[list[str]]) -> None:
    """The names are printed at once, and after a change."""
    following = asyncio.create_task(FOLLOW.run(print=printed.put_nowait).follow())
    async with asyncio.timeout(AT_ONCE):
        assert await printed.get() == ["soup"]
        await site.Dish.objects.acreate(name="tea", price=1)
        assert await printed.get() == ["soup", "tea"]
    following.cancel()
    await asyncio.wait([following])


async def test_without_django(dishes: None, printed: asyncio.Queue[list[str]]) -> None:
    """The same by the plain client."""
    client = Client(connections["rpc"].service.transport, service().keys, principal="chef")
    asked = client.model("rpc_site.Dish")
    stub = type("Named", (), {"model": staticmethod(lambda name: asked)})
    following = asyncio.create_task(PLAIN.run(print=printed.put_nowait).follow_by(stub))
    async with asyncio.timeout(AT_ONCE):
        assert await printed.get() == ["fish", "soup"]
        await site.Dish.objects.acreate(name="tea", price=1)
        assert await printed.get() == ["fish", "soup", "tea"]
    following.cancel()
    await asyncio.wait([following])


async def test_events(dishes: None) -> None:
    """The view sends an event for each list."""
    response = await EVENTS.run().menu_events(RequestFactory().get("/"))
    assert response["Content-Type"] == "text/event-stream"
    events: Any = aiter(response)
    async with asyncio.timeout(AT_ONCE):
        assert _names(await anext(events)) == ["fish", "soup"]
        await site.Dish.objects.acreate(name="tea", price=1)
        assert _names(await anext(events)) == ["fish", "soup", "tea"]
    response.close()


def _names(event: bytes) -> Any:
    return json.loads(event.decode().removeprefix("data: "))
