"""Tests that wait until they are interrupted or time out; they say when they wait."""

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest
from django.db import connection

from pgbackend import is_bridged
from sample.models import Dish


@pytest.fixture(scope="module", autouse=True)
def module() -> Iterator[None]:
    yield
    print("the module is torn down", "bridged" if is_bridged() else "", flush=True)


@pytest.fixture(autouse=True)
def soup(db: None) -> Iterator[None]:
    Dish.objects.create(name="soup")
    yield
    print("the test is torn down", "bridged" if is_bridged() else "", flush=True)


def say_when_waiting() -> None:
    """Print it from the loop: once the test has handed control to it."""
    asyncio.get_running_loop().call_soon(partial(print, "waiting", flush=True))


async def wait() -> None:
    say_when_waiting()
    await asyncio.Event().wait()


def test_in_the_server() -> None:
    say_when_waiting()
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")


def test_in_python() -> None:
    print("waiting", flush=True)
    while True:
        is_bridged()


async def test_on_the_loop() -> None:
    await wait()


async def test_in_a_task() -> None:
    await asyncio.gather(*(Dish.objects.aget(name="soup") for _ in range(3)))
    await asyncio.create_task(wait())


def test_in_a_loop_of_its_own() -> None:
    asyncio.run(wait())


@pytest.mark.asyncio
async def test_in_a_loop_of_pytest_asyncio() -> None:
    await wait()


def test_next() -> None:
    assert Dish.objects.count() == 2
    print("the next test", flush=True)
