"""Transactions as the tasks started in them share them."""

import asyncio
from contextlib import suppress

import pytest
from django.db import transaction

from tests.models import Author
from tests.support.server import Server
from tests.support.sessions import apid, committed


async def test_gather_inside_a_transaction_joins_it(server: Server) -> None:
    """Tasks started inside a transaction run on its connection and are committed with it."""
    async with transaction.atomic():
        pids = set(await asyncio.gather(*(apid() for _ in range(5))))
        assert pids == {await apid()}
        await asyncio.gather(*(Author.objects.acreate(name=name) for name in "abc"))
        assert await Author.objects.acount() == 3
        assert committed(server) == []
    assert committed(server) == ["a", "b", "c"]


async def test_children_are_rolled_back_with_the_owner(server: Server) -> None:
    """Rows of tasks started inside a transaction that fails are gone with it."""
    with suppress(KeyError):
        async with transaction.atomic():
            await asyncio.gather(*(Author.objects.acreate(name=name) for name in "abc"))
            raise KeyError
    assert committed(server) == []


async def test_nested_blocks_of_children_do_not_interleave(server: Server) -> None:
    """A child's failed nested block takes its own rows only, whatever its siblings do."""

    async def child(number: int) -> None:
        async with transaction.atomic():
            for part in range(3):
                await Author.objects.acreate(name=f"{number} {part}")
                # Gives every sibling a chance to come between.
                await asyncio.sleep(0)
            if number % 2:
                raise KeyError(number)

    async with transaction.atomic():
        results = await asyncio.gather(*map(child, range(6)), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), KeyError] * 3
    assert committed(server) == [f"{number} {part}" for number in (0, 2, 4) for part in range(3)]


async def test_get_or_create_by_children() -> None:
    """A gather of aget_or_create inside a transaction creates each row once."""
    async with transaction.atomic():
        results = await asyncio.gather(
            *(Author.objects.aget_or_create(name=name) for name in "abc" * 4)
        )
    assert sum(created for _, created in results) == 3
    assert await Author.objects.acount() == 3


async def test_grandchildren_join_too(server: Server) -> None:
    """A task started by a task inside a transaction belongs to the transaction."""

    async def child() -> int:
        async with transaction.atomic():
            return await asyncio.create_task(apid())

    async with transaction.atomic():
        assert await asyncio.create_task(child()) == await apid()


async def test_child_that_outlives_the_transaction(server: Server) -> None:
    """A child's statement after the transaction's end raises RuntimeError naming the fix."""
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        await Author.objects.acreate(name="late")

    async with transaction.atomic():
        child = asyncio.create_task(late())
        await Author.objects.acreate(name="Ada")
    ended.set()
    with pytest.raises(RuntimeError, match=r"transaction that has ended.*on_commit"):
        await child
    assert committed(server) == ["Ada"]


async def test_child_that_outlives_a_failed_transaction(server: Server) -> None:
    """A child's atomic after its transaction failed raises RuntimeError and writes nothing."""
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        async with transaction.atomic():
            await Author.objects.acreate(name="late")

    with suppress(KeyError):
        async with transaction.atomic():
            child = asyncio.create_task(late())
            raise KeyError
    ended.set()
    with pytest.raises(RuntimeError, match=r"transaction that has ended.*on_commit"):
        await child
    assert committed(server) == []
