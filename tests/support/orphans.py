"""Blocks that a task enters and another one goes on in, and what must stay of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import (
    asynccontextmanager,
)
from itertools import count

from django.db import connection, transaction

from pgbackend.tasks.orphans import open_transactions, orphans
from tests.models import Author
from tests.support.work import fill, settled
from tests.support.wrapper import run, use_wrapper

SIZE = 2


_numbers = count()


class Failed(Exception):
    pass


def lost() -> str:
    """Return the name of an author who must not stay."""
    return f"lost {next(_numbers)}"


@asynccontextmanager
async def block() -> AsyncIterator[None]:
    async with transaction.atomic():
        await Author.objects.acreate(name=lost())
        yield


async def rows() -> AsyncIterator[int]:
    async with transaction.atomic():
        for number in range(3):
            await Author.objects.acreate(name=lost())
            yield number


async def write() -> None:
    await Author.objects.acreate(name=lost())


async def write_by_cursor() -> None:
    await run(connection, "INSERT INTO tests_author (name) VALUES (%s)", [lost()])


async def begin(pool: int = SIZE) -> None:
    use_wrapper(options={"pool": {"max_size": pool}})
    await fill(pool)


async def end() -> None:
    """Check that nothing of it is left."""
    await write_kept()
    assert orphans == []
    loop = asyncio.get_running_loop()
    noted = [each() for found in open_transactions.values() for each in found]
    # Other tests may have closed their loops in the middle of a transaction.
    assert [each for each in noted if each is not None and each.loop is loop] == []
    await settled()


async def write_kept(name: str = "kept") -> None:
    await Author.objects.acreate(name=name)
    async with transaction.atomic():
        await Author.objects.acreate(name=f"{name} in a block")


KEPT = ["kept", "kept in a block"]
