"""Frames: the entered blocks of atomic."""

import asyncio

import pytest
from django.db import transaction

from pgbackend.transaction import asavepoint
from tests.models import Author
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.turns import Block, entered, log, turns


@pytest.mark.parametrize("savepoint", [True, False])
async def test_every_block_is_a_frame(savepoint: bool) -> None:
    """A statement waits for a sibling's block, whether that block has a savepoint or not."""
    async with transaction.atomic():
        block = await entered("block", Author(name="second").asave, savepoint=savepoint)
        count = asyncio.create_task(Author.objects.acount())
        await turns()
        assert not count.done()
        await block.leave()
        assert await count == 2


@pytest.mark.parametrize("savepoint", [True, False])
async def test_entering_waits_for_a_siblings_block(savepoint: bool) -> None:
    """A block is entered when the sibling's is left, and not before."""
    async with transaction.atomic():
        block = await entered("block", savepoint=savepoint)
        other = Block("other", savepoint=savepoint)
        await turns()
        assert not other.entered.is_set()
        await block.leave()
        await other.leave()
        assert await Author.objects.acount() == 2


async def test_blocks_without_savepoints_do_not_interleave(server: Server) -> None:
    """Siblings' blocks with savepoint=False run one after another, without savepoints."""

    async def child(number: int) -> None:
        async with transaction.atomic(savepoint=False):
            for part in range(3):
                await Author.objects.acreate(name=f"{number} {part}")
                await turns()

    async with transaction.atomic():
        log()
        await asyncio.gather(*map(child, range(4)))
        statements = log()
    expected = [f"{number} {part}" for number in range(4) for part in range(3)]
    assert len(statements) == 12
    assert all(f"('{name}')" in sql for name, sql in zip(expected, statements, strict=True))
    assert committed(server) == expected


async def test_savepoint_counter_is_the_transactions(server: Server) -> None:
    """No two blocks of one transaction have the same savepoint, whichever task enters them."""

    async def child(depth: int) -> None:
        async with transaction.atomic():
            await Author.objects.acount()
            if depth:
                await asyncio.gather(child(depth - 1), child(depth - 1))

    async with transaction.atomic():
        log()
        await asyncio.gather(child(2), child(2), child(0))
        by_hand = await asavepoint()
        statements = log()
    made = [sql.split()[-1].strip('"') for sql in statements if sql.startswith("SAVEPOINT")]
    assert len(made) == len(set(made)) == 16
    assert by_hand == made[-1]
