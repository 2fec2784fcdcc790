"""Tests as functions that fail, one way or another, and after each kind one that passes."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from sample.models import Dish


@pytest.fixture
async def broken(db: None) -> None:
    await Dish.objects.aget(name="nothing")


@pytest.fixture
async def broken_at_the_end(db: None) -> AsyncIterator[None]:
    yield
    await Dish.objects.aget(name="nothing")


@pytest.fixture
async def yields_twice() -> AsyncIterator[None]:
    yield
    yield


async def test_fails(db: None) -> None:
    assert await Dish.objects.acount() == 99


async def test_cancels_itself(db: None) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await Dish.objects.acount()


async def test_fixture(broken: None) -> None:
    pass


async def test_fixture_at_the_end(broken_at_the_end: None) -> None:
    pass


async def test_fixture_that_yields_twice(yields_twice: None) -> None:
    pass


@pytest.mark.xfail(reason="expected", strict=True)
async def test_fails_as_expected(db: None) -> None:
    assert await Dish.objects.acount() == 99


async def test_skipped() -> None:
    pytest.skip("not today")


async def test_passes(db: None) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(Dish.objects.acount())
    assert task.result() == 1
