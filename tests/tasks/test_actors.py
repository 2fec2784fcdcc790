"""Users of a transaction: tasks, threads, and those that work for them."""

import asyncio

from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, transaction

from pgbackend import bridged
from tests.models import Elsewhere
from tests.support.counts import count
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import apid


def test_bridged_function_on_behalf_of_a_thread(server: Server) -> None:
    """A bridged function under async_to_sync sees the caller's uncommitted rows."""
    with transaction.atomic(using="other"):
        Elsewhere.objects.create(name="x")
        assert async_to_sync(bridged(Elsewhere.objects.count))() == 1
        assert server.backends() == 1


async def test_bridged_function_on_behalf_of_a_worker_thread() -> None:
    """A bridged function that a thread in a transaction waits for sees its rows."""

    def work() -> int:
        try:
            with transaction.atomic(using="other"):
                Elsewhere.objects.create(name="x")
                return int(async_to_sync(bridged(Elsewhere.objects.count))())
        finally:
            connections["other"].close()

    async with asyncio.timeout(PATIENCE):
        assert await sync_to_async(work)() == 1


async def test_thread_in_a_transaction_calls_back() -> None:
    """async_to_sync in a worker thread that is in a transaction sees its uncommitted rows."""

    def work() -> int:
        try:
            with transaction.atomic(using="other"):
                Elsewhere.objects.create(name="x")
                return int(async_to_sync(count)())
        finally:
            connections["other"].close()

    async with asyncio.timeout(PATIENCE):
        assert await sync_to_async(work)() == 1
        assert await Elsewhere.objects.acount() == 1
        assert await asyncio.to_thread(work) == 2


async def test_thread_without_a_transaction_calls_back(server: Server) -> None:
    """async_to_sync in a worker thread of a running loop runs natively on that loop."""
    ours = await apid("other")

    def work() -> int:
        return int(async_to_sync(apid)("other"))

    assert await sync_to_async(work)() == ours
    assert server.backends() == 1
