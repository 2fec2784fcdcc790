"""The runner of synchronous functions: one loop, its signals, and errors."""

import asyncio
import signal
from collections.abc import Iterator
from contextvars import ContextVar

import pytest
from django.db import connection

from pgbackend import await_bridged, bridged, is_bridged
from pgbackend.runner import Runner
from pgbackend.testing.loops import outside_loop
from tests.models import Author
from tests.support.loops_inside import write_many
from tests.support.server import Server

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
