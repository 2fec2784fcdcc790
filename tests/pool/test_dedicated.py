"""A dedicated connection; what the hub makes of it is in tests/pubsub/test_hub.py."""

import asyncio

import psycopg
import pytest

from pgbackend.pool.dedicated import DedicatedConnection
from pgbackend.pubsub.connecting import arguments_of
from tests.support.fix_loops import Main
from tests.support.limits import AT_ONCE
from tests.support.pubsub import until
from tests.support.server import Server


async def opened() -> tuple[DedicatedConnection, asyncio.Task[None]]:
    """Return a dedicated connection that is open, and the task that runs it."""
    is_open = asyncio.Event()

    async def prepare(_: DedicatedConnection) -> None:
        is_open.set()

    dedicated = DedicatedConnection(
        "test",
        lambda: arguments_of("default"),
        prepare=prepare,
        received=lambda name, payload: None,
        lost=lambda error: None,
    )
    running = asyncio.create_task(dedicated.run())
    await asyncio.wait_for(is_open.wait(), AT_ONCE)
    return dedicated, running


def test_a_silent_server_is_named(run_main: Main) -> None:
    """The error names the time-out at which the statement was given up; loops round their times."""

    async def give_up(seconds: float) -> None:
        dedicated, running = await opened()
        with pytest.raises(psycopg.OperationalError, match="did not answer within"):
            await dedicated.execute("SELECT pg_sleep(1)", seconds=seconds)
        running.cancel()
        await asyncio.wait([running])

    async def main() -> None:
        # Times that are no whole milliseconds, and whose sums are rounded.
        for step in range(10):
            await give_up(0.0101 + step / 7_000)

    run_main(main())


def test_cancelled_twice(run_main: Main, server: Server) -> None:
    """The connection is let go though its task is cancelled again while it ends."""

    async def main() -> None:
        dedicated, running = await opened()
        executing = asyncio.create_task(dedicated.execute("SELECT pg_sleep(600)"))
        await until(lambda: server.all(SLEEPING))
        # At once, and while it waits for the statement to end, as a loop that ends may do.
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([running])
        # It names the backend of a connection that it has.
        assert "pid=" not in repr(dedicated)
        await asyncio.wait([executing], timeout=AT_ONCE)
        assert isinstance(executing.exception(), psycopg.OperationalError)
        # The server does not look whether anybody waits for the end of its sleep.
        server.all(f"SELECT pg_terminate_backend(pid, 5000) FROM ({SLEEPING}) AS sleeping")

    run_main(main())


SLEEPING = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'"
