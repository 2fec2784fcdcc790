"""Tests that wait until they are interrupted; they say when they are ready for that."""

# ruff: noqa: PT009  # the assertions are those of Django's test cases

import asyncio
import time
import unittest
from functools import partial

from django.db import connection
from django.test import TestCase

from sample.models import Dish

say = partial(print, flush=True)


def say_when_waiting() -> None:
    """Say it from the loop: once the test has handed control to it."""
    asyncio.get_running_loop().call_soon(say, "waiting")


async def wait() -> None:
    say_when_waiting()
    await asyncio.Event().wait()


class InterruptedTests(TestCase):
    """Django's runner stops after the test at the first Ctrl-C, at once at the second."""

    @classmethod
    def setUpTestData(cls) -> None:
        Dish.objects.create(name="soup")

    def setUp(self) -> None:
        say("ready")
        while not unittest.signals._interrupt_handler.called:
            time.sleep(0.01)

    def test_without_waiting(self) -> None:
        self.assertEqual(Dish.objects.count(), 2)

    def test_in_the_server(self) -> None:
        say_when_waiting()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")

    def test_in_python(self) -> None:
        say("waiting")
        while True:
            time.sleep(0.01)

    async def test_on_the_loop(self) -> None:
        await wait()

    async def test_in_a_task(self) -> None:
        await asyncio.gather(*(Dish.objects.aget(name="soup") for _ in range(3)))
        await asyncio.create_task(wait())

    def test_in_a_loop_of_its_own(self) -> None:
        asyncio.run(wait())


class NextTests(TestCase):
    def test_it(self) -> None:
        say("the next test")
