"""What is told when a worker stops."""

import asyncio

import pytest

from pgbackend.pubsub import stopping
from pgbackend.pubsub.worker import Worker
from tests.support.limits import AT_ONCE


@pytest.fixture(autouse=True)
def _callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_callbacks", [])


async def stopped(worker: Worker, seconds: float = AT_ONCE) -> bool:
    worker.start()
    await worker.listening(AT_ONCE)
    return await worker.stop(seconds)


async def test_told_once_and_waited_for() -> None:
    """Each callback is awaited to its end, once for a worker, though it was registered twice."""
    told = []

    async def callback() -> None:
        await asyncio.sleep(0.05)
        told.append(1)

    stopping.when_stopping(callback)
    stopping.when_stopping(callback)
    assert await stopped(Worker())
    assert told == [1]
    assert await stopped(Worker())
    assert told == [1, 1]


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
    assert told == [1]
    assert "what is told of a worker's end failed" in caplog.text


async def test_at_once() -> None:
    """A callback that never ends is cancelled when the time is over; no handler was late."""

    async def callback() -> None:
        await asyncio.get_running_loop().create_future()

    stopping.when_stopping(callback)
    async with asyncio.timeout(AT_ONCE):
        assert await stopped(Worker(), 0.1)
