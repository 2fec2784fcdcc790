"""async_to_sync in the bridge: it waits in place, and its coroutine comes back bridged."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, connections, transaction

from pgbackend import bridged, is_bridged
from tests.models import Author
from tests.support.server import Server


def pid(alias: str = "default") -> int:
    """Return the process id of the backend that serves the caller."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


apid = bridged(pid)


async def test_async_to_sync_waits_in_place() -> None:
    """async_to_sync in the bridge runs the coroutine in the same task, on the same thread."""
    task = asyncio.current_task()

    async def coroutine() -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task(), threading.current_thread()

    found = await bridged(lambda: async_to_sync(coroutine)())()
    assert found == (task, threading.main_thread())


async def test_async_to_sync_in_the_bridge_shares_the_transaction() -> None:
    """a-methods under async_to_sync in the bridge see the caller's uncommitted rows."""

    async def count() -> int:
        return await Author.objects.acount()

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            assert async_to_sync(count)() == 1
            assert async_to_sync(apid)() == pid()

    await work()


async def test_nested_sync_to_async_comes_back_bridged() -> None:
    """sync_to_async under async_to_sync in the bridge runs where its outer caller does."""

    async def coroutine() -> tuple[bool, threading.Thread]:
        return await sync_to_async(lambda: (is_bridged(), threading.current_thread()))()

    found = await bridged(lambda: async_to_sync(coroutine)())()
    assert found == (True, threading.main_thread())


VAR: ContextVar[str] = ContextVar("VAR", default="unset")


async def test_context_variables_propagate() -> None:
    """What either side of async_to_sync in the bridge sets, the other one sees."""

    async def coroutine() -> str:
        seen = VAR.get()
        VAR.set("inner")
        return seen

    @bridged
    def work() -> tuple[str, str]:
        VAR.set("outer")
        return async_to_sync(coroutine)(), VAR.get()

    assert await work() == ("outer", "inner")


@bridged
def on_new_loop(coroutine: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function as synchronous code does that wants a loop of its own for it."""
    return async_to_sync(coroutine, force_new_loop=True)()


async def test_force_new_loop() -> None:
    """With force_new_loop the coroutine has a loop and a thread of its own, as in a plain thread.

    The caller's loop runs on meanwhile: the coroutine may wait for what happens there.
    """
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    happened = threading.Event()

    async def coroutine() -> tuple[Any, int]:
        loop.call_soon_threadsafe(happened.set)
        await asyncio.to_thread(happened.wait)
        return asyncio.get_running_loop(), threading.get_ident()

    theirs, their_thread = await on_new_loop(coroutine)
    assert theirs is not loop
    assert theirs.is_closed()
    assert their_thread != thread


async def test_force_new_loop_shares_the_transaction(server: Server) -> None:
    """What runs on a new loop sees its caller's uncommitted rows, and writes into its block."""

    async def coroutine() -> tuple[int, int]:
        await Author.objects.acreate(name="theirs")
        return await Author.objects.acount(), await sync_to_async(Author.objects.count)()

    def block() -> Any:
        with transaction.atomic():
            Author.objects.create(name="ours")
            found = async_to_sync(coroutine, force_new_loop=True)()
            assert Author.objects.count() == 2
            transaction.set_rollback(True)
        return found

    assert await bridged(block)() == (2, 2)
    assert server.one("SELECT count(*) FROM tests_author") == 0


async def test_force_new_loop_outside_a_transaction(server: Server) -> None:
    """Outside a transaction it works as in a thread, and leaves no connection open there."""

    async def coroutine() -> int:
        await Author.objects.acreate(name="theirs")
        async with transaction.atomic():
            return await Author.objects.acount()

    before = server.backends()
    assert await on_new_loop(coroutine) == 1
    # Django's own pool, which closes what is not on loan.
    await asyncio.to_thread(connection.close_pool)
    await asyncio.to_thread(server.wait_for_backends, before)
    assert await Author.objects.acount() == 1


async def test_force_new_loop_below_a_call_that_waits_in_place() -> None:
    """Thread-sensitive functions on the new loop run where its caller's thread is, not bridged."""

    async def inner() -> tuple[bool, int]:
        return await sync_to_async(is_bridged)(), await Author.objects.acount()

    async def outer() -> tuple[bool, int]:
        return await on_new_loop(inner)

    assert await bridged(lambda: async_to_sync(outer)())() == (False, 0)


async def test_context_and_errors_with_force_new_loop() -> None:
    """What either side sets, the other one sees; and an exception leaves it as it is."""
    VAR.set("ours")

    async def coroutine() -> None:
        assert VAR.get() == "ours"
        VAR.set("theirs")

    async def failing() -> None:
        raise LookupError("not found")

    def both() -> str:
        async_to_sync(coroutine, force_new_loop=True)()
        return VAR.get()

    assert await bridged(both)() == "theirs"
    with pytest.raises(LookupError, match="not found"):
        await on_new_loop(failing)


async def test_errors_pass_async_to_sync() -> None:
    """An exception of the coroutine leaves async_to_sync in the bridge as it is."""

    async def coroutine() -> None:
        raise KeyError("inner")

    with pytest.raises(KeyError, match="inner"):
        await bridged(lambda: async_to_sync(coroutine)())()
