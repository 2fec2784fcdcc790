"""Tests of a project that has an alias of another engine, SQLite, beside this backend's."""

# ruff: noqa: PT009, PT027  # the assertions are those of Django's test cases

import asyncio
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from pgbackend import is_bridged
from sample.models import Dish

BOTH = {"default", "lite"}


class LiteTests(TestCase):
    """Each alias has its rows, in the transaction of the test."""

    databases = BOTH

    @classmethod
    def setUpTestData(cls) -> None:
        for alias in BOTH:
            # A migration has written one.
            Dish.objects.using(alias).all().delete()
        Dish.objects.using("lite").create(name="light soup")
        Dish.objects.create(name="soup")

    def dishes(self, alias: str) -> list[str]:
        return list(Dish.objects.using(alias).order_by("pk").values_list("name", flat=True))

    def check(self) -> None:
        self.assertEqual(self.dishes("lite"), ["light soup"])
        self.assertEqual(self.dishes("default"), ["soup"])

    def setUp(self) -> None:
        self.assertTrue(is_bridged())
        self.check()

    def tearDown(self) -> None:
        self.assertTrue(connections["lite"].in_atomic_block)
        self.assertEqual(len(self.dishes("lite")), len(self.dishes("default")))

    def test_sync(self) -> None:
        for alias in BOTH:
            with self.assertRaises(KeyError), transaction.atomic(alias):
                Dish.objects.using(alias).create(name="lost")
                raise KeyError
            with transaction.atomic(alias):
                Dish.objects.using(alias).create(name="kept")
        self.assertEqual(self.dishes("lite"), ["light soup", "kept"])

    async def test_async(self) -> None:
        for alias in ("lite", "default"):
            dishes = Dish.objects.using(alias)
            with CaptureQueriesContext(connections[alias]) as queries:
                await dishes.acreate(name="new")
            self.assertEqual(len(queries), 1)
            names = [each.name async for each in dishes.order_by("pk")]
            self.assertEqual(names[1:], ["new"])
            self.assertEqual(len([each async for each in dishes.aiterator()]), 2)
            async with transaction.atomic(alias):
                await dishes.filter(name="new").aupdate(name="newer")
                self.assertEqual(await dishes.filter(name="newer").acount(), 1)
            # As stock Django does it, in the thread of the test.
            self.assertEqual(await sync_to_async(self.dishes)(alias), self.dishes(alias))

    async def test_tasks(self) -> None:
        async def write(alias: str, name: str) -> None:
            await Dish.objects.using(alias).acreate(name=name)

        await asyncio.gather(*(write(alias, f"{n}") for alias in BOTH for n in range(5)))
        self.assertEqual(await Dish.objects.using("lite").acount(), 6)

    def test_requests(self) -> None:
        for alias, names in (("lite", ["light soup"]), ("default", ["soup"])):
            for address in (f"/dishes/in/{alias}/", f"/dishes/in/{alias}/synchronously/"):
                self.assertEqual(self.client.get(address).json(), {"names": names})

    async def test_asynchronous_requests(self) -> None:
        for alias, names in (("lite", ["light soup"]), ("default", ["soup"])):
            for address in (f"/dishes/in/{alias}/", f"/dishes/in/{alias}/synchronously/"):
                response = await self.async_client.get(address)
                self.assertEqual(response.json(), {"names": names})

    def test_loop_inside(self) -> None:
        async def count() -> int:
            return await Dish.objects.acount()

        self.assertEqual(asyncio.run(count()), 1)


class LiteTransactionTests(TransactionTestCase):
    """Rows are committed, and flushed after the test."""

    databases = BOTH

    def test_write(self) -> None:
        hooks: list[Any] = []
        for alias in BOTH:
            self.assertFalse(Dish.objects.using(alias).filter(name="soup").exists())
            with transaction.atomic(alias):
                Dish.objects.using(alias).create(name="soup")
                transaction.on_commit(lambda: hooks.append(1), using=alias)
            self.assertTrue(Dish.objects.using(alias).filter(name="soup").exists())
        self.assertEqual(hooks, [1, 1])

    test_write_again = test_write
