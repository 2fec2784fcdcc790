"""The network fails, or the server does not answer: rows 4, 6 and 14."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, OperationalError, connection, transaction

from pgbackend import CommitInDoubt
from tests.models import Author
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.work import ended, execute, fill, pid, settled, within
from tests.support.wrapper import make_wrapper, until, use_wrapper

# Seconds that tasks allow themselves, and that cleaning up may take then.
TIMEOUT = 0.2
GRACE = 0.5

# What comes on top on a busy machine; less than what psycopg would wait, twice 5 s.
SLACK = 8.0


@asynccontextmanager
async def proxied(
    server: Server, *, size: int = 1, wait: float = 10.0, **settings: Any
) -> AsyncIterator[Proxy]:
    """Let the running task use a pool of *size*, whose connections go through a proxy."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        use_wrapper(
            HOST="127.0.0.1",
            PORT=proxy.port,
            options={"pool": {"max_size": size, "timeout": wait}, "cancel_timeout": GRACE},
            **settings,
        )
        yield proxy
        proxy.thaw()


async def check_well(proxy: Proxy, size: int = 1) -> None:
    """Check that no link is left from before, and that queries and transactions work."""
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert await Author.objects.aexists()
    assert (await settled())["pool_size"] <= size
    await until(lambda: len(proxy.links) <= size)


# Connections break


@pytest.mark.parametrize("end", [Proxy.reset, Proxy.finish], ids=["RST", "FIN"])
@pytest.mark.parametrize("idle", [True, False], ids=["idle", "busy"])
async def test_04_connection_breaks(
    server: Server, end: Callable[[Proxy], None], idle: bool
) -> None:
    """RST and FIN are no error while idle and one OperationalError when busy; then replaced."""
    async with proxied(server) as proxy:
        before = await pid()
        await settled()
        if idle:
            end(proxy)
            await until(lambda: not proxy.links)
        else:
            task = asyncio.create_task(execute("SELECT pg_sleep(600)"))
            await until(lambda: busy(server))
            end(proxy)
            (error,) = await ended(task)
            assert isinstance(error, OperationalError)
        assert await pid() != before
        await check_well(proxy)
        # The proxy, not the client, left the server alone with it.
        server.all("SELECT pg_terminate_backend(%s)", before)


def busy(server: Server) -> bool:
    return bool(
        server.all(
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbackend-tests'"
            " AND state = 'active'"
        )
    )


async def test_04_reset_in_a_transaction(server: Server) -> None:
    """A connection that breaks between two statements fails the block; nothing is committed."""
    async with proxied(server) as proxy:
        with pytest.raises(OperationalError):
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                proxy.reset()
                await Author.objects.acreate(name="lost too")
        assert not connection.in_atomic_block
        await check_well(proxy)
        assert [author.name async for author in Author.objects.all()] == ["next"]


# The peer is silent


async def in_statement(proxy: Proxy) -> None:
    proxy.freeze()
    await execute("SELECT 1")


async def in_block(proxy: Proxy) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        proxy.freeze()
        await Author.objects.acreate(name="lost too")


async def between_statements(proxy: Proxy) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        async with transaction.atomic():
            await Author.objects.acreate(name="lost too")
            proxy.freeze()
            await asyncio.Event().wait()


async def at_savepoint(proxy: Proxy) -> None:
    proxy.freeze_at(b"SAVEPOINT")
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        async with transaction.atomic():
            await Author.objects.acreate(name="lost too")


async def at_rollback(proxy: Proxy) -> None:
    proxy.freeze_at(b"ROLLBACK")
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        await asyncio.Event().wait()


async def at_commit(proxy: Proxy) -> None:
    proxy.freeze_at(b"COMMIT")
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")


SILENT = [in_statement, in_block, between_statements, at_savepoint, at_rollback, at_commit]


@pytest.mark.parametrize("work", SILENT)
async def test_04_frozen_peer(server: Server, work: Callable[[Proxy], Any]) -> None:
    """A task with a time-out ends within that and cancel_timeout when its peer is silent."""
    async with proxied(server) as proxy:
        await pid()
        await settled()
        links = proxy.links.copy()
        with within(TIMEOUT + GRACE + SLACK), pytest.raises(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                await work(proxy)
        assert proxy.frozen
        assert not connection.in_atomic_block
        proxy.thaw()
        # The client has closed its socket.
        await until(lambda: not set(links) & set(proxy.links))
        await check_well(proxy)
        # A COMMIT on its way is in doubt.
        assert await names() in ([["next"], ["lost", "next"]] if work is at_commit else [["next"]])


async def names() -> list[str]:
    return [author.name async for author in Author.objects.order_by("name")]


async def test_04_frozen_while_iterating(server: Server) -> None:
    """The same inside aiterator(), whose cursor can no longer be closed: aclose() does not wait."""
    await Author.objects.abulk_create([Author(name=f"author {number}") for number in range(9)])
    async with proxied(server) as proxy:
        await pid()
        await settled()
        links = proxy.links.copy()
        with within(TIMEOUT + GRACE + SLACK), pytest.raises(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                rows = Author.objects.aiterator(chunk_size=2)
                try:
                    async for _ in rows:
                        proxy.freeze()
                        await asyncio.Event().wait()
                finally:
                    await rows.aclose()
        # The session's reset gets no answer, either.
        await until(lambda: connection.async_pool.get_stats().get("returns_bad"))
        proxy.thaw()
        await until(lambda: not set(links) & set(proxy.links))
        await check_well(proxy)


async def test_04_frozen_health_checks(server: Server) -> None:
    """Idle connections to a silent peer are all dropped after one check, bounded, has failed."""
    async with proxied(server, size=8, CONN_HEALTH_CHECKS=True) as proxy:
        await fill(8)
        proxy.freeze()
        links = proxy.links.copy()
        with within(GRACE + SLACK):
            task = asyncio.create_task(pid())
            # One of them has been asked; those that connect anew get through.
            await until(lambda: proxy.accepted > 8)
            proxy.thaw()
            assert await task
        await until(lambda: not set(links) & set(proxy.links))
        await check_well(proxy, 8)


@pytest.mark.parametrize("value", ["2", None, True])
def test_04_cancel_timeout_is_a_number(value: Any) -> None:
    """A cancel_timeout that is no number of seconds is ImproperlyConfigured that names it."""
    with pytest.raises(ImproperlyConfigured, match=f"'cancel_timeout'.*not {value!r}"):
        make_wrapper(options={"cancel_timeout": value}).ensure_connection()


async def test_04_slow_and_sliced(server: Server) -> None:
    """Replies that come late, byte by byte, are the same replies."""
    async with proxied(server, size=4) as proxy:
        proxy.slices = 1
        await Author.objects.abulk_create([Author(name=f"author {number}") for number in range(9)])
        found = await ended(*(asyncio.ensure_future(names()) for _ in range(8)))
        assert found == [[f"author {number}" for number in range(9)]] * 8
        proxy.slices, proxy.delay = 0, 0.01
        assert len([1 async for _ in Author.objects.aiterator(chunk_size=2)]) == 9


# Connecting


async def test_06_connecting_hangs(server: Server) -> None:
    """Connecting to a silent server ends at the pool's time-out, with an error that says so."""
    async with proxied(server, wait=0.3) as proxy:
        proxy.freeze()
        with within(0.3 + SLACK):
            results = await ended(*(asyncio.ensure_future(pid()) for _ in range(5)))
        for error in results:
            assert isinstance(error, OperationalError)
            assert "0 of 1 are on loan and no other could be opened" in str(error)


async def test_06_hanging_connection_is_given_up(server: Server) -> None:
    """A connection that is never opened does not keep later ones from being opened."""
    silent = socket.create_server(("127.0.0.1", 0))
    with silent:
        port = silent.getsockname()[1]
        use_wrapper(HOST="127.0.0.1", PORT=port, options={"pool": {"max_size": 1, "timeout": 1.0}})
        with pytest.raises(OperationalError):
            await pid()
        # psycopg gives it up, not below 2 s; its own default are 130 s.
        with within(PATIENCE):
            await until(lambda: not connection.async_pool.get_stats()["pool_size"])


async def test_06_hangs_while_being_configured(server: Server) -> None:
    """A server that falls silent after the login holds up nobody for longer, and no slot."""
    async with proxied(server, wait=0.5) as proxy:
        proxy.freeze_at(b"pg_settings")
        with within(0.5 + SLACK), pytest.raises(OperationalError):
            await pid()
        with within(PATIENCE):
            await until(lambda: not connection.async_pool.get_stats()["pool_size"])
        proxy.thaw()
        await check_well(proxy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PORT": 1}, "Connection refused"),
        ({"PASSWORD": "wrong"}, "password authentication failed"),
        ({"NAME": "pgbackend_tests_none"}, 'database "pgbackend_tests_none" does not exist'),
    ],
    ids=["refused", "wrong password", "no such database"],
)
async def test_06_refused(changes: dict[str, Any], words: str) -> None:
    """What refuses a connection is told at once, in the server's words or libpq's."""
    use_wrapper(**changes)
    with within(AT_ONCE):
        results = await ended(*(asyncio.ensure_future(pid()) for _ in range(20)))
    for error in results:
        assert isinstance(error, OperationalError)
        assert words in str(error)
    assert connection.async_pool.get_stats()["pool_size"] == 0


# COMMIT


async def test_14_reply_to_commit_is_lost(server: Server) -> None:
    """It is CommitInDoubt, which pg_xact_status settles; no hook runs, nothing is repeated."""
    hooks: list[str] = []
    async with proxied(server) as proxy:
        proxy.drop_reply_to(b"COMMIT")
        with pytest.raises(CommitInDoubt):
            async with transaction.atomic():
                await Author.objects.acreate(name="in doubt")
                transaction.on_commit(lambda: hooks.append("ran"))
                xid = await execute("SELECT pg_current_xact_id()::text")
        assert not connection.in_atomic_block
        status = "SELECT pg_xact_status(%s::xid8)"
        assert await execute(status, [xid]) == "committed"
        await check_well(proxy)
        assert await names() == ["in doubt", "next"]
    assert hooks == []


@pytest.mark.parametrize(
    ("severity", "code", "doubt"),
    [
        ("ERROR", "08006", True),
        ("ERROR", "08P01", True),
        ("FATAL", "57P01", True),
        ("ERROR", "40001", False),
        ("ERROR", "23503", False),
    ],
)
async def test_14_pooler_answers_in_the_servers_place(
    server: Server, severity: str, code: str, doubt: bool
) -> None:
    """An error about the connection, in reply to COMMIT, is CommitInDoubt; others are not."""
    hooks: list[str] = []
    async with proxied(server) as proxy:
        proxy.fail(b"COMMIT", severity, code)
        with pytest.raises(DatabaseError) as caught:
            async with transaction.atomic():
                await Author.objects.acreate(name="in doubt")
                transaction.on_commit(lambda: hooks.append("ran"))
        assert isinstance(caught.value, CommitInDoubt) == doubt
        await check_well(proxy)
    assert hooks == []


async def test_14_commit_does_not_arrive(server: Server) -> None:
    """A COMMIT that never arrived is CommitInDoubt too: it cannot be told from the other."""
    async with proxied(server) as proxy:
        proxy.on(b"COMMIT", lambda link: link.reset())
        with pytest.raises(CommitInDoubt):
            async with transaction.atomic():
                await Author.objects.acreate(name="in doubt")
                xid = await execute("SELECT pg_current_xact_id()::text")
        assert not connection.in_atomic_block
        await until(lambda: server.one("SELECT pg_xact_status(%s::xid8)", xid) == "aborted")
        await check_well(proxy)
        assert await names() == ["next"]
