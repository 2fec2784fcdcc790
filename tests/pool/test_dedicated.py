"""A dedicated connection; what the hub makes of it is in tests/pubsub/test_hub.py."""

import asyncio

import psycopg
import pytest

from pgbackend.pool.dedicated import DedicatedConnection
from pgbackend.pubsub.connecting import arguments_of
from tests.support.fix_loops import Main


def test_a_silent_server_is_named(run_main: Main) -> None:
    """The error names the time-out at which the statement was given up; loops round their times."""

    async def give_up(seconds: float) -> None:
        is_open = asyncio.Event()
        lost: list[BaseException] = []

        async def prepare(_: DedicatedConnection) -> None:
            is_open.set()

        dedicated = DedicatedConnection(
            "test",
            lambda: arguments_of("default"),
            prepare=prepare,
            received=lambda name, payload: None,
            lost=lost.append,
        )
        running = asyncio.create_task(dedicated.run())
        await asyncio.wait_for(is_open.wait(), 20)
        with pytest.raises(psycopg.OperationalError, match="did not answer within"):
            await dedicated.execute("SELECT pg_sleep(1)", seconds=seconds)
        running.cancel()
        await asyncio.wait([running])

    async def main() -> None:
        # Times that are no whole milliseconds, and whose sums are rounded.
        for step in range(10):
            await give_up(0.0101 + step / 7_000)

    run_main(main())
