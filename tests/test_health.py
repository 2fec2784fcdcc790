"""Whether databases answer: the views, and what they ask."""

from __future__ import annotations

import asyncio
import json
import sys
from time import monotonic
from types import ModuleType
from typing import Any

import pytest
from django.db import connections, transaction
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from pgbackend.health import LiveView, ReadyView, check, check_all
from tests.faults.fix_servers import Pair
from tests.support.limits import PATIENCE
from tests.support.wrapper import AddAlias, avalue, on_loan, until

NOWHERE = {"HOST": "127.0.0.1", "PORT": "1"}


@pytest.fixture
def alias(add_alias: AddAlias) -> str:
    return add_alias({"pool": {"max_size": 1, "timeout": 30}})


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch, alias: str) -> Any:
    """Views of all kinds, as a project has them."""
    module: Any = ModuleType("urls_of_health")
    module.urlpatterns = [
        path("live", LiveView.as_view()),
        path("ready", ReadyView.as_view(aliases=[alias], within=PATIENCE)),
        path("hurry", ReadyView.as_view(aliases=[alias], within=0.3)),
        path("replica", ReadyView.as_view(aliases=[alias], within=PATIENCE, role="replica")),
    ]
    monkeypatch.setitem(sys.modules, "urls_of_health", module)
    with override_settings(ROOT_URLCONF="urls_of_health"):
        yield module


async def test_check(alias: str) -> None:
    """A server that answers says what it is; the connection is given back."""
    found = await check(alias)
    assert (found.alias, found.ok, found.reason, found.role) == (alias, True, "", "primary")
    assert 0 < found.seconds < 2
    found = await check(alias, role="replica")
    assert (found.ok, found.reason, found.role) == (False, "a primary, not a replica", "primary")
    assert (await check(alias, role="primary")).ok
    assert on_loan(connections[alias]) == 0


async def test_in_a_transaction(alias: str) -> None:
    """It is of no transaction that is open where it is asked for, and sees whether one more can
    be had.
    """
    async with transaction.atomic(using=alias):
        await avalue("SELECT 1", alias)
        began = monotonic()
        found = await check(alias, within=0.1)
        assert (found.ok, found.reason) == (False, "no answer within 0.1 s")
        assert monotonic() - began < 1
        assert await avalue("SELECT 1", alias) == 1
    assert (await check(alias)).ok


async def test_no_server(add_alias: AddAlias, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is not there is an answer, whose words are in the log alone."""
    alias = add_alias({"pool": {"max_size": 1, "timeout": 5}}, **NOWHERE)
    found = await check(alias, within=5)
    assert (found.ok, found.reason, found.role) == (False, "no answer: OperationalError", None)
    assert "127.0.0.1" in caplog.text


async def test_all() -> None:
    """By default all databases of this backend are asked, at the same time."""
    found = await check_all()
    assert {each.alias for each in found} >= {"default", "other"}
    assert all(each.ok for each in found)


@pytest.mark.parametrize("atomic", [False, True])
async def test_views(urls: Any, alias: str, atomic: bool) -> None:
    """Each says what it found, in its status too, and nothing keeps that."""
    client = AsyncClient()
    connections.settings[alias]["ATOMIC_REQUESTS"] = atomic
    live = await client.get("/live")
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    ready = await client.get("/ready")
    assert (ready.status_code, ready.headers["Cache-Control"]) == (200, "no-store")
    (database,) = ready.json()["databases"].values()
    assert (ready.json()["status"], database["ok"], database["role"]) == ("ready", True, "primary")
    replica = await client.get("/replica")
    assert (replica.status_code, replica.json()["status"]) == (503, "not ready")
    assert (await client.head("/ready")).status_code == 200
    assert (await client.post("/ready")).status_code == 405


async def test_view_while_the_pool_is_empty(urls: Any, alias: str) -> None:
    """Readiness fails in time while no connection can be had, and liveness does not."""
    task = asyncio.create_task(avalue("SELECT pg_sleep(60)", alias))
    await until(lambda: on_loan(connections[alias]) == 1)
    client = AsyncClient()
    began = monotonic()
    hurry = await client.get("/hurry")
    assert hurry.status_code == 503
    assert hurry.json()["databases"][alias]["reason"] == "no answer within 0.3 s"
    assert monotonic() - began < 2
    assert (await client.get("/live")).status_code == 200
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await client.get("/ready")).status_code == 200


def test_under_wsgi(urls: Any, alias: str) -> None:
    """The same views work under WSGI, on a connection of their own that is closed."""
    client = Client()
    assert client.get("/live").status_code == 200
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert client.get("/replica").status_code == 503


@pytest.mark.process
async def test_replica(pair: Pair, add_alias: AddAlias) -> None:
    """A standby is a replica, and a primary once it was promoted."""
    server = pair.standby.server
    alias = add_alias(
        {"pool": {"max_size": 1}},
        NAME="postgres",
        HOST="127.0.0.1",
        PORT=server.port,
        USER=server.user,
        PASSWORD=server.password,
    )
    assert (await check(alias, role="replica")).ok
    found = await check(alias, role="primary")
    assert (found.ok, found.reason) == (False, "a replica, not a primary")
    await asyncio.to_thread(pair.promote)
    assert (await check(alias, role="primary")).ok


def test_json(urls: Any, alias: str) -> None:
    """The answer tells nothing of the server: neither its place nor a user."""
    text = json.dumps(Client().get("/ready").json())
    conf = connections.settings[alias]
    assert not any(str(conf[key]) in text for key in ("HOST", "USER", "NAME") if conf[key])
