"""What is told when a worker stops."""

import asyncio
from dataclasses import dataclass

import pytest

from pgbackend.pubsub import Channel, anotify, listener, stopping
from pgbackend.pubsub.worker import Worker
from tests.support.limits import AT_ONCE
from tests.support.pubsub import until


@dataclass
class Leaving(Channel):
    """Its listener leaves work on the loop."""

    lock_notifications = True
    lease = 10.0


# Set when the listener may end, when there is one, and what it has left.
handling: list[asyncio.Future[None]] = []
left: list[str] = []


@listener(Leaving)
async def leave() -> None:
    handling.append(asyncio.get_running_loop().create_future())
    await handling[-1]
    left.append("work")


@pytest.fixture(autouse=True)
def _callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_callbacks", [])


async def stopped(worker: Worker, seconds: float = AT_ONCE) -> bool:
    worker.start()
    await worker.listening(AT_ONCE)
    return await worker.stop(seconds)


async def test_told_and_waited_for() -> None:
    """Each callback is awaited to its end, twice for a worker, though it was registered twice."""
    told = []

    async def callback() -> None:
        await asyncio.sleep(0.05)
        told.append(1)

    stopping.when_stopping(callback)
    stopping.when_stopping(callback)
    assert await stopped(Worker())
    assert told == [1, 1]
    assert await stopped(Worker())
    assert told == [1] * 4


async def test_what_the_last_handlers_have_left() -> None:
    """What a handler leaves while the worker stops is told of the end, too."""
    told = []

    async def callback() -> None:
        told.append(list(left))

    handling.clear()
    left.clear()
    stopping.when_stopping(callback)
    await anotify(Leaving)
    worker = Worker([Leaving])
    running = asyncio.create_task(worker.run())
    await until(lambda: bool(handling))
    ending = asyncio.create_task(worker.stop(AT_ONCE))
    await until(lambda: bool(told))
    handling[0].set_result(None)
    assert await ending
    await asyncio.wait([running])
    assert told == [[], ["work"]]


async def test_errors(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that fails is logged, and keeps neither the others nor the end."""
    told = []

    async def fail() -> None:
        raise ValueError("a callback")

    async def callback() -> None:
        told.append(1)

    stopping.when_stopping(fail)
    stopping.when_stopping(callback)
    assert await stopped(Worker())
    assert told == [1, 1]
    assert "what is told of a worker's end failed" in caplog.text


async def test_at_once() -> None:
    """A callback that never ends is cancelled when the time is over; no handler was late."""

    async def callback() -> None:
        await asyncio.get_running_loop().create_future()

    stopping.when_stopping(callback)
    async with asyncio.timeout(AT_ONCE):
        assert await stopped(Worker(), 0.1)
