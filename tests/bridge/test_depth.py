"""The recursion limit: what a greenlet has spent of it where it began, no later call must miss."""

import asyncio
import sys
import threading

import pytest

from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.loops import LOOPS


def depth() -> int:
    """Return how many calls there can be below this one."""
    try:
        return depth() + 1
    except RecursionError:
        return 0


async def deepest(frames: int) -> int:
    """Return the `depth` of a bridged call that is made below so many coroutines."""
    return await deepest(frames - 1) if frames else await run_bridged(depth)


def starts_tasks(levels: int) -> None:
    """Start tasks whose own bridged calls begin here, and outlive this one's greenlet."""

    async def main() -> None:
        await run_bridged(starts_tasks, levels - 1)
        await asyncio.sleep(0)

    if levels:
        tasks = [asyncio.get_running_loop().create_task(main()) for _ in range(2)]
        await_bridged(asyncio.sleep(0))
        await_bridged(asyncio.wait(tasks))


async def cancelled_calls() -> None:
    """Cancel calls and close coroutines: their greenlets are gone, and new ones are made."""

    def nested() -> None:
        starts_tasks(2)
        await_bridged(asyncio.sleep(9))

    tasks = [asyncio.create_task(run_bridged(nested)) for _ in range(3)]
    await asyncio.sleep(0.001)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize("loop", LOOPS)
def test_calls_do_not_get_deeper(loop: str) -> None:
    """However many tasks begin inside bridged calls, later calls have the limit for themselves."""

    async def main() -> None:
        before = await run_bridged(depth)
        assert before > sys.getrecursionlimit() // 2
        for _ in range(120):
            await run_bridged(starts_tasks, 3)
            await cancelled_calls()
        calls = [run_bridged(depth) for _ in range(100)]
        assert min(await asyncio.gather(*calls)) > before - 50

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


def test_a_call_below_many_frames() -> None:
    """A call below many frames has less; the calls after it have as much as others."""

    async def main() -> None:
        found.append(await deepest(600))
        calls = [run_bridged(depth) for _ in range(100)]
        found.extend(await asyncio.gather(*calls))

    found: list[int] = []
    # A new thread has no idle greenlets: the first call's begins below those frames.
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    limit = sys.getrecursionlimit()
    assert found[0] < limit - 500
    assert min(found[1:]) > limit - 100
