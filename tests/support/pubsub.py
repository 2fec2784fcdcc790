"""Workers of pubsub that run beside a test, and waits for what they do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pgbackend.pubsub.channels import BaseChannel
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site.models import Effect
from tests.support.limits import AT_ONCE


@asynccontextmanager
async def working(*channels: type[BaseChannel], **options: Any) -> AsyncIterator[Worker]:
    """Run a worker for *channels* that listens already; it has to end with the block in time."""
    worker = Worker(channels, **options)
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    try:
        await worker.listening(AT_ONCE)
        yield worker
    finally:
        in_time = await worker.stop(AT_ONCE)
        await asyncio.wait([task], timeout=AT_ONCE)
        assert task.done() and not task.exception(), task
    assert in_time, worker


async def until(condition: Callable[[], Any], what: object = None) -> None:
    """Wait until *condition*, which may return an awaitable, holds; fail after AT_ONCE."""
    async with asyncio.timeout(AT_ONCE):
        try:
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            print("waited for", what)
            raise


async def effects() -> list[int]:
    """Return the numbers of the notifications whose effects were committed, sorted."""
    return [
        each async for each in Effect.objects.order_by("number").values_list("number", flat=True)
    ]
