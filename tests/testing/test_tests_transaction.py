"""Tasks that a test starts in an empty Context are in its transaction."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.db import connections, transaction

from pgbackend import await_bridged
from pgbackend.runner import Runner
from pgbackend.transaction import detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.loops_inside import WAYS, cancel_rest, with_run, with_runner
from tests.support.server import Server
from tests.support.wrapper import AddAlias

SCOPE = {"type": "websocket", "path": "/"}


async def consumer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Write an author for each message, as a consumer of Channels' does; say how many there are."""
    while True:
        message = await receive()
        if message["type"] == "stop":
            return
        async with transaction.atomic():
            await Author.objects.acreate(name=message["name"])
        in_thread = await sync_to_async(Author.objects.count)()
        await send({"authors": await Author.objects.acount(), "in_thread": in_thread})


async def talk(*names: str) -> list[dict[str, int]]:
    communicator = ApplicationCommunicator(consumer, SCOPE)
    answers = []
    for name in names:
        await communicator.send_input({"type": "write", "name": name})
        answers.append(await communicator.receive_output(timeout=PATIENCE))
    await communicator.send_input({"type": "stop"})
    await communicator.wait(timeout=PATIENCE)
    return answers


def counted(*counts: int) -> list[dict[str, int]]:
    return [{"authors": count, "in_thread": count} for count in counts]


@pytest.mark.parametrize("way", ["bridged", "nested", *WAYS])
def test_empty_context(runner: Runner, server: Server, way: Any) -> None:
    """asgiref's ApplicationCommunicator is in the transaction of the test that started it."""

    def run() -> None:
        with transaction.atomic():
            Author.objects.create(name="the test's")
            if way == "bridged":
                assert await_bridged(talk("a", "b")) == counted(2, 3)
            elif way == "nested":
                await_bridged(nested())
            else:
                loops = {with_run: asyncio.run, with_runner: with_a_runner}
                assert loops.get(way, until_complete)(talk("a", "b")) == counted(2, 3)
            assert Author.objects.count() == 3
            assert server.one("SELECT count(*) FROM tests_author") == 0
            transaction.set_rollback(True)
        assert Author.objects.count() == 0

    runner.run(run)
    assert server.one("SELECT count(*) FROM tests_author") == 0


async def nested() -> None:
    """Start communicators in blocks of their own, one of which is rolled back."""
    async with transaction.atomic():
        assert await talk("a") == counted(2)
    with pytest.raises(KeyError):
        async with transaction.atomic():
            assert await asyncio.create_task(talk("lost")) == counted(3)
            raise KeyError
    assert await asyncio.create_task(talk("b")) == counted(3)


def with_a_runner(coro: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner() as runner:
        return runner.run(coro)


def until_complete(coro: Coroutine[Any, Any, Any]) -> Any:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coro)
    finally:
        cancel_rest(loop)
        loop.close()


def test_empty_context_given(runner: Runner, server: Server) -> None:
    """So is a task that is given an empty Context, also when that is used for the next test."""
    context = Context()

    async def write(name: str) -> int:
        await Author.objects.acreate(name=name)
        return await Author.objects.acount()

    async def start(name: str) -> int:
        return await asyncio.create_task(write(name), context=context)

    def run(name: str) -> None:
        with transaction.atomic():
            assert await_bridged(start(name)) == 1
            assert await_bridged(start(name + "!")) == 2
            transaction.set_rollback(True)

    runner.run(run, "a")
    runner.run(run, "b")
    assert server.one("SELECT count(*) FROM tests_author") == 0


def test_empty_context_without_a_transaction(runner: Runner, server: Server) -> None:
    """Outside a transaction, and detached, it has a connection of its own."""

    async def apart() -> None:
        with detached():
            task = asyncio.create_task(Author.objects.acreate(name="detached"))
        await task

    async def write() -> None:
        await Context().run(asyncio.create_task, Author.objects.acreate(name="a"))

    def run() -> None:
        await_bridged(write())
        with transaction.atomic():
            Author.objects.create(name="lost")
            await_bridged(apart())
            transaction.set_rollback(True)

    runner.run(run)
    assert server.one("SELECT count(*) FROM tests_author") == 2


def test_pools_opened_in_a_transaction(runner: Runner, add_alias: AddAlias) -> None:
    """A pool that a test opens inside its transaction is in none, and outlasts it."""
    alias = add_alias({"pool": {"max_size": 2}})

    def run() -> int:
        with transaction.atomic(), transaction.atomic(alias):
            return Author.objects.using(alias).count()

    def gather() -> list[int]:
        async def main() -> list[int]:
            return list(
                await asyncio.gather(*(Author.objects.using(alias).acount() for _ in range(4)))
            )

        return await_bridged(main())

    assert runner.run(run) == 0
    assert runner.run(gather) == [0] * 4
    runner.run(connections[alias].close)


def test_own_task_factory(runner: Runner) -> None:
    """A task factory that the tests set is used, and theirs to take back."""
    made: list[str] = []

    def factory(loop: Any, coro: Any, **names: Any) -> asyncio.Task[Any]:
        made.append(coro.__name__)
        return asyncio.Task(coro, loop=loop, **names)

    async def work() -> None:
        await asyncio.sleep(0)

    def run() -> None:
        loop = asyncio.get_running_loop()
        before = loop.get_task_factory()
        loop.set_task_factory(factory)
        try:
            await_bridged(asyncio.wait_for(asyncio.ensure_future(work()), PATIENCE))
        finally:
            loop.set_task_factory(before)

    runner.run(run)
    assert "work" in made
