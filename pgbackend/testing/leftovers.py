"""Tasks that a test leaves behind on the loop that the next test runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged
from ..pool.background import is_of_pool


@contextmanager
def no_tasks_left() -> Iterator[None]:
    """Cancel tasks that were started in the block and still run at its end.

    In a plain run each test has a task and a loop of its own, and the loop's end cancels the tasks.
    The tasks of the pools do not belong to the test.
    """
    before = asyncio.all_tasks() if is_bridged() else set()
    try:
        yield
    finally:
        if is_bridged():
            await_bridged(_forget_cancellations())
            left = [task for task in asyncio.all_tasks() - before if not is_of_pool(task)]
            if left:
                await_bridged(_cancel(left))


async def _forget_cancellations() -> None:
    """Undo cancellations by a test of its own task, which is the next test's task, too."""
    task = asyncio.current_task()
    assert task is not None
    if task.cancelling():
        # If the test did not wait afterwards, the cancellation has yet to be raised.
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.uncancel():
            pass


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task, result in zip(
        tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True
    ):
        if isinstance(result, Exception):
            asyncio.get_running_loop().call_exception_handler(
                {
                    "message": "a task left by a test failed when it was cancelled",
                    "exception": result,
                    "task": task,
                }
            )
