"""Futures in the order in which they end."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections.abc import AsyncGenerator, Iterator
from queue import SimpleQueue
from typing import Any

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged, run_bridged
from .gathering import Gathering, future_for
from .result import Future, not_awaited_error
from .threads import ThreadDriver


class as_completed:
    """Iterate over futures in the order in which they end, by ``async for`` or ``for``.

    The *subjects* and *savepoints* are those of `gather`; what is yielded are futures that have
    ended. Where the running task, or thread, is in a transaction, all run before the first one is
    yielded. What has not ended is cancelled when the iteration is left.
    """

    def __init__(self, *subjects: Any, savepoints: bool = False) -> None:
        self._gathering = Gathering(
            [future_for(each) for each in subjects], return_exceptions=True, savepoints=savepoints
        )

    async def __aiter__(self) -> AsyncGenerator[Future[Any], None]:
        """Yield the futures as they end."""
        ended: asyncio.Queue[Future[Any]] = asyncio.Queue()
        for future in self._gathering.futures:
            future.add_done_callback(ended.put_nowait)
        together, apart = self._gathering.begin()
        try:
            if together:
                await run_bridged(self._gathering.drive, together)
            for _ in self._gathering.futures:
                yield await ended.get()
        finally:
            for future in apart:
                future.cancel()
            self._gathering.leave()

    def __iter__(self) -> Iterator[Future[Any]]:
        """Yield the futures as they end, in bridged code or in a plain thread."""
        if is_bridged():
            iterator = aiter(self)
            try:
                while (future := await_bridged(anext(iterator, None))) is not None:
                    yield future
            finally:
                await_bridged(iterator.aclose())
        elif _get_running_loop() is not None:
            raise not_awaited_error()
        else:
            yield from self._in_thread()

    def _in_thread(self) -> Iterator[Future[Any]]:
        ended: SimpleQueue[Future[Any]] = SimpleQueue()
        left = len(self._gathering.futures)
        for future in self._gathering.futures:
            future.add_done_callback(ended.put)
        try:
            for futures in self._gathering.parts_in_thread():
                self._gathering.drive(futures, ThreadDriver)
                while not ended.empty():
                    yield ended.get()
                    left -= 1
            for _ in range(left):
                yield ended.get()
        finally:
            self._gathering.leave()
