"""Workers of pubsub that run beside a test, and waits for what they do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pgbackend.pubsub.channels import BaseChannel
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site import jobs
from tests.pubsub.site.models import Effect


@asynccontextmanager
async def working(*channels: type[BaseChannel], **options: Any) -> AsyncIterator[Worker]:
    """Run a worker for *channels* that listens already; it has to end with the block in time."""
    jobs.called.clear()
    worker = Worker(channels, **options)
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    try:
        await worker.listening(10)
        yield worker
    finally:
        in_time = await worker.stop(10)
        await asyncio.wait_for(task, 10)
    assert in_time, worker


async def until(condition: Callable[[], Any], what: object = None) -> None:
    """Wait until *condition*, which may return an awaitable, holds; fail after 10 s."""
    async with asyncio.timeout(10):
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
