"""Tasks that hold a transaction, and letting the others go on."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.db import connection, transaction

from tests.models import Author


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


def log() -> list[str]:
    """Return the statements of the transaction since the first call, by Django's own log."""
    connection.force_debug_cursor = True
    return [query["sql"] for query in connection.queries]


class Block:
    """A task inside an ``atomic`` of its own, where it writes its name and waits to be let go."""

    def __init__(
        self, name: str, then: Callable[[], Awaitable[Any]] = turns, **arguments: Any
    ) -> None:
        self.name = name
        # What it does before it leaves.
        self.then = then
        self.arguments = arguments
        self.entered, self.release = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> None:
        async with transaction.atomic(**self.arguments):
            await Author.objects.using(self.arguments.get("using")).acreate(name=self.name)
            self.entered.set()
            await self.release.wait()
            await self.then()

    async def leave(self) -> None:
        """Let it go on, and wait until it is done."""
        self.release.set()
        await self.task


async def entered(name: str, *args: Any, **arguments: Any) -> Block:
    """Start a `Block` and wait until it is inside."""
    block = Block(name, *args, **arguments)
    await asyncio.wait(
        [block.task, asyncio.ensure_future(block.entered.wait())], return_when="FIRST_COMPLETED"
    )
    assert block.entered.is_set(), block.task
    return block


async def count(alias: str) -> None:
    await Author.objects.using(alias).acount()
