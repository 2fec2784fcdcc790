"""Tasks that hold a transaction, and letting the others go on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.db import transaction


async def settle() -> None:
    """Let every task that can go on without the server do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def turns() -> None:
    """Let every other task that can go on without the server do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class Failed(Exception):
    pass


class Holder:
    """A task inside an ``atomic`` of its own until `release` is set."""

    def __init__(self, alias: str = "default") -> None:
        self.alias = alias
        self.entered, self.release = asyncio.Event(), asyncio.Event()
        # What it does before it leaves.
        self.then: Callable[[], Awaitable[Any]] = settle

    async def __aenter__(self) -> "Holder":
        self.task = asyncio.create_task(self.hold(), name="the-holder")
        await self.entered.wait()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.release.set()
        await self.task

    async def hold(self) -> None:
        async with transaction.atomic(using=self.alias):
            self.entered.set()
            await self.release.wait()
            await self.then()
