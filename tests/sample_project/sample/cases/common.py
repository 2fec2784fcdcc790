"""Tests that pass in the bridge and without."""

# ruff: noqa: PT009, PT027  # the assertions are those of Django's test cases

from asgiref.sync import sync_to_async
from django.db import transaction
from django.test import TestCase

from sample.models import Dish, Visit


def add(name: str) -> Dish:
    return Dish.objects.create(name=name)


class OneTransactionTests(TestCase):
    """All of a class sees what setUpTestData wrote, and each test only what it wrote itself."""

    databases = ("default", "other")

    @classmethod
    def setUpTestData(cls) -> None:
        cls.soup = add("soup")
        Visit.objects.create(guest="Ada")

    async def names(self) -> list[str]:
        return [dish.name async for dish in Dish.objects.order_by("name")]

    async def test_async(self) -> None:
        self.assertEqual(await self.names(), ["bread", "soup"])
        await Dish.objects.acreate(name="stew")
        self.assertEqual(await self.names(), ["bread", "soup", "stew"])
        self.assertEqual((await Visit.objects.aget()).guest, "Ada")
        await Visit.objects.acreate(guest="Bob")

    async def test_async_again(self) -> None:
        self.assertEqual(await self.names(), ["bread", "soup"])
        await Dish.objects.acreate(name="stew")
        self.assertEqual(await Visit.objects.acount(), 1)

    def test_sync(self) -> None:
        self.assertEqual(Dish.objects.count(), 2)
        add("stew")
        self.assertEqual(Visit.objects.count(), 1)

    async def test_synchronous_helper_and_asynchronous_view(self) -> None:
        await sync_to_async(add)("stew")
        response = await self.async_client.get("/dishes/")
        self.assertEqual(response.json(), {"names": ["bread", "soup", "stew"]})
        response = await self.async_client.get("/dishes/synchronously/")
        self.assertEqual(response.json(), {"names": ["bread", "soup", "stew"]})

    def test_client(self) -> None:
        add("stew")
        for path in ("/dishes/", "/dishes/synchronously/"):
            self.assertEqual(self.client.get(path).json(), {"names": ["bread", "soup", "stew"]})

    async def test_atomic(self) -> None:
        with self.assertRaises(KeyError):
            async with transaction.atomic():
                await Dish.objects.acreate(name="stew")
                raise KeyError
        self.assertEqual(await self.names(), ["bread", "soup"])

    def test_durable(self) -> None:
        with transaction.atomic(durable=True):
            add("stew")
        with transaction.atomic(), self.assertRaisesRegex(RuntimeError, "durable"):
            transaction.atomic(durable=True).__enter__()

    def test_on_commit(self) -> None:
        heard = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            transaction.on_commit(lambda: heard.append(Dish.objects.count()))
        self.assertEqual((len(callbacks), heard), (1, [2]))
