"""A worker beside the requests of an ASGI server; see `asgi.LifespanApplication`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from ..pool.dedicated import backoff_delay
from .worker import Worker

logger = logging.getLogger("pgbackend.pubsub")

# How long start-up waits until the worker listens, seconds. It goes on listening after that, too.
_START_TIMEOUT = 10.0


class CompanionWorker:
    """A worker from the start-up to the shutdown of the server.

    *listen* is True, or the channels: classes or dotted paths.
    """

    def __init__(self, listen: bool | Sequence[Any]) -> None:
        self._channels = None if isinstance(listen, bool) else listen
        self.worker = Worker(self._channels)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. Raise ChannelNotFound where there is nothing to listen to."""
        self._task = asyncio.get_running_loop().create_task(
            self._run(), name="pubsub-worker", context=Context()
        )
        try:
            # So that the hub is there.
            await asyncio.sleep(0)
            await self.worker.listening(_START_TIMEOUT)
        except BaseException as error:
            if not isinstance(error, TimeoutError):
                # The server's start-up was cancelled: nobody would stop the worker.
                await asyncio.shield(self.stop(0))
                raise
            logger.error("the server listens to no notifications yet: %r", self.worker)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self.worker.run()
            except Exception:
                failures += 1
                logger.exception("the worker beside the requests has failed, and begins anew")
                await self.worker.stop(0)
                await asyncio.sleep(backoff_delay(failures))
            else:
                return
            self.worker = Worker(self._channels)

    async def stop(self, seconds: float) -> None:
        """Let what is being handled end, for so many *seconds*."""
        if not await self.worker.stop(seconds):
            logger.warning("what the worker was handling was cancelled, and given back")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
