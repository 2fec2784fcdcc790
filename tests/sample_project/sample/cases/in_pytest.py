"""Tests as functions: pytest-django's fixtures and marks, in the bridge."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.test import AsyncClient, Client

from pgbackend import is_bridged
from sample.models import Dish, Review, Visit

# The loops that the tests before ran on.
loops: list[asyncio.AbstractEventLoop] = []


@pytest.fixture(autouse=True)
def bridged() -> Iterator[None]:
    """Check that fixtures and tests are bridged, on one loop, in one thread."""
    loops.append(asyncio.get_running_loop())
    assert loops[0] is loops[-1]
    assert is_bridged()
    assert threading.current_thread() is threading.main_thread()
    yield
    assert asyncio.get_running_loop() is loops[0]
    assert is_bridged()


@pytest.fixture
def soup(db: None) -> Dish:
    return Dish.objects.create(name="soup")


@pytest.fixture
async def stew(soup: Dish) -> AsyncIterator[Dish]:
    """An asynchronous fixture that nobody but the bridge has claimed."""
    async with transaction.atomic():
        yield await Dish.objects.acreate(name="stew")
        assert await Dish.objects.acount() >= 3


@pytest.fixture
async def review(stew: Dish) -> Review:
    return await Review.objects.acreate(dish=stew, text="good")


async def names() -> list[str]:
    return [dish.name async for dish in Dish.objects.order_by("name")]


# Twice, for what the first one writes.
@pytest.mark.parametrize("number", [1, 2])
async def test_async(soup: Dish, number: int) -> None:
    assert is_bridged()
    assert await names() == ["bread", "soup"]
    await Dish.objects.acreate(name=f"stew {number}")
    assert Dish.objects.count() == 3


@pytest.mark.parametrize("number", [1, 2])
def test_sync(soup: Dish, number: int) -> None:
    assert is_bridged()
    Dish.objects.create(name=f"stew {number}")
    assert Dish.objects.count() == 3


@pytest.mark.django_db
class TestMethods:
    @pytest.fixture
    async def mine(self) -> "TestMethods":
        return self

    async def test_async(self, mine: "TestMethods") -> None:
        assert mine is self
        assert await names() == ["bread"]

    @pytest.mark.parametrize("name", ["bread"])
    async def test_parametrized(self, name: str) -> None:
        assert await names() == [name]

    @staticmethod
    async def test_static() -> None:
        assert await names() == ["bread"]


async def test_asynchronous_fixtures(review: Review) -> None:
    review = await Review.objects.aget()
    # Lazily.
    assert review.dish.name == "stew"


def test_asynchronous_fixture_of_a_synchronous_test(stew: Dish) -> None:
    assert Dish.objects.count() == 3


async def test_tasks(soup: Dish) -> None:
    async def write(text: str) -> None:
        async with transaction.atomic():
            await Review.objects.acreate(dish=soup, text=text)

    await asyncio.gather(*(write(f"review {number}") for number in range(5)))
    await asyncio.create_task(write("last"))
    assert await soup.reviews.acount() == 6


async def test_requests(soup: Dish, async_client: AsyncClient) -> None:
    await sync_to_async(Dish.objects.create)(name="stew")
    for path in ("/dishes/", "/dishes/synchronously/"):
        response = await async_client.get(path)
        assert response.json() == {"names": ["bread", "soup", "stew"]}
    response = await async_client.post("/dishes/soup/review/")
    assert response.json() == {"reviews": 2}
    assert await soup.reviews.acount() == 2


def test_client(soup: Dish, client: Client) -> None:
    for path in ("/dishes/", "/dishes/synchronously/"):
        assert client.get(path).json() == {"names": ["bread", "soup"]}


async def test_queries(
    db: None,
    django_assert_num_queries: Callable[[int], AbstractContextManager[Any]],
    django_capture_on_commit_callbacks: Callable[..., AbstractContextManager[Any]],
) -> None:
    with django_assert_num_queries(2):
        await Dish.objects.acount()
        await asyncio.create_task(Dish.objects.acount())
    with (
        pytest.raises(pytest.fail.Exception, match="Expected to perform 3 queries"),
        django_assert_num_queries(3),
    ):
        await Dish.objects.acount()
    heard = []
    with django_capture_on_commit_callbacks(execute=True) as callbacks:
        async with transaction.atomic():
            transaction.on_commit(lambda: heard.append(Dish.objects.count()))
    assert (len(callbacks), heard) == (1, [1])


@pytest.mark.django_db(databases=["default", "other"])
async def test_two_databases() -> None:
    await asyncio.gather(Visit.objects.acreate(guest="Ada"), Dish.objects.acreate(name="soup"))
    assert (await Visit.objects.acount(), await Dish.objects.acount()) == (1, 2)


async def test_no_database() -> None:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        await Dish.objects.acount()


def committed(name: str) -> int:
    """Count dishes of a name by a connection that is none of the backend's."""
    dsn = os.environ["PGBACKEND_TEST_DSN"]
    dbname = connections["default"].settings_dict["NAME"]
    with closing(psycopg.connect(dsn, dbname=dbname)) as conn:
        count = conn.execute("SELECT count(*) FROM sample_dish WHERE name = %s", [name])
        return int(count.fetchone()[0])


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
@pytest.mark.parametrize("number", [1, 2])
async def test_transaction(number: int) -> None:
    assert await names() == ["bread"]
    async with transaction.atomic():
        await Dish.objects.acreate(name="soup")
        assert committed("soup") == 0
    assert committed("soup") == 1


@pytest.mark.django_db(serialized_rollback=True)
async def test_live_server(transactional_db: None, live_server: Any) -> None:
    await Dish.objects.acreate(name="soup")

    def read(path: str) -> bytes:
        with urlopen(live_server.url + path) as response:
            return bytes(response.read())

    for path in ("/dishes/", "/dishes/synchronously/"):
        assert b'"soup"' in await asyncio.to_thread(read, path)
        assert b'"soup"' in read(path)


def test_a_loop_of_its_own(soup: Dish) -> None:
    assert asyncio.run(Dish.objects.acount()) == 2


@pytest.fixture
def cancelled() -> Iterator[list[asyncio.Task[Any]]]:
    """A list for tasks that must be cancelled by the end of the test."""
    tasks: list[asyncio.Task[Any]] = []
    yield tasks
    assert [task.cancelled() for task in tasks] == [True]


async def test_a_task_left(db: None, cancelled: list[asyncio.Task[Any]]) -> None:
    cancelled.append(asyncio.create_task(asyncio.Event().wait()))
    await asyncio.sleep(0)
