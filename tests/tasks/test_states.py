"""The states of a wrapper: each task has its own."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction
from greenlet import getcurrent

from pgbackend import bridged
from tests.models import Author, Elsewhere
from tests.support.server import Server
from tests.support.sessions import apid, asleep, committed, running, until
from tests.support.wrapper import AddAlias


async def test_tasks_have_transactions_of_their_own(server: Server) -> None:
    """Two tasks' transactions share neither connection, block state, hooks nor savepoints."""
    barrier = asyncio.Barrier(2)
    ran: list[str] = []
    pids: list[int] = []

    async def first() -> None:
        async with transaction.atomic(), transaction.atomic():
            await Author.objects.acreate(name="first")
            transaction.on_commit(lambda: ran.append("first"))
            pids.append(await apid())
            await barrier.wait()
            await barrier.wait()
        await barrier.wait()

    async def second() -> None:
        await barrier.wait()
        assert not connection.in_atomic_block
        assert connection.run_on_commit == []
        assert connection.savepoint_ids == []
        with suppress(KeyError):
            async with transaction.atomic():
                assert await Author.objects.acount() == 0
                transaction.on_commit(lambda: ran.append("second"))
                pids.append(await apid())
                raise KeyError
        await barrier.wait()
        await barrier.wait()
        assert committed(server) == ["first"]

    async with asyncio.TaskGroup() as group:
        group.create_task(first())
        group.create_task(second())
    assert ran == ["first"]
    assert len(set(pids)) == 2


async def test_transactions_of_two_aliases(server: Server) -> None:
    """Transactions of two aliases are open at once and end independently."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        with suppress(KeyError):
            async with transaction.atomic(using="other"):
                await Elsewhere.objects.acreate(name="lost")
                assert await apid() != await apid("other")
                assert await Elsewhere.objects.acount() == 1
                raise KeyError
        async with transaction.atomic(using="other"):
            await Elsewhere.objects.acreate(name="kept")
        assert committed(server) == []
    assert committed(server) == ["Ada"]
    assert [each.name async for each in Elsewhere.objects.all()] == ["kept"]


async def test_gather_outside_a_transaction_is_parallel(
    server: Server, add_alias: AddAlias
) -> None:
    """Ten statements of 50 ms in ten tasks take less than half of the 500 ms one by one."""
    alias = add_alias({"pool": {"min_size": 10, "max_size": 10}})
    await asleep(0, alias)
    await until(lambda: server.backends() == 10)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(*(asleep(0.05, alias) for _ in range(10)))
    assert loop.time() - start < 0.25


async def end_of(work: Coroutine[Any, Any, None], server: Server) -> None:
    """Run *work* in a task and wait until no transaction of ours is open in the server."""
    await asyncio.create_task(work, name="the-abandoner")
    await until(lambda: running(server, "idle in transaction") == 0)


async def test_task_that_ends_inside_a_block(server: Server) -> None:
    """A task that ends without leaving its block is rolled back with a ResourceWarning."""

    async def abandon() -> None:
        await transaction.atomic().__aenter__()
        await Author.objects.acreate(name="lost")

    with pytest.warns(ResourceWarning, match="the-abandoner ended inside a transaction"):
        await end_of(abandon(), server)
    assert committed(server) == []
    await Author.objects.acreate(name="Ada")
    assert committed(server) == ["Ada"]


async def test_task_that_ends_with_autocommit_off(server: Server) -> None:
    """A task that ends with autocommit off is rolled back with a ResourceWarning."""

    async def abandon() -> None:
        await bridged(transaction.set_autocommit)(False)
        await Author.objects.acreate(name="lost")

    with pytest.warns(ResourceWarning, match="the-abandoner ended inside a transaction"):
        await end_of(abandon(), server)
    assert committed(server) == []


async def test_many_connections_in_one_call() -> None:
    """A call that lasts, as a worker's or a test runner's, keeps nothing of each connection."""

    def work() -> None:
        for _ in range(2000):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        assert len(getattr(getcurrent(), "exits", None) or ()) < 10

    await bridged(work)()
