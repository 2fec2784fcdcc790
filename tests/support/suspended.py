"""Coroutines that wait for the loop, and no longer."""

import asyncio
from typing import Any


async def suspend(value: Any = None, times: int = 1) -> Any:
    """Let the loop run *times* iterations, then return *value*."""
    for _ in range(times):
        await asyncio.sleep(0)
    return value
