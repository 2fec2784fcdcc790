"""Transactions with characteristics of their own: pgbackend.transaction.atomic."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.test import TestCase, TransactionTestCase

from pgbackend import bridged
from pgbackend.transaction import acommit, aset_autocommit, atomic, pinned, retrying
from tests.models import Author
from tests.support.futures import counted
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.wrapper import PID, AddAlias, avalue, use_wrapper, value

SHOWN = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'),"
SHOWN += " current_setting('transaction_deferrable')"
PLAIN = ("read committed", "off", "off")

ASKED: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({}, PLAIN),
    ({"isolation": "repeatable read"}, ("repeatable read", "off", "off")),
    ({"isolation": "SERIALIZABLE"}, ("serializable", "off", "off")),
    ({"isolation": psycopg.IsolationLevel.SERIALIZABLE}, ("serializable", "off", "off")),
    ({"read_only": True}, ("read committed", "on", "off")),
    (
        {"isolation": "serializable", "read_only": True, "deferrable": True},
        ("serializable", "on", "on"),
    ),
]


def shown(alias: str = "default") -> Any:
    """Return the characteristics of the running transaction, or of one for this statement."""
    with connections[alias].cursor() as cursor:
        cursor.execute(SHOWN)
        return cursor.fetchone()


ashown = bridged(shown)


def in_block(alias: str, asked: dict[str, Any]) -> Any:
    """Return what a block shows, and what is shown after it, where nothing was asked for."""
    with atomic(using=alias, **asked):
        inside = shown(alias)
    with transaction.atomic(using=alias):
        return inside, shown(alias)


@pytest.fixture(params=[{"max_size": 1}, None], ids=["pool", "none"])
def one(request: pytest.FixtureRequest, add_alias: AddAlias) -> str:
    """An alias with one connection, in threads too: what is left on it is met again."""
    return add_alias({"pool": request.param} if request.param else {})


@pytest.mark.parametrize(("asked", "found"), ASKED)
async def test_on_the_loop(one: str, asked: dict[str, Any], found: Any) -> None:
    """`async with`, `with` in bridged code, and a thread do the same."""
    async with atomic(using=one, **asked):
        assert await ashown(one) == found
        async with atomic(using=one):
            assert await ashown(one) == found
    async with transaction.atomic(using=one):
        assert await ashown(one) == PLAIN
    assert await bridged(in_block)(one, asked) == (found, PLAIN)

    def in_thread() -> Any:
        try:
            return in_block(one, asked)
        finally:
            connections[one].close()

    # A thread of this test alone, without the wrappers of the tests before.
    assert await asyncio.to_thread(in_thread) == (found, PLAIN)


@pytest.mark.parametrize(("asked", "found"), ASKED)
def test_without_a_loop(one: str, asked: dict[str, Any], found: Any) -> None:
    """So it is on Django's own path."""
    assert in_block(one, asked) == (found, PLAIN)

    @atomic(one, **asked)
    def decorated() -> Any:
        return shown(one)

    assert [decorated(), decorated(), shown(one)] == [found, found, PLAIN]


@pytest.mark.parametrize(("asked", "found"), ASKED)
async def test_decorator(asked: dict[str, Any], found: Any) -> None:
    """Functions and coroutine functions are decorated, without arguments too."""

    @atomic(**asked)
    async def of_coroutine() -> Any:
        return await ashown()

    @bridged
    @atomic(**asked)
    def of_function() -> Any:
        return shown()

    @atomic
    async def bare() -> Any:
        return connection.in_atomic_block, await ashown()

    assert [await of_coroutine(), await of_function()] == [found, found]
    assert await bare() == (True, PLAIN)


async def test_no_message_of_its_own(server: Server) -> None:
    """What is asked for is in the BEGIN, which goes with the first statement."""
    await Author.objects.acreate(name="Ada")
    sent: list[int] = []
    async with counted(server) as proxy:
        await Author.objects.acount()
        for asked in ({}, {"isolation": "serializable", "read_only": True}):
            before = proxy.messages
            async with atomic(**asked):
                await Author.objects.aget(name="Ada")
            sent.append(proxy.messages - before)
        before = proxy.messages
        async with atomic(isolation="serializable"):
            pass
        assert proxy.messages == before
    assert sent[0] == sent[1] > 0


async def test_kept_by_all_in_the_block(server: Server) -> None:
    """Tasks and threads that join have the snapshot, and their nested blocks are plain ones."""
    async with atomic(isolation="repeatable read"):
        assert await Author.objects.acount() == 0
        server.all("INSERT INTO tests_author (name) VALUES ('Ada')")
        counts = await asyncio.gather(
            Author.objects.acount(), sync_to_async(Author.objects.count)(), avalue("SELECT 0")
        )
    assert counts == [0, 0, 0]
    assert await Author.objects.acount() == 1


async def test_read_only(server: Server) -> None:
    """The server refuses to write; the next transaction may."""
    with pytest.raises(DatabaseError, match="read-only transaction"):
        async with atomic(read_only=True):
            await Author.objects.acreate(name="Ada")
    await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Bea"]


async def test_read_write(server: Server) -> None:
    """What the server has as default is overruled, in the other direction too."""
    use_wrapper(options={"options": "-c default_transaction_read_only=on"})
    with pytest.raises(DatabaseError, match="read-only transaction"):
        await Author.objects.acreate(name="Ada")
    async with atomic(read_only=False):
        await Author.objects.acreate(name="Ada")
    assert committed(server) == ["Ada"]


async def test_what_options_ask_for() -> None:
    """What is not asked for is as OPTIONS say."""
    use_wrapper(options={"isolation_level": psycopg.IsolationLevel.REPEATABLE_READ})
    async with atomic(read_only=True):
        assert await ashown() == ("repeatable read", "on", "off")
    async with atomic(isolation="read committed"):
        assert await ashown() == PLAIN
    async with atomic():
        assert await ashown() == ("repeatable read", "off", "off")


async def test_refused_in_a_transaction() -> None:
    """In an open transaction it is refused, and that goes on; the message names the cure."""
    async with transaction.atomic():
        assert await ashown() == PLAIN
        with pytest.raises(RuntimeError, match=r"isolation='serializable'\).*the outermost block"):
            async with atomic(isolation="serializable"):
                pytest.fail("entered")
        with pytest.raises(RuntimeError, match="non_atomic_requests"):
            await bridged(in_block)("default", {"read_only": True})
        with pytest.raises(RuntimeError, match="outermost"):
            await sync_to_async(in_block)("default", {"read_only": True})
        assert await ashown() == PLAIN
        await Author.objects.acreate(name="Ada")
    await aset_autocommit(False)
    try:
        with pytest.raises(RuntimeError, match="outermost"):
            async with atomic(isolation="serializable"):
                pytest.fail("entered")
        assert await ashown() == PLAIN
    finally:
        await acommit()
        await aset_autocommit(True)
    assert await Author.objects.acount() == 1


def test_refused_without_a_loop() -> None:
    """On Django's own path it is refused as well, and for another engine always."""
    with transaction.atomic():
        with pytest.raises(RuntimeError, match="outermost"):
            in_block("default", {"deferrable": True})
        assert shown() == PLAIN


@pytest.mark.parametrize("isolation", ["snapshot", 7, ""])
def test_no_level(isolation: Any) -> None:
    """A level that PostgreSQL does not have is refused where it is written."""
    with pytest.raises(ValueError, match="isolation is"):
        atomic(isolation=isolation)


def test_unknown_django(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Django's Atomic is not one that is known, nothing is asked for in vain."""
    atomic(isolation="serializable")
    monkeypatch.delattr(transaction.Atomic, "__aenter__")
    atomic()
    with pytest.raises(RuntimeError, match=r"isolation='serializable'.* is not available"):
        atomic(isolation="serializable")
    with pytest.raises(RuntimeError, match="is not available"):
        next(iter(retrying())).__enter__()


async def test_on_the_loop_without_await() -> None:
    """`with` on the loop is refused as Django's is."""
    with pytest.raises(SynchronousOnlyOperation), atomic(isolation="serializable"):
        pytest.fail("entered")


async def test_pinned(server: Server) -> None:
    """On a connection that the task keeps, the next transaction is a plain one."""
    async with pinned():
        own = await avalue(PID)
        for name in ("Ada", "Ada", "Bea"):
            try:
                async with atomic(isolation="serializable"):
                    await Author.objects.acreate(name=name)
                    assert (await ashown())[0] == "serializable"
            except IntegrityError:
                pass
            async with transaction.atomic():
                assert await ashown() == PLAIN
        assert await avalue(PID) == own
    assert committed(server) == ["Ada", "Bea"]


async def test_hooks() -> None:
    """Hooks of `on_commit` begin plain transactions, in threads too."""
    found: list[Any] = []

    def hook() -> None:
        with transaction.atomic():
            found.append(shown())

    async with atomic(isolation="serializable", read_only=True):
        transaction.on_commit(hook)
        assert (await ashown())[0] == "serializable"

    def in_thread() -> None:
        try:
            with atomic(isolation="serializable"):
                transaction.on_commit(hook)
                shown()
        finally:
            connection.close()

    await sync_to_async(in_thread)()
    assert found == [PLAIN, PLAIN]


async def test_interrupted(one: str) -> None:
    """A block that is cancelled, or whose connection is lost, leaves nothing behind."""

    async def asking(query: str) -> None:
        async with atomic(using=one, isolation="serializable"):
            await avalue(query, one)

    task = asyncio.create_task(asking("SELECT 1 FROM pg_sleep(60)"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(DatabaseError):
        await asking("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(ZeroDivisionError):
        async with atomic(using=one, isolation="serializable"):
            raise ZeroDivisionError
    async with transaction.atomic(using=one):
        assert await ashown(one) == PLAIN


def test_closed_in_the_block(add_alias: AddAlias) -> None:
    """A connection that is closed in the block goes back to Django's pool as it was."""
    alias = add_alias({"pool": {"max_size": 1}})
    found: list[Any] = []

    def other() -> None:
        with transaction.atomic(using=alias):
            found.append(shown(alias))
        connections[alias].close()

    with atomic(using=alias, isolation="serializable"):
        assert shown(alias)[0] == "serializable"
        connections[alias].close()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        transaction.set_rollback(True, using=alias)
    assert found == [PLAIN]


async def test_reset_due() -> None:
    """A session that has to be reset first is, and the transaction is as it was asked for."""
    use_wrapper(options={"reset": "always", "pool": {"max_size": 1}})
    for _ in range(2):
        async with atomic(isolation="serializable"):
            assert (await ashown())[0] == "serializable"
        async with transaction.atomic():
            assert await ashown() == PLAIN


async def test_while_statements_are_logged() -> None:
    """Where each statement has a message of its own, the BEGIN is the same."""
    connection.force_debug_cursor = True
    try:
        async with atomic(isolation="serializable"):
            await Author.objects.acreate(name="Ada")
            assert (await ashown())[0] == "serializable"
    finally:
        connection.force_debug_cursor = False


@pytest.mark.parametrize("bases", [(TestCase,), (TransactionTestCase,)])
def test_in_tests(bases: tuple[type, ...]) -> None:
    """In a TestCase the block is a nested one, as a durable one is; its level is the test's."""
    found: list[Any] = []

    class Case(*bases):  # type: ignore[misc]
        def test_it(self) -> None:
            with atomic(isolation="serializable"):
                found.append(value("SHOW transaction_isolation"))

    run: Callable[[], Any] = lambda: Case("test_it").debug()  # noqa: E731
    run()
    Case.doClassCleanups()
    assert found == ["read committed" if bases == (TestCase,) else "serializable"]
