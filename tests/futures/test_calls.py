"""Where the call of one future runs: in a task, in the bridge, or in the thread that asks."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction

from pgbackend import bridged
from pgbackend.futures import future
from pgbackend.futures.calls import Call, holds_connection
from pgbackend.transaction import pinned
from tests.models import Author, Elsewhere
from tests.support.fix_loops import Main
from tests.support.limits import PATIENCE
from tests.support.sessions import pid
from tests.support.threads import run_in_thread
from tests.support.wrapper import on_loan, until


def test_lazily(run_main: Main) -> None:
    """A future begins when it is awaited, or by `start`, and runs beside the task that does."""

    async def main() -> None:
        ran: list[str] = []

        def call(name: str) -> int:
            ran.append(name)
            return Author.objects.count()

        never, started, awaited = (future(call)(name) for name in ("never", "started", "awaited"))
        assert started.start() is started
        await until(started.done)
        assert ran == ["started"]
        assert await awaited == await awaited == 0
        assert ran == ["started", "awaited"]
        never.cancel()
        with pytest.raises(asyncio.CancelledError):
            await never
        assert ran == ["started", "awaited"]

    run_main(main())


def test_kept_alive(run_main: Main) -> None:
    """A future that was started runs to its end, also where nobody keeps it."""

    async def main() -> None:
        future(Author.objects).create(name="kept").start()
        gc.collect()
        await until(lambda: not on_loan(connection))
        async with asyncio.timeout(PATIENCE):
            while not await Author.objects.aexists():
                await asyncio.sleep(0.01)

    run_main(main())


def test_from_another_thread() -> None:
    """A thread waits for, and cancels, a future that runs on the loop of another one."""
    waiting = threading.Event()
    futures: list[Any] = []

    async def on_loop() -> None:
        futures.append(future(asyncio.sleep)(0.01, "slept").start())
        futures.append(future(asyncio.sleep)(600).start())
        waiting.set()
        with pytest.raises(asyncio.CancelledError):
            await futures[1]

    def other() -> str:
        waiting.wait()
        result: str = futures[0].result(PATIENCE)
        assert futures[1].cancel()
        return result

    thread = threading.Thread(target=lambda: asyncio.run(on_loop()))
    thread.start()
    assert other() == "slept"
    thread.join()
    assert futures[1].cancelled()


def test_in_a_plain_thread() -> None:
    """In a plain thread the call runs in the thread that asks, in its transaction."""

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="uncommitted")
            assert future(Author.objects).count().result() == 1
            assert future(pid)().result() == pid()
        with pytest.raises(Author.DoesNotExist):
            future(Author.objects).get(name="nobody").result()

        def leave() -> None:
            raise SystemExit

        with pytest.raises(SystemExit):
            future(leave)().result()

    run_in_thread(work)


def test_under_async_to_sync() -> None:
    """On a loop of async_to_sync the call runs on the connection of the thread that waits."""

    async def count() -> Any:
        return await future(Author.objects).count(), await future(pid)()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="uncommitted")
            assert async_to_sync(count)() == (1, pid())

    run_in_thread(work)


async def test_aliases() -> None:
    """A call names the aliases that it will use, by the router's answers."""
    assert Call(Elsewhere.objects.all().count, (), {}).aliases() == {"other"}
    assert Call(list, (Elsewhere.objects.all(),), {}).aliases() == {"other"}
    assert Call(list, (Author.objects.raw("SELECT 1"),), {}).aliases() == {"default"}
    assert Call(len, ((),), {}).aliases() == {None}


async def test_holds_connection() -> None:
    """A transaction, or a pinned connection, is held; a connection in the pool is not."""
    await Author.objects.acount()
    assert not holds_connection("default")
    assert not holds_connection(None)
    async with transaction.atomic():
        assert holds_connection("default")
        assert holds_connection(None)
        assert not holds_connection("other")
        assert await asyncio.create_task(bridged(lambda: holds_connection("default"))())
    async with pinned():
        assert holds_connection("default")
    assert not holds_connection("default")
