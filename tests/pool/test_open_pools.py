"""Which pools are open, and what becomes of them when the event loop ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from django.db import transaction

from pgbackend.pool.open_pools import open_pools
from tests.models import Author, Elsewhere
from tests.support.server import Server


async def write_one() -> None:
    await Author.objects.acreate(name="at the end")


async def write_many() -> None:
    """Use more connections than are open, and another database."""
    async with transaction.atomic():
        await asyncio.gather(*(Author.objects.acreate(name=f"{number}") for number in range(5)))
        await Author.objects.acreate(name="at the end")
    await Elsewhere.objects.acreate(name="elsewhere")


@pytest.mark.parametrize("write", [write_one, write_many])
def test_tasks_that_write_when_they_are_cancelled(
    server: Server, caplog: pytest.LogCaptureFixture, write: Callable[[], object]
) -> None:
    """What tasks do on their way out, when asyncio.run() cancels them, is still done."""

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)  # so that the pools have heard of the end, too
            await write()  # type: ignore[misc]  # a coroutine function

    async def main() -> None:
        await Author.objects.acount()
        asyncio.create_task(work())  # noqa: RUF006  # the loop's end is what it waits for
        await asyncio.sleep(0)

    asyncio.run(main())
    server.wait_for_backends(0)
    assert server.all("SELECT name FROM tests_author WHERE name = 'at the end'")
    assert caplog.messages == []


async def test_pools_of_a_loop() -> None:
    """A pool is known by its alias until it is closed."""
    assert open_pools() == []
    await Author.objects.acount()
    await Elsewhere.objects.acount()
    assert sorted(pool.alias for pool in open_pools()) == ["default", "other"]
    (pool,) = open_pools("other")
    await pool.close()
    assert [pool.alias for pool in open_pools()] == ["default"]
