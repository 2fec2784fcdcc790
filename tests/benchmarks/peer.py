"""What the peers of asyncio share: how a work is run, and what a request is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tests.benchmarks import load
from tests.benchmarks.load import Window


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

    def run(self, spec: Any, warm: Callable[[], None]) -> Window:
        """Do a work; call *warm* when the process has settled."""
        return asyncio.run(self._run(spec, warm))

    async def _run(self, spec: Any, warm: Callable[[], None]) -> Window:
        operation = getattr(self, spec["operation"])
        await self.open()
        try:
            # The first imports what it needs; the others have the pool open all connections.
            first = {"repeat": 5, "arguments": ITEM}
            await asyncio.ensure_future(self.request(self.get, first))
            await asyncio.gather(*(self.request(self.get, first) for _ in range(self.pool_size)))
            warm()

            def request() -> Awaitable[None]:
                return self.request(operation, spec)

            if spec["kind"] == "burst":
                return await load.burst(request, clients=spec["clients"])
            return await load.steady(
                request,
                clients=spec["clients"],
                warm_up=spec["warm_up"],
                seconds=spec["seconds"],
            )
        finally:
            await self.close()

    async def get(self, table: str) -> None:
        raise NotImplementedError


ITEM = {"table": "item"}
