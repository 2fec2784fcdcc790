"""The `DatabaseWrapper`: what DATABASES says, on both paths."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import (
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresDatabaseWrapper
from django.db.backends.signals import connection_created

from pgbackend import await_bridged, bridged
from tests.conftest import NAME, Server
from tests.models import Author, Elsewhere
from tests.script import run_script
from tests.wrapper import make_wrapper

AddAlias = Callable[..., str]


def value(query: str, alias: str = "default") -> Any:
    """Return the first column of a query's first row."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


avalue = bridged(value)

PID = "SELECT pg_backend_pid()"


def test_vendor() -> None:
    """The backend is PostgreSQL's for code that asks, and a subclass of Django's."""
    assert connection.vendor == "postgresql"
    assert isinstance(connections["default"], PostgresDatabaseWrapper)


# Without a loop


def test_synchronous_orm(server: Server) -> None:
    """Without a loop the ORM and atomic work as with Django's backend."""
    with transaction.atomic():
        author = Author.objects.create(name="Ada")
        with suppress(KeyError), transaction.atomic():
            Author.objects.all().delete()
            raise KeyError
        assert server.all("SELECT name FROM tests_author") == []
    assert list(Author.objects.all()) == [author]


def test_synchronous_connection_is_kept(server: Server) -> None:
    """Without a loop a thread keeps its connection; close_old_connections() closes it."""
    assert value(PID, "other") == value(PID, "other")
    assert isinstance(connections["other"].connection, psycopg.Connection)
    close_old_connections()
    # CONN_MAX_AGE is 0.
    assert connections["other"].connection is None
    server.wait_for_backends(0)


def test_synchronous_pool() -> None:
    """Without a loop OPTIONS["pool"] gives Django's own pool: a closed connection is reused."""
    assert connection.pool.max_size == 8
    pids = set()
    for _ in range(20):
        pids.add(value(PID))
        connection.close()
    assert len(pids) <= connection.pool.max_size
    assert connections["other"].pool is None


def test_synchronous_threads_have_connections_of_their_own() -> None:
    """Without a loop each thread has a connection of its own."""
    pids = [value(PID, "other")]

    def work() -> None:
        pids.append(value(PID, "other"))
        connections["other"].close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(set(pids)) == 2


# On the loop, outside the bridge


@pytest.mark.parametrize(
    "call",
    [
        lambda: Author.objects.count(),
        lambda: Author(name="Ada").save(),
        lambda: connection.cursor(),
        lambda: connection.ensure_connection(),
        lambda: transaction.atomic().__enter__(),
        lambda: connection.commit(),
    ],
    ids=["query", "save", "cursor", "ensure_connection", "atomic", "commit"],
)
async def test_synchronous_use_on_the_loop(server: Server, call: Callable[[], Any]) -> None:
    """Synchronous use on a running loop raises an error that names both ways out."""
    with pytest.raises(SynchronousOnlyOperation, match=r"aget\(\).*@pgbackend\.bridged") as error:
        call()
    assert "'default'" in str(error.value)
    assert server.backends() == 0
    assert not connection.in_atomic_block


async def test_allow_async_unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """DJANGO_ALLOW_ASYNC_UNSAFE permits synchronous use on the loop, as Django documents."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    try:
        assert value("SELECT 1", "other") == 1
    finally:
        connections["other"].close()


# OPTIONS["bridge"]


async def test_bridge_switched_off(add_alias: AddAlias) -> None:
    """With OPTIONS bridge=False a-methods work through Django's thread."""
    alias = add_alias({"bridge": False})
    threads = []

    class Recorder:
        def __call__(self, execute: Any, *args: Any) -> Any:
            threads.append(threading.current_thread())
            return execute(*args)

    @sync_to_async
    def record() -> None:
        connections[alias].execute_wrappers.append(Recorder())

    await record()
    try:
        await Author.objects.using(alias).acreate(name="Ada")
        assert await Author.objects.using(alias).acount() == 1
        assert [author.name async for author in Author.objects.using(alias)] == ["Ada"]
    finally:
        await sync_to_async(lambda: connections[alias].close())()
    assert threads
    assert threading.main_thread() not in threads
    assert await Author.objects.acount() == 1


async def test_bridge_switched_off_on_the_loop(add_alias: AddAlias) -> None:
    """With OPTIONS bridge=False synchronous use on the loop raises Django's own message."""
    alias = add_alias({"bridge": False})
    with pytest.raises(SynchronousOnlyOperation, match="use a thread or sync_to_async"):
        value("SELECT 1", alias)
    with pytest.raises(SynchronousOnlyOperation, match="use a thread or sync_to_async"):
        await avalue("SELECT 1", alias)


def test_bridge_switched_off_without_a_loop(add_alias: AddAlias) -> None:
    """OPTIONS bridge=False changes nothing for synchronous code."""
    assert value("SELECT 1", add_alias({"bridge": False})) == 1


# OPTIONS and settings, as Django documents them


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
        async with asyncio.timeout(5):
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


# Aliases


async def test_using_and_router(server: Server) -> None:
    """using() and the router decide which database a query goes to."""
    await Elsewhere.objects.acreate(name="x")
    assert await Elsewhere.objects.acount() == 1
    assert await avalue("SELECT current_database()", "other") == "pgbackend_tests_other"
    assert (await Elsewhere.objects.aget())._state.db == "other"
    names = server.all("SELECT datname FROM pg_stat_activity WHERE application_name = %s", NAME)
    assert names == [("pgbackend_tests_other",)]
    await Author.objects.using("default").acreate(name="Ada")
    assert await Author.objects.acount() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda wrapper: wrapper.get_autocommit(),
        lambda wrapper: wrapper.ensure_connection(),
        lambda wrapper: wrapper.on_commit(lambda: None),
        lambda wrapper: wrapper.pg_version,
        lambda wrapper: wrapper.is_usable(),
    ],
    ids=["get_autocommit", "ensure_connection", "on_commit", "pg_version", "is_usable"],
)
async def test_no_connection_is_kept(add_alias: AddAlias, call: Callable[[Any], object]) -> None:
    """What asks about the connection does not keep one from other tasks."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1, "timeout": 3}})

    @bridged
    def work() -> None:
        call(connections[alias])
        # Another task can have the pool's only connection while this call goes on.
        assert await_bridged(asyncio.create_task(avalue("SELECT 1", alias))) == 1

    await work()


async def test_copy(server: Server) -> None:
    """A wrapper's copy() has transactions of its own."""

    @bridged
    def work() -> None:
        copy = connections["default"].copy()
        with transaction.atomic():
            Author.objects.create(name="Ada")
            assert not copy.in_atomic_block
            with copy.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM tests_author")
                assert cursor.fetchone() == (0,)
        copy.close()

    await work()
    assert server.one("SELECT count(*) FROM tests_author") == 1


async def test_close_pool(server: Server) -> None:
    """close_pool() in the bridge closes the alias's connections; the next query opens some."""
    await avalue("SELECT 1")
    await avalue("SELECT 1", "other")
    assert server.backends() == 2
    await bridged(connection.close_pool)()
    server.wait_for_backends(1)
    assert await avalue("SELECT 1") == 1


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


# At import


@pytest.mark.parametrize(
    ("package", "name", "version", "message"),
    [
        ("django", "VERSION", (5, 1, 9, "final", 0), "needs Django 5.2 or later"),
        ("psycopg", "__version__", "3.2.9", "needs psycopg 3.3 or later"),
    ],
)
def test_unsupported_version(package: str, name: str, version: Any, message: str) -> None:
    """An unsupported Django or psycopg raises ImproperlyConfigured that names what is needed."""
    printed = run_script(
        f"""
        import {package}
        from django.core.exceptions import ImproperlyConfigured
        {package}.{name} = {version!r}
        try:
            import pgbackend.base
        except ImproperlyConfigured as error:
            print(error)
        """
    )
    assert message in printed


def test_synchronous_pool_smaller_than_psycopgs_default(add_alias: Callable[..., str]) -> None:
    """A max_size below psycopg_pool's own min_size works in synchronous code too."""
    with connections[add_alias({"pool": {"max_size": 1}})].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_synchronous_pool_options_that_are_wrong() -> None:
    """Bad pool options are ImproperlyConfigured in synchronous code too, and named."""
    with pytest.raises(ImproperlyConfigured, match="'max_sise'"):
        make_wrapper(options={"pool": {"max_sise": 1}}).ensure_connection()
    with pytest.raises(ImproperlyConfigured, match="max_size must be greater"):
        make_wrapper(options={"pool": {"min_size": 2, "max_size": 1}}).ensure_connection()
