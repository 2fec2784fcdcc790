"""The runner of synchronous functions: one loop, loops inside it, signals, tasks left."""

import asyncio
import importlib
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.db import connection, connections, transaction

from pgbackend import await_bridged, bridged, is_bridged
from pgbackend.runner import Runner
from pgbackend.testing.leftovers import no_tasks_left
from pgbackend.testing.loops import outside_loop
from pgbackend.transaction import detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.wrapper import AddAlias

variable: ContextVar[str] = ContextVar("variable", default="")


@pytest.fixture
def runner() -> Iterator[Runner]:
    """A runner, closed after the test."""
    with Runner() as runner:
        yield runner


def test_run(runner: Runner) -> None:
    """Functions run bridged, all on one loop and in one context, and return their result."""

    def run(word: str, *, end: str) -> tuple[str, str, asyncio.AbstractEventLoop]:
        assert is_bridged()
        before = variable.get()
        variable.set(word + end)
        await_bridged(asyncio.sleep(0))
        return before, variable.get(), asyncio.get_running_loop()

    first, second = runner.run(run, "one", end="!"), runner.run(run, "two", end="!")
    assert [first[:2], second[:2]] == [("", "one!"), ("one!", "two!")]
    assert first[2] is second[2]
    assert variable.get() == ""


def test_connections(runner: Runner, server: Server) -> None:
    """The pool lives from one call to the next, and ends with the runner."""

    def wrapper() -> object:
        Author.objects.create(name=f"author {Author.objects.count()}")
        return connection._connections[connection._alias]

    assert runner.run(wrapper) is runner.run(wrapper)
    assert server.backends() == 1
    runner.close()
    server.wait_for_backends(0)


def test_errors(runner: Runner) -> None:
    """An exception passes as it is, and the runner can be used again."""
    error = KeyError("stop")

    def fail() -> None:
        await_bridged(asyncio.sleep(0))
        raise error

    with pytest.raises(KeyError) as raised:
        runner.run(fail)
    assert raised.value is error
    assert runner.run(is_bridged)


async def test_on_a_running_loop(runner: Runner) -> None:
    """On a running loop the error says what to do."""
    with pytest.raises(RuntimeError, match=r"await pgbackend\.bridged.*--no-bridge"):
        runner.run(is_bridged)


# Loops inside


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


# Signals


def test_interrupted_while_waiting(runner: Runner) -> None:
    """Ctrl-C raises KeyboardInterrupt in the function where it waits, which may go on waiting."""

    def run() -> int:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        try:
            await_bridged(asyncio.Event().wait())
        except KeyboardInterrupt:
            return await_bridged(write_many("after"))
        return 0

    assert runner.run(run) == 5


def test_interrupted_in_a_task(runner: Runner) -> None:
    """So it does while the function waits for a task."""

    async def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    async def wait() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(interrupt())

    with pytest.raises(KeyboardInterrupt):
        runner.run(lambda: await_bridged(wait()))


def test_interrupted_in_another_bridge(runner: Runner) -> None:
    """What another task runs bridged, a pool's worker for one, does not take it over."""
    ended: list[str] = []

    def serve() -> None:
        signal.raise_signal(signal.SIGINT)
        ended.append("in its own time")

    async def wait() -> None:
        task = asyncio.create_task(bridged(serve)())
        try:
            await asyncio.Event().wait()
        finally:
            await task

    with pytest.raises(KeyboardInterrupt):
        runner.run(lambda: await_bridged(wait()))
    assert ended == ["in its own time"]


def test_interrupted_while_running(runner: Runner) -> None:
    """Code that does not wait is interrupted in place."""

    def run() -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        runner.run(run)


def test_interrupted_on_the_way_to_a_loop(runner: Runner) -> None:
    """While no loop runs an interruption waits, and neither loop is harmed by it."""

    def run() -> int:
        wait = asyncio.Event().wait()
        with pytest.raises(KeyboardInterrupt), outside_loop():
            signal.raise_signal(signal.SIGINT)
            asyncio.run(wait)
        wait.close()
        with pytest.raises(KeyboardInterrupt), outside_loop():
            signal.raise_signal(signal.SIGINT)
        return await_bridged(write_many("after"))

    assert runner.run(run) == 5


def test_interrupted_in_a_loop_inside(runner: Runner) -> None:
    """A loop that the function runs is interrupted where it waits."""

    async def wait() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await asyncio.Event().wait()

    def run() -> int:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(wait())
        return await_bridged(write_many("after"))

    assert runner.run(run) == 5


def test_interrupted_at_the_end(runner: Runner) -> None:
    """An interruption that the function has not seen is not lost."""

    def run() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await_bridged(asyncio.sleep(0))

    with pytest.raises(KeyboardInterrupt):
        runner.run(run)


def test_handler_is_restored(runner: Runner) -> None:
    """After the run SIGINT is Python's own again; another's handler is left alone."""
    runner.run(is_bridged)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        runner.run(signal.raise_signal, signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert heard == [signal.SIGINT]


# Tasks left


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


# What is started in an empty Context

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


# Libraries that ask whether a loop runs


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
