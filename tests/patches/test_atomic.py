"""ATOMIC_REQUESTS, for asynchronous views, too."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connections

from tests.models import Author
from tests.site.stateful import meet_at
from tests.support.answers import written
from tests.support.client import serving
from tests.support.server import Server


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATOMIC_REQUESTS for the first database."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize(
    ("address", "settings"),
    [
        pytest.param("/write/", {}, id="function"),
        pytest.param("/write/", {"PGBACKEND_IMPLICIT_IO": False}, id="explicit"),
        pytest.param("/write/class/", {}, id="class"),
        pytest.param("/write/synchronously/", {}, id="thread"),
        pytest.param("/write/synchronously/", {"PGBACKEND_SYNC_ON_LOOP": True}, id="on the loop"),
    ],
)
@pytest.mark.parametrize(
    ("then", "status", "authors"),
    [("commit", 200, 1), ("error", 500, 0), ("404", 404, 0), ("rollback", 200, 0)],
)
async def test_atomic_requests(
    server: Server, address: str, settings: dict[str, Any], then: str, status: int, authors: int
) -> None:
    """ATOMIC_REQUESTS: a view's rows are committed, or rolled back on exceptions or demand."""
    with serving(**settings) as client:
        answer = await client.get(f"{address}?then={then}")
    assert answer.status == status
    if status == 200:
        assert answer.json() == {"inside": ["default"]}
    assert written(server) == (authors, 1)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize(("then", "rows"), [("commit", 1), ("error", 0), ("rollback", 0)])
async def test_atomic_requests_of_two_databases(
    server: Server, monkeypatch: pytest.MonkeyPatch, then: str, rows: int
) -> None:
    """ATOMIC_REQUESTS of two databases: an asynchronous view is in a transaction of each."""
    monkeypatch.setitem(connections.settings["other"], "ATOMIC_REQUESTS", True)
    with serving() as client:
        await client.get(f"/write/?then={then}")
        assert written(server) == (rows, rows)
        await Author.objects.all().adelete()
        await client.get(f"/write/outside/other/?then={then}")
        assert written(server) == (rows, rows + 1)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize(
    ("address", "inside"), [("/write/outside/", []), ("/write/outside/other/", ["default"])]
)
async def test_non_atomic_requests(server: Server, address: str, inside: list[str]) -> None:
    """non_atomic_requests takes an asynchronous view out of the transaction of its alias."""
    with serving() as client:
        assert (await client.get(address)).json() == {"inside": inside}
        await Author.objects.all().adelete()
        assert (await client.get(f"{address}?then=error")).status == 500
    assert written(server) == (0 if inside else 1, 2)


@pytest.mark.usefixtures("atomic_requests")
async def test_streaming_body_is_outside(server: Server) -> None:
    """ATOMIC_REQUESTS: the transaction is committed before the body of the response begins."""
    with serving() as client:
        exchange = client.open("/write/streaming/?meeting=streaming&parties=2")
        request = asyncio.create_task(exchange.run())
        await exchange.wrote(b"False")
        assert written(server) == (1, 0)
        await meet_at("streaming", 2)
        assert (await request).text == "False;last"
    assert written(server) == (2, 0)


@pytest.mark.usefixtures("atomic_requests")
async def test_atomic_requests_without_the_bridge(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ATOMIC_REQUESTS of an alias with "bridge" False: Django refuses an asynchronous view."""
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "bridge", False)
    with serving() as client:
        assert (await client.get("/write/")).status == 500
        (error,) = [record.exc_info for record in caplog.records if record.exc_info]
        assert isinstance(error[1], RuntimeError)
        assert str(error[1]) == "You cannot use ATOMIC_REQUESTS with async views."
        assert (await client.get("/write/synchronously/")).json() == {"inside": ["default"]}
