"""A client of pgbackend.rpc."""

import asyncio
from typing import Any

import django

from tests.benchmarks_rpc import client


class Client(client.Client):
    """Reads rows by their primary keys; on a loop of its own, or in this thread."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        django.setup()
        from django.db import connections

        from tests.rpc.waiter.models import Station

        self.stations = Station.objects
        self.connection: Any = connections["rpc"]
        self.runner = asyncio.Runner()

    def thread(self, keys: list[int]) -> None:
        self.stations.get(pk=keys[0])

    def loop(self, keys: list[int]) -> None:
        # One step of the loop for each: what it costs to start it is the same for all.
        self.runner.run(self._read(keys[0]))

    def many(self, keys: list[int]) -> None:
        self.runner.run(self._many(keys))

    def singly(self, keys: list[int]) -> None:
        for key in keys:
            self.stations.get(pk=key)

    def gathered(self, keys: list[int]) -> None:
        futures = [self.stations.future().filter(pk=key).get() for key in keys]
        self.connection.cursor().gather(*futures)

    async def _read(self, key: int) -> None:
        await self.stations.aget(pk=key)

    async def _many(self, keys: list[int]) -> None:
        await asyncio.gather(*(self.stations.aget(pk=key) for key in keys))

    def close(self) -> None:
        self.runner.close()
        self.connection.service.transport.close()
