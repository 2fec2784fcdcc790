"""Advisory locks as blocks."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, OperationalError, connection, connections, transaction

from pgbackend import bridged
from pgbackend.locks import advisory_lock
from pgbackend.transaction import acommit, aset_autocommit, pinned
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.work import settled
from tests.support.wrapper import PID, AddAlias, avalue, on_loan, until, use_wrapper, value

LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_database db ON db.oid = database"
    " WHERE locktype = 'advisory' AND datname = current_database()"
)
HELD = f"{LOCKS} AND granted"
WAITING = f"{LOCKS} AND NOT granted"


class Failed(Exception):
    pass


def held(server: Server) -> int:
    return int(server.one(HELD))


async def until_one_waits(server: Server) -> None:
    await until(lambda: server.one(WAITING) == 1)


async def test_blocks_exclude_each_other(server: Server) -> None:
    """Blocks of one key follow each other, and those of another key do not wait."""
    inside: list[str] = []

    async def block(key: str | int, name: str) -> None:
        async with advisory_lock(key) as acquired:
            assert acquired
            inside.append(f"{name} in")
            await avalue("SELECT pg_sleep(0.01)")
            inside.append(f"{name} out")

    await asyncio.gather(*(block("one", f"{n}") for n in range(3)))
    assert [each.split()[1] for each in inside] == ["in", "out"] * 3
    async with advisory_lock("one"):
        await asyncio.create_task(block(1, "other"))
    assert inside[-2:] == ["other in", "other out"]
    await settled()
    assert held(server) == 0


async def test_not_acquired(server: Server) -> None:
    """With a time-out of 0 nobody waits, and with another no longer than that."""
    async with advisory_lock("one"):
        for timeout in (0, 0.05, timedelta(milliseconds=50)):

            async def other(longest: Any = timeout) -> bool:
                async with advisory_lock("one", timeout=longest) as acquired:
                    assert await avalue("SHOW lock_timeout") == "0"
                    return acquired

            assert await asyncio.create_task(other()) is False
        assert held(server) == 1
    for timeout in (0, 0.05, timedelta(hours=1)):
        async with advisory_lock("one", timeout=timeout) as acquired:
            assert acquired
            assert await avalue("SHOW lock_timeout") == "0"
    await settled()
    assert held(server) == 0


async def test_servers_lock_timeout(server: Server, add_alias: AddAlias) -> None:
    """Without a time-out of its own the lock obeys that of the server, whose error it raises."""
    alias = add_alias({"lock_timeout": 0.05})
    async with advisory_lock("one"):
        with pytest.raises(OperationalError, match="lock timeout"):
            async with advisory_lock("one", using=alias):
                pytest.fail("entered")
        async with advisory_lock("one", using=alias, timeout=0.01) as acquired:
            assert not acquired
            assert await avalue("SHOW lock_timeout", alias) == "50ms"
    await settled()
    assert held(server) == 0


async def test_shared(server: Server) -> None:
    """Shared blocks keep out only those that are not."""

    async def of_another_task(**options: Any) -> bool:
        async with advisory_lock((1, 2), timeout=0, **options) as acquired:
            return acquired

    async with advisory_lock((1, 2), shared=True):
        assert await asyncio.create_task(of_another_task(shared=True))
        assert not await asyncio.create_task(of_another_task())
    assert await asyncio.create_task(of_another_task())
    await settled()
    assert held(server) == 0


@pytest.mark.parametrize("longest", [None, 0, 1])
async def test_in_a_transaction(server: Server, longest: float | None) -> None:
    """The lock is the transaction's: it is held until the commit, beyond its block."""
    async with transaction.atomic():
        async with advisory_lock("one", timeout=longest) as acquired:
            assert acquired
            await Author.objects.acreate(name="Ada")
        assert held(server) == 1
        assert await avalue("SHOW lock_timeout") == "0"
        with suppress(Failed):
            async with transaction.atomic():
                async with advisory_lock("two", timeout=longest):
                    assert held(server) == 2
                raise Failed
        assert held(server) == 1
    assert held(server) == 0
    await aset_autocommit(False)
    async with advisory_lock("one", timeout=longest):
        pass
    assert held(server) == 1
    await acommit()
    await aset_autocommit(True)
    assert held(server) == 0


async def test_not_acquired_in_a_transaction(server: Server) -> None:
    """The transaction goes on."""

    async def other() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            for timeout in (0, 0.05):
                async with advisory_lock("one", timeout=timeout) as acquired:
                    assert not acquired
                assert await avalue("SHOW lock_timeout") == "0"
            await Author.objects.acreate(name="Bea")

    async with advisory_lock("one"):
        await asyncio.create_task(other())
    assert await Author.objects.acount() == 2


@pytest.mark.parametrize("longest", [None, 60])
@pytest.mark.parametrize("around", ["", "pinned", "atomic"])
async def test_cancelled_while_it_waits(server: Server, around: str, longest: float | None) -> None:
    """Who is cancelled holds nothing, and its connection goes back."""
    wrapper = use_wrapper(options={"pool": {"max_size": 2, "timeout": 10.0}})

    async def waits() -> None:
        async with advisory_lock("one", timeout=longest):
            pytest.fail("entered")

    async def other() -> None:
        if around == "pinned":
            async with pinned():
                await waits()
        elif around:
            async with transaction.atomic():
                await waits()
        else:
            await waits()

    async with advisory_lock("one"):
        task = asyncio.create_task(other())
        await until_one_waits(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.one(WAITING) == 0)
    async with advisory_lock("one", timeout=0) as acquired:
        assert acquired
    await settled()
    assert held(server) == 0
    assert on_loan(wrapper) == 0


@pytest.mark.parametrize("error", [Failed, asyncio.CancelledError])
@pytest.mark.parametrize("around", [False, True])
async def test_block_that_raises(server: Server, around: bool, error: type[BaseException]) -> None:
    """The lock is released, also where the session goes on."""

    async def raises() -> None:
        async with advisory_lock("one"):
            async with transaction.atomic():
                await Author.objects.acreate(name="Ada")
            raise error

    if around:
        async with pinned():
            with pytest.raises(error):
                await raises()
            assert held(server) == 0
    else:
        with pytest.raises(error):
            await raises()
    await settled()
    assert held(server) == 0
    assert await Author.objects.acount() == 1


async def test_twice(server: Server) -> None:
    """A task may hold a lock twice, and one object is for one block."""
    lock = advisory_lock("one")
    async with lock:
        async with advisory_lock("one", timeout=0) as acquired:
            assert acquired
        assert held(server) == 1
        with pytest.raises(RuntimeError, match="entered already"):
            async with lock:
                pytest.fail("entered")
        assert held(server) == 1
    async with lock as acquired:
        assert acquired


@pytest.mark.parametrize("failed", [False, True])
async def test_connection_that_is_lost(server: Server, failed: bool) -> None:
    """The end of the block says that others may have had the lock, unless the block raised."""
    with pytest.raises(Failed if failed else OperationalError):
        async with advisory_lock("one"):
            server.all(f"SELECT pg_terminate_backend({await avalue(PID)})")
            with suppress(DatabaseError):
                await avalue("SELECT 1")
            if failed:
                raise Failed
    async with advisory_lock("one", timeout=0) as acquired:
        assert acquired


async def test_number_of_a_name(server: Server) -> None:
    """It is the one that django-pglock has: the first 8 bytes of SHA-256, the least one first."""
    parts = (
        "SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks WHERE locktype = 'advisory'"
    )
    async with advisory_lock("my_lock_id"):
        assert server.all(parts) == [(3472809032, 1440335576, 1)]
    async with advisory_lock(-1):
        assert server.all(parts) == [(2**32 - 1, 2**32 - 1, 1)]
    async with advisory_lock((1, 2)):
        assert server.all(parts) == [(1, 2, 2)]


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (2**63, ValueError),
        ((2**31, 0), ValueError),
        ((1, 2, 3), ValueError),
        ((), ValueError),
        (1.0, TypeError),
        (None, TypeError),
        (True, TypeError),
        (b"one", TypeError),
        (("one", 2), TypeError),
    ],
)
def test_wrong_keys(key: Any, error: type[Exception]) -> None:
    """What is no key of a lock is refused when the object is made."""
    with pytest.raises(error, match="a lock has a"):
        advisory_lock(key)


@pytest.mark.parametrize("timeout", [-1, timedelta(seconds=-1), float("nan")])
def test_wrong_timeouts(timeout: Any) -> None:
    """So is what is no time."""
    with pytest.raises(ValueError, match="timeout is a time"):
        advisory_lock("one", timeout=timeout)


@bridged
def test_bridged(server: Server) -> None:
    """In bridged code `with` does the same."""
    with advisory_lock("one") as acquired:
        assert acquired
        assert held(server) == 1
    with transaction.atomic(), advisory_lock("one", timeout=1) as acquired:
        assert acquired


def test_threads(server: Server) -> None:
    """So it does in plain threads."""
    inside: list[str] = []

    def block(name: str) -> None:
        with advisory_lock("one", timeout=PATIENCE) as acquired:
            assert acquired
            inside.append(f"{name} in")
            value("SELECT pg_sleep(0.02)")
            inside.append(f"{name} out")
        connection.close()

    threads = [threading.Thread(target=block, args=(f"{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.split()[1] for each in inside] == ["in", "out"] * 3
    assert held(server) == 0


async def test_alias_that_is_switched_off(server: Server, add_alias: AddAlias) -> None:
    """There a thread waits; a cancellation waits for it, and the lock is released."""
    alias = add_alias({"bridge": False})
    async with advisory_lock("one", using=alias) as acquired:
        assert acquired
        assert held(server) == 1
    assert held(server) == 0

    async def other() -> None:
        async with advisory_lock("one", using=alias, timeout=60):
            pytest.fail("entered")

    async with advisory_lock("one"):
        task = asyncio.create_task(other())
        await until_one_waits(server)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled()
    assert held(server) == 0
    await sync_to_async(lambda: connections[alias].close())()


async def test_with_on_a_loop() -> None:
    """`with` in asynchronous code that is not bridged is refused."""
    with pytest.raises(SynchronousOnlyOperation), advisory_lock("one"):
        pytest.fail("entered")
