"""The event loop: no threads for queries, no statement that stops the loop, nothing left over."""

import asyncio
import json
import logging
import operator
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, transaction
from django.db.models import CharField, Func, QuerySet, Value
from django.db.models.functions import Cast
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path

from pgbackend import await_bridged, bridged
from tests.models import Author
from tests.support.loop import ThreadStarts, get, pool_size, settled
from tests.support.sampler import BackendSampler
from tests.support.server import NAME, Server

REQUESTS = 100


# Requests


async def five_queries(request: HttpRequest) -> JsonResponse:
    name = request.GET["name"]
    created = await Author.objects.acreate(name=name)
    found = await Author.objects.aget(pk=created.pk)
    authors = Author.objects.filter(name=name)
    count, exists = await authors.acount(), await authors.aexists()
    names = [author.name async for author in authors]
    return JsonResponse({"found": found.name, "count": count, "exists": exists, "names": names})


async def no_queries(request: HttpRequest) -> JsonResponse:
    return JsonResponse({})


@transaction.atomic
async def failing(request: HttpRequest) -> JsonResponse:
    await Author.objects.acreate(name=request.GET["name"])
    raise RuntimeError("this view fails")


urlpatterns = [
    path("queries/", five_queries),
    path("nothing/", no_queries),
    path("failing/", failing),
]


@pytest.fixture
def handler() -> Iterator[ASGIHandler]:
    """Django's ASGI application with the views above."""
    with override_settings(ROOT_URLCONF=__name__):
        yield ASGIHandler()


def check(name: str, answer: tuple[int, bytes]) -> None:
    """Check the answer of `five_queries`."""
    status, body = answer
    assert status == 200
    assert json.loads(body) == {"found": name, "count": 1, "exists": True, "names": [name]}


async def test_requests_start_no_threads(handler: ASGIHandler, server: Server) -> None:
    """100 concurrent requests that query start no thread, their signals and closing included."""
    names = [f"author {number}" for number in range(REQUESTS)]
    with BackendSampler(server.dsn, NAME) as sampler, ThreadStarts() as starts:
        answers = await asyncio.gather(*(get(handler, f"/queries/?name={n}") for n in names))
    for name, answer in zip(names, answers, strict=True):
        check(name, answer)
    assert starts.names == []
    assert 2 <= sampler.peak <= pool_size()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to count files in")
async def test_requests_leave_nothing(
    handler: ASGIHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """Many requests one after another leave no thread, task or file descriptor behind."""
    # Half of them fail, as they should.
    caplog.set_level(logging.CRITICAL, "django.request")

    def census() -> tuple[int, int, int]:
        files = len(os.listdir("/proc/self/fd"))
        return threading.active_count(), len(asyncio.all_tasks()), files

    async def serve(count: int, run: str) -> None:
        for number in range(count):
            name = f"{run} {number}"
            check(name, await get(handler, f"/queries/?name={name}"))
            assert (await get(handler, f"/failing/?name=failing {name}"))[0] == 500

    # Django logs a failed request in a thread of the default executor, which may start a few.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    await serve(10, "first")
    baseline = census()
    await serve(200, "second")
    for _ in range(1000):
        # The last request's threads are told to end, and end a moment later.
        if all(map(operator.le, census(), baseline)):
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail(f"threads, tasks and files: {census()}, before {baseline}")
    assert await Author.objects.acount() == 210
    assert (await settled())["pool_size"] == 1


# Ticks

# Seconds that a statement takes in the server, and that the loop may at most stand still.
SLEEP = 0.5
GAP = 0.2


class Ticker:
    """A task that wakes up every 10 ms; `gap` is the longest time it could not."""

    def __init__(self) -> None:
        self.gap = 0.0

    async def __aenter__(self) -> "Ticker":
        self._last = time.monotonic()
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._note()
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self._note()

    def _note(self) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self._last)
        self._last = now


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of asyncio's own loop, and one of uvloop's."""
    factory = None
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def ticks_meanwhile(
    runner: asyncio.Runner, wait: Callable[[], Awaitable[Any]], seconds: float = SLEEP
) -> None:
    """Check that *wait* takes the *seconds* it must, and that the loop ticks meanwhile."""

    async def main() -> None:
        # Imports, and the pool's first connection, are not what is measured.
        await Author.objects.aexists()
        started = time.monotonic()
        async with Ticker() as ticker:
            await wait()
        assert time.monotonic() - started >= seconds
        assert ticker.gap < GAP

    runner.run(main())


def slow_authors() -> QuerySet[Author]:
    """Return a queryset that takes SLEEP seconds for each row."""
    slept = Cast(Func(Value(SLEEP), function="pg_sleep"), CharField())
    return Author.objects.annotate(slept=slept)


async def read(rows: Any) -> None:
    assert [author.name async for author in rows] == ["Ada"]


@pytest.fixture
def author(server: Server) -> Author:
    """An author called Ada, in the database before the loop runs."""
    server.all("INSERT INTO tests_author (name) VALUES ('Ada')")
    return Author(pk=1, name="Ada")


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda: slow_authors().aget(), id="aget"),
        pytest.param(lambda: slow_authors().filter(slept="").aupdate(name="Ada"), id="aupdate"),
        pytest.param(lambda: read(slow_authors()), id="async for"),
        pytest.param(lambda: read(slow_authors().aiterator()), id="aiterator"),
    ],
)
def test_ticks_during_a_method(
    runner: asyncio.Runner, author: Author, wait: Callable[[], Awaitable[Any]]
) -> None:
    """The loop goes on while a statement of an a-method runs in the server."""
    ticks_meanwhile(runner, wait)


@pytest.mark.parametrize("server_side", [False, True], ids=["client-side", "server-side"])
def test_ticks_during_a_raw_cursor(runner: asyncio.Runner, server_side: bool) -> None:
    """The loop goes on while a raw cursor in a bridged function executes or fetches."""

    @bridged
    @transaction.atomic
    def sleep() -> None:
        with connection.chunked_cursor() if server_side else connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_sleep(%s)", [SLEEP])
            assert cursor.fetchall() == [(1,)]

    ticks_meanwhile(runner, sleep)


@pytest.fixture
def slow_commit(server: Server) -> Iterator[None]:
    """Transactions that insert an author take SLEEP seconds to commit."""
    server.all(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_sleep({SLEEP}); RETURN NULL; END'"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON tests_author"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    yield
    server.all("DROP FUNCTION slow CASCADE")


@pytest.mark.usefixtures("slow_commit")
def test_ticks_during_commit(runner: asyncio.Runner, server: Server) -> None:
    """The loop goes on while the server works on a COMMIT."""

    async def commit() -> None:
        async with transaction.atomic():
            inserting = time.monotonic()
            await Author.objects.acreate(name="Ada")
            # Not here, but at the end of the block.
            assert time.monotonic() - inserting < SLEEP

    ticks_meanwhile(runner, commit)
    assert server.one("SELECT name FROM tests_author") == "Ada"


def test_ticks_during_checkout(
    runner: asyncio.Runner, author: Author, add_alias: Callable[..., str]
) -> None:
    """The loop goes on while a task waits for a connection of an exhausted pool."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1}})

    async def wait() -> None:
        slow = asyncio.create_task(slow_authors().using(alias).aget())
        # First come, first served: it has asked for the only connection.
        await asyncio.sleep(0)
        assert await Author.objects.using(alias).aget() == author
        assert slow.done()
        await slow

    ticks_meanwhile(runner, wait)


def test_ticks_while_connecting(
    runner: asyncio.Runner, author: Author, add_alias: Callable[..., str]
) -> None:
    """The loop goes on while the server takes its time to accept a connection."""
    # After it has checked who connects, the server waits so many seconds.
    alias = add_alias({"options": "-c post_auth_delay=1"})

    async def wait() -> None:
        assert await Author.objects.using(alias).aget() == author

    ticks_meanwhile(runner, wait, 1.0)


# Many tasks


async def test_many_tasks_on_a_small_pool(server: Server) -> None:
    """64 tasks doing 100 aget() each never hold more connections than the pool, and leave none."""
    authors = [await Author.objects.acreate(name=f"author {number}") for number in range(64)]

    async def get_often(author: Author) -> None:
        for _ in range(100):
            assert (await Author.objects.aget(pk=author.pk)).name == author.name

    with BackendSampler(server.dsn, NAME) as sampler:
        async with asyncio.TaskGroup() as group:
            for author in authors:
                group.create_task(get_often(author))
    assert 2 <= sampler.peak <= pool_size()
    # None was thrown away and replaced on the way.
    assert sampler.pids == sampler.last
    stats = await settled()
    assert stats["pool_size"] <= pool_size()
    assert stats["requests_num"] >= 6400
    busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
    assert server.one(busy, NAME) == 0


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("from_bridged", [False, True], ids=["from a task", "from bridged code"])
async def test_eager_tasks(from_bridged: bool) -> None:
    """Tasks that start inside the one that creates them each get their own result."""
    authors = [await Author.objects.acreate(name=f"author {number}") for number in range(50)]
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async def find() -> list[Author]:
        return await asyncio.gather(*(Author.objects.aget(pk=author.pk) for author in authors))

    def find_bridged() -> tuple[list[Author], int]:
        found = await_bridged(find())
        # The bridge is still this task's when the eager ones have run.
        return found, Author.objects.count()

    if from_bridged:
        found, count = await bridged(find_bridged)()
    else:
        found, count = await find(), await Author.objects.acount()
    assert [author.name for author in found] == [author.name for author in authors]
    assert count == 50
    assert (await settled())["pool_size"] <= pool_size()
