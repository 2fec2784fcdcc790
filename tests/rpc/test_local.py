"""The transport into the same process: where the service runs, and what becomes of its end."""

import asyncio
import threading
import time
from typing import ClassVar

import pytest

from pgbackend.bridge.current import is_bridged
from pgbackend.bridge.greenlets import run_bridged
from pgbackend.futures import Future
from pgbackend.rpc.protocol.errors import Unavailable
from pgbackend.rpc.protocol.messages import Message, open_message
from pgbackend.rpc.server.settings import service
from pgbackend.rpc.transports.local import LocalTransport
from tests.rpc.waiter.models import Dish
from tests.settings import PGBACKEND_RPC
from tests.support.limits import AT_ONCE
from tests.support.rpc import alias


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


class Noting(LocalTransport):
    """A transport of one's own, which notes what it is given."""

    sent: ClassVar[list[tuple[Message, bool, float]]] = []

    def send(self, wire: str, *, urgent: bool, deadline: float) -> Future[str]:
        keys = service().keys
        self.sent.append((open_message(wire, keys, service().limits), urgent, deadline))
        return super().send(wire, urgent=urgent, deadline=deadline)


def test_settings_of_an_alias() -> None:
    """What the alias and the queryset say stands in the message, and reaches the transport."""
    conf = {
        "TRANSPORT": f"{__name__}.Noting",
        "KEYS": PGBACKEND_RPC["KEYS"],
        "KEY": "k2",
        "PRINCIPAL": "ada",
        "CLIENT": "till",
        "TIMEOUT": 45.0,
    }
    with alias(**conf):
        now = time.time()
        assert Dish.objects.count() == 0
        assert Dish.objects.urgent().within(5.0).count() == 0
    (usual, urgent, until), (other, sooner, soon) = Noting.sent
    assert (usual.key_id, usual.principal, usual.client.name) == ("k2", "ada", "till")
    assert (urgent, sooner) == (False, True)
    for deadline, message, seconds in ((until, usual, 45), (soon, other, 5)):
        assert now + seconds - 0.001 <= deadline <= time.time() + seconds
        assert message.deadline == round(deadline * 1000)
