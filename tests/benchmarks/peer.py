"""What the peers of asyncio share: how a work is run, and what a request is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tests.benchmarks import load

if TYPE_CHECKING:
    from tests.benchmarks.worker import Turns


class AsyncPeer:
    """A library under load; each operation of `works` that it has is a method.

    A library without an operation has no such method.
    """

    def __init__(self, dsn: str, pool: int) -> None:
        self.dsn = dsn
        self.pool_size = pool

    async def open(self) -> None:
        """Make what lives as long as the process."""

    async def close(self) -> None:
        """Close what `open` made."""

    async def request(self, operation: Callable[..., Awaitable[Any]], spec: Any) -> None:
        """Do what one request does."""
        for _ in range(spec["repeat"]):
            await operation(**spec["arguments"])

    def run(self, spec: Any, turns: "Turns") -> None:
        """Do a work, a turn at a time."""
        asyncio.run(self._run(spec, turns))

    async def _run(self, spec: Any, turns: "Turns") -> None:
        operation = getattr(self, spec["operation"])
        await self.open()
        try:
            # The first imports what it needs; the others have the pool open all connections.
            first = {"repeat": 5, "arguments": ITEM}
            await asyncio.ensure_future(self.request(self.get, first))
            await asyncio.gather(*(self.request(self.get, first) for _ in range(self.pool_size)))

            def request() -> Awaitable[None]:
                return self.request(operation, spec)

            for turn in turns:
                if spec["kind"] == "burst":
                    window = await load.burst(request, clients=spec["clients"])
                else:
                    window = await load.steady(request, clients=spec["clients"], **turn)
                turns.answer(window)
        finally:
            await self.close()

    async def get(self, table: str) -> None:
        raise NotImplementedError


ITEM = {"table": "item"}
