"""A lock between tasks that bridged code can wait for."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from .current import BridgeError
from .greenlets import await_bridged


def _lost() -> BaseException:
    """Return the error for who waits for a lock that nobody will release."""
    return BridgeError(
        "the coroutine that held this lock was closed while it waited, and will not release it"
    )


class BridgedLock:
    """A lock between tasks, with the synchronous face that DB-API cursors expect.

    It is held while a statement waits for the server: a `threading.Lock` there would stop
    the event loop as soon as a second task of the same transaction wanted its turn. Taking a
    free one costs nothing.

    Where its holder will not release it any more, *lost* is called, and returns what is raised.
    """

    def __init__(self, lost: Callable[[], BaseException] = _lost) -> None:
        self.held = False
        # The task that took it.
        self.holder: asyncio.Task[Any] | None = None
        self._lost = lost
        # How often it was taken.
        self.uses = 0
        # A turn's future says whether the lock was handed over, or refused.
        self._waiting: deque[asyncio.Future[bool]] = deque()
        # How often those who waited were refused, and what makes the error of the last time.
        self._refusals = 0
        self._refusal: Callable[[], BaseException] = _lost

    def __enter__(self) -> None:
        if self.held:
            await_bridged(self._wait())
        self.held = True
        self.holder = current_task()
        self.uses += 1

    async def acquire(self) -> None:
        """Do what ``with`` does at its beginning, in asynchronous code."""
        if self.held:
            await self._wait()
        self.held = True
        self.holder = current_task()
        self.uses += 1

    def release(self) -> None:
        """Do what ``with`` does at its end."""
        self.holder = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done() and _answer(turn, True):
                return
        self.held = False

    def refuse_waiting(self, error: Callable[[], BaseException]) -> None:
        """Have all who wait raise what *error* returns: what they wait for has ended.

        Also those who were handed the lock and have not gone on yet.
        """
        self._refusals += 1
        self._refusal = error
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                _answer(turn, False)

    async def _wait(self) -> None:
        """Wait until the lock is handed over."""
        holder = self.holder
        if holder is not None and (holder is current_task() or holder.done()):
            # The holder waits in a coroutine that was closed: before CPython 3.13 an asynchronous
            # generator that it is in does not learn that, and never goes on.
            raise self._lost()
        refusals = self._refusals
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            handed = await turn
        except BaseException:
            if not _give_up(turn) and turn.result():
                # The lock was handed over together with the cancellation, or the closing.
                self.release()
            raise
        if self._refusals != refusals:
            if handed:
                self.release()
            raise self._refusal()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def _give_up(turn: asyncio.Future[bool]) -> bool:
    """Mark *turn* as one that nobody waits for; return False if it was there already.

    A closed coroutine leaves its future as it is, unlike a cancelled one.
    """
    if turn.done() and not turn.cancelled():
        return False
    # The loop of a coroutine that is only now collected may be closed.
    with suppress(RuntimeError):
        turn.cancel()
    return True


def _answer(turn: asyncio.Future[bool], handed: bool) -> bool:
    """Tell who waits for *turn*; return False if its event loop is closed."""
    if turn.get_loop().is_closed():
        return False
    turn.set_result(handed)
    return True
