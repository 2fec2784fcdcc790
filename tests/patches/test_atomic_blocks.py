"""Which block of an atomic is left, where one object serves for several."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import (
    AsyncExitStack,
)
from typing import Any

import pytest
from django.db import connection, transaction

from pgbackend.requests.serving import serve
from pgbackend.transaction import detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.orphans import (
    KEPT,
    begin,
    end,
    write,
)
from tests.support.server import Server
from tests.support.sessions import committed


def test_one_object_for_the_block_around(runner: asyncio.Runner, server: Server) -> None:
    """Which of the blocks is left is known by where it stands."""
    block = transaction.atomic()

    async def numbers() -> AsyncIterator[int]:
        async with block:
            await write()
            yield 1
            yield 2

    async def main() -> None:
        await begin()
        generator = numbers()
        async with block:
            await Author.objects.acreate(name="outer")
            await anext(generator)
        assert not connection.in_atomic_block
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "outer"])


def test_one_object_for_two_generators(runner: asyncio.Runner, server: Server) -> None:
    """To close one of them ends its own block."""
    block = transaction.atomic()

    async def numbers() -> AsyncIterator[int]:
        async with block:
            await write()
            yield 1

    async def main() -> None:
        await begin()
        first: Any = numbers()
        second: Any = numbers()
        async with transaction.atomic():
            await anext(second)
            await anext(first)
            await first.aclose()
            await Author.objects.acreate(name="lost with the second's")
            await second.aclose()
            await Author.objects.acreate(name="between")
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "between"])


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("requests", [False, True])
def test_one_object_for_an_orphan(requests: bool, runner: asyncio.Runner, server: Server) -> None:
    """That another task leaves its own block of it changes nothing for who is in the orphan."""
    shared = transaction.atomic()
    entered, inside, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await inside.wait()
        with pytest.raises(RuntimeError):
            async with AsyncExitStack() as stack:
                await asyncio.create_task(stack.enter_async_context(shared))
                entered.set()
                await left.wait()
                await write()

    async def second() -> None:
        async with shared:
            inside.set()
            await entered.wait()
            await Author.objects.acreate(name="second")
        left.set()

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            if requests:
                await asyncio.gather(serve(first), serve(second))
            else:
                with detached():
                    tasks = [asyncio.create_task(first()), asyncio.create_task(second())]
                await asyncio.gather(*tasks)
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "second"])
