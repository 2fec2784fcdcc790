"""The server restarts, ends backends, or gives up statements: rows 1 to 3, 5, 20."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import InternalError, OperationalError, connection, transaction

from tests.faults.fix_servers import folder_for_servers
from tests.faults.own_server import OwnServer
from tests.models import Author
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.server import Server
from tests.support.work import ended, execute, fill, pid, settled, until_running, within
from tests.support.wrapper import use_wrapper

SIZE = 8

TERMINATE = "SELECT pg_terminate_backend(%s, 10000)"


@pytest.fixture(scope="module")
def own() -> Iterator[OwnServer]:
    """A server that the tests stop and start."""
    with folder_for_servers() as folder:
        server = OwnServer(folder / "own")
        yield server
        server.stop()


def use(own: OwnServer, *, checks: bool = False, size: int = SIZE) -> None:
    """Let the running task, and those it starts, use a pool of *size* on that server."""
    use_wrapper(CONN_HEALTH_CHECKS=checks, options={"pool": {"max_size": size}}, **own.settings)


# Restarts


@pytest.mark.process
@pytest.mark.parametrize("checks", [True, False], ids=["health checks", "no checks"])
async def test_01_restart_while_idle(own: OwnServer, checks: bool) -> None:
    """After a restart, idle dead connections cost no error with health checks, and no waiting."""
    use(own, checks=checks)
    await fill(SIZE)
    await asyncio.to_thread(own.restart)
    with within(AT_ONCE):
        first = await ended(asyncio.ensure_future(pid()))
        results = await ended(*(asyncio.ensure_future(pid()) for _ in range(50)))
    errors = [each for each in first + results if isinstance(each, Exception)]
    assert all(isinstance(error, OperationalError) for error in errors)
    assert len(errors) <= (0 if checks else SIZE)
    assert (await settled())["pool_size"] <= SIZE
    results = await ended(*(asyncio.ensure_future(pid()) for _ in range(50)))
    assert not [each for each in results if isinstance(each, Exception)]


@pytest.mark.process
async def test_01_server_down_while_idle(own: OwnServer) -> None:
    """While the server is down each query fails at once, in libpq's words; then all is well."""
    use(own, checks=True)
    await fill(SIZE)
    await asyncio.to_thread(own.stop)
    try:
        with within(AT_ONCE):
            for _ in range(3):
                with pytest.raises(OperationalError, match="Connection refused"):
                    await pid()
    finally:
        await asyncio.to_thread(own.start)
    assert await pid()
    assert (await settled())["pool_size"] <= SIZE


@pytest.mark.process
async def test_02_restart_in_mid_query(own: OwnServer) -> None:
    """A restart in mid-query is one error, the statement is not repeated, the next one works."""
    use(own)
    own.all("CREATE SEQUENCE runs")
    task = asyncio.create_task(execute("SELECT nextval('runs'), pg_sleep(600)"))
    await until_running(own.all, "%pg_sleep%")
    await asyncio.to_thread(own.restart)
    (error,) = await ended(task)
    assert isinstance(error, OperationalError)
    assert await execute("SELECT 1") == 1
    # nextval() is not undone by anything; recovery may skip some, but not at a clean stop.
    assert own.all("SELECT nextval('runs')") == [(2,)]
    own.all("DROP SEQUENCE runs")


# A backend ends


async def test_03_idle_backend_is_terminated(server: Server) -> None:
    """The end of an idle backend costs no error, and its connection is replaced."""
    use_wrapper(options={"pool": {"max_size": 1}}, CONN_HEALTH_CHECKS=True)
    dead = await pid()
    server.all(TERMINATE, dead)
    assert await pid() != dead
    assert (await settled())["pool_size"] == 1


async def test_03_busy_backend_is_terminated(server: Server) -> None:
    """The end of a busy backend is one OperationalError that says so; then all is well."""
    use_wrapper(options={"pool": {"max_size": 1}})
    task = asyncio.create_task(execute("SELECT pg_sleep(600)"))
    server.all(TERMINATE, await until_running(server.all, "%pg_sleep%"))
    (error,) = await ended(task)
    assert isinstance(error, OperationalError)
    assert "terminating connection due to administrator command" in str(error)
    assert await execute("SELECT 1") == 1
    assert (await settled())["pool_size"] == 1


@pytest.mark.parametrize("at_commit", [False, True], ids=["before a statement", "before COMMIT"])
async def test_03_backend_in_transaction_is_terminated(server: Server, at_commit: bool) -> None:
    """The end of a transaction's backend is an error, hooks are dropped, the next block commits."""
    use_wrapper(options={"pool": {"max_size": 1}})
    hooks: list[str] = []
    with pytest.raises(OperationalError):
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            transaction.on_commit(lambda: hooks.append("ran"))
            server.all(TERMINATE, await pid())
            if not at_commit:
                await Author.objects.acreate(name="lost too")
    assert not connection.in_atomic_block
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert [author.name async for author in Author.objects.all()] == ["next"]
    assert hooks == []
    assert (await settled())["pool_size"] == 1


# The server gives a statement up


async def test_05_statement_timeout() -> None:
    """statement_timeout is an OperationalError with its cause; the connection is used again."""
    use_wrapper(options={"pool": {"max_size": 1}, "options": "-c statement_timeout=50ms"})
    before = await pid()
    with pytest.raises(OperationalError, match="statement timeout") as caught:
        await execute("SELECT pg_sleep(600)")
    assert sqlstate(caught.value) == "57014"
    assert await pid() == before


async def test_05_lock_timeout(server: Server) -> None:
    """lock_timeout is an OperationalError with its cause; the block rolls back, and is repeated."""
    use_wrapper(options={"pool": {"max_size": 1}, "options": "-c lock_timeout=50ms"})
    await Author.objects.acreate(name="Ada")
    before = await pid()
    with server.conn.transaction():
        server.all("SELECT 1 FROM tests_author FOR UPDATE")
        with pytest.raises(OperationalError, match="lock timeout") as caught:
            async with transaction.atomic():
                await Author.objects.select_for_update().aget()
    assert sqlstate(caught.value) == "55P03"
    async with transaction.atomic():
        assert (await Author.objects.select_for_update().aget()).name == "Ada"
    assert await pid() == before


async def test_05_idle_in_transaction_timeout(server: Server) -> None:
    """idle_in_transaction_session_timeout is Django's error for it; the connection is replaced."""
    options = "-c idle_in_transaction_session_timeout=50ms"
    use_wrapper(options={"pool": {"max_size": 1}, "options": options})
    # psycopg has its class, 25, under InternalError, and so has Django.
    with pytest.raises(InternalError, match="idle-in-transaction") as caught:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await asyncio.to_thread(server.wait_for_backends, 0)
            await Author.objects.acreate(name="lost too")
    assert sqlstate(caught.value) == "25P03"
    assert not connection.in_atomic_block
    assert await Author.objects.acount() == 0
    assert (await settled())["pool_size"] == 1


# Transactions that the server ends


def sqlstate(error: BaseException) -> Any:
    return getattr(error.__cause__, "sqlstate", None)


async def test_20_deadlock(server: Server) -> None:
    """Of two transactions in a deadlock one gets 40P01, and succeeds when it is repeated."""
    use_wrapper(options={"pool": {"max_size": 2}, "options": "-c deadlock_timeout=50ms"})
    await Author.objects.abulk_create([Author(name="Ada"), Author(name="Grace")])
    barrier = asyncio.Barrier(2)
    other_committed = asyncio.Event()
    errors: list[OperationalError] = []

    async def lock(*names: str) -> None:
        async with transaction.atomic():
            await Author.objects.select_for_update().aget(name=names[0])
            if not errors:
                await barrier.wait()
            await Author.objects.select_for_update().aget(name=names[1])

    async def work(*names: str) -> None:
        try:
            await lock(*names)
        except OperationalError as error:
            errors.append(error)
            # A repetition at once may take the row before the other's waiting lock does, which
            # makes the next deadlock.
            await other_committed.wait()
            await lock(*names)
        other_committed.set()

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(work("Ada", "Grace"), work("Grace", "Ada"))
    assert [sqlstate(error) for error in errors] == ["40P01"]
    assert (await settled())["pool_size"] == 2


async def test_20_serialization_failure(server: Server) -> None:
    """A serialization failure is 40001 on the cause, and the repeated transaction succeeds."""
    options = "-c default_transaction_isolation=serializable"
    use_wrapper(options={"pool": {"max_size": 2}, "options": options})
    author = await Author.objects.acreate(name="Ada")

    async def rename() -> None:
        async with transaction.atomic():
            author = await Author.objects.aget()
            if not errors:
                server.all("UPDATE tests_author SET name = 'Grace' WHERE id = %s", author.pk)
            author.name += " Lovelace"
            await author.asave()

    errors: list[OperationalError] = []
    try:
        await rename()
    except OperationalError as error:
        errors.append(error)
        await rename()
    assert [sqlstate(error) for error in errors] == ["40001"]
    await author.arefresh_from_db()
    assert author.name == "Grace Lovelace"
