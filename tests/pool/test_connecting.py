"""Connecting: what failing says, and what receivers of the signal may do."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import DataError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created

from pgbackend.base import DatabaseWrapper
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.pool import PID, Held, at_once, settled
from tests.support.server import Server
from tests.support.wrapper import make_wrapper, run, until, use_wrapper


async def error_of_django(**changes: Any) -> Exception:
    """Return what Django's own synchronous path raises with these settings."""

    error = await asyncio.to_thread(_error_of, make_wrapper(**changes))
    assert error is not None, "Django connected"
    return error


def _error_of(wrapper: DatabaseWrapper) -> Exception | None:
    """Return what connecting on the synchronous path raises, without Django's own pool."""
    wrapper.settings_dict["OPTIONS"].pop("pool")
    wrapper.inc_thread_sharing()
    try:
        wrapper.ensure_connection()
    except Exception as error:
        return error
    finally:
        wrapper.close()
    return None


async def check_failure(error: type[Exception], message: str, **changes: Any) -> None:
    """Check that a query fails at once, for each of several tasks, as on Django's own path."""
    expected = await error_of_django(**changes)
    assert type(expected) is error
    use_wrapper(**changes)
    with at_once():
        results = await asyncio.gather(
            *(Author.objects.acount() for _ in range(20)), return_exceptions=True
        )
    for result in results:
        assert type(result) is error
        assert message in str(result)
        assert str(result) == str(expected)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_refused_port() -> None:
    """A port where nobody listens is OperationalError at once, in libpq's words."""
    await check_failure(OperationalError, "Connection refused", PORT=free_port())


async def test_unknown_host() -> None:
    """A host that does not resolve is OperationalError at once."""
    changes = {"HOST": "no-such-host.invalid"}
    expected = await error_of_django(**changes)
    use_wrapper(**changes)
    with at_once(), pytest.raises(OperationalError) as caught:
        await Author.objects.acount()
    # The resolver's words are Python's in one case and libpq's in the other.
    assert type(expected) is type(caught.value)
    assert "PoolTimeout" not in repr(caught.value.__cause__)


async def test_unknown_database() -> None:
    """A database that does not exist is OperationalError at once, in the server's words."""
    await check_failure(
        OperationalError,
        'database "pgbackend_tests_none" does not exist',
        NAME="pgbackend_tests_none",
    )


async def test_unknown_role() -> None:
    """A role that does not exist is OperationalError at once, in the server's words."""
    # A server that asks for a password does not tell whether the role exists.
    await check_failure(OperationalError, '"pgbackend_nobody"', USER="pgbackend_nobody")


async def test_unknown_assumed_role() -> None:
    """What fails while a connection is made ready is told at once too."""
    await check_failure(
        DataError,
        'role "pgbackend_nobody" does not exist',
        options={"assume_role": "pgbackend_nobody"},
    )


async def test_bad_connection_option() -> None:
    """An option that psycopg does not know is named, at once."""
    await check_failure(
        ProgrammingError,
        'invalid connection option "no_such_option"',
        options={"no_such_option": 1},
    )


async def test_failing_receiver() -> None:
    """What a receiver of connection_created raises reaches whoever asked for the connection."""

    def receiver(**kwargs: Any) -> None:
        raise LookupError("no such setting")

    connection_created.connect(receiver)
    try:
        with at_once(), pytest.raises(LookupError, match="no such setting"):
            await Author.objects.acount()
    finally:
        connection_created.disconnect(receiver)
    assert await Author.objects.acount() == 0


async def test_wrong_password_mended(server: Server) -> None:
    """A wrong password is told at once; once it is right, the same pool connects."""
    server.all("CREATE ROLE pgbackend_guest LOGIN PASSWORD 'right'")
    try:
        wrapper = make_wrapper(USER="pgbackend_guest", PASSWORD="wrong")
        if not isinstance(await asyncio.to_thread(_error_of, wrapper.copy()), OperationalError):
            pytest.skip("the server given by --dsn asks for no password")
        refused = r'password authentication failed for user "pgbackend_guest"'
        with at_once(), pytest.raises(OperationalError, match=refused):
            await run(wrapper, PID)
        pool = wrapper.async_pool
        server.all("ALTER ROLE pgbackend_guest PASSWORD 'wrong'")
        with at_once():
            assert await run(wrapper, "SELECT current_user") == "pgbackend_guest"
        assert wrapper.async_pool is pool
    finally:
        server.all("DROP ROLE pgbackend_guest")


async def test_missing_database_mended(server: Server) -> None:
    """After a failure the next attempt works as soon as its cause is gone."""
    name = "pgbackend_tests_late"
    wrapper = make_wrapper(NAME=name)
    with pytest.raises(OperationalError, match=f'database "{name}" does not exist'):
        await run(wrapper, PID)
    server.all(f"CREATE DATABASE {name}")
    try:
        with at_once():
            assert await run(wrapper, "SELECT current_database()") == name
        assert (await settled(wrapper))["pool_size"] == 1
    finally:
        server.all(f"DROP DATABASE {name} WITH (FORCE)")


async def test_failure_leaves_other_connections_alone(server: Server) -> None:
    """A task waits for a connection on loan when no further one can be opened."""
    name = "pgbackend_tests_closing"
    server.all(f"CREATE DATABASE {name}")
    wrapper = make_wrapper(NAME=name)
    try:
        async with Held(wrapper):
            server.all(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            other = asyncio.create_task(run(wrapper, "SELECT 1"))
            await until(lambda: wrapper.async_pool.get_stats().get("connections_errors"))
            assert not other.done()
        assert await asyncio.wait_for(other, PATIENCE) == 1
    finally:
        server.all(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def receiving(receiver: Any) -> Iterator[None]:
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


async def test_connection_created_once_for_each_connection() -> None:
    """Receivers run once for a physical connection, before its first use by anybody."""
    created: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(PID)
            created.append(cursor.fetchone()[0])

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 3}})
        used = [await run(wrapper, PID) for _ in range(3)]
        async with Held(wrapper), Held(wrapper):
            used += [await run(wrapper, PID) for _ in range(3)]
        await settled(wrapper)
    assert len(created) == len(set(created)) == 3
    assert set(used) <= set(created)


async def test_receivers_settings_stay() -> None:
    """What a receiver SETs is there for every borrower, and stays for the next."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '77s'")

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 2}})
        for _ in range(3):
            assert await run(wrapper, "SHOW statement_timeout") == "77s"
        async with Held(wrapper):
            assert await run(wrapper, "SHOW statement_timeout") == "77s"


async def test_receiver_may_use_connections_with_a_pool_of_one() -> None:
    """``connections[alias].cursor()`` in a receiver is the connection in hand: no deadlock."""
    seen: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connections[connection.alias].cursor() as cursor:
            cursor.execute(PID)
            seen.append(cursor.fetchone()[0])

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
        with at_once():
            pid = await run(wrapper, PID)
    assert seen == [pid]


async def test_receiver_may_use_the_orm_with_a_pool_of_one() -> None:
    """The ORM and a transaction in a receiver run on the connection in hand, too."""
    counts: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with transaction.atomic(using=connection.alias):
            counts.append(Author.objects.using(connection.alias).count())

    with receiving(receiver):
        use_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
        with at_once():
            assert await Author.objects.acount() == 0
    assert counts == [0]
