"""Tests of a project that runs them in the bridge."""

# ruff: noqa: PT009, PT027  # the assertions are those of Django's test cases

import asyncio
import os
import threading
from contextlib import closing
from io import StringIO
from typing import Any
from urllib.request import urlopen

import psycopg
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from pgbackend import is_bridged
from sample.models import Dish, Review, Visit
from sample.views import reviewed

# The loop of the process that the tests before ran on.
loops: list[asyncio.AbstractEventLoop] = []


class OneLoopTests(TestCase):
    """Everything is bridged, on one loop, in one thread."""

    def check(self) -> None:
        loops.append(asyncio.get_running_loop())
        self.assertIs(loops[0], loops[-1])
        self.assertTrue(is_bridged())
        self.assertIs(threading.current_thread(), threading.main_thread())

    @classmethod
    def setUpTestData(cls) -> None:
        cls.check(cls())

    def setUp(self) -> None:
        self.check()

    def test_sync(self) -> None:
        self.check()

    async def test_async(self) -> None:
        self.check()
        await asyncio.sleep(0)
        self.check()
        await sync_to_async(self.check)()

    def tearDown(self) -> None:
        self.check()


class BackendTests(TestCase):
    """One connection to the server serves everything in a test."""

    def pid(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def setUp(self) -> None:
        self.pids = {self.pid()}

    async def test_async(self) -> None:
        self.pids.add(self.pid())
        self.pids.add(await sync_to_async(self.pid)())
        self.pids |= set(await asyncio.gather(*(sync_to_async(self.pid)() for _ in range(3))))

    def tearDown(self) -> None:
        self.assertEqual(self.pids, {self.pid()})


class TasksTests(TestCase):
    """Tasks that the tested code starts join the transaction of the test."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.soup = Dish.objects.create(name="soup")

    async def review(self, text: str) -> None:
        async with transaction.atomic():
            await Review.objects.acreate(dish=self.soup, text=text)

    async def test_gather(self) -> None:
        await asyncio.gather(*(self.review(f"review {number}") for number in range(5)))
        self.assertEqual(await self.soup.reviews.acount(), 5)

    async def test_create_task(self) -> None:
        await asyncio.create_task(self.review("good"))
        self.assertEqual(await self.soup.reviews.acount(), 1)

    async def test_asend(self) -> None:
        async def receive(sender: Any, dish: Dish, **kwargs: Any) -> None:
            await Review.objects.acreate(dish=dish, text="asynchronous")

        def receive_synchronously(sender: Any, dish: Dish, **kwargs: Any) -> None:
            Review.objects.create(dish=dish, text="synchronous")

        reviewed.connect(receive)
        reviewed.connect(receive_synchronously)
        try:
            response = await self.async_client.post("/dishes/soup/review/")
        finally:
            reviewed.disconnect(receive)
            reviewed.disconnect(receive_synchronously)
        self.assertEqual(response.json(), {"reviews": 4})
        self.assertEqual(self.soup.reviews.count(), 4)

    async def test_a_task_left(self) -> None:
        async def stay() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                left.append(await Dish.objects.acount())

        self.task = asyncio.create_task(stay())
        await asyncio.sleep(0)

    def tearDown(self) -> None:
        if hasattr(self, "task"):
            self.assertTrue(self.task.cancelled())
            self.assertEqual(left, [2])


# What the task saw that was left by test_a_task_left.
left: list[int] = []


class AssertionsTests(TestCase):
    """Django's assertions on queries and transactions hold in asynchronous tests."""

    async def test_queries(self) -> None:
        with self.assertNumQueries(2):
            await Dish.objects.acount()
            await asyncio.create_task(Dish.objects.acount())
        with CaptureQueriesContext(connection) as captured:
            await Dish.objects.aget(name="bread")
        (query,) = captured.captured_queries
        self.assertIn("'bread'", query["sql"])
        with (
            self.assertRaisesRegex(AssertionError, "1 queries executed, 3 expected"),
            self.assertNumQueries(3),
        ):
            await Dish.objects.acount()

    async def test_on_commit(self) -> None:
        heard = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            async with transaction.atomic():
                transaction.on_commit(lambda: heard.append(Dish.objects.count()))
                await Dish.objects.acreate(name="stew")
            self.assertEqual(heard, [])
        self.assertEqual((len(callbacks), heard), (1, [2]))

    async def test_durable(self) -> None:
        async with transaction.atomic(durable=True):
            await Dish.objects.acreate(name="stew")
        async with transaction.atomic():
            with self.assertRaisesRegex(RuntimeError, "durable"):
                async with transaction.atomic(durable=True):
                    pass

    async def test_lazy(self) -> None:
        soup = await Dish.objects.acreate(name="soup")
        await Review.objects.acreate(dish=soup, text="good")
        review = await Review.objects.aget()
        self.assertEqual(review.dish.name, "soup")

    async def test_forbidden_database(self) -> None:
        with self.assertRaisesRegex(AssertionError, "not allowed"):
            await Visit.objects.acount()


class TwoDatabasesTests(TestCase):
    """Each database has its transaction."""

    databases = "__all__"

    @classmethod
    def setUpTestData(cls) -> None:
        cls.ada = Visit.objects.create(guest="Ada")
        cls.soup = Dish.objects.create(name="soup")

    async def test_async(self) -> None:
        await asyncio.gather(Visit.objects.acreate(guest="Bob"), self.soup.adelete())
        self.assertEqual((await Visit.objects.acount(), await Dish.objects.acount()), (2, 1))

    def test_sync(self) -> None:
        self.assertEqual((Visit.objects.count(), Dish.objects.count()), (1, 2))


def committed(name: str) -> int:
    """Count dishes of a name by a connection that is none of the backend's."""
    dsn = os.environ["PGBACKEND_TEST_DSN"]
    dbname = connections["default"].settings_dict["NAME"]
    with closing(psycopg.connect(dsn, dbname=dbname)) as conn:
        count = conn.execute("SELECT count(*) FROM sample_dish WHERE name = %s", [name])
        return int(count.fetchone()[0])


class CommittedTests(TransactionTestCase):
    """A TransactionTestCase commits, and empties the tables after each test."""

    available_apps = ("sample",)

    def setUp(self) -> None:
        # Of the tests before, and of the migrations.
        self.assertFalse(Dish.objects.filter(name__startswith="soup").exists())

    async def test_async(self) -> None:
        async with transaction.atomic():
            await Dish.objects.acreate(name="soup")
            self.assertEqual(committed("soup"), 0)
        self.assertEqual(committed("soup"), 1)

    async def test_tasks_have_connections_of_their_own(self) -> None:
        await asyncio.gather(*(Dish.objects.acreate(name=f"soup {n}") for n in range(5)))
        self.assertEqual(committed("soup 4"), 1)

    def test_sync(self) -> None:
        Dish.objects.create(name="soup")
        self.assertEqual(committed("soup"), 1)


class SerializedTests(TransactionTestCase):
    """With serialized_rollback the data of migrations is there for each test."""

    serialized_rollback = True

    async def test_async(self) -> None:
        self.assertEqual((await Dish.objects.aget()).name, "bread")
        await Dish.objects.all().adelete()

    def test_sync(self) -> None:
        self.assertEqual(Dish.objects.get().name, "bread")
        Dish.objects.all().delete()


class ServerTests(LiveServerTestCase):
    """A live server, in a thread of its own, sees what the test has committed."""

    # All, but named: so the flush leaves the serialized data of other tests alone.
    available_apps = settings.INSTALLED_APPS

    def setUp(self) -> None:
        Dish.objects.create(name="soup")

    def names(self, path: str) -> bytes:
        with urlopen(self.live_server_url + path) as response:
            return bytes(response.read())

    def test_sync(self) -> None:
        self.assertIn(b'"soup"', self.names("/dishes/"))
        self.assertIn(b'"soup"', self.names("/dishes/synchronously/"))

    async def test_async(self) -> None:
        await Dish.objects.acreate(name="stew")
        for path in ("/dishes/", "/dishes/synchronously/"):
            self.assertIn(b'"soup", "stew"', await asyncio.to_thread(self.names, path))


class ApplicationsTests(TransactionTestCase):
    """Connections are made anew for applications that receive connection_created."""

    available_apps = settings.INSTALLED_APPS

    def pool(self) -> Any:
        Dish.objects.exists()
        return connection.async_pool

    def changed(self, **changes: str) -> Any:
        with self.modify_settings(INSTALLED_APPS=changes):
            return self.pool()

    def test_receivers(self) -> None:
        self.changed(remove="django.contrib.sessions")
        before = self.pool()
        self.assertIs(self.changed(remove="django.contrib.sessions"), before)
        with self.modify_settings(INSTALLED_APPS={"append": "django.contrib.postgres"}):
            inside = self.pool()
            self.assertIsNot(inside, before)
            self.assertIs(self.changed(remove="django.contrib.sessions"), inside)
            self.assertIs(self.pool(), inside)
        self.assertNotIn(self.pool(), (before, inside))


class LoopsTests(TestCase):
    """Synchronous code may run a loop of its own, which joins the transaction."""

    @classmethod
    def setUpTestData(cls) -> None:
        Dish.objects.create(name="soup")

    def test_run(self) -> None:
        async def change() -> int:
            async with transaction.atomic():
                await asyncio.gather(*(Dish.objects.acreate(name=f"{n}") for n in range(3)))
            self.assertEqual(await sync_to_async(Dish.objects.count)(), 5)
            self.assertEqual(await asyncio.to_thread(Dish.objects.count), 5)
            return await Dish.objects.acount()

        self.assertEqual(asyncio.run(change()), 5)
        self.assertEqual(Dish.objects.count(), 5)
        with asyncio.Runner() as runner:
            self.assertEqual(runner.run(Dish.objects.acount()), 5)

    def test_command(self) -> None:
        out = StringIO()
        call_command("count_dishes", stdout=out)
        self.assertEqual(out.getvalue(), "2\n")

    async def test_refused_in_a_coroutine(self) -> None:
        count = Dish.objects.acount()
        with self.assertRaisesRegex(RuntimeError, "running event loop"):
            asyncio.run(count)
        count.close()
