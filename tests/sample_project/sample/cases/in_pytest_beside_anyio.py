"""Tests in the bridge while a fixture of anyio's lives, on a loop that stands still."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pgbackend import is_bridged
from sample.models import Dish


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def loop(anyio_backend: str) -> AsyncIterator[asyncio.AbstractEventLoop]:
    yield asyncio.get_running_loop()
    await asyncio.sleep(0)


@pytest.fixture
def soup(db: None) -> Dish:
    return Dish.objects.create(name="soup")


@pytest.mark.anyio
async def test_theirs(loop: asyncio.AbstractEventLoop) -> None:
    assert not is_bridged()
    assert asyncio.get_running_loop() is loop


@pytest.mark.anyio
async def test_theirs_outside_the_transaction(loop: asyncio.AbstractEventLoop, soup: Dish) -> None:
    """Their task began with the module's fixture, before the transaction of this test."""
    assert not await Dish.objects.filter(name="soup").aexists()


async def test_ours(db: None) -> None:
    assert is_bridged()
    assert await Dish.objects.acount() == 1


def test_synchronous(loop: asyncio.AbstractEventLoop, db: None) -> None:
    assert is_bridged()
    assert asyncio.get_running_loop() is not loop
    assert Dish.objects.count() == 1
