"""Requests, each in one bridge with wrappers of its own, and their end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.handlers.asgi import ASGIHandler
from django.core.signals import request_finished
from django.db import connection, transaction
from django.db.models.signals import post_save

from tests.models import Author
from tests.site import stateful
from tests.site.stateful import Layer
from tests.support.answers import found, meet_in, written
from tests.support.client import serving
from tests.support.loop import ThreadStarts, settled
from tests.support.server import NAME, Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import until

ISOLATED = ["/query-log/", "/execute-wrappers/", "/on-commit/", "/tenant/"]


@pytest.mark.parametrize("address", ISOLATED)
async def test_concurrent_requests_are_isolated(address: str) -> None:
    """Query log, execute_wrappers, on_commit() and attributes of a wrapper are a request's own.

    Also where the context that requests begin in has a wrapper already.
    """
    outside: list[str] = []

    def note(execute: Callable[..., Any], *args: Any) -> Any:
        outside.append(args[0])
        return execute(*args)

    connection.tenant = "outside"
    connection.queries_log.append({"sql": "SELECT 'outside'", "time": "0"})
    try:
        with (
            serving(DEBUG=True, PGBACKEND_BLOCKING_TIME=None) as client,
            connection.execute_wrapper(note),
        ):
            seen = await meet_in(client, address, address)
            # Nothing of a request before is seen, either.
            assert await meet_in(client, address, f"{address} again") == seen
            assert connection.execute_wrappers == [note]
        assert connection.tenant == "outside"
        assert [query["sql"] for query in connection.queries_log] == ["SELECT 'outside'"]
    finally:
        del connection.tenant
        connection.queries_log.clear()
    assert outside == []
    assert [set(names) for names in seen] == [{"Ada"}, {"Grace"}, {"Edith"}]
    assert len({len(names) for names in seen}) == 1


async def test_transaction_around_a_request(server: Server) -> None:
    """A request sent inside a transaction, as a test case's, joins it."""
    with serving() as client:
        with pytest.raises(KeyError):
            async with transaction.atomic():
                await Author.objects.acreate(name="Grace")
                assert (await client.get("/iteration/")).text == "Grace"
                assert (await client.get("/write/")).json() == {"inside": ["default"]}
                assert await Author.objects.acount() == 2
                assert (await client.get("/visit/")).text == "1"
                assert (await client.get("/visit/")).text == "2"
                raise KeyError
        assert (await client.get("/visit/")).text == "1"
    assert written(server) == (0, 1)


@pytest.mark.parametrize(
    ("address", "settings"),
    [
        ("/announce/", {}),
        ("/announce/synchronously/", {"PGBACKEND_SYNC_ON_LOOP": True}),
    ],
)
async def test_async_to_sync_in_a_request(address: str, settings: dict[str, Any]) -> None:
    """async_to_sync, called in the code of a request, awaits in place: a channel layer's send."""
    with serving(**settings) as client, ThreadStarts() as starts:
        assert (await client.get(f"{address}?message=hello")).text == "room: hello"
    assert starts.names == []


async def test_async_to_sync_in_a_receiver() -> None:
    """async_to_sync awaits in place in what an a-method calls: a receiver of post_save."""
    layer = Layer()

    def receive(instance: Author, **kwargs: Any) -> None:
        async_to_sync(layer.group_send)("authors", instance.name)

    post_save.connect(receive, sender=Author)
    try:
        with serving() as client:
            assert (await client.get("/write/")).status == 200
    finally:
        post_save.disconnect(receive, sender=Author)
    assert layer.messages.get_nowait() == "authors: Ada"


@pytest.fixture
def finished() -> Iterator[list[Any]]:
    """The senders of request_finished."""
    senders: list[Any] = []

    def receive(sender: Any, **kwargs: Any) -> None:
        senders.append(sender)

    stateful.ends.clear()
    request_finished.connect(receive)
    yield senders
    request_finished.disconnect(receive)


@asynccontextmanager
async def nothing_left(server: Server) -> AsyncIterator[None]:
    """Check that what the block does leaves no task and no busy backend."""
    # The pool's own tasks stay.
    await Author.objects.aexists()
    before = asyncio.all_tasks()
    yield
    busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
    await until(lambda: not server.one(busy, NAME))
    await until(lambda: asyncio.all_tasks() <= before)
    await settled()


WAITING = ["/wait/", "/wait/streaming/", "/wait/synchronously/"]


@pytest.mark.parametrize("address", WAITING)
async def test_client_disconnects(server: Server, finished: list[Any], address: str) -> None:
    """The view is cancelled, its statement in the server, too, and its transaction rolled back."""
    with serving(PGBACKEND_SYNC_ON_LOOP=True) as client, TableLock(server, "tests_book") as lock:
        async with nothing_left(server):
            exchange = client.open(address)
            request = asyncio.create_task(exchange.application(*exchange.protocol))
            await lock.waited_for()
            exchange.disconnect()
            await request
            await until(lambda: not lock.waiting())
    assert stateful.ends == ["cancelled"]
    assert found(server) == [address]
    assert finished == [ASGIHandler]


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect the garbage of a test while its filters of warnings are in force."""
    yield
    gc.collect()


@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("address", WAITING)
async def test_server_cancels(server: Server, finished: list[Any], address: str) -> None:
    """A cancelled request ends when its view has: that is cancelled and does not go on."""
    with serving(PGBACKEND_SYNC_ON_LOOP=True) as client, TableLock(server, "tests_book") as lock:
        async with nothing_left(server):
            exchange = client.open(address)
            request = asyncio.create_task(exchange.application(*exchange.protocol))
            await lock.waited_for()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            # Not just told to end: it has ended.
            assert stateful.ends == ["cancelled"]
            await until(lambda: not lock.waiting())
            lock.release()
    assert stateful.ends == ["cancelled"]
    assert found(server) == [address]


# An unclosed body of the request would be a ResourceWarning, and so an error here.
@pytest.mark.usefixtures("collected")
async def test_streaming_body_fails() -> None:
    """The error reaches the server, what came before it the client; nothing is left open."""
    with serving() as client:
        exchange = client.open("/streamed/failing/")
        with pytest.raises(RuntimeError, match="this body fails"):
            await exchange.run()
        assert exchange.answer().text == "so far"
