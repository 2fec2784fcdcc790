"""Callbacks at the end of bridged calls."""

import asyncio

import pytest

from pgbackend.bridge.current import BridgeError
from pgbackend.bridge.ends import on_exit
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.suspended import suspend


async def test_on_exit_runs_in_reverse_order_at_the_end() -> None:
    """Callbacks run once each, last registered first, at the end of the outermost call."""
    steps: list[str] = []
    first, second = (lambda: steps.append("first")), (lambda: steps.append("second"))

    def inner() -> None:
        on_exit(second)
        on_exit(first)
        steps.append("inner")

    def function() -> None:
        on_exit(first)
        await_bridged(run_bridged(inner))
        steps.append("function")

    await run_bridged(function)
    assert steps == ["inner", "function", "second", "first"]
    await run_bridged(lambda: None)
    assert len(steps) == 4


async def test_on_exit_runs_after_an_exception() -> None:
    """Callbacks run when the function has failed, and its exception passes through."""
    steps: list[str] = []
    error = ValueError()

    def function() -> None:
        on_exit(lambda: steps.append("exit"))
        raise error

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the very object, below
        await run_bridged(function)
    assert caught.value is error
    assert steps == ["exit"]


async def test_on_exit_may_await() -> None:
    """A callback runs bridged: it may wait, and the caller goes on only afterwards."""
    steps: list[str] = []

    def function() -> str:
        on_exit(lambda: steps.append(await_bridged(suspend("waited", times=3))))
        return "result"

    assert await run_bridged(function) == "result"
    assert steps == ["waited"]


async def test_on_exit_that_fails_keeps_no_other_from_running() -> None:
    """A callback's exception leaves the call after all callbacks have run."""
    steps: list[str] = []

    def broken() -> None:
        raise LookupError

    def function() -> None:
        on_exit(lambda: steps.append("last"))
        on_exit(broken)

    with pytest.raises(LookupError):
        await run_bridged(function)
    assert steps == ["last"]


async def test_on_exit_runs_when_the_call_is_closed() -> None:
    """Callbacks run when the coroutine is closed in mid-wait."""
    steps: list[str] = []

    def function() -> None:
        on_exit(lambda: steps.append("exit"))
        await_bridged(asyncio.Event().wait())

    coroutine = run_bridged(function)
    coroutine.send(None)
    coroutine.close()
    assert steps == ["exit"]


async def test_on_exit_outside_the_bridge() -> None:
    """on_exit outside the bridge is a BridgeError."""
    with pytest.raises(BridgeError, match="outside the bridge"):
        on_exit(lambda: None)
