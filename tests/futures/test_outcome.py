"""How futures end, and who is told."""

import asyncio
import gc
import logging
import weakref
from contextlib import suppress
from typing import Any

import pytest

from pgbackend.futures import Future
from tests.support.limits import AT_ONCE
from tests.support.threads import start_thread


class Failed(Exception):
    pass


def test_ended_once() -> None:
    """The first end counts; a later one says that it came too late."""
    future = Future[int].pending()
    assert future.set_result(1)
    assert not future.set_exception(Failed())
    assert not future.set_result(2)
    assert not future.cancel()
    assert future.result() == 1


def test_lost_exception(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that nobody asked for is reported; one that was asked for is not."""
    lost: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: lost.append(context))
        Future[int].pending().set_exception(Failed("on a loop"))
        gc.collect()

    asyncio.run(main())
    assert [str(each["exception"]) for each in lost] == ["on a loop"]
    with caplog.at_level(logging.ERROR, "pgbackend.futures"):
        asked = Future[int].pending()
        asked.set_exception(Failed())
        with suppress(Failed):
            asked.result()
        del asked
        gc.collect()
        assert caplog.text == ""
        Future[int].pending().set_exception(Failed("in a thread"))
        gc.collect()
    assert "Future exception was never retrieved" in caplog.text


def test_collected_without_the_collector() -> None:
    """Raising its exception makes no cycle with a future."""
    gc.collect()
    gc.disable()
    try:
        future = Future[int].pending()
        future.set_exception(Failed())
        here = weakref.ref(future)
        with suppress(Failed):
            future.result()
        del future
        assert here() is None
    finally:
        gc.enable()


def test_many_threads() -> None:
    """Threads that wait and a thread that ends the work do not miss each other."""
    for _ in range(200):
        future = Future[int].pending()
        found: list[int] = []
        threads = [
            start_thread(lambda future=future, found=found: found.append(future.result(AT_ONCE)))
            for _ in range(3)
        ]
        future.set_result(1)
        for thread in threads:
            thread.join()
        assert found == [1, 1, 1]


def test_repr() -> None:
    """The representation says how far the work is."""
    future = Future[int].pending(start=lambda future: None)
    words = [repr(future), repr(future.start())]
    future.set_result(3)
    words.append(repr(future))
    assert words == ["<Future not started>", "<Future pending>", "<Future result=3>"]
