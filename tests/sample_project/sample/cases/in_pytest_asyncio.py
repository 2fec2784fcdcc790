"""Tests of pytest-asyncio's beside tests in the bridge, with fixtures of both kinds."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction
from django.test import AsyncClient

from pgbackend import is_bridged
from sample.models import Dish, Review


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[asyncio.Queue[str]]:
    """Something that lives on the module's loop, and is ended on it."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(queue.join())
    yield queue
    await task


@pytest_asyncio.fixture
async def soup(db: None) -> AsyncIterator[Dish]:
    yield await Dish.objects.acreate(name="soup")
    assert await Dish.objects.filter(name="soup").aexists()


@pytest.fixture
def stew(db: None) -> Iterator[Dish]:
    assert is_bridged()
    yield Dish.objects.create(name="stew")
    assert is_bridged()


@pytest.mark.asyncio(loop_scope="module")
async def test_service(service: asyncio.Queue[str]) -> None:
    assert not is_bridged()
    service.put_nowait("x")
    assert await service.get() == "x"
    service.task_done()


@pytest.mark.asyncio
@pytest.mark.parametrize("number", [1, 2])
async def test_transaction(stew: Dish, soup: Dish, number: int) -> None:
    """The rows of both fixtures are there, and those of the test before are not."""
    assert not is_bridged()
    assert await Dish.objects.acount() == 3

    async def write(text: str) -> None:
        async with transaction.atomic():
            await Review.objects.acreate(dish=stew, text=text)

    await asyncio.gather(*(write(f"review {number}") for number in range(5)))
    assert await Review.objects.acount() == 5
    assert await sync_to_async(Review.objects.count)() == 5
    with pytest.raises(SynchronousOnlyOperation):
        Review.objects.count()


def test_between(stew: Dish, soup: Dish) -> None:
    """A synchronous test in the bridge sees the rows of both fixtures."""
    assert is_bridged()
    assert Dish.objects.count() == 3
    assert Review.objects.count() == 0


@pytest.mark.asyncio(loop_scope="session")
async def test_request(db: None, async_client: AsyncClient) -> None:
    await Dish.objects.acreate(name="soup")
    response = await async_client.get("/dishes/")
    assert response.json() == {"names": ["bread", "soup"]}


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
async def test_committed() -> None:
    """Without a transaction to join, the loop has connections of its own."""
    assert await Dish.objects.acount() == 1
    await asyncio.gather(*(Dish.objects.acreate(name=f"soup {n}") for n in range(3)))
    assert await Dish.objects.acount() == 4


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.django_db(transaction=True, serialized_rollback=True)
async def test_committed_on_the_loop_of_the_session() -> None:
    assert await Dish.objects.acount() == 1


class TestNested:
    @pytest.mark.asyncio
    async def test_no_database(self) -> None:
        with pytest.raises(RuntimeError, match="Database access not allowed"):
            await Dish.objects.acount()
