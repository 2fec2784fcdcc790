"""Blocks that are entered and left by async with, also in a thread."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DatabaseError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from pgbackend.transaction import acommit, arollback, aset_autocommit
from tests.faults.sweep import Interrupted
from tests.models import Author
from tests.support.authors import write
from tests.support.gate import WAITS
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.turns import turns
from tests.support.work import ended, execute, settled, until_running
from tests.support.wrapper import AddAlias


def test_entering_while_the_block_around_is_rolled_back(
    run: Callable[..., Any], server: Server, gate: Callable[[], None]
) -> None:
    """A child that waits for its SAVEPOINT meanwhile learns of it, and leaves nothing behind."""
    children: list[asyncio.Task[Any]] = []
    leaving = asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            await write("child")

    async def owner() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with transaction.atomic():
            await write("outer")
            with pytest.raises(asyncio.CancelledError):
                async with transaction.atomic():
                    await write("inner")
                    children.append(asyncio.create_task(execute(WAITS)))
                    await until_running(server.all, "%advisory%")
                    children.append(asyncio.create_task(child()))
                    await turns()
                    leaving.set()
            task.uncancel()
            first, second = await ended(*children)
            assert isinstance(first, OperationalError), first
            assert isinstance(second, (RuntimeError, DatabaseError)), second
            assert connection.savepoint_ids == []
            assert len(connection.atomic_blocks) == 1
            await write("outer 2")
        async with transaction.atomic(durable=True):
            await write("next")

    async def main() -> None:
        task = asyncio.create_task(owner())
        await leaving.wait()
        await turns()
        task.cancel()
        await task
        await settled()

    run(main())
    assert committed(server) == ["next", "outer", "outer 2"]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("logged", [False, True], ids=["", "logged"])
def test_entering_cancelled_anywhere_with_autocommit_off(
    run: Callable[..., Any], server: Server, logged: bool, late: bool
) -> None:
    """Where a block is cancelled in a transaction by hand, that goes on and can be ended."""

    # The suspension at which RELEASE is waited for.
    released = 0
    each: Interrupted

    async def nested() -> None:
        nonlocal released
        async with transaction.atomic():
            await write("inner")
            released = each.count + 1

    async def once(point: int) -> bool:
        nonlocal each
        task = asyncio.current_task()
        assert task is not None
        # Where statements are logged, each savepoint is waited for.
        connection.force_debug_cursor = logged
        await aset_autocommit(False)
        each = Interrupted(nested(), (point,), late=late)
        each.start()
        done = [await write("outer")]
        try:
            await each.run()
        except asyncio.CancelledError:
            task.uncancel()
        else:
            done.append("inner")
        assert not connection.in_atomic_block
        assert connection.savepoint_ids == []
        try:
            done.append(await write("outer 2"))
            await acommit()
        except DatabaseError:
            # The savepoint was released already when the task heard of it.
            assert point == released
            done.clear()
            await arollback()
        await aset_autocommit(True)
        assert committed(server) == sorted(done)
        await settled()
        server.all("TRUNCATE tests_author CASCADE")
        return bool(each.cancelled)

    async def main() -> int:
        await Author.objects.aexists()
        for point in itertools.count(1):
            if not await asyncio.create_task(once(point)):
                return point
        raise AssertionError

    assert run(main()) > 2 + logged


async def test_entering_that_waits_is_cancelled(
    add_alias: AddAlias, server: Server, gate: Callable[[], None]
) -> None:
    """A SAVEPOINT that is cancelled while it waits leaves the block around it as it was."""
    async with transaction.atomic():
        await write("outer")
        child = asyncio.create_task(execute(WAITS))
        await until_running(server.all, "%advisory%")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                timeout.reschedule(0)
                async with transaction.atomic():
                    pytest.fail("entered")
        assert len(connections["default"].savepoint_ids) == 0
        gate()
        await child
        async with transaction.atomic():
            await write("inner")
    assert committed(server) == ["inner", "outer"]


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "outermost"])
@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
def test_block_in_a_thread_cancelled_anywhere(
    run: Callable[..., Any], add_alias: AddAlias, server: Server, nested: bool, late: bool
) -> None:
    """On an alias that is not on the bridge, too, a block that raised is not kept, nor open."""
    alias = add_alias({"bridge": False})

    async def block(name: str) -> None:
        async with transaction.atomic(alias):
            await Author.objects.using(alias).acreate(name=name)

    async def once(point: int) -> bool:
        task = asyncio.current_task()
        assert task is not None
        each = Interrupted(block("inner"), (point,), late=late)
        each.start()
        done: list[str] = []

        async def attempt() -> None:
            try:
                await each.run()
            except asyncio.CancelledError:
                task.uncancel()
            else:
                assert not each.cancelled
                done.append("inner")

        if nested:
            try:
                async with transaction.atomic(alias):
                    await attempt()
                    await Author.objects.using(alias).acreate(name="outer")
                done.append("outer")
            except DatabaseError:
                done.clear()
        else:
            await attempt()
        await block("next")
        found = committed(server)
        if not nested and each.cancelled:
            # Its COMMIT may have been sent.
            found = [name for name in found if name != "inner"]
        assert found == sorted([*done, "next"])
        server.all("TRUNCATE tests_author CASCADE")
        return bool(each.cancelled)

    async def main() -> int:
        await block("first")
        server.all("TRUNCATE tests_author CASCADE")
        try:
            for point in itertools.count(1):
                if not await asyncio.create_task(once(point)):
                    return point
            raise AssertionError
        finally:
            # The thread's own.
            await sync_to_async(connections.close_all)()

    assert run(main()) > 3
