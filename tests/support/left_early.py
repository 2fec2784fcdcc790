"""Coroutines that are left early, and the collector of garbage that finds them."""

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

_collecting = threading.Lock()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """No collection but those that a test asks for."""
    gc.disable()
    gc.collect()
    # Collections need not look at what was there before, now and later.
    gc.freeze()
    yield
    gc.enable()


def collect() -> None:
    """Collect all garbage; while one thread does, gc.collect() in another returns at once."""
    with _collecting:
        gc.collect()


async def driven_then_closed(coroutine: Any, steps: int) -> None:
    """Drive *coroutine* by hand in the running task, at most *steps*, and close it."""
    for _ in range(steps):
        try:
            waiting = coroutine.send(None)
        except StopIteration:
            return
        if waiting is None:
            await asyncio.sleep(0)
            continue
        waiting._asyncio_future_blocking = False
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        if not done:
            break
    coroutine.close()
