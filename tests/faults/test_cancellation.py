"""Cancellation, wherever it comes: rows 9 to 13 and 15 of the faults."""

import asyncio
import sys
from contextlib import suppress
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from pgbackend import await_bridged, bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.futures import future, gather
from pgbackend.transaction import deferred_savepoint
from tests.faults.sweep import ENDS, KEPT, Operation, sweep, sweep_closing
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.sessions import committed, running
from tests.support.work import ended, execute, fill, pid, settled, until_running
from tests.support.wrapper import until, use_wrapper

# The sweep


class Failed(Exception):
    pass


async def get() -> None:
    assert (await Author.objects.aget(name="kept 1")).name == "kept 1"


async def read_list() -> None:
    assert [author.name async for author in Author.objects.order_by("pk")] == KEPT


async def save() -> None:
    await Author(name="saved").asave()


async def bulk_create() -> None:
    await Author.objects.abulk_create([Author(name=f"bulk {number}") for number in range(3)])


async def nested_blocks() -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="outer")
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                raise Failed
        except Failed:
            pass
        async with transaction.atomic():
            await Author.objects.acreate(name="inner")


async def failing_blocks() -> None:
    try:
        async with transaction.atomic():
            await Author.objects.acreate(name="outer")
            async with transaction.atomic():
                await Author.objects.acreate(name="inner")
                raise Failed
    except Failed:
        pass


@bridged
def write_by_cursor(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])


async def blocks_in_blocks() -> None:
    """BEGIN, SAVEPOINT and RELEASE go with statements of each kind."""
    async with transaction.atomic():
        async with transaction.atomic():
            async with transaction.atomic():
                await Author.objects.acreate(name="first")
            async with transaction.atomic():
                await write_by_cursor("cursor")
        with suppress(Failed):
            async with transaction.atomic():
                await write_by_cursor("lost")
                async with transaction.atomic():
                    await copy()
                raise Failed
        with suppress(IntegrityError):
            async with transaction.atomic():
                await Author.objects.acreate(name="first")
        await Author.objects.acreate(name="last")


async def blocks_of_siblings() -> None:
    async def block(name: str, *, fails: bool) -> None:
        with suppress(Failed):
            async with transaction.atomic():
                await Author.objects.acreate(name=name)
                if fails:
                    raise Failed

    async with transaction.atomic(), transaction.atomic():
        tasks = [
            asyncio.create_task(work)
            for work in (
                write_by_cursor("cursor"),
                block("block", fails=False),
                block("lost", fails=True),
                Author.objects.acreate(name="orm"),
            )
        ]
        for task in tasks:
            # Nobody asks for it where this is closed.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.wait(tasks)
        for task in tasks:
            await task


@bridged
def deferred_savepoints() -> None:
    with transaction.atomic():
        saved = deferred_savepoint()
        for number in range(3):
            with suppress(Failed), saved:
                Author.objects.create(name=f"saved {number}")
                with transaction.atomic():
                    Author.objects.create(name=f"inner {number}")
                if number == 1:
                    raise Failed


async def aiterator() -> None:
    rows = Author.objects.order_by("pk").aiterator(chunk_size=2)
    assert [author.name async for author in rows] == KEPT


async def aiterator_left() -> None:
    rows = Author.objects.order_by("pk").aiterator(chunk_size=2)
    try:
        async for _ in rows:
            break
    finally:
        await rows.aclose()


@bridged
def raw_cursor() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO tests_author (name) VALUES ('raw')")
        cursor.execute("SELECT name FROM tests_author WHERE name = %s", ["raw"])
        assert cursor.fetchall() == [("raw",)]


@bridged
def copy() -> None:
    with connection.cursor() as cursor:
        with cursor.copy("COPY tests_author (name) FROM STDIN") as writing:
            for number in range(3):
                writing.write_row([f"copied {number}"])
                # Other tasks run in the middle of it.
                await_bridged(asyncio.sleep(0))
        with cursor.copy("COPY (SELECT generate_series(1, 9)) TO STDOUT") as reading:
            assert b"".join(reading).split() == [b"%d" % number for number in range(1, 10)]


@bridged
def slow_statement() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.3)")


async def gather_in_block() -> None:
    async with transaction.atomic():
        found = await gather(
            future(Author.objects).create(name="first"),
            Author.objects.order_by("pk"),
            future(Author.objects).get_or_create(name="inner"),
            future(Author.objects).filter(name="kept 1").update(name="kept 1"),
        )
        assert found[3] == 1


async def gather_with_savepoints() -> None:
    async with transaction.atomic():
        found = await gather(
            future(Author.objects).create(name="first"),
            future(Author.objects).create(name="kept 1"),
            future(raw_cursor)(),
            future(Author.objects).count(),
            return_exceptions=True,
            savepoints=True,
        )
        assert isinstance(found[1], IntegrityError)


async def gather_side_by_side() -> None:
    names = Author.objects.order_by("pk").values_list("name", flat=True)
    assert await gather(names, future(Author.objects).count(), names[:1]) == [KEPT, 5, KEPT[:1]]


class Exhausted:
    """A pool of one, whose connection comes free while the operation waits for it."""

    async def before(self) -> None:
        self.release, held = asyncio.Event(), asyncio.Event()

        def hold() -> None:
            with connection.cursor():
                held.set()
                await_bridged(self.release.wait())

        self.holder = asyncio.create_task(run_bridged(hold))
        await held.wait()

    async def work(self) -> None:
        loop = asyncio.get_running_loop()
        # After it has begun to wait.
        loop.call_soon(loop.call_soon, self.release.set)
        await get()

    async def after(self) -> None:
        self.release.set()
        await self.holder


exhausted = Exhausted()


async def close_pool() -> None:
    await bridged(connection.close_pool)()


def pool(size: int, **settings: Any) -> dict[str, Any]:
    return {"options": {"pool": {"max_size": size}}, **settings}


OPERATIONS = {
    "get": Operation(get),
    "list": Operation(read_list),
    "save": Operation(save, ([], ["saved"])),
    "bulk_create": Operation(bulk_create, ([], ["bulk 0", "bulk 1", "bulk 2"])),
    "atomic": Operation(nested_blocks, ([], ["inner", "outer"])),
    "atomic that fails": Operation(failing_blocks),
    "blocks in blocks": Operation(blocks_in_blocks, ([], ["cursor", "first", "last"])),
    "blocks of siblings": Operation(blocks_of_siblings, ([], ["block", "cursor", "orm"])),
    "deferred savepoints": Operation(
        deferred_savepoints, ([], ["inner 0", "inner 2", "saved 0", "saved 2"])
    ),
    "aiterator": Operation(aiterator),
    "aiterator left early": Operation(aiterator_left),
    "raw cursor": Operation(raw_cursor, ([], ["raw"])),
    "COPY": Operation(copy, ([], ["copied 0", "copied 1", "copied 2"])),
    "slow statement": Operation(slow_statement),
    "gather in atomic": Operation(gather_in_block, ([], ["first", "inner"])),
    "gather with savepoints": Operation(gather_with_savepoints, ([], ["first", "raw"])),
    "gather side by side": Operation(gather_side_by_side, settings=pool(2)),
    "exhausted pool": Operation(
        exhausted.work, settings=pool(1), before=exhausted.before, after=exhausted.after
    ),
    "connecting": Operation(get, settings=pool(1), before=close_pool),
    "health check": Operation(get, settings=pool(1, CONN_HEALTH_CHECKS=True)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_09_to_13_sweep(
    name: str, runner: asyncio.Runner, request: pytest.FixtureRequest, server: Server
) -> None:
    """Wherever an operation is cancelled, once or twice, every invariant holds afterwards."""
    loop = request.node.callspec.params["runner"]
    report = runner.run(sweep(f"{name} ({loop})", OPERATIONS[name], server))
    assert report.broken == []
    assert report.once >= 2


# They wait inside an asynchronous generator, of Django's or ours.
OF_GENERATORS = ("list", "aiterator", "aiterator left early")


@pytest.mark.parametrize("name", OPERATIONS)
def test_43_sweep_of_closing(
    name: str, runner: asyncio.Runner, request: pytest.FixtureRequest, server: Server
) -> None:
    """Wherever a coroutine is closed, or dropped, in whatever thread, every invariant holds."""
    if sys.version_info < (3, 13) and name in OF_GENERATORS:
        pytest.skip("CPython leaves an asynchronous generator suspended whose reader is closed")
    loop = request.node.callspec.params["runner"]
    report = runner.run(sweep_closing(f"{name} ({loop})", OPERATIONS[name], server))
    assert report.broken == []
    assert report.closed >= len(ENDS)


# One by one


async def test_09_cancel_at_any_turn_of_the_loop(server: Server) -> None:
    """Cancelled at any time between asking for a connection and having it, no slot is lost."""
    use_wrapper(options={"pool": {"max_size": 2}}, CONN_HEALTH_CHECKS=True)
    for fresh in (False, True):
        for turns in range(40):
            if fresh:
                await close_pool()
            tasks = [asyncio.create_task(execute("SELECT 1")) for _ in range(4)]
            for _ in range(turns):
                await asyncio.sleep(0)
            accepted = [task.cancel() for task in tasks[::2]]
            results = await ended(*tasks)
            for result, cancelled in zip(results[::2], accepted, strict=True):
                assert isinstance(result, asyncio.CancelledError) == cancelled
            assert results[1::2] == [1, 1]
    stats = await settled()
    assert stats["pool_size"] <= 2
    await fill(2)


async def test_10_cancelled_query_is_gone(server: Server) -> None:
    """A cancelled task raises CancelledError, and when it has ended its query has."""
    task = asyncio.create_task(execute("SELECT pg_sleep(600)"))
    await until_running(server.all, "%pg_sleep%")
    task.cancel()
    (result,) = await ended(task)
    assert isinstance(result, asyncio.CancelledError)
    assert running(server, "active", "%pg_sleep%") == 0


async def test_10_no_innocent_query_is_cancelled(server: Server) -> None:
    """The next borrower of a connection whose query was just cancelled is left alone."""
    use_wrapper(options={"pool": {"max_size": 1}})
    before = await pid()
    for _ in range(100):
        first = asyncio.create_task(execute("SELECT pg_sleep(600)"))
        await until(lambda: running(server, "active", "%pg_sleep(600)%"))
        second = asyncio.create_task(execute("SELECT pg_sleep(0.002)"))
        first.cancel()
        results = await ended(first, second)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == ""
    assert await pid() == before


async def test_10_cancelled_while_streaming(server: Server) -> None:
    """A task cancelled while it reads rows leaves no cursor, and gives its connection back."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await Author.objects.abulk_create([Author(name=f"author {number}") for number in range(9)])
    reading = asyncio.Event()

    async def read() -> None:
        async for _ in Author.objects.aiterator(chunk_size=2):
            reading.set()
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await reading.wait()
    task.cancel()
    assert isinstance((await ended(task))[0], asyncio.CancelledError)
    assert await execute("SELECT count(*) FROM pg_cursors") == 0


async def test_11_second_cancel_while_the_query_is_stopped(server: Server) -> None:
    """Cancelled again, and again, while its query is being stopped, the query is gone."""
    for _ in range(20):
        task = asyncio.create_task(execute("SELECT pg_sleep(600)"))
        await until_running(server.all, "%pg_sleep%")
        task.cancel()
        while not task.done():
            await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()
        assert running(server, "active", "%pg_sleep%") == 0
    await settled()


@pytest.mark.parametrize("message", [b"SAVEPOINT", b"ROLLBACK"])
async def test_12_cancel_at(server: Server, message: bytes) -> None:
    """Cancelled at SAVEPOINT or ROLLBACK, nothing is committed and the next block works."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        use_wrapper(HOST="127.0.0.1", PORT=proxy.port, options={"pool": {"max_size": 1}})
        held = asyncio.Event()

        async def work() -> None:
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                # Answered late, after the cancellation.
                proxy.on(message, lambda link: (setattr(proxy, "delay", 0.05), held.set()))
                async with transaction.atomic():
                    await Author.objects.acreate(name="lost too")
                    raise Failed

        task = asyncio.create_task(work())
        await held.wait()
        task.cancel()
        assert isinstance((await ended(task))[0], asyncio.CancelledError)
        proxy.delay = 0.0
        async with transaction.atomic():
            await Author.objects.acreate(name="next")
        assert committed(server) == ["next"]
        await bridged(connection.close_pool)()


async def test_13_cancel_at_commit(server: Server) -> None:
    """Cancelled at COMMIT, it is rolled back or in doubt; the next block commits what it says."""
    hooks: list[str] = []

    async def work() -> None:
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name="in doubt")
                transaction.on_commit(lambda: hooks.append("ran"))
                # At the COMMIT that comes next, wherever that is by then.
                asyncio.get_running_loop().call_soon(commit_begins, asyncio.current_task())
        except asyncio.CancelledError:
            hooks.append("cancelled")
        while asyncio.current_task().uncancel():  # type: ignore[union-attr]
            pass
        assert not connection.in_atomic_block
        async with transaction.atomic():
            await Author.objects.acreate(name="next")

    def commit_begins(task: asyncio.Task[None]) -> None:
        task.cancel()

    await asyncio.wait_for(asyncio.create_task(work()), PATIENCE)
    assert hooks == ["cancelled"]
    assert committed(server) in (["next"], ["in doubt", "next"])


@pytest.mark.parametrize("error", [Failed(), asyncio.CancelledError()], ids=["error", "cancel"])
async def test_15_hook_that_fails(server: Server, error: BaseException) -> None:
    """When a hook fails the commit stands, and later hooks are not called, as Django does."""
    ran: list[str] = []

    async def fail() -> None:
        await Author.objects.acount()
        raise error

    with pytest.raises(type(error)):
        async with transaction.atomic():
            await Author.objects.acreate(name="committed")
            transaction.on_commit(lambda: ran.append("first"))
            transaction.on_commit(fail)
            transaction.on_commit(lambda: ran.append("last"))
    assert ran == ["first"]
    assert committed(server) == ["committed"]
    assert not connection.in_atomic_block
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert committed(server) == ["committed", "next"]
    assert ran == ["first"]
