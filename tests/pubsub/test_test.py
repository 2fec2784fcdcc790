"""The helpers for tests of projects: what was sent, and its listeners called there and then."""

import asyncio
import unittest
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from django.utils import timezone

from pgbackend import bridged, is_bridged
from pgbackend.pubsub import Channel, Notification, anotify, listener, notify, registry, send
from pgbackend.pubsub.test import adeliver, assert_notified, captured_notifications, deliver
from tests.support.server import Server

from .ear import Ear
from .site.channels import AuthorPlain, AuthorStored, Orders, Reads
from .site.listeners import heard
from .site.models import Author


@pytest.fixture(autouse=True, scope="module")
def first_statement() -> None:
    """Let the backend see Django's methods before a TestCase replaces one of them."""
    asyncio.run(bridged(Notification.objects.count)())


@pytest.fixture(autouse=True)
def nothing_heard() -> Iterator[None]:
    """Let the test's listeners be as before, and have heard nothing."""
    heard.clear()
    before = {channel: list(found) for channel, found in registry.listeners.items()}
    yield
    registry.listeners.clear()
    registry.listeners.update(before)


def work() -> None:
    """What a test of a project does."""
    with captured_notifications() as captured:
        notify(Reads, model_id=1)
        notify(Orders, number=5)
        author = Author.objects.create(name="Ann")
        Author.objects.update(name="Bob")
    # Triggers run in the order of their names.
    assert [type(each) for each in captured[:2]] == [Reads, Orders]
    assert {type(each) for each in captured[2:4]} == {AuthorPlain, AuthorStored}
    assert captured.of(Orders) == captured.of(Orders, number=5) == [Orders(5)]
    assert captured.of("tests.pubsub.site.channels.Orders", number=6) == []
    assert [each.operation for each in captured.of(AuthorStored)] == ["INSERT", "UPDATE"]
    assert captured.of(AuthorPlain)[0].new == author
    assert heard == []
    assert len(deliver()) == len(captured) == 5
    assert sorted(name for name, _ in heard) == sorted(
        ["on_read", "on_read_async", "on_order", "after_insert", "after_save", "after_save"]
    )
    assert heard[0] == ("on_read", {"model_id": 1, "date": None})
    assert deliver() == []
    assert Notification.objects.count() == 0


class InTestCase(TestCase):
    # The tests below run it, in the bridge and outside.
    __test__ = False

    def test(self) -> None:
        """In a TestCase, whose transaction is never committed."""
        work()

    def test_assert(self) -> None:
        """`assert_notified` fails with what was sent."""
        with assert_notified(Orders, number=5):
            notify(Orders, number=5)
        with assert_notified(Orders, times=2), assert_notified(Reads, times=0):
            notify(Orders, number=5)
            notify(Orders, number=6)
        with (
            pytest.raises(AssertionError, match=r"Orders\(number=7\) was sent 0 times, not 1"),
            assert_notified(Orders, number=7),
        ):
            notify(Orders, number=8)
        with (
            pytest.raises(AssertionError, match=r"Sent:\n  Orders\(number=8, note=''\)"),
            assert_notified(Reads),
        ):
            notify(Orders, number=8)
        with pytest.raises(ZeroDivisionError), assert_notified(Orders):
            raise ZeroDivisionError

    async def test_async(self) -> None:
        """In an asynchronous test, by async with."""
        async with captured_notifications() as captured, assert_notified(Reads):
            await anotify(Reads, model_id=1)
            await Author.objects.acreate(name="Ann")
        assert {type(each) for each in captured} == {Reads, AuthorPlain, AuthorStored}
        assert len(await adeliver()) == 3
        assert ("on_read_async", {"model_id": 1, "date": None}) in heard


class InTransactionTestCase(TransactionTestCase):
    __test__ = False

    def test(self) -> None:
        """In a TransactionTestCase, where each statement is committed."""
        work()


@pytest.mark.parametrize("case", [InTestCase("test"), InTransactionTestCase("test")], ids=str)
def test_outside_of_the_bridge(case: unittest.TestCase) -> None:
    """The helpers work in plain test runs."""
    run(case)


@pytest.mark.parametrize(
    "case", [InTestCase("test"), InTestCase("test_async"), InTestCase("test_assert")], ids=str
)
def test_in_the_bridge(case: unittest.TestCase) -> None:
    """The helpers work in test runs in the bridge."""

    def bridged_run() -> None:
        assert is_bridged()
        run(case)

    asyncio.run(bridged(bridged_run)())


def run(case: unittest.TestCase) -> None:
    result = unittest.TestResult()
    unittest.TestSuite([case]).run(result)
    assert result.testsRun == 1
    assert result.errors + result.failures == [], result.errors + result.failures


def test_held_back(server: Server) -> None:
    """A plain notification that was captured is not heard elsewhere; the next one is again."""
    ear = Ear(server.dsn, Reads)
    with captured_notifications():
        notify(Reads, model_id=1)
    notify(Reads, model_id=2)
    (first, second) = ear.heard()
    assert first == (Reads.listen_name(), f"@{Notification.objects.get().pk}")
    assert second == (Reads.listen_name(), Reads(2).serialize())
    ear.conn.close()


def test_delayed() -> None:
    """What is not due is delivered on demand; a higher priority comes first."""
    send(Orders(1))
    send(Orders(2), priority=5)
    send(Orders(3), run_after=timezone.now() + timezone.timedelta(hours=1))
    assert [each.number for each in deliver(Orders)] == [2, 1]
    assert [each.number for each in deliver(Orders, delayed=True)] == [3]


def test_failing_listener() -> None:
    """A listener's exception is the test's; what it wrote is undone, and the row is there."""

    @listener(Orders)
    def fail(number: int, note: str) -> None:
        Author.objects.create(name="undone")
        raise ZeroDivisionError

    notify(Orders, number=1)
    with pytest.raises(ZeroDivisionError):
        deliver(Orders)
    assert Notification.from_channel(Orders).count() == 1
    assert Author.objects.count() == 0


def test_listeners_that_send() -> None:
    """What listeners send is delivered, too; one that never ends is an error that names it."""

    @dataclass
    class Steps(Channel):
        lock_notifications = True
        left: int

    @listener(Steps)
    def step(left: int) -> None:
        if left:
            notify(Steps, left=left - 1)

    notify(Steps, left=3)
    assert deliver(Steps) == [Steps(3), Steps(2), Steps(1), Steps(0)]

    @listener(Steps)
    def forever(left: int) -> None:
        notify(Steps, left=0)

    notify(Steps, left=0)
    with pytest.raises(RuntimeError, match=r"send more and more: the last one was .*Steps\(left=0"):
        deliver(Steps)


def test_without_listeners() -> None:
    """A channel whose listeners are elsewhere is captured all the same."""

    @dataclass
    class Unheard(Channel):
        number: int

    with assert_notified(Unheard, number=5), transaction.atomic():
        notify(Unheard, number=5)
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('pgpubsub.by_row', true)")
        assert cursor.fetchone()[0] in ("", None)


def test_in_a_thread(stock: str) -> None:
    """Where the statements of a coroutine run in a thread, what triggers send is captured, too."""

    async def test() -> None:
        async with captured_notifications(using=stock) as captured:
            await Author.objects.using(stock).acreate(name="Ann")
        assert {type(each) for each in captured} == {AuthorPlain, AuthorStored}

    async_to_sync(test)()
