"""The transport into the same process: where the service runs, and what becomes of its end."""

import asyncio
import threading

import pytest

from pgbackend.bridge.current import is_bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.rpc.protocol.errors import Unavailable
from pgbackend.rpc.transports.local import LocalTransport
from tests.support.limits import AT_ONCE


def echo(wire: str) -> str:
    return f"{wire} {is_bridged()} {threading.current_thread() is threading.main_thread()}"


def test_in_a_thread() -> None:
    """Without an event loop the service runs at once."""
    future = LocalTransport(echo).send("a", urgent=False, deadline=0.0)
    assert future.done()
    assert future.result(AT_ONCE) == "a False True"


async def test_on_a_loop() -> None:
    """On a loop the service runs in a task, bridged."""
    future = LocalTransport(echo).send("a", urgent=False, deadline=0.0)
    assert not future.done()
    assert await future == "a True True"


async def test_in_the_bridge() -> None:
    """In bridged code the service runs at once, in the same bridge."""

    def call() -> str:
        return LocalTransport(echo).send("a", urgent=False, deadline=0.0).result(AT_ONCE)

    assert await run_bridged(call) == "a True True"


async def test_errors_and_close() -> None:
    """What the service raises arrives; what still runs at the close ends as unavailable."""

    def fail(wire: str) -> str:
        raise ValueError(wire)

    with pytest.raises(ValueError, match="a"):
        await LocalTransport(fail).send("a", urgent=False, deadline=0.0)
    transport = LocalTransport(echo)
    future = transport.send("a", urgent=False, deadline=0.0)
    transport.close()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(AT_ONCE):
            await future
