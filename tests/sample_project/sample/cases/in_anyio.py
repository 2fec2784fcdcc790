"""Tests of anyio's beside tests in the bridge, with fixtures of both kinds."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from django.db import transaction

from pgbackend import is_bridged
from sample.models import Dish

# Marked so: the fixture `db` is set up before anyio's task begins.
pytestmark = [pytest.mark.anyio, pytest.mark.django_db]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def soup() -> AsyncIterator[Dish]:
    assert not is_bridged()
    yield await Dish.objects.acreate(name="soup")
    assert await Dish.objects.filter(name="soup").aexists()


@pytest.fixture
def stew(db: None) -> Iterator[Dish]:
    assert is_bridged()
    yield Dish.objects.create(name="stew")
    assert is_bridged()


@pytest.mark.parametrize("number", [1, 2])
async def test_transaction(stew: Dish, soup: Dish, number: int) -> None:
    assert not is_bridged()
    assert await Dish.objects.acount() == 3

    async def write(name: str) -> None:
        async with transaction.atomic():
            await Dish.objects.acreate(name=name)

    async with anyio.create_task_group() as group:
        for each in range(5):
            group.start_soon(write, f"dish {each}")
    assert await Dish.objects.acount() == 8
    assert await anyio.to_thread.run_sync(Dish.objects.count) == 8


async def test_without_asynchronous_fixtures(stew: Dish) -> None:
    await asyncio.sleep(0)
    assert await Dish.objects.acount() == 2


def test_sync(stew: Dish) -> None:
    assert is_bridged()
    assert Dish.objects.count() == 2
