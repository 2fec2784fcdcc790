"""The load: clients that send one request after the other, and what they measured.

A request is a task of its own. The clients run from before the measured time until after it,
so that what is counted is a steady state; what is under way at either end is not counted, but
its CPU time is, as much at the one end as is missing at the other. Where requests take long, the
measured time is longer than asked for, so that enough of them end in it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

# How much longer the measured time may become, times.
LONGER = 20


class Window:
    """The measured time and what happened in it."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.ended = False
        self.errors = 0
        self.error = ""

    def open(self) -> None:
        """Forget the warm-up."""
        self.latencies.clear()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def is_enough(self, clients: int, seconds: float) -> bool:
        """Return whether each of *clients* may have had a request, or it takes far too long."""
        passed = time.perf_counter() - self._began
        return len(self.latencies) >= clients or passed > seconds * LONGER

    def close(self) -> None:
        self.seconds = time.perf_counter() - self._began
        self.cpu = time.process_time() - self._cpu
        self.counted = sorted(self.latencies)
        self.ended = True

    def failed(self, error: BaseException) -> None:
        self.errors += 1
        self.error = f"{type(error).__name__}: {error}"
        if self.errors > 100:
            raise error

    def figures(self, queries: int) -> dict[str, Any]:
        """Return what was measured, for requests of so many queries each."""
        requests = len(self.counted)
        return {
            "seconds": self.seconds,
            "requests": requests,
            "rps": requests / self.seconds,
            "p50": percentile(self.counted, 0.5),
            "p90": percentile(self.counted, 0.9),
            "p99": percentile(self.counted, 0.99),
            "cpu_per_query": self.cpu / (requests * queries) if requests else None,
            "errors": self.errors,
            "error": self.error,
        }


def percentile(ordered: list[float], share: float) -> float | None:
    """Return the value below which *share* of the sorted values lie; None if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


async def steady(
    request: Callable[[], Awaitable[Any]], *, clients: int, warm_up: float, seconds: float
) -> Window:
    """Have *clients* send requests for *seconds* after *warm_up*, seconds too."""
    window = Window()

    async def client() -> None:
        while not window.ended:
            began = time.perf_counter()
            try:
                await asyncio.ensure_future(request())
            except Exception as error:
                window.failed(error)
            else:
                window.latencies.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        await asyncio.sleep(warm_up)
        window.open()
        await asyncio.sleep(seconds)
        while not window.is_enough(clients, seconds):
            await asyncio.sleep(seconds / 10)
        window.close()
    return window


async def burst(request: Callable[[], Awaitable[Any]], *, clients: int) -> Window:
    """Have each of *clients* send one request, all at once."""
    window = Window()

    async def client() -> None:
        began = time.perf_counter()
        try:
            await request()
        except Exception as error:
            window.failed(error)
        else:
            window.latencies.append(time.perf_counter() - began)

    window.open()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    window.close()
    return window
