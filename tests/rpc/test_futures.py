"""Futures of a service: when they are sent, in how many messages, and what may refer to them."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import DatabaseError, connections, transaction
from django.db.models import Count, ProtectedError
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext

from pgbackend import bridged
from pgbackend.futures import NotAwaitedError, as_completed, future, gather
from pgbackend.rpc import Delayed, RemoteError, RpcFuture
from pgbackend.rpc.protocol.errors import BadValue, DeadlinePassed, Malformed, MethodNotAllowed
from pgbackend.rpc.service import forget
from pgbackend.wrapper.dispatch import all_run_bridged
from tests.rpc.site import models as site
from tests.rpc.waiter.models import ClientModel, Dish, Order, Station, Waiter
from tests.support.rpc import alias


@pytest.fixture(autouse=True)
def _rows(service: str) -> None:
    for number in range(4):
        parent = site.ServerModel.objects.create(some_field="123", other_field=number)
    site.ServerModel.objects.create(some_field="child", parent=parent)


@contextmanager
def messages(count: int) -> Iterator[None]:
    """Assert that so many messages are sent."""
    with CaptureQueriesContext(connections["rpc"]) as sent:
        yield
    assert [each["sql"] for each in sent] == [each["sql"] for each in sent][:count]
    assert len(sent) == count


def cursor() -> Any:
    return connections["rpc"].cursor()


def test_the_interface(service: str) -> None:
    """Each line of the interface, as it is written."""
    qs = ClientModel.objects.future().filter(some_field="123")
    with messages(1):
        f1 = qs.submit()
    assert len(list(f1.result(timeout=10))) == 4
    f2 = ClientModel.objects.filter(some_field="123").future().first()
    with messages(1):
        item = f2.result()
    assert isinstance(item, ClientModel)
    a, b = cursor().gather(f1, f2)
    assert (len(a), b) == (4, item)
    d = ClientModel.objects.filter(some_field="123").values("pk").delayed()
    assert isinstance(d, Delayed)
    assert len(d.compute()) == 4
    with messages(1):
        assert ClientModel.objects.filter(pk__in=d).count() == 4
    found = ClientModel.objects.filter(some_field="123").exclude(other_field=1)
    with pytest.raises(ClientModel.MultipleObjectsReturned):
        found.get()


def test_call(service: str) -> None:
    """A method of the service's manager is called, with arguments; others are refused."""
    dish = site.Dish.objects.create(name="soup", price=3)
    site.Dish.objects.create(name="steak", price=30)
    assert Dish.objects.call("total_price", "soup", "steak", factor=2) == 66
    assert [each.name for each in Dish.objects.call("cheap")] == ["soup"]
    assert Dish.objects.filter(name="steak").call("cheap", below=99)[0].name == "steak"
    renamed = Dish.objects.call("rename", "soup", new="broth")
    assert (type(renamed), renamed.name) == (Dish, "broth")
    dish.refresh_from_db()
    assert dish.name == "broth"
    with pytest.raises(MethodNotAllowed):
        Dish.objects.call("burn")
    with pytest.raises(RemoteError) as raised:
        Dish.objects.call("fail")
    assert raised.value.code == "ServerError"
    assert "hunter2" not in str(raised.value)


def test_instances_in_a_result(service: str) -> None:
    """What a method returns has the shape that it has there, with instances in it."""
    soup = site.Dish.objects.create(name="soup", price=3)
    for login in ("bob", "ada"):
        site.Order.objects.create(dish=soup, waiter=site.Waiter.objects.create(login=login))
    found = Dish.objects.call("inside", "soup")
    dish = Dish.objects.get()
    assert {name: found[name] for name in ("pair", "twice", "mixed", "none")} == {
        "pair": (dish, 2),
        "twice": [dish, dish],
        "mixed": [dish, None],
        "none": [],
    }
    # Of another model than the one that was asked.
    assert [each["waiter_id"] for each in found["orders"]] == [
        *site.Waiter.objects.order_by("pk").values_list("pk", flat=True)
    ]
    assert found["first"] == found["orders"][0]
    with alias("ada", TRANSPORT="local", PRINCIPAL="ada"):
        found = Dish.objects.using("ada").call("inside", "soup")
        assert (found["first"], len(found["orders"])) == (None, 1)
        assert found["pair"] == (dish, 2)


def test_a_set_in_a_result(service: str) -> None:
    """A set with instances comes as a list, and one of values as a set."""
    for name in ("soup", "stew"):
        site.Dish.objects.create(name=name)
    found = Dish.objects.call("menu", "set")
    assert sorted(each.name for each in found) == ["soup", "stew"]
    mixed = Dish.objects.call("menu", "mixed")
    assert isinstance(mixed, list)
    assert sorted(map(str, mixed)) == sorted(["1", str(Dish.objects.get(name="soup"))])
    assert Dish.objects.call("menu", "words") == {"soup", "stew"}


def test_a_called_instance_in_a_later_call(service: str) -> None:
    """A later call of the message may name the instance that a method returns, and its fields."""
    site.Dish.objects.create(name="soup", price=3)
    renamed = Dish.objects.future().call("rename", "soup", new="broth")
    same = Dish.objects.future().filter(pk=renamed["id"]).get()
    also = Dish.objects.future().filter(pk=renamed).get()
    found = cursor().gather(renamed, same, also)
    assert found == [Dish.objects.get(name="broth")] * 3


@pytest.mark.parametrize("texts", [("Closed.",), ("Closed.", "Come again: 100 % open."), ()])
def test_errors_of_no_field(service: str, texts: tuple[str, ...]) -> None:
    """A ValidationError of a method is what it is there: of one text, or of a list."""
    raised: list[Any] = []
    for dishes in (Dish.objects, site.Dish.objects):
        with pytest.raises(ValidationError) as caught:
            dishes.call("refuse", *texts) if dishes is Dish.objects else dishes.refuse(*texts)
        raised.append(caught.value)
    ours, theirs = raised
    assert (ours.messages, str(ours), ours == theirs) == (list(texts), str(theirs), True)
    assert getattr(ours, "message", None) == getattr(theirs, "message", None)


def test_one_message() -> None:
    """What is gathered goes in one message, in order; what was sent before is waited for."""
    futures = [ClientModel.objects.future().filter(other_field=n).count() for n in range(3)]
    early = ClientModel.objects.future().first().submit()
    with messages(1):
        found = cursor().gather(*futures, early, ClientModel.objects.filter(other_field=2))
    assert found[:3] == [1, 1, 1]
    assert found[3].other_field == 0
    assert [each.other_field for each in found[4]] == [2]
    assert cursor().gather() == []


def test_nothing_is_sent_before_it_is_wanted() -> None:
    """A future is sent with its first result, or by submit, and once."""
    with messages(0):
        future = ClientModel.objects.future().count()
        assert not future.done()
    with messages(1):
        assert future.result() == future.result() == 5
    with messages(1):
        assert ClientModel.objects.future().count().submit().submit().result() == 5


def test_errors_of_a_gathered_call() -> None:
    """Each call has its own outcome; the first error is raised."""
    wrong = ClientModel.objects.future().get(pk=-1)
    right = ClientModel.objects.future().count()
    with pytest.raises(ClientModel.DoesNotExist) as raised:
        cursor().gather(wrong, right)
    assert isinstance(raised.value.__cause__, RemoteError)
    assert raised.value.__cause__.code == "DoesNotExist"
    assert right.result() == 5
    again = ClientModel.objects.future().get(pk=-1)
    error, count = cursor().gather(again, right, return_exceptions=True)
    assert isinstance(error, ClientModel.DoesNotExist)
    assert count == 5


def test_atomic() -> None:
    """With *atomic* all calls are one transaction: none is done where one fails."""
    make = ClientModel.objects.future().create(some_field="new")
    fail = ClientModel.objects.future().get(pk=-1)
    with pytest.raises(ClientModel.DoesNotExist):
        cursor().gather(make, fail, atomic=True)
    assert not site.ServerModel.objects.filter(some_field="new").exists()
    with pytest.raises((DatabaseError, RemoteError)):
        make.result()
    first, second = cursor().gather(
        ClientModel.objects.future().create(some_field="new"),
        ClientModel.objects.future().filter(some_field="new").update(other_field=9),
        atomic=True,
    )
    assert (first.some_field, second) == ("new", 1)
    assert site.ServerModel.objects.get(pk=first.pk).other_field == 9


def test_idempotency(service: str) -> None:
    """Writes that are sent again by one key are done once, and give the same answer."""

    def place(number: int = 1, key: str = "order-1") -> Any:
        made = ClientModel.objects.future().create(some_field="placed", other_field=number)
        return cursor().gather(made, idempotency=key)[0]

    first, again = place(), place()
    assert (first, again.other_field) == (again, 1)
    assert place(key="order-2") != first
    with pytest.raises(BadValue, match="with another request"):
        place(2)
    with pytest.raises(Malformed, match="idempotency"):
        place(key="order 1")
    assert site.ServerModel.objects.filter(some_field="placed").count() == 2


async def test_idempotency_on_the_loop() -> None:
    """`agather` does the same."""
    made = [ClientModel.objects.future().create(some_field="placed") for _ in range(2)]
    (first,), (again,) = [await cursor().agather(each, idempotency="order-1") for each in made]
    assert first == again


def test_dry() -> None:
    """A dry run answers as if it were done, and undoes it."""
    (made,) = cursor().gather(ClientModel.objects.future().create(some_field="dry"), dry=True)
    assert made.pk
    assert not site.ServerModel.objects.filter(some_field="dry").exists()


def test_results_of_earlier_calls() -> None:
    """A later call of a message takes the result of an earlier one, or a part of it."""
    parent = ClientModel.objects.future().create(some_field="parent")
    child = ClientModel.objects.future().filter(some_field="child").update(parent=parent["id"])
    with messages(1):
        made, changed = cursor().gather(parent, child, atomic=True)
    assert changed == 1
    assert site.ServerModel.objects.get(some_field="child").parent_id == made.pk
    # What is referred to goes along by itself.
    first = ClientModel.objects.future().order_by("-pk").first()
    with messages(1):
        assert ClientModel.objects.filter(pk=first["id"]).get() == first.result()
    # A result that is there goes as a value.
    with messages(1):
        assert ClientModel.objects.filter(pk=first["id"]).count() == 1
    rows = ClientModel.objects.future().order_by("pk").submit()
    assert ClientModel.objects.get(pk=rows[2]["id"]) == rows.result()[2]
    with pytest.raises(TypeError, match="future"):
        list(parent)


async def test_awaited() -> None:
    """On an event loop a future is awaited; asking it for its result there is an error."""
    future = ClientModel.objects.future().count()
    with pytest.raises(NotAwaitedError, match="await"):
        future.result()
    future = ClientModel.objects.future().count()
    assert await future == 5
    both = await asyncio.gather(
        *(ClientModel.objects.filter(other_field=n).acount() for n in range(3))
    )
    assert both == [1, 1, 1]
    found = await cursor().agather(
        ClientModel.objects.future().count(), ClientModel.objects.filter(other_field=1)
    )
    assert found[0] == 5
    made = await ClientModel.objects.acreate(some_field="awaited")
    made.other_field = 7
    await made.asave()
    await made.arefresh_from_db()
    assert made.other_field == 7
    assert (await made.adelete())[0] == 1
    assert len(await ClientModel.objects.filter(other_field=1).delayed().acompute()) == 1


async def test_beside_local_futures() -> None:
    """The functions of pgbackend.futures take futures and querysets of a service with others."""
    ours, theirs = ClientModel.objects.future(), site.ServerModel.objects
    remote, local = ours.count(), future(theirs.filter(other_field=1))
    heard: list[Any] = []
    remote.add_done_callback(heard.append)
    assert not remote.done()
    found = await gather(remote, local, ClientModel.objects.filter(other_field=2), ours.submit())
    assert [found[0], *map(len, found[1:])] == [5, 1, 1, 5]
    assert (heard, remote.done()) == ([remote], True)
    failing = ours.filter(other_field__gte=0).get()
    ended = [each async for each in as_completed(ours.count(), failing, theirs.all())]
    assert len(ended) == 3
    with pytest.raises(ClientModel.MultipleObjectsReturned):
        await failing
    found = await gather(ours.count(), failing, return_exceptions=True)
    assert (found[0], type(found[1])) == (5, ClientModel.MultipleObjectsReturned)


async def test_cancelled() -> None:
    """A future that is cancelled sends nothing, and what awaits it is cancelled."""
    future = ClientModel.objects.future().create(some_field="never")
    with messages(0):
        assert future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
    assert future.done()
    assert not future.cancel()
    assert await ClientModel.objects.acount() == 5


async def test_acall() -> None:
    """A method is called from an event loop by acall."""
    await site.Dish.objects.acreate(name="soup", price=3)
    assert await Dish.objects.acall("total_price", "soup", factor=2) == 6
    assert (await Dish.objects.acall("rename", "soup", new="broth")).name == "broth"
    assert [each.name for each in await Dish.objects.filter(price=3).acall("cheap")] == ["broth"]


async def test_bridged() -> None:
    """In bridged code results are waited for without blocking the loop, and need no thread."""
    assert all_run_bridged()

    def work() -> tuple[int, int]:
        future = ClientModel.objects.future().count().submit()
        return future.result(timeout=30), ClientModel.objects.filter(other_field=1).count()

    assert await bridged(work)() == (5, 1)


def test_threads() -> None:
    """A future may be waited for in another thread than the one that sent it."""
    future = ClientModel.objects.future().count().submit()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(future.result(timeout=30)))
    thread.start()
    thread.join()
    assert found == [5]


def test_one_service_a_message() -> None:
    """Calls of two services do not go in one message."""
    with (
        alias("rpc2", TRANSPORT="local"),
        pytest.raises(ValueError, match="one service"),
    ):
        cursor().gather(ClientModel.objects.using("rpc2").future().count())
    with pytest.raises(TypeError, match="futures and querysets"):
        cursor().gather(3)


def test_deadlines() -> None:
    """A deadline that has passed is an error of the service, or of the transport."""
    with pytest.raises(ValueError, match="seconds"):
        ClientModel.objects.within(0)
    assert ClientModel.objects.within(30.0).urgent().count() == 5
    with pytest.raises(DeadlinePassed):
        ClientModel.objects.within(0.0001).count()


def test_a_service_that_is_forgotten() -> None:
    """Transports are closed, and opened anew by the next call."""
    before = connections["rpc"].service
    assert connections["rpc"].service is before
    forget(["rpc"])
    assert ClientModel.objects.count() == 5
    assert connections["rpc"].service is not before


def test_atomic_block_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What was written in a block stays written, and the exception says so."""
    with pytest.raises(KeyError) as raised, transaction.atomic(using="rpc"):
        ClientModel.objects.create(some_field="kept")
        raise KeyError
    assert "stay" in raised.value.__notes__[0]
    assert "atomic=True" in caplog.text
    assert site.ServerModel.objects.filter(some_field="kept").exists()


def test_atomic_blocks_that_are_refused(service: str) -> None:
    """With ATOMIC "refuse" the second message that writes is not sent."""
    connections["rpc"].settings_dict["ATOMIC"] = "refuse"
    try:
        with (
            pytest.raises(TransactionManagementError, match="gather"),
            transaction.atomic(using="rpc"),
        ):
            ClientModel.objects.count()
            ClientModel.objects.create(some_field="one")
            ClientModel.objects.create(some_field="two")
        with transaction.atomic(using="rpc"):
            ClientModel.objects.create(some_field="three")
    finally:
        del connections["rpc"].settings_dict["ATOMIC"]
    found = site.ServerModel.objects.values_list("some_field", flat=True)
    assert "two" not in found
    assert {"one", "three"} <= {*found}


def test_errors() -> None:
    """Errors arrive as those of the client's models and of Django, with their code as the cause."""
    dish = site.Dish.objects.create(name="soup")
    waiter = site.Waiter.objects.create(login="ada")
    order = site.Order.objects.create(dish=dish, waiter=waiter)
    with pytest.raises(Station.DoesNotExist, match="Station matching query"):
        Station.objects.get(pk=-1)
    with pytest.raises(ValidationError) as raised:
        Dish.objects.create(name="nothing")
    assert "name" in raised.value.message_dict
    site.Receipt.objects.create(order=order, paid=1)
    with pytest.raises(ProtectedError):
        Order.objects.get(pk=order.pk).delete()
    with pytest.raises(BadValue) as bad:
        list(Order.objects.filter(count="no number"))
    assert isinstance(bad.value, ValueError)
    with pytest.raises(RemoteError) as refused:
        Waiter.objects.filter(password__startswith="h").count()
    assert refused.value.code == "FieldNotAllowed"
    with pytest.raises(RemoteError):
        Waiter.objects.aggregate(n=Count("password"))
    assert isinstance(ClientModel.objects.future().count(), RpcFuture)
