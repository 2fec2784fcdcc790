"""Subscriptions: rows that are sent anew when they change, by each transport that can."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from django.conf import settings
from django.core.exceptions import PermissionDenied

from pgbackend import bridged
from pgbackend.futures import Future
from pgbackend.rpc.client import Client
from pgbackend.rpc.client.subscriptions import Subscription
from pgbackend.rpc.protocol.errors import (
    FieldNotAllowed,
    OperationNotAllowed,
    TooManySubscriptions,
    Unavailable,
)
from pgbackend.rpc.server import watching
from tests.faults.fix_servers import free_port
from tests.rpc.site import models as site
from tests.rpc.waiter.models import Dish, Order, Station
from tests.support import loops
from tests.support.limits import AT_ONCE
from tests.support.rpc import TRANSPORTS, alias
from tests.support.rpc_server import exposed, limited
from tests.support.rpc_services import SERVICES
from tests.support.server import NAME, Server

pytest.importorskip("pgtrigger")

BESIDE = [
    pytest.param(each, marks=(pytest.mark.process, pytest.mark.load))
    for each in ("postgres", "http")
]


@pytest.fixture(scope="module", params=["local", *BESIDE])
def served(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of an alias whose service runs, by one transport."""
    with TRANSPORTS[request.param]() as conf:
        yield conf


@pytest.fixture
def local() -> Iterator[str]:
    """The alias of the service in this very process, whose settings tests change."""
    with alias(TRANSPORT="local") as name:
        yield name


@pytest.fixture(autouse=True)
def rows() -> None:
    """Two dishes, and an order of each of two waiters."""
    grill = site.Station.objects.create(name="grill")
    soup = site.Dish.objects.create(name="soup", price=5, station=grill)
    site.Dish.objects.create(name="fish", price=20)
    for login in ("ada", "bob"):
        waiter = site.Waiter.objects.create(login=login)
        site.Order.objects.create(dish=soup, waiter=waiter)


async def following(subscription: Subscription[list[Any]]) -> list[Any]:
    """Return the next rows, which come at once."""
    async with asyncio.timeout(AT_ONCE):
        return await anext(subscription)


@contextlib.asynccontextmanager
async def waits(
    subscription: Subscription[list[Any]], seconds: float = 0.1
) -> AsyncIterator[asyncio.Task[list[Any]]]:
    """The task that waits for the next rows, as is likely by the begin of the block."""
    task = asyncio.create_task(following(subscription))
    await asyncio.sleep(seconds)
    assert not task.done()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.process
@pytest.mark.parametrize("name", ["postgres", "http"])
def test_by_a_process_of_its_own(name: str) -> None:
    """A service beside sends rows anew."""

    async def read() -> None:
        dishes = Dish.objects.order_by("name").subscribe(wait=1.0)
        assert names(await following(dishes)) == ["fish", "soup"]
        async with waits(dishes) as task:
            await site.Dish.objects.acreate(name="tea", price=1)
            assert names(await task) == ["fish", "soup", "tea"]

    with TRANSPORTS[name]() as conf, alias(**conf):
        asyncio.run(read())


@pytest.mark.load
@pytest.mark.process
def test_celery() -> None:
    """A worker of Celery says that subscriptions do not go by it."""
    refused = pytest.raises(OperationNotAllowed, match="use http or postgres")
    with TRANSPORTS["redis"]() as conf, alias(**conf), refused:
        next(Dish.objects.subscribe())


def names(found: list[Any]) -> list[str]:
    return [each.name for each in found]


async def test_rows_are_sent_anew(service: str) -> None:
    """The rows come at once, and again after each change: by create, update and delete."""
    async with Dish.objects.order_by("name").subscribe() as dishes:
        assert names(await following(dishes)) == ["fish", "soup"]
        async with waits(dishes) as task:
            await site.Dish.objects.acreate(name="tea", price=1)
            assert names(await task) == ["fish", "soup", "tea"]
        async with waits(dishes) as task:
            await site.Dish.objects.filter(name="tea").aupdate(price=2)
            assert [each.price for each in await task] == [20, 5, 2]
        async with waits(dishes) as task:
            await site.Dish.objects.filter(name="tea").adelete()
            found = await task
        assert names(found) == ["fish", "soup"]
        assert all(type(each) is Dish for each in found)


async def test_async_for(service: str) -> None:
    """Rows come by `async for`, with the queryset's operations; leaving it needs nothing more."""
    seen = []
    queryset = Dish.objects.filter(price__lt=10).order_by("name").values_list("name", flat=True)
    async for found in queryset.subscribe():
        seen.append(found)
        if len(seen) == 1:
            await site.Dish.objects.acreate(name="tea", price=1)
        else:
            break
    assert seen == [["soup"], ["soup", "tea"]]


async def test_what_changes_nothing_is_not_sent(service: str) -> None:
    """A change of other rows, and one that is changed back, sends nothing."""
    soup = Dish.objects.filter(name="soup").subscribe()
    await following(soup)
    async with waits(soup) as task:
        await site.Dish.objects.filter(name="fish").aupdate(price=21)
        await site.Label.objects.acreate(word="hot")
        await asyncio.sleep(0.2)
        assert not task.done()
        await site.Dish.objects.filter(name="soup").aupdate(price=6)
        assert [each.price for each in await task] == [6]


async def test_a_burst_is_one(service: str) -> None:
    """Of many changes in a row a few lists are sent, and the last one has all of them."""
    dishes = Dish.objects.filter(name="soup").subscribe(every=0.3)
    await following(dishes)
    lists = []

    async def read() -> None:
        async for found in dishes:
            lists.append(found)
            if found[0].price == 100:
                return

    reading = asyncio.create_task(read())
    began = time.monotonic()
    for price in range(1, 101):
        await site.Dish.objects.filter(name="soup").aupdate(price=price)
    async with asyncio.timeout(AT_ONCE):
        await reading
    assert len(lists) <= (time.monotonic() - began) / 0.3 + 2
    assert len(lists) < 20


async def test_between_two_messages(service: str) -> None:
    """What changes while nobody waits, as in the body of the loop, comes with the next list."""
    dishes = Dish.objects.order_by("name").subscribe()
    await following(dishes)
    await site.Dish.objects.filter(name="soup").adelete()
    assert names(await following(dishes)) == ["fish"]


async def test_over_relations(service: str) -> None:
    """A change of a model that a path names is heard, where that is exposed for it."""
    of_soup = Order.objects.filter(dish__name="soup").order_by("pk").subscribe()
    assert len(await following(of_soup)) == 2
    async with waits(of_soup) as task:
        await site.Dish.objects.filter(name="soup").aupdate(name="broth")
        assert await task == []


async def test_messages_end_without_news(service: str) -> None:
    """A message waits no longer than it says, and the next one goes on."""
    dishes = Dish.objects.filter(name="soup").subscribe(wait=0.2)
    await following(dishes)
    async with waits(dishes) as task:
        await asyncio.sleep(0.5)
        assert not task.done()
        await site.Dish.objects.filter(name="soup").aupdate(price=6)
        assert [each.price for each in await task] == [6]


async def test_only_what_the_principal_may_see(served: dict[str, Any]) -> None:
    """The rows are those of the principal; a change of others' is not even noticed."""
    with alias(**{**served, "PRINCIPAL": "ada"}):
        orders = Order.objects.all().subscribe()
        assert len(await following(orders)) == 1
        async with waits(orders) as task:
            await site.Order.objects.filter(waiter__login="bob").aupdate(count=9)
            await asyncio.sleep(0.2)
            assert not task.done()
            await site.Order.objects.filter(waiter__login="ada").aupdate(count=7)
            assert [each.count for each in await task] == [7]
            # One that is given away is gone.
        bob = await site.Waiter.objects.aget(login="bob")
        await site.Order.objects.filter(waiter__login="ada").aupdate(waiter=bob)
        assert await following(orders) == []


async def test_close_from_elsewhere(service: str) -> None:
    """Closing ends the iteration of the task that waits, and of later ones."""
    dishes = Dish.objects.subscribe()
    await following(dishes)
    seen = []

    async def read() -> str:
        async for found in dishes:
            seen.append(found)
        return "ended"

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    await dishes.aclose()
    async with asyncio.timeout(AT_ONCE):
        assert await reading == "ended"
    assert not seen
    assert [found async for found in dishes] == []


async def test_cancelled_reader(service: str) -> None:
    """A reader that is cancelled ends so; the subscription can be read again."""
    dishes = Dish.objects.order_by("name").subscribe()
    await following(dishes)
    async with waits(dishes) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await site.Dish.objects.filter(name="soup").adelete()
    assert names(await following(dishes)) == ["fish"]


async def test_bridged(service: str) -> None:
    """Synchronous code on the loop iterates by `for`, without blocking it."""

    def read() -> list[list[str]]:
        seen = []
        with Dish.objects.order_by("name").subscribe() as dishes:
            for found in dishes:
                seen.append(names(found))
                if len(seen) == 2:
                    break
        return seen

    reading = asyncio.create_task(bridged(read)())
    await asyncio.sleep(0.2)
    await site.Dish.objects.filter(name="soup").adelete()
    async with asyncio.timeout(AT_ONCE):
        assert await reading == [["fish", "soup"], ["fish"]]


def test_in_a_thread(service: str, served: dict[str, Any]) -> None:
    """Threads iterate by `for`; the local service cannot wait there, and says so."""
    dishes = Dish.objects.order_by("name").subscribe()
    if served["TRANSPORT"] == "local":
        with pytest.raises(OperationNotAllowed, match="cannot wait for changes"):
            next(dishes)
        return
    assert names(next(dishes)) == ["fish", "soup"]
    site.Dish.objects.filter(name="soup").delete()
    assert names(next(dishes)) == ["fish"]
    closing = threading.Timer(0.2, dishes.close)
    closing.start()
    assert list(dishes) == []
    closing.join()


async def test_plain_client(plain: Client) -> None:
    """The client without Django has the same."""
    dishes = plain.model("rpc_site.Dish").order_by("name").subscribe()
    assert names(await following(dishes)) == ["fish", "soup"]
    async with waits(dishes) as task:
        await site.Dish.objects.acreate(name="tea", price=1)
        assert names(await task) == ["fish", "soup", "tea"]
    dishes.close()


async def test_models_that_are_not_exposed_for_it(service: str) -> None:
    """A model whose tables tell nothing is refused, and so is what is refused to any queryset."""
    with pytest.raises(OperationNotAllowed, match="not exposed for subscriptions"):
        await following(Station.objects.subscribe())
    dishes = Dish.objects.filter(recipe="secret").subscribe()
    with pytest.raises(FieldNotAllowed):
        await following(dishes)
    assert [found async for found in dishes] == []


async def test_permission_is_asked_again(local: str) -> None:
    """Whoever may no longer read the rows has the error at the next change, not the rows."""
    dishes = Dish.objects.subscribe()
    await following(dishes)
    with exposed(site.Dish, permission=lambda principal, operation, model: may):
        may = True
        async with waits(dishes) as task:
            may = False
            await site.Dish.objects.acreate(name="tea", price=1)
            with pytest.raises(PermissionDenied):
                await task
    # It is over.
    assert [found async for found in dishes] == []


async def test_more_than_may_wait(local: str) -> None:
    """A principal has so many subscriptions in a process, and another one its own."""
    with limited(max_subscriptions=2):
        two = [Dish.objects.subscribe() for _ in range(2)]
        for each in two:
            await following(each)
        async with waits(two[0]), waits(two[1]):
            third = Dish.objects.subscribe(patience=0)
            await following(third)
            with pytest.raises(TooManySubscriptions) as raised:
                await following(third)
            assert raised.value.details == {"max_subscriptions": 2}
            with alias("other_rpc", TRANSPORT="local", PRINCIPAL="ada"):
                others = Dish.objects.using("other_rpc").subscribe()
                await following(others)
                async with waits(others):
                    pass
        # Those that went leave room, and nothing else.
        fourth = Dish.objects.subscribe()
        await following(fourth)
        async with waits(fourth):
            pass
    assert not watching.waiting


async def test_places_that_become_free(local: str) -> None:
    """A subscription waits for a place: messages that nobody waits for any more may have them."""
    with limited(max_subscriptions=1):
        gone, dishes = Dish.objects.subscribe(), Dish.objects.order_by("name").subscribe()
        for each in (gone, dishes):
            await following(each)
        async with waits(gone):
            task = asyncio.create_task(following(dishes))
            await asyncio.sleep(0.3)
            assert not task.done()
        await site.Dish.objects.acreate(name="tea", price=1)
        assert names(await task) == ["fish", "soup", "tea"]


@pytest.mark.parametrize("seconds", [3600, 1e300, math.inf])
async def test_long_waits(local: str, seconds: float) -> None:
    """However long a message is to wait, its deadline is one that the service takes."""
    dishes = Dish.objects.order_by("name").subscribe(wait=seconds)
    assert names(await following(dishes)) == ["fish", "soup"]
    async with waits(dishes) as task:
        await site.Dish.objects.acreate(name="tea", price=1)
        assert names(await task) == ["fish", "soup", "tea"]


async def test_waiting_holds_nothing(service: str) -> None:
    """Many more wait than there are connections and turns, and other messages are answered."""
    many = [Dish.objects.filter(name="soup").subscribe() for _ in range(40)]
    await asyncio.gather(*map(following, many))
    async with contextlib.AsyncExitStack() as stack:
        tasks = [await stack.enter_async_context(waits(each, 0.01)) for each in many]
        async with asyncio.timeout(AT_ONCE):
            assert await Dish.objects.acount() == 2
        await site.Dish.objects.filter(name="soup").aupdate(price=6)
        found = await asyncio.gather(*tasks)
    assert [each[0].price for each in found] == [6] * 40


async def test_the_listening_connection_is_lost(service: str, server: Server) -> None:
    """What changes while nothing is heard is sent when the connection is back."""
    soup = Dish.objects.filter(name="soup").subscribe(wait=20)
    await following(soup)
    async with waits(soup) as task:
        async with asyncio.timeout(AT_ONCE):
            while not server.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid()"
                " AND (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%')"
            ):
                await asyncio.sleep(0.05)
        server.all("UPDATE rpc_site_dish SET price = 6 WHERE name = 'soup'")
        assert [each.price for each in await task] == [6]


@pytest.mark.load
@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "how"), [("postgres", "kill"), ("postgres", "end"), ("http", "kill")]
)
def test_the_service_is_started_again(name: str, how: str) -> None:
    """A subscription outlasts the service, and has what changed meanwhile."""
    with SERVICES[name](real=True) as made:
        keys = {"KEYS": settings.PGBACKEND_RPC["KEYS"], "KEY": "k1"}
        with made.running() as worker, alias(**{**made.settings(), **keys, "TIMEOUT": 1.0}):

            async def read() -> None:
                dishes = Dish.objects.order_by("name").subscribe(wait=2.0)
                assert names(await following(dishes)) == ["fish", "soup"]
                async with waits(dishes, 0.5) as task:
                    await asyncio.to_thread(getattr(worker, how))
                    await site.Dish.objects.acreate(name="tea", price=1)
                    await asyncio.sleep(0.5)
                    assert not task.done()
                    with made.worker():
                        assert names(await task) == ["fish", "soup", "tea"]

            asyncio.run(read())


async def test_patience(local: str) -> None:
    """A service that is away for longer than it may is the error that says so."""
    url = f"http://127.0.0.1:{free_port()}/"
    with alias("away", TRANSPORT="http", URL=url, KEYS={"a": "x" * 32}):
        dishes = Dish.objects.using("away").subscribe(patience=0.5)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await following(dishes)
        assert time.monotonic() - began >= 0.5
        # Closing ends a pause, too.
        dishes = Dish.objects.using("away").subscribe()
        async with waits(dishes, 0.5) as task:
            dishes.close()
            with pytest.raises(StopAsyncIteration):
                await task


async def test_two_readers() -> None:
    """A second reader at once is refused, and disturbs the first one in nothing."""
    pending: Future[Any] = Future.pending()
    subscription: Subscription[Any] = Subscription(lambda seen, seconds: pending)
    first = asyncio.create_task(anext(subscription))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="each reader needs one"):
        await anext(subscription)
    pending.set_result(("a" * 64, [1]))
    assert await first == [1]


@pytest.mark.parametrize("name", ["every", "patience", "wait"])
def test_bad_options(name: str) -> None:
    """Seconds are not negative."""
    with pytest.raises(ValueError, match=f"{name} is in seconds"):
        Dish.objects.subscribe(**{name: -1})


@pytest.mark.load
@pytest.mark.parametrize("loop", loops.NAMES)
def test_storm(local: str, server: Server, loop: str) -> None:
    """While backends are killed and readers leave, lists stay in order, and the last one comes."""
    chance = random.Random(5)
    soup = Dish.objects.filter(name="soup")

    async def read(prices: list[int]) -> None:
        async for found in soup.subscribe(wait=1, every=0.01):
            prices.append(found[0].price)
            if found[0].price == 1000:
                return

    async def leave() -> None:
        while True:
            subscription = soup.subscribe(wait=1, every=0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.random() / 2):
                    async for _ in subscription:
                        pass
            if chance.random() < 0.5:
                subscription.close()

    async def storm() -> None:
        seen: list[list[int]] = [[] for _ in range(4)]
        reading = [asyncio.create_task(read(each)) for each in seen]
        leaving = [asyncio.create_task(leave()) for _ in range(6)]
        update = "UPDATE rpc_site_dish SET price = %s WHERE name = 'soup'"
        for price in [*range(60), 1000]:
            await asyncio.to_thread(server.all, update, price)
            if price % 7 == 3:
                await asyncio.to_thread(
                    server.all,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = %s ORDER BY random() LIMIT 1",
                    NAME,
                )
            await asyncio.sleep(chance.random() * 0.08)
        async with asyncio.timeout(AT_ONCE):
            await asyncio.gather(*reading)
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            while watching.waiting:
                await asyncio.sleep(0.01)
        assert all(each == sorted(each) and len(each) > 3 for each in seen)

    with asyncio.Runner(loop_factory=loops.LOOPS[loop]) as runner:
        runner.run(storm())
