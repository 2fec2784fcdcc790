"""Synchronous test code that runs a loop, or asks whether one runs."""

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction

from pgbackend import await_bridged, bridged, is_bridged
from pgbackend.runner import Runner
from pgbackend.testing.loops import outside_loop
from tests.models import Author
from tests.support.loops_inside import WAYS, write_many
from tests.support.server import Server


@pytest.mark.parametrize("count", WAYS)
def test_loop_in_a_transaction(runner: Runner, server: Server, count: Callable[[str], int]) -> None:
    """A loop that the function runs joins its transaction, and its own loop goes on after it."""

    def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        with transaction.atomic():
            assert await_bridged(write_many("before")) == 5
            assert count("inside") == 10
            assert asyncio.get_running_loop() is loop
            assert asyncio.current_task() is task
            assert await_bridged(write_many("after")) == 15
            assert count("again") == 20
            assert server.backends() == 1
            transaction.set_rollback(True)
        assert Author.objects.count() == 0

    runner.run(run)


@pytest.mark.parametrize("count", WAYS)
def test_loop_without_a_transaction(
    runner: Runner, server: Server, count: Callable[[str], int]
) -> None:
    """Outside a transaction a loop that the function runs has a pool of its own, and ends it."""

    def run() -> None:
        assert Author.objects.count() == 0
        assert count("inside") == 5
        assert Author.objects.count() == 5

    runner.run(run)
    server.wait_for_backends(1)


def test_failing_loop(runner: Runner) -> None:
    """What such a loop raises passes, and the runner's own loop goes on."""

    async def fail() -> None:
        raise KeyError("stop")

    def run() -> int:
        with transaction.atomic():
            with pytest.raises(KeyError, match="stop"):
                asyncio.run(fail())
            return await_bridged(write_many("after"))

    assert runner.run(run) == 5


def test_no_loop_in_a_coroutine(runner: Runner) -> None:
    """Inside a coroutine a loop is refused as ever; so it is where no runner runs."""

    async def main() -> None:
        sleep = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="running event loop"):
            asyncio.run(sleep)
        sleep.close()

    runner.run(lambda: await_bridged(main()))
    runner.run(lambda: await_bridged(asyncio.create_task(main())))
    asyncio.run(main())


def test_outside_loop(runner: Runner) -> None:
    """Outside the loop none is running, and nothing is bridged."""

    def run() -> None:
        with outside_loop():
            assert asyncio._get_running_loop() is None
            assert not is_bridged()
        assert is_bridged()
        await_bridged(asyncio.sleep(0))

    runner.run(run)


ASKING = """
import asyncio
from asyncio import get_running_loop

def asks(function):
    try:
        function()
    except RuntimeError:
        return False
    return True

def in_async_context():
    by_name, by_module = asks(lambda: get_running_loop()), asks(lambda: asyncio.get_running_loop())
    assert by_name == by_module
    return by_name

async def in_a_coroutine():
    return in_async_context()
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An installed module that asks, as GraphQL's do, whether its caller is asynchronous."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "asking_library.py").write_text(ASKING)
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("asking_library")
    yield module
    del sys.modules["asking_library"]


def test_libraries_in_synchronous_code(runner: Runner, library: Any) -> None:
    """A library finds no running loop in synchronous test code, and what it calls, as in a plain
    run; in coroutines, tasks and loops inside it does."""
    asked = library.in_async_context

    async def work() -> list[bool]:
        in_thread = await sync_to_async(asked, thread_sensitive=False)()
        in_task = await asyncio.create_task(library.in_a_coroutine())
        # A synchronous view of a request that a coroutine makes, for one.
        return [asked(), await library.in_a_coroutine(), in_task, in_thread, await later()]

    async def later() -> bool:
        return await sync_to_async(asked)()

    def run() -> None:
        assert not asked()
        with transaction.atomic():
            assert Author.objects.count() == 0
            assert not asked()
        assert async_to_sync(work)() == [True, True, True, False, False]
        assert asyncio.run(library.in_a_coroutine())
        assert not asked()
        # The tests themselves see the loop that they are on.
        assert asyncio.get_running_loop() is loop

    loop = runner.run(asyncio.get_running_loop)
    runner.run(run)
    assert not asked()


async def test_libraries_without_a_runner(library: Any) -> None:
    """Outside a test run a library finds the loop that runs, in bridged code as well."""
    assert library.in_async_context()
    assert await bridged(library.in_async_context)()
