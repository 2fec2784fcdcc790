"""Threads that joined a transaction of the event loop: what they do with it runs on the loop.

``sync_to_async`` and `asyncio.to_thread` move the context into their worker thread, and with it
the transaction. The thread's cursors and ``atomic`` blocks are handed to the loop, which waits
for the thread anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any, TypeVar

from django.db import connections

from .bridge import run_bridged
from .joining import Transaction, transactions
from .turns import current_actor, delegate, innermost

T = TypeVar("T")

# How often a thread that waits looks whether the loop still runs, seconds.
_INTERVAL = 1.0


def hand_over(
    transaction: Transaction, seconds: float, function: Callable[..., T], *args: Any
) -> T:
    """Run *function* bridged on the loop of *transaction*, and return its result.

    The loop has *seconds* to begin; RuntimeError after that, with nothing done, and when the
    loop ends meanwhile.
    """
    actor = current_actor()
    started = threading.Event()
    frame, entered = innermost.get(), transactions.get({})

    async def run() -> T:
        nonlocal frame, entered
        started.set()
        delegate.set(actor)
        for each in transactions.get({}).values():
            # asgiref hides a thread's wrappers from the context that is moved back.
            if each.thread == threading.get_ident():
                connections[each.wrapper.alias] = each.wrapper
        try:
            return await run_bridged(function, *args)
        finally:
            frame, entered = innermost.get(), transactions.get({})

    coroutine = run()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, transaction.loop)
    except RuntimeError as error:
        coroutine.close()
        raise _gone() from error
    if not started.wait(seconds):
        future.cancel()
        raise RuntimeError(
            f"the event loop did not take a thread's statement within {seconds:g} s: something"
            " blocks it, or it has ended. See 'turn_timeout' in OPTIONS"
        )
    while not wait([future], _INTERVAL).done:
        if not transaction.loop.is_running():
            raise _gone()
    innermost.set(frame)
    transactions.set(entered)
    return future.result()


def _gone() -> RuntimeError:
    return RuntimeError(
        "the event loop of the transaction that this thread joined has ended, and with it the"
        " transaction: nothing of it was committed"
    )


class Handed:
    """Something of psycopg's or Django's whose every call runs on the loop; a cursor mostly."""

    def __init__(self, target: Any, call: Callable[..., Any]) -> None:
        self._target = target
        self._call = call

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._wrap(self._call(lambda: value(*args, **kwargs)))

        return call

    def __enter__(self) -> Any:
        return self._wrap(self._call(self._target.__enter__))

    def __exit__(self, *exc_info: Any) -> Any:
        return self._call(self._target.__exit__, *exc_info)

    def __iter__(self) -> Any:
        return self._wrap(self._call(iter, self._target))

    def __next__(self) -> Any:
        # A StopIteration cannot cross a coroutine's end.
        end = object()
        item = self._call(next, self._target, end)
        if item is end:
            raise StopIteration
        return item

    def _wrap(self, result: Any) -> Any:
        if result is self._target:
            return self
        # Cursors, COPY, their context managers and iterators; no data, such as a memoryview.
        waits = hasattr(result, "__next__") or hasattr(result, "__enter__")
        if waits and not isinstance(result, memoryview):
            return Handed(result, self._call)
        return result
