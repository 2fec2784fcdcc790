"""What else is to be told when a worker stops: work that its listeners have left on the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("pgbackend.pubsub")

_callbacks: list[Callable[[], Awaitable[None]]] = []


def when_stopping(callback: Callable[[], Awaitable[None]]) -> None:
    """Have *callback* awaited on the loop of a worker that stops, and after its last handler."""
    if callback not in _callbacks:
        _callbacks.append(callback)


async def tell() -> None:
    """Await what was registered; errors are logged."""
    for found in await asyncio.gather(*(each() for each in _callbacks), return_exceptions=True):
        if isinstance(found, Exception):
            logger.error("what is told of a worker's end failed", exc_info=found)
