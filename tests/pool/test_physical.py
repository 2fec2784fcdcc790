"""What happens to physical connections: they grow old, are killed, or are lost."""

import asyncio
import time
from contextlib import suppress

import pytest
from django.db import OperationalError, connections, transaction

from pgbackend.bridge.greenlets import run_bridged
from tests.models import Author
from tests.support.left_early import driven_then_closed
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.pool import PID, at_once, settled
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.wrapper import make_wrapper, run, until, use_wrapper


async def test_old_connections_are_replaced(server: Server) -> None:
    """A connection is replaced once it is older than ``max_lifetime``."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "max_lifetime": 0.05}})
    first = await run(wrapper, PID)
    async with asyncio.timeout(PATIENCE):
        while await run(wrapper, PID) == first:
            pass
    await settled(wrapper)
    server.wait_for_backends(1)


async def test_connection_killed_while_idle() -> None:
    """An idle connection that the server closed costs at most one query, then is replaced."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    killer = make_wrapper("other")
    pid = await run(wrapper, PID)
    await run(killer, "SELECT pg_terminate_backend(%s, 10000)", [pid])
    with suppress(OperationalError):
        await run(wrapper, PID)
    assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_while_idle_with_health_checks() -> None:
    """With CONN_HEALTH_CHECKS an idle connection that the server closed costs no query."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}}, CONN_HEALTH_CHECKS=True)
    killer = make_wrapper("other")
    pid = await run(wrapper, PID)
    await run(killer, "SELECT pg_terminate_backend(%s, 10000)", [pid])
    with at_once():
        assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_in_use(server: Server) -> None:
    """A connection killed in a query fails that query and is replaced in the pool."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, PID)
    query = asyncio.create_task(run(wrapper, "SELECT pg_sleep(600)"))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    )
    await until(lambda: server.all(kill, pid))
    with pytest.raises(OperationalError, match="terminating connection"):
        await query
    assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_in_a_transaction(server: Server) -> None:
    """A connection killed between two statements of a transaction fails it and is replaced."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})

    def transfer() -> None:
        with transaction.atomic():
            Author.objects.create(name="lost")
            with wrapper.cursor() as cursor:
                cursor.execute(PID)
                server.all("SELECT pg_terminate_backend(%s, 10000)", cursor.fetchone()[0])
            Author.objects.create(name="lost too")

    with pytest.raises(OperationalError):
        await run_bridged(transfer)
    assert await Author.objects.acount() == 0
    assert (await settled(wrapper))["pool_size"] == 1


def test_statement_that_the_server_has_not_read_yet(runner: asyncio.Runner, server: Server) -> None:
    """A statement is stopped that the server begins only after it was asked to stop it."""
    conf = connections["default"].settings_dict

    async def main() -> None:
        async with Proxy(conf["HOST"], int(conf["PORT"])) as proxy:
            wrapper = make_wrapper(HOST="127.0.0.1", PORT=proxy.port)
            pid = await run(wrapper, PID)
            proxy.hold(b"pg_sleep", 1.5)
            await driven_then_closed(run(wrapper, "SELECT pg_sleep(600)"), 50)
            alive = "SELECT pid FROM pg_stat_activity WHERE pid = %s"
            await until(lambda: not server.all(alive, pid))

    runner.run(main())


def test_statement_that_runs_when_the_loop_ends(runner: asyncio.Runner, server: Server) -> None:
    """A statement that nobody waits for is stopped, too, where the loop ends at once after that."""
    pids: list[int] = []

    async def main() -> None:
        wrapper = make_wrapper(options={"pool": {"max_size": 1}})
        pids.append(await run(wrapper, PID))
        await driven_then_closed(run(wrapper, "SELECT pg_sleep(600)"), 50)

    runner.run(main())
    runner.close()
    deadline = time.monotonic() + AT_ONCE
    while server.all("SELECT pid FROM pg_stat_activity WHERE pid = %s", *pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
