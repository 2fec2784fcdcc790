"""Cancellation, wherever it comes: rows 9 to 13 of the faults."""

import asyncio
from typing import Any

import pytest
from django.db import connection, transaction

from pgbackend import await_bridged, bridged
from pgbackend.bridge import run_bridged
from tests.conftest import Server
from tests.faults.sweep import KEPT, Operation, sweep
from tests.models import Author

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
        cursor.execute("SELECT pg_sleep(600)")


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
    "aiterator": Operation(aiterator),
    "aiterator left early": Operation(aiterator_left),
    "raw cursor": Operation(raw_cursor, ([], ["raw"])),
    "COPY": Operation(copy, ([], ["copied 0", "copied 1", "copied 2"])),
    "slow statement": Operation(slow_statement, endless=4),
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
