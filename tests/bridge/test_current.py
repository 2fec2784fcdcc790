"""Which greenlet the running call is bridged in."""

import asyncio

from pgbackend.bridge.current import is_bridged
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.suspended import suspend


async def test_is_bridged() -> None:
    """is_bridged() is True in bridged code and what it awaits, and nowhere else."""

    async def inner() -> bool:
        return is_bridged()

    assert is_bridged() is False
    assert await run_bridged(is_bridged) is True
    assert await run_bridged(lambda: await_bridged(inner())) is True
    assert is_bridged() is False


def test_is_bridged_without_a_loop() -> None:
    """is_bridged() is False where no loop runs."""
    assert is_bridged() is False


async def test_task_created_in_the_bridge_is_not_bridged() -> None:
    """A task started by bridged code runs outside of the bridge."""

    async def other() -> bool:
        return is_bridged()

    def function() -> tuple[bool, bool]:
        task = asyncio.get_running_loop().create_task(other())
        return await_bridged(task), is_bridged()

    assert await run_bridged(function) == (False, True)


async def test_callback_of_the_loop_is_not_bridged() -> None:
    """A callback that the loop runs while bridged code waits is outside of the bridge."""
    seen: list[bool] = []

    def function() -> None:
        asyncio.get_running_loop().call_soon(lambda: seen.append(is_bridged()))
        await_bridged(suspend(times=2))

    await run_bridged(function)
    assert seen == [False]
