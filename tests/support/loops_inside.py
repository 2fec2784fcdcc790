"""Loops that synchronous code runs inside a call of the runner."""

import asyncio

from django.db import transaction

from tests.models import Author


async def write(name: str) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name=name)


async def write_many(word: str) -> int:
    """Write authors in tasks that have to wait for each other's statements."""
    await asyncio.gather(*(write(f"{word} {number}") for number in range(5)))
    return await Author.objects.acount()


def with_run(word: str) -> int:
    return asyncio.run(write_many(word))


def with_runner(word: str) -> int:
    with asyncio.Runner() as runner:
        assert runner.run(asyncio.sleep(0, "x")) == "x"
        return runner.run(write_many(word))


def with_a_loop(word: str) -> int:
    loop = asyncio.new_event_loop()
    task = loop.create_task(write_many(word))
    task.add_done_callback(lambda task: loop.stop())
    loop.run_forever()
    cancel_rest(loop)
    loop.close()
    return task.result()


def cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    """Do what asyncio.run does at its end, for the pool of this loop."""
    left = asyncio.all_tasks(loop)
    for each in left:
        each.cancel()
    loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))


WAYS = [with_run, with_runner, with_a_loop]
