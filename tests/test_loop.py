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
from tests.support.limits import PATIENCE
from tests.support.loop import ThreadStarts, get, pool_size, settled
from tests.support.loops import EACH_NAME, new_loop
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
    # The last request's threads are told to end, and end a moment later.
    deadline = time.monotonic() + PATIENCE
    while not all(map(operator.le, now := census(), baseline)):
        assert time.monotonic() < deadline, f"threads, tasks and files: {now}, before {baseline}"
        await asyncio.sleep(0.01)
    assert await Author.objects.acount() == 210
    assert (await settled())["pool_size"] == 1


# Ticks

# What the statements of these tests wait for, an advisory lock; and how often the loop comes round
# before it is released.
KEY = 4711
TICKS = 20


class Gate:
    """An advisory lock that the server's own session holds until the loop came round TICKS times.

    Code that stops the loop while it waits for the lock gets it only after PATIENCE.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.open = threading.Event()
        self.ticks = 0

    def __enter__(self) -> "Gate":
        self.server.all("SELECT pg_advisory_lock(%s)", KEY)
        self._timer = threading.Timer(PATIENCE, self._release)
        self._timer.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._release()

    def _release(self) -> None:
        if not self.open.is_set():
            self.open.set()
            self.server.all("SELECT pg_advisory_unlock(%s)", KEY)

    def waiting(self) -> int:
        """Return how many backends wait for the lock."""
        return int(
            self.server.one(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
        )

    async def tick(self) -> None:
        """Let the loop come round while somebody waits for the lock, then release it."""
        while not self.waiting():
            await asyncio.sleep(0.001)
        for _ in range(TICKS):
            await asyncio.sleep(0.001)
            self.ticks += 1
        self._release()


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    """What the statements of a test wait for."""
    with Gate(server) as gate:
        yield gate


@pytest.fixture(params=EACH_NAME)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of asyncio's own loop, and one of uvloop's."""
    with asyncio.Runner(loop_factory=lambda: new_loop(request.param)) as runner:
        yield runner


def ticks_meanwhile(runner: asyncio.Runner, gate: Gate, wait: Callable[[], Awaitable[Any]]) -> None:
    """Check that the loop comes round while *wait* waits for the gate."""

    async def main() -> None:
        ticking = asyncio.create_task(gate.tick())
        await wait()
        assert gate.ticks == TICKS
        await ticking

    runner.run(main())


def slow_authors() -> QuerySet[Author]:
    """Return a queryset that waits for the gate at each row."""
    waited = Cast(Func(Value(KEY), function="pg_advisory_xact_lock_shared"), CharField())
    return Author.objects.annotate(waited=waited)


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
        pytest.param(lambda: slow_authors().filter(waited="").aupdate(name="Ada"), id="aupdate"),
        pytest.param(lambda: read(slow_authors()), id="async for"),
        pytest.param(lambda: read(slow_authors().aiterator()), id="aiterator"),
    ],
)
def test_ticks_during_a_method(
    runner: asyncio.Runner, gate: Gate, author: Author, wait: Callable[[], Awaitable[Any]]
) -> None:
    """The loop goes on while a statement of an a-method runs in the server."""
    ticks_meanwhile(runner, gate, wait)


@pytest.mark.parametrize("server_side", [False, True], ids=["client-side", "server-side"])
def test_ticks_during_a_raw_cursor(runner: asyncio.Runner, gate: Gate, server_side: bool) -> None:
    """The loop goes on while a raw cursor in a bridged function executes or fetches."""

    @bridged
    @transaction.atomic
    def execute() -> None:
        with connection.chunked_cursor() if server_side else connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_advisory_xact_lock_shared(%s)", [KEY])
            assert cursor.fetchall() == [(1,)]

    ticks_meanwhile(runner, gate, execute)


@pytest.fixture
def slow_commit(server: Server) -> Iterator[None]:
    """Transactions that insert an author wait for the gate as they commit."""
    server.all(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_advisory_xact_lock_shared({KEY}); RETURN NULL; END'"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON tests_author"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    yield
    server.all("DROP FUNCTION slow CASCADE")


@pytest.mark.usefixtures("slow_commit")
def test_ticks_during_commit(runner: asyncio.Runner, gate: Gate, server: Server) -> None:
    """The loop goes on while the server works on a COMMIT."""

    async def commit() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            # Not here, but at the end of the block.
            assert not gate.open.is_set()

    ticks_meanwhile(runner, gate, commit)
    assert server.one("SELECT name FROM tests_author") == "Ada"


def test_ticks_during_checkout(
    runner: asyncio.Runner, gate: Gate, author: Author, add_alias: Callable[..., str]
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

    ticks_meanwhile(runner, gate, wait)


def test_ticks_while_connecting(
    runner: asyncio.Runner, author: Author, add_alias: Callable[..., str]
) -> None:
    """The loop goes on while the server takes its time to accept a connection."""
    # After it has checked who connects, the server waits so many seconds.
    alias = add_alias({"options": "-c post_auth_delay=1"})

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def main() -> None:
        ticking = asyncio.create_task(tick())
        assert await Author.objects.using(alias).aget() == author
        ticking.cancel()

    runner.run(main())
    # A loop that stands still meanwhile comes round once or twice.
    assert ticks >= 10


# Many tasks


async def test_many_tasks_on_a_small_pool(server: Server) -> None:
    """64 tasks doing 40 aget() each never hold more connections than the pool, and leave none."""
    authors = [await Author.objects.acreate(name=f"author {number}") for number in range(64)]

    async def get_often(author: Author) -> None:
        for _ in range(40):
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
    assert stats["requests_num"] >= 64 * 40
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
