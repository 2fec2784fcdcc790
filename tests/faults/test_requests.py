"""Faults, rows 17, 18 and 25: clients that go, tasks of a transaction, threads beside the loop."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Iterator
from types import ModuleType

import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from pgbackend import bridged
from pgbackend.transaction import detached
from tests.models import Author, Book
from tests.support.client import Client, serving
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import PID, avalue, until, value


class Failed(Exception):
    pass


@bridged
def stats() -> dict[str, int]:
    """Return the measures of the loop's pool for the first database."""
    found: dict[str, int] = connection.async_pool.get_stats()
    return found


def waiting() -> int:
    return int(connection.async_pool.get_stats().get("requests_waiting", 0))


async def check_all_free(server: Server) -> None:
    """Check that every connection is idle and in the pool, and that nobody waits for one."""

    async def free() -> bool:
        found = await stats()
        return not found.get("requests_waiting") and (
            found["pool_available"] == found["pool_size"] == server.backends()
        )

    # Django's own pool, for threads.
    await asyncio.to_thread(connection.close_pool)
    async with asyncio.timeout(PATIENCE):
        while not await free():
            await asyncio.sleep(0.01)
    states = "SELECT DISTINCT state FROM pg_stat_activity WHERE application_name = %s"
    assert server.all(states, NAME) == [("idle",)]
    assert server.all("SELECT pid FROM pg_locks WHERE locktype = 'advisory'") == []


def names_of_authors(server: Server) -> list[str]:
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]


# Clients that go away

# The names of the requests whose views were cancelled.
cancelled: list[str] = []


async def wait(request: HttpRequest) -> HttpResponse:
    """Write in a transaction and read the books, which the test has locked."""
    try:
        async with transaction.atomic():
            await Author.objects.acreate(name=request.GET["name"])
            return HttpResponse(len(Book.objects.all()))
    except asyncio.CancelledError:
        cancelled.append(request.GET["name"])
        raise


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Do so while the response is sent."""

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        yield (await wait(request)).content

    return StreamingHttpResponse(body())


def wait_synchronously(request: HttpRequest) -> HttpResponse:
    """Do so synchronously."""
    try:
        with transaction.atomic():
            Author.objects.create(name=request.GET["name"])
            return HttpResponse(len(Book.objects.all()))
    except asyncio.CancelledError:
        cancelled.append(request.GET["name"])
        raise


async def count(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await Book.objects.acount())


@pytest.fixture
def site() -> Iterator[Client]:
    """These views, and the collection of garbage while the test's filters are in force."""
    cancelled.clear()
    urls = ModuleType("urls")
    urls.urlpatterns = [
        path("wait/", wait),
        path("stream/", stream),
        path("synchronously/", wait_synchronously),
        path("count/", count),
    ]
    with serving(ROOT_URLCONF=urls, PGBACKEND_SYNC_ON_LOOP=True) as client:
        yield client
    gc.collect()


# Django 5.2 and 6.0 do not close the body of a request that is cancelled.
unclosed_bodies = pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")


@pytest.mark.process
@unclosed_bodies
async def test_17_clients_go_away(server: Server, site: Client) -> None:
    """Of 30 clients that leave none keeps a connection, a statement, a row or a place."""
    names = [f"{view}/?name={n}" for n, view in enumerate(["wait", "stream", "synchronously"] * 10)]
    with TableLock(server, "tests_book") as lock:
        exchanges = [site.open(f"/{name}") for name in names]
        tasks = [asyncio.create_task(each.application(*each.protocol)) for each in exchanges]
        # The pool has eight connections; all other requests are in its queue.
        await lock.waited_for(8)
        await until(lambda: waiting() == 22)
        for each in exchanges:
            each.disconnect()
        _, pending = await asyncio.wait(tasks, timeout=PATIENCE)
        assert not pending
        assert not lock.waiting()
    assert sorted(map(int, cancelled)) == [*range(30)]
    assert names_of_authors(server) == []
    await check_all_free(server)


@pytest.fixture
def short_queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One connection for all requests, and one place in the queue for it."""
    options = {"application_name": NAME, "pool": {"max_size": 1, "max_waiting": 1}}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    mine = connections["default"]
    del connections["default"]
    yield
    connections["default"] = mine


@pytest.mark.process
@unclosed_bodies
@pytest.mark.usefixtures("short_queue")
async def test_17_a_client_that_goes_frees_its_place(server: Server, site: Client) -> None:
    """The queue is finite; who leaves it makes room for the next, at once."""
    with TableLock(server, "tests_book") as lock:
        first = asyncio.create_task(site.get("/count/"))
        await lock.waited_for()
        gone = site.open("/count/")
        waits = asyncio.create_task(gone.application(*gone.protocol))
        await until(lambda: waiting() == 1)
        # No place for a third.
        assert (await site.get("/count/")).status == 500
        gone.disconnect()
        await waits
        assert waiting() == 0
        third = asyncio.create_task(site.get("/count/"))
        await until(lambda: waiting() == 1)
        lock.release()
        assert [(await first).status, (await third).status] == [200, 200]
    await check_all_free(server)


# Tasks of one transaction


async def test_18_what_is_committed_was_acknowledged(server: Server) -> None:
    """Of tasks in one transaction, with blocks that fail and are cancelled, just those rows stay
    whose blocks said so; whole transactions of others beside them, or nothing of them."""
    chance = random.Random(18)

    async def child(name: str, how: str, acknowledged: list[str]) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
            if how == "cancel":
                await asyncio.Event().wait()
            with pytest.raises(Failed):
                async with transaction.atomic():
                    await Author.objects.acreate(name=f"{name} inside")
                    await asyncio.sleep(0)
                    raise Failed
            if how == "fail":
                raise Failed
        acknowledged.append(name)

    async def owner(number: int) -> list[str]:
        acknowledged: list[str] = []
        fails = chance.random() < 0.3
        hows = chance.choices(["work", "fail", "cancel"], [6, 2, 1], k=8)
        try:
            async with transaction.atomic():
                tasks = [
                    asyncio.create_task(child(f"{number}-{n}", how, acknowledged))
                    for n, how in enumerate(hows)
                ]
                # A cancelled one is inside its block first, or waits for its turn.
                for task, how in zip(tasks, hows, strict=True):
                    if how == "cancel":
                        await asyncio.sleep(chance.random() / 100)
                        task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if fails:
                    raise Failed
        except Failed:
            return []
        return acknowledged

    acknowledged = await asyncio.gather(*map(owner, range(20)))
    assert names_of_authors(server) == sorted(name for each in acknowledged for name in each)
    assert any(acknowledged)
    await check_all_free(server)


async def test_18_a_task_that_outlives_its_transaction(server: Server) -> None:
    """It gets a RuntimeError before any SQL, and the connection is others' by then."""
    wrote, ended = asyncio.Event(), asyncio.Event()

    async def straggler() -> None:
        await Author.objects.acreate(name="in time")
        wrote.set()
        await ended.wait()
        await Author.objects.acreate(name="late")

    async with transaction.atomic():
        task = asyncio.create_task(straggler())
        await wrote.wait()
    ended.set()
    with pytest.raises(RuntimeError, match="started inside a transaction that has ended"):
        await task
    assert names_of_authors(server) == ["in time"]
    await check_all_free(server)


# Threads beside the loop


async def test_25_a_thread_beside_the_loop(server: Server) -> None:
    """Each thread is on the connection of the transaction it was started in, or on its own."""
    pooled: set[int] = set()
    own: set[int] = set()
    threads: set[int] = set()

    def look(name: str) -> tuple[int, bool, bool]:
        """Return the connection, whether it sees the row, and whether it is in a transaction."""
        threads.add(threading.get_ident())
        found = value(PID), Author.objects.filter(name=name).exists(), connection.in_atomic_block
        if not found[2]:
            connection.close()
        return found

    async def work(number: int) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=f"{number}")
            pid = await avalue(PID)
            pooled.add(pid)
            inside, elsewhere, plain = await asyncio.gather(
                sync_to_async(look, thread_sensitive=False)(f"{number}"),
                detached_look(f"{number}"),
                asyncio.get_running_loop().run_in_executor(None, look, f"{number}"),
            )
            assert inside == (pid, True, True)
            for found in (elsewhere, plain):
                assert found[1:] == (False, False)
                own.add(found[0])

    async def detached_look(name: str) -> tuple[int, bool, bool]:
        with detached():
            return await asyncio.to_thread(look, name)

    await asyncio.gather(*(work(number) for number in range(20)))
    assert threading.get_ident() not in threads
    assert pooled.isdisjoint(own)
    assert len(names_of_authors(server)) == 20
    await check_all_free(server)


async def test_25_a_threads_failure_is_the_transactions(server: Server) -> None:
    """What a thread breaks in the transaction it joined is rolled back; its own stays."""

    def joined() -> None:
        Author.objects.create(name="joined")
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    def own() -> None:
        Author.objects.create(name="own")
        connection.close()

    with pytest.raises(DataError, match="division by zero"):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            await asyncio.get_running_loop().run_in_executor(None, own)
            await sync_to_async(joined)()
    assert names_of_authors(server) == ["own"]
    await check_all_free(server)
