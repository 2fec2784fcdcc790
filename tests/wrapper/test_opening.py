"""How connections are opened: OPTIONS and settings as Django documents them, and the signal."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created

from pgbackend import bridged
from pgbackend.pool.open_pools import open_pools
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.wrapper import PID, AddAlias, avalue, value


async def test_isolation_level(add_alias: AddAlias) -> None:
    """OPTIONS["isolation_level"] is the level of bridged transactions."""
    alias = add_alias({"isolation_level": psycopg.IsolationLevel.SERIALIZABLE})
    async with transaction.atomic(using=alias):
        assert await avalue("SHOW transaction_isolation", alias) == "serializable"
    async with transaction.atomic():
        assert await avalue("SHOW transaction_isolation") == "read committed"


async def test_invalid_isolation_level(add_alias: AddAlias) -> None:
    """An invalid isolation_level raises ImproperlyConfigured that names the value."""
    alias = add_alias({"isolation_level": 99})
    with pytest.raises(ImproperlyConfigured, match="isolation level 99"):
        await avalue("SELECT 1", alias)


async def test_persistent_connections_are_no_pools(add_alias: AddAlias) -> None:
    """CONN_MAX_AGE with a pool is ImproperlyConfigured when an alias's first pool is made."""
    alias = add_alias({"pool": {"min_size": 0}})
    conf = connections[alias].settings_dict
    # Other tests have used its name.
    await bridged(connections[alias].close_pool)()
    conf["CONN_MAX_AGE"] = 60
    with pytest.raises(ImproperlyConfigured, match="persistent connections"):
        await avalue("SELECT 1", alias)
    conf["CONN_MAX_AGE"] = 0
    assert await avalue("SELECT 1", alias) == 1
    # As on Django's own backend: the pool is there.
    conf["CONN_MAX_AGE"] = None
    for pool in open_pools(alias):
        await pool.close()
    assert await avalue("SELECT 1", alias) == 1
    await bridged(connections[alias].close_pool)()
    with pytest.raises(ImproperlyConfigured, match="persistent connections"):
        await avalue("SELECT 1", alias)
    conf["CONN_MAX_AGE"] = 0


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role that can be assumed."""
    server.all("CREATE ROLE pgbackend_tests_role")
    yield "pgbackend_tests_role"
    server.all("DROP ROLE pgbackend_tests_role")


@pytest.mark.usefixtures("role")
async def test_assume_role(add_alias: AddAlias, role: str) -> None:
    """OPTIONS["assume_role"] is the role of every leased connection."""
    alias = add_alias({"assume_role": role})
    assert await avalue("SELECT current_user", alias) == role
    assert await avalue("SELECT current_user", alias) == role


async def test_assume_role_that_does_not_exist(add_alias: AddAlias) -> None:
    """A role that does not exist fails at once with the server's message."""
    alias = add_alias({"assume_role": "nobody"})
    with pytest.raises(Exception, match='role "nobody" does not exist'):
        async with asyncio.timeout(PATIENCE):
            await avalue("SELECT 1", alias)


async def test_server_side_binding_prepares(add_alias: AddAlias) -> None:
    """With server_side_binding, statements are prepared after prepare_threshold uses."""
    alias = add_alias({"server_side_binding": True, "prepare_threshold": 2})

    @bridged
    def work() -> None:
        def prepared() -> int:
            return int(
                value(
                    "SELECT count(*) FROM pg_prepared_statements"
                    " WHERE statement LIKE '%%tests_author%%'",
                    alias,
                )
            )

        with transaction.atomic(using=alias):
            Author.objects.using(alias).create(name="Ada")
            query = Author.objects.using(alias).filter(name="Ada")
            for expected in (0, 0, 1):
                assert prepared() == expected
                assert query.get().name == "Ada"

    await work()


async def test_client_side_binding_does_not_prepare() -> None:
    """Without server_side_binding no statement is prepared."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            for _ in range(10):
                Author.objects.count()
            assert value("SELECT count(*) FROM pg_prepared_statements") == 0

    await work()


async def test_service(
    add_alias: AddAlias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPTIONS["service"] names a section of the service file."""
    conf = connection.settings_dict
    keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    lines = [f"{key}={conf[name]}" for key, name in keys.items() if conf[name]]
    file = tmp_path / "service.conf"
    file.write_text("\n".join(["[elsewhere]", f"dbname={conf['NAME']}", *lines]))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    alias = add_alias({"service": "elsewhere"}, NAME="", **dict.fromkeys(keys.values(), ""))
    assert await avalue("SELECT current_database()", alias) == conf["NAME"]


async def test_tls_options_reach_libpq(add_alias: AddAlias, server: Server) -> None:
    """TLS options reach libpq: sslmode=require fails in its words on a server without TLS."""
    if server.one("SHOW ssl") == "on":
        pytest.skip("this server has TLS")
    with pytest.raises(OperationalError, match="server does not support SSL"):
        await avalue("SELECT 1", add_alias({"sslmode": "require"}))


async def test_time_zone(add_alias: AddAlias) -> None:
    """TIME_ZONE is the session's time zone, for each alias its own."""
    alias = add_alias(TIME_ZONE="Asia/Tokyo")
    assert await avalue("SHOW TimeZone", alias) == "Asia/Tokyo"
    assert await avalue("SHOW TimeZone") == "UTC"


@pytest.mark.parametrize(("disabled", "cursors"), [(False, 1), (True, 0)])
async def test_server_side_cursors(add_alias: AddAlias, disabled: bool, cursors: int) -> None:
    """aiterator() reads from a server-side cursor unless DISABLE_SERVER_SIDE_CURSORS is set."""
    alias = add_alias(DISABLE_SERVER_SIDE_CURSORS=disabled)
    await Author.objects.abulk_create([Author(name=name) for name in "abc"])
    async with transaction.atomic(using=alias):
        seen = [
            (author.name, await avalue("SELECT count(*) FROM pg_cursors", alias))
            async for author in Author.objects.using(alias).order_by("name").aiterator(2)
        ]
    # The cursor is closed once its last row was read.
    assert seen[:2] == [("a", cursors), ("b", cursors)]
    assert len(seen) == 3


async def test_health_checks(add_alias: AddAlias, server: Server) -> None:
    """With CONN_HEALTH_CHECKS a connection that the server closed is replaced unnoticed."""
    alias = add_alias(CONN_HEALTH_CHECKS=True)
    first = await avalue(PID, alias)
    assert server.one("SELECT pg_terminate_backend(%s, 5000)", first)
    second = await avalue(PID, alias)
    assert second != first


async def test_a_connection_that_the_server_closed(add_alias: AddAlias, server: Server) -> None:
    """Without health checks, too, one that it terminated while idle is replaced unnoticed."""
    alias = add_alias({"pool": {"max_size": 1}})
    first = await avalue(PID, alias)
    assert not await Author.objects.using(alias).aexists()
    assert server.one("SELECT pg_terminate_backend(%s, 5000)", first)
    assert not await Author.objects.using(alias).aexists()
    assert await avalue(PID, alias) != first


async def test_connection_created(add_alias: AddAlias) -> None:
    """connection_created is sent once a physical connection, and is this connection's."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1}})
    received: list[tuple[type, str, Any]] = []

    def receive(sender: Any, connection: Any, **kwargs: Any) -> None:
        if connection.alias != alias:
            return
        assert connections[alias] is connection
        with connections[alias].cursor() as cursor:
            cursor.execute("SET statement_timeout = 12345")
        received.append((sender, connection.alias, value(PID, alias)))

    connection_created.connect(receive)
    try:
        pid = await avalue(PID, alias)
        assert await avalue("SHOW statement_timeout", alias) == "12345ms"
        assert await avalue(PID, alias) == pid
    finally:
        connection_created.disconnect(receive)
    assert received == [(type(connections["default"]), alias, pid)]
