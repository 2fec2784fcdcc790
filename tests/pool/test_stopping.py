"""Waiting for the server: a cancelled task's statement is stopped."""

import asyncio
import gc
import time
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.faults.sweep import Interrupted
from tests.models import Author
from tests.support.face import Face, on_face, running
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server
from tests.support.work import execute
from tests.support.wrapper import run, until, use_wrapper


async def test_cancellation_stops_the_query(server: Server, wrapper: DatabaseWrapper) -> None:
    """A cancelled task's query ends in the server, and its connection is usable afterwards."""
    query = "SELECT pg_sleep(600)"
    task = asyncio.create_task(run(wrapper, query))
    pid = await running(server, query)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
    state = "SELECT state FROM pg_stat_activity WHERE pid = %s"
    await until(lambda: server.one(state, pid) == "idle")
    assert await run(wrapper, "SELECT pg_backend_pid()") == pid


async def test_timeout_stops_the_query(server: Server, wrapper: DatabaseWrapper) -> None:
    """asyncio.timeout around a query ends it in the server; the function may go on."""

    def sleep(face: Face) -> Any:
        async def bounded() -> None:
            async with asyncio.timeout(0.1):
                await run_bridged(face.execute, "SELECT pg_sleep(600)")

        with pytest.raises(TimeoutError):
            await_bridged(bounded())
        return face.execute("SELECT 1").fetchone()

    assert await asyncio.wait_for(on_face(wrapper, sleep), PATIENCE) == (1,)
    assert not server.all(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state = 'active'", NAME
    )


async def test_cancellation_in_a_copy(server: Server, wrapper: DatabaseWrapper) -> None:
    """A task cancelled inside COPY FROM STDIN writes nothing, and the pool goes on."""
    entered = asyncio.Event()

    def copy_in(face: Face) -> None:
        with face.cursor().copy("COPY tests_author (name) FROM STDIN") as copy:
            copy.write_row(["Ada"])
            entered.set()
            await_bridged(asyncio.Event().wait())

    task = asyncio.create_task(on_face(wrapper, copy_in))
    await asyncio.wait_for(entered.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run(wrapper, "SELECT count(*) FROM tests_author") == 0
    assert server.backends() == 1


async def test_cancellation_in_a_server_cursor(wrapper: DatabaseWrapper) -> None:
    """A task cancelled between two fetches of a named cursor leaves no cursor behind."""
    entered = asyncio.Event()

    def read(face: Face) -> None:
        with face.cursor("numbers", withhold=True) as cursor:
            cursor.execute("SELECT generate_series(1, 10)")
            cursor.fetchone()
            entered.set()
            await_bridged(asyncio.Event().wait())

    task = asyncio.create_task(on_face(wrapper, read))
    await asyncio.wait_for(entered.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0


async def test_second_cancellation(server: Server, wrapper: DatabaseWrapper) -> None:
    """A task cancelled again while its query is being stopped: it is stopped all the same."""
    query = "SELECT pg_sleep(600)"
    task = asyncio.create_task(run(wrapper, query))
    pid = await running(server, query)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(task), PATIENCE)
    assert await run(wrapper, "SELECT 1") == 1
    active = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query = %s AND state = 'active'"
    try:
        await until(lambda: not server.all(active, pid, query))
    finally:
        server.all("SELECT pg_terminate_backend(%s, 10000)", pid)


async def test_closed_coroutine_in_a_transaction(server: Server) -> None:
    """A call closed in mid-query, in a transaction, awaits nothing more and is rolled back."""
    query = "SELECT pg_sleep(5)"

    def insert() -> None:
        with transaction.atomic():
            Author.objects.create(name="lost")
            with connection.cursor() as cursor:
                cursor.execute(query)

    coroutine = run_bridged(insert)
    active = "SELECT 1 FROM pg_stat_activity WHERE query = %s AND state = 'active'"
    async with asyncio.timeout(PATIENCE):
        waiting = coroutine.send(None)
        while not server.all(active, query):
            # What a task does with the futures that it is given; the last is not done for long.
            waiting._asyncio_future_blocking = False
            done, _ = await asyncio.wait([waiting], timeout=0.01)
            if done:
                waiting = coroutine.send(None)
    coroutine.close()
    # A coroutine that was never awaited would say so.
    gc.collect()
    await until(lambda: not server.all(active, query))
    assert not await Author.objects.aexists()


async def test_a_statement_that_fails_as_it_is_cancelled(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own error ends a statement, too: the connection stays, and the block around goes on."""
    query = "SELECT 1 / (pg_sleep(0.1) IS NULL)::int"

    async def fail() -> None:
        async with transaction.atomic():
            await bridged(execute)(query)

    async with transaction.atomic():
        pid = await bridged(execute)("SELECT pg_backend_pid()")
        await Author.objects.acreate(name="before")
        task = asyncio.create_task(fail())
        await running(server, query)
        # Its error comes while the loop is held, so that the task is cancelled before it reads it.
        time.sleep(0.5)  # noqa: ASYNC251
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bridged(execute)("SELECT pg_backend_pid()") == pid
        await Author.objects.acreate(name="after")
    assert await Author.objects.acount() == 2
    assert "could not be stopped" not in caplog.text


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "statement", ["COPY tests_author (name) FROM STDIN", "COPY (SELECT 1) TO STDOUT"]
)
async def test_copy_that_is_cancelled_as_it_begins(
    server: Server, statement: str, late: bool
) -> None:
    """It is ended, so the block around it goes on, at once."""
    use_wrapper(options={"pool": {"max_size": 1}, "cancel_timeout": 20})

    @bridged
    def copy() -> None:
        with connection.cursor() as cursor, cursor.copy(statement) as copying:
            for _ in range(3):
                await_bridged(asyncio.sleep(0))
            if "TO" in statement:
                list(copying)

    for point in range(1, 4):
        each = Interrupted(copy(), (point,), late=late)

        async def work(each: Interrupted = each, name: str = f"kept {point}") -> None:
            async with transaction.atomic():
                await Author.objects.acreate(name="kept")
                each.start()
                with suppress(asyncio.CancelledError):
                    async with transaction.atomic():
                        await Author.objects.aexists()
                        await each.run()
                while each.task.uncancel():
                    pass
                assert await Author.objects.filter(name="kept").aupdate(name=name)

        began = time.monotonic()
        await asyncio.create_task(work())
        assert time.monotonic() - began < 10
        assert each.cancelled
