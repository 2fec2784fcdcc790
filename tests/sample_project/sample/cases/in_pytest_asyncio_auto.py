"""In the automatic mode of pytest-asyncio every asynchronous test and fixture is its own."""

import asyncio

import pytest

from pgbackend import is_bridged
from sample.models import Dish


@pytest.fixture
async def loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
async def soup(db: None) -> Dish:
    return await Dish.objects.acreate(name="soup")


async def test_async(loop: asyncio.AbstractEventLoop, soup: Dish) -> None:
    assert not is_bridged()
    assert asyncio.get_running_loop() is loop
    assert await Dish.objects.acount() == 2


def test_sync(soup: Dish) -> None:
    assert is_bridged()
    assert Dish.objects.count() == 2
