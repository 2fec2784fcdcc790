"""Savepoints that are sent with a block's first statement, and who waits for them."""

import asyncio
from contextlib import suppress

import pytest
from django.db import transaction

from pgbackend import await_bridged, bridged
from pgbackend.transaction import deferred_savepoint
from tests.models import Author
from tests.support.server import Server


def names(server: Server) -> list[str]:
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]


@bridged
def test_nested_blocks_inside_a_deferred_savepoint(server: Server) -> None:
    """A RELEASE that is due does not make the savepoint around it look as if nothing was sent."""
    with transaction.atomic():
        saved = deferred_savepoint()
        for number in range(4):
            with suppress(ValueError), saved:
                with transaction.atomic():
                    Author.objects.create(name=f"{number}")
                with transaction.atomic():
                    pass
                if number % 2:
                    raise ValueError
    assert names(server) == ["0", "2"]


@bridged
def test_deferred_savepoint_in_and_out_of_blocks(server: Server) -> None:
    """One object serves blocks of `atomic`, savepoints by hand and what is around them."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with saved:
            Author.objects.create(name="one")
        with suppress(ValueError), transaction.atomic():
            with saved:
                Author.objects.create(name="lost")
            raise ValueError
        with saved:
            Author.objects.create(name="two")
        with transaction.atomic(), saved:
            Author.objects.create(name="three")
        with suppress(ValueError), saved:
            Author.objects.create(name="lost")
            raise ValueError
        savepoint = transaction.get_connection().savepoint()
        for _ in range(2):
            with saved:
                Author.objects.create(name="lost")
            transaction.savepoint_rollback(savepoint)
        transaction.savepoint_commit(savepoint)
        with saved:
            Author.objects.create(name="four")
    assert names(server) == ["four", "one", "three", "two"]


@pytest.mark.parametrize("raises", ["outer", "inner", "both"])
@bridged
def test_deferred_savepoint_in_the_block_of_another(server: Server, raises: str) -> None:
    """Each undoes what its own block did, whatever the blocks inside it have left."""
    with transaction.atomic():
        outer, inner = deferred_savepoint(), deferred_savepoint()
        for number in range(3):
            with suppress(ValueError), outer:
                Author.objects.create(name=f"{number} outer")
                for part in range(2):
                    with suppress(ValueError), inner:
                        Author.objects.create(name=f"{number} inner {part}")
                        if raises != "outer":
                            raise ValueError
                if raises != "inner":
                    raise ValueError
    kept = [f"{number} outer" for number in range(3)] if raises == "inner" else []
    assert names(server) == kept


@bridged
def test_deferred_savepoint_in_a_block_that_is_to_be_rolled_back(server: Server) -> None:
    """What is around it is rolled back all the same."""
    with transaction.atomic():
        Author.objects.create(name="kept")
        with transaction.atomic():
            with suppress(ValueError), transaction.atomic(savepoint=False):
                Author.objects.create(name="lost")
                raise ValueError
            with suppress(ValueError), deferred_savepoint():
                raise ValueError
            with deferred_savepoint():
                pass
    assert names(server) == ["kept"]


async def test_deferred_savepoint_waits_for_its_turn(server: Server) -> None:
    """Its savepoint is not part of a block of another task, which ends first."""
    held = asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            held.set()
            await asyncio.sleep(0.01)
            await Author.objects.acreate(name="child")

    @bridged
    def undone() -> None:
        with suppress(ValueError), deferred_savepoint():
            Author.objects.create(name="lost")
            raise ValueError

    async with transaction.atomic():
        await Author.objects.aexists()
        task = asyncio.create_task(child())
        await held.wait()
        await undone()
        await task
    assert names(server) == ["child"]


@pytest.mark.parametrize("raises", [False, True])
async def test_task_of_the_block_that_is_in_a_block_of_its_own(
    server: Server, raises: bool
) -> None:
    """The end waits for that block, or ends it if the one around it raised."""
    inside = asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            inside.set()
            await asyncio.sleep(0.02)

    @bridged
    def block() -> asyncio.Task[None]:
        with suppress(ValueError), deferred_savepoint():
            Author.objects.create(name="block")
            task = asyncio.create_task(child())
            await_bridged(inside.wait())
            if raises:
                raise ValueError
        return task

    async with transaction.atomic():
        task = await block()
        await Author.objects.acreate(name="after")
        if raises:
            with pytest.raises(RuntimeError, match="ended already"):
                await task
        else:
            await task
    assert names(server) == ["after", *([] if raises else ["block", "child"])]


async def test_task_that_is_started_after_a_block_in_the_block(server: Server) -> None:
    """It is part of the block around both, and not of what comes after that."""

    async def child() -> None:
        await asyncio.sleep(0.01)
        await Author.objects.acreate(name="late")

    @bridged
    def block() -> asyncio.Task[None]:
        with deferred_savepoint():
            with deferred_savepoint():
                Author.objects.create(name="inner")
            return asyncio.create_task(child())

    async with transaction.atomic():
        task = await block()
        with pytest.raises(RuntimeError, match="has ended"):
            await task
    assert names(server) == ["inner"]


async def test_tasks_and_blocks_in_a_series(server: Server) -> None:
    """A task of one block has no part in the next; one of before waits for the last."""
    begun = [asyncio.Event(), asyncio.Event()]
    order: list[str] = []

    async def create(name: str, after: asyncio.Event) -> None:
        await after.wait()
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
        order.append(name)

    @bridged
    def blocks() -> list[asyncio.Task[None]]:
        saved, tasks = deferred_savepoint(), []
        with saved.series():
            for number in range(4):
                with suppress(ValueError), saved:
                    if not number:
                        tasks.append(asyncio.create_task(create("first", begun[1])))
                        tasks.append(asyncio.create_task(create("none", begun[0])))
                    Author.objects.create(name=f"{number}")
                    begun[min(number, 1)].set()
                    # Each task that can go on now does.
                    await_bridged(asyncio.sleep(0.02))
                    if number % 2:
                        raise ValueError
                order.append(f"{number}")
        return tasks

    async with transaction.atomic():
        await Author.objects.aexists()
        before = asyncio.create_task(create("before", begun[0]))
        first, inside = await blocks()
        await before
        await inside
        with pytest.raises(RuntimeError, match="has ended"):
            await first
    assert order == ["none", "0", "1", "2", "3", "before"]
    assert names(server) == ["0", "2", "before", "none"]


async def test_task_that_waits_for_its_turn_when_its_block_ends(server: Server) -> None:
    """It is told so in the next block of the series, not at the end of all."""
    inside, told = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with transaction.atomic():
            inside.set()
            await asyncio.sleep(0.02)

    async def wait() -> None:
        await inside.wait()
        try:
            await Author.objects.acreate(name="late")
        finally:
            told.set()

    @bridged
    def blocks() -> asyncio.Task[None]:
        saved = deferred_savepoint()
        with saved.series():
            with saved:
                asyncio.create_task(hold())  # noqa: RUF006
                late = asyncio.create_task(wait())
                await_bridged(inside.wait())
                await_bridged(asyncio.sleep(0))
            with saved:
                await_bridged(asyncio.wait_for(told.wait(), 5))
        return late

    async with transaction.atomic():
        await Author.objects.aexists()
        late = await blocks()
        with pytest.raises(RuntimeError, match="has ended"):
            await late
    assert names(server) == []
