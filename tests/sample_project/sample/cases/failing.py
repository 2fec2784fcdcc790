"""Tests that fail, one way or another, and after each kind one that passes."""

# ruff: noqa: PT009, PT027  # the assertions are those of Django's test cases

import asyncio

from django.test import TestCase

from sample.models import Dish


class FailingTests(TestCase):
    def test_sync(self) -> None:
        self.assertEqual(Dish.objects.count(), 99)

    async def test_async(self) -> None:
        self.assertEqual(await Dish.objects.acount(), 99)

    async def test_error(self) -> None:
        await Dish.objects.aget(name="nothing")

    async def test_subtests(self) -> None:
        for count in (1, 99):
            with self.subTest(count=count):
                self.assertEqual(await Dish.objects.acount(), count)

    async def test_z_passes(self) -> None:
        self.assertEqual(await Dish.objects.acount(), 1)


class CancelledTests(TestCase):
    def cancel(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def test_a_cancelled(self) -> None:
        self.cancel()
        await Dish.objects.acount()

    async def test_b_cancelled_at_the_end(self) -> None:
        self.cancel()

    async def test_c_passes(self) -> None:
        with self.assertRaises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(Dish.objects.aget(name="nothing"))
                await asyncio.Event().wait()
        self.assertEqual(await Dish.objects.acount(), 1)
