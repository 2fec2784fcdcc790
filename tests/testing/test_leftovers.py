"""Tasks that a test leaves behind."""

import asyncio

import pytest

from pgbackend import await_bridged
from pgbackend.runner import Runner
from pgbackend.testing.leftovers import no_tasks_left
from tests.models import Author


def test_no_tasks_left(runner: Runner) -> None:
    """What was started in the block and still runs is cancelled; the pool is not."""

    def run() -> None:
        older = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        with no_tasks_left():
            assert Author.objects.count() == 0
            newer = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        assert newer.cancelled()
        assert not older.done()
        assert Author.objects.count() == 0

    runner.run(run)


def test_failing_task_left(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """A task that fails when it is cancelled is told to the loop's exception handler."""

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("stop")

    def run() -> None:
        with no_tasks_left():
            asyncio.get_running_loop().create_task(fail())
            await_bridged(asyncio.sleep(0))

    runner.run(run)
    assert "a task left by a test failed when it was cancelled" in caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("waits", [True, False])
def test_cancelled_itself(runner: Runner, waits: bool) -> None:
    """A cancellation of the task that all share does not outlive the block."""

    def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        with no_tasks_left():
            task.cancel()
            if waits:
                with pytest.raises(asyncio.CancelledError):
                    await_bridged(asyncio.sleep(0))
        assert not task.cancelling()
        await_bridged(asyncio.sleep(0))

    runner.run(run)
