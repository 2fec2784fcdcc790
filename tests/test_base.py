"""The `DatabaseWrapper`: what DATABASES says, on both paths."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import (
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.postgresql.base import DatabaseWrapper as PostgresDatabaseWrapper

from tests.models import Author, Elsewhere
from tests.support.script import run_script
from tests.support.server import NAME, Server
from tests.support.wrapper import PID, AddAlias, avalue, make_wrapper, value


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


# On the loop, outside the bridge


@pytest.mark.parametrize(
    ("call", "cure"),
    [
        (lambda: Author.objects.count(), "`await ... .acount(...)`"),
        (lambda: Author(name="Ada").save(), "`await ... .asave(...)`"),
        (lambda: connection.cursor(), "a function that is decorated with"),
        (lambda: connection.ensure_connection(), "aget()"),
        (lambda: transaction.atomic().__enter__(), "`async with transaction.atomic():`"),
        (lambda: connection.commit(), "aget()"),
    ],
    ids=["query", "save", "cursor", "ensure_connection", "atomic", "commit"],
)
async def test_synchronous_use_on_the_loop(
    server: Server, call: Callable[[], Any], cure: str
) -> None:
    """Synchronous use on a running loop raises an error that names both ways out."""
    with pytest.raises(SynchronousOnlyOperation) as error:
        call()
    assert cure in str(error.value)
    assert "@pgbackend.bridged" in str(error.value)
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


# At import


@pytest.mark.process
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


@pytest.mark.parametrize("options", [{"max_size": 1}, {"min_size": 0}])
def test_synchronous_pool_sizes(add_alias: Callable[..., str], options: dict[str, int]) -> None:
    """One size alone, which psycopg_pool's own defaults contradict, works in synchronous code."""
    with connections[add_alias({"pool": options})].cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


def test_synchronous_pool_options_that_are_wrong() -> None:
    """Bad pool options are ImproperlyConfigured in synchronous code too, and named."""
    with pytest.raises(ImproperlyConfigured, match="'max_sise'"):
        make_wrapper(options={"pool": {"max_sise": 1}}).ensure_connection()
    with pytest.raises(ImproperlyConfigured, match="max_size must be greater"):
        make_wrapper(options={"pool": {"min_size": 2, "max_size": 1}}).ensure_connection()
