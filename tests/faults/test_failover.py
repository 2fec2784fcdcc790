"""Faults, row 32: a standby takes over from its primary."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import InternalError, OperationalError, connections, transaction
from django.db.backends.signals import connection_created

from pgbackend import bridged
from tests.faults.fix_servers import Cluster, Pair, wait_until
from tests.support.limits import PATIENCE
from tests.support.server import NAME
from tests.support.wrapper import PID, AddAlias, avalue


@bridged
def arun(statement: str, alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)


PORT = "SELECT current_setting('port')::int"


@pytest.fixture
def alias(pair: Pair, add_alias: AddAlias) -> str:
    """An alias for whichever of the two is the primary."""
    pair.primary.all("CREATE TABLE written (n int)")
    ports = f"{pair.primary.server.port},{pair.standby.server.port}"
    return add_alias(
        {"target_session_attrs": "read-write", "pool": {"max_size": 4, "timeout": 20.0}},
        HOST="127.0.0.1,127.0.0.1",
        PORT=ports,
        NAME="postgres",
        USER=pair.primary.server.user,
        PASSWORD=pair.primary.server.password,
    )


async def write(alias: str, number: int) -> int:
    """Write a row, and return the port of the server that has it."""

    def execute() -> int:
        with transaction.atomic(alias), connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO written VALUES (%s)", [number])
            cursor.execute(PORT)
            return int(cursor.fetchone()[0])

    return await bridged(execute)()


async def fill_pool(alias: str, pair: Pair) -> None:
    """Have the pool open all its connections, to the primary, and the standby know their rows."""
    barrier = asyncio.Barrier(4)

    async def hold(number: int) -> None:
        async with transaction.atomic(alias):
            assert await write(alias, number) == pair.primary.server.port
            await barrier.wait()

    await asyncio.gather(*map(hold, range(4)))
    end = pair.primary.one("SELECT pg_current_wal_lsn()")
    wait_until(
        lambda: pair.standby.one("SELECT pg_last_wal_replay_lsn() >= %s", end),
        "the standby has not caught up",
    )


def ours(server: Cluster) -> int:
    return int(
        server.one("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", NAME)
    )


@pytest.mark.process
async def test_32_a_standby_takes_over(alias: str, pair: Pair) -> None:
    """After a failover the next writes reach the new primary, without an error."""
    await fill_pool(alias, pair)
    pair.fail_over()
    port = pair.standby.server.port
    assert await asyncio.gather(*(write(alias, n) for n in range(4, 20))) == [port] * 16
    assert pair.standby.one("SELECT array_agg(n ORDER BY n) FROM written") == [*range(20)]
    assert ours(pair.standby) <= 4


@pytest.mark.process
async def test_32_until_there_is_a_primary(alias: str, pair: Pair) -> None:
    """While there is only a standby, writes fail soon and say so; they work once it is promoted."""
    await fill_pool(alias, pair)
    pair.primary.stop()
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            with pytest.raises(OperationalError, match="session is read-only"):
                await write(alias, 4)
    pair.promote()
    assert await write(alias, 4) == pair.standby.server.port


@pytest.mark.process
async def test_32_a_primary_that_becomes_read_only(
    alias: str, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error of a read-only server drains the pool: no other write goes there."""
    await fill_pool(alias, pair)
    pair.primary.all("ALTER SYSTEM SET default_transaction_read_only = on")
    pair.primary.all("SELECT pg_reload_conf()")
    wait_until(
        lambda: pair.primary.one("SHOW default_transaction_read_only") == "on",
        "the primary takes writes still",
    )
    pair.promote()
    with (
        caplog.at_level("WARNING", "pgbackend.pool"),
        pytest.raises(InternalError, match="read-only transaction") as caught,
    ):
        await write(alias, 4)
    assert caught.value.__cause__.sqlstate == "25006"
    assert "has become read-only" in caplog.text
    port = pair.standby.server.port
    assert await asyncio.gather(*(write(alias, n) for n in range(4, 20))) == [port] * 16
    wait_until(lambda: ours(pair.primary) == 0, "connections to the old primary are left")


@pytest.mark.process
async def test_32_a_standby_that_was_asked_for(pair: Pair, add_alias: AddAlias) -> None:
    """Writing to a standby, or in a read-only transaction, is an error that leaves the pool be."""
    options = {"pool": {"max_size": 1}}
    server = {
        "HOST": "127.0.0.1",
        "NAME": "postgres",
        "USER": pair.primary.server.user,
        "PASSWORD": pair.primary.server.password,
    }
    replica = add_alias(
        {**options, "target_session_attrs": "standby"}, **server, PORT=pair.standby.server.port
    )
    primary = add_alias(
        {**options, "target_session_attrs": "primary"}, **server, PORT=pair.primary.server.port
    )
    for alias in (replica, primary):
        pid = await avalue(PID, alias)
        with pytest.raises(InternalError, match="read-only transaction"):
            async with transaction.atomic(alias):
                await arun("SET TRANSACTION READ ONLY", alias)
                await arun("CREATE TABLE never (n int)", alias)
        assert await avalue(PID, alias) == pid


@pytest.mark.process
async def test_32_read_only_by_choice(pair: Pair, add_alias: AddAlias) -> None:
    """Where transactions of a primary that was asked for are read-only, no other server is better.

    A receiver that writes while the connection is being made gets the server's own error.
    """
    alias = add_alias(
        {
            "target_session_attrs": "primary",
            "options": "-c default_transaction_read_only=on",
            "pool": {"max_size": 1, "reconnect_timeout": 0},
        },
        HOST="127.0.0.1",
        PORT=pair.primary.server.port,
        NAME="postgres",
        USER=pair.primary.server.user,
        PASSWORD=pair.primary.server.password,
    )
    pid = await avalue(PID, alias)
    for _ in range(2):
        with pytest.raises(InternalError, match="read-only transaction"):
            await arun("CREATE TABLE never (n int)", alias)
        assert await avalue(PID, alias) == pid

    def create(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE never (n int)")

    await bridged(lambda: connections[alias].close_pool())()
    for attributes in ("primary", "any"):
        connections[alias].settings_dict["OPTIONS"]["target_session_attrs"] = attributes
        connection_created.connect(create)
        try:
            with pytest.raises(InternalError, match="read-only transaction"):
                await avalue(PID, alias)
        finally:
            connection_created.disconnect(create)
