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


def _holder_gone_error() -> BaseException:
    """Return the error for a task that waits for a lock that nobody will release."""
    return BridgeError(
        "the coroutine that held this lock was closed while it waited, and will not release it"
    )


class BridgedLock:
    """A lock between tasks, with the synchronous interface that DB-API cursors expect.

    A task holds the lock while a statement waits for the server. A `threading.Lock` would block the
    event loop as soon as a second task of the same transaction wanted its turn. Taking a free lock
    never waits.

    *lost* returns the error to raise where the holder will never release the lock.
    """

    def __init__(self, lost: Callable[[], BaseException] = _holder_gone_error) -> None:
        self.held = False
        # The task that took the lock.
        self.holder: asyncio.Task[Any] | None = None
        self._lost = lost
        # How often the lock was taken.
        self.uses = 0
        # The futures of the waiting tasks: True hands the lock over, False refuses it.
        self._waiting: deque[asyncio.Future[bool]] = deque()
        # How often the waiting tasks were refused, and the function that returns the latest error.
        self._refusals = 0
        self._refusal: Callable[[], BaseException] = _holder_gone_error

    def __enter__(self) -> None:
        if self.held:
            await_bridged(self._wait())
        # It raises in a thread without a loop, which must not leave the lock held.
        self.holder = current_task()
        self.held = True
        self.uses += 1

    async def acquire(self) -> None:
        """Take the lock in asynchronous code, as entering ``with`` does."""
        if self.held:
            await self._wait()
        self.held = True
        self.holder = current_task()
        self.uses += 1

    def release(self) -> None:
        """Release the lock, as leaving ``with`` does, and hand it to the next waiting task."""
        self.holder = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done() and _answer(turn, True):
                return
        self.held = False

    def refuse_waiting(self, error: Callable[[], BaseException]) -> None:
        """Make all waiting tasks raise the error that *error* returns, since their aim has ended.

        This includes tasks that were handed the lock but have not resumed yet.
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
            # generator around the wait is not told, and never resumes.
            raise self._lost()
        refusals = self._refusals
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            handed = await turn
        except BaseException:
            if not _withdraw(turn) and turn.result():
                # The lock was handed over at the same moment as the cancellation or the closing.
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
        if self._waiting:
            self.release()
        else:
            self.holder, self.held = None, False


def _withdraw(turn: asyncio.Future[bool]) -> bool:
    """Mark *turn* as one that nobody waits for; return False if it has its result already.

    A closed coroutine leaves its future pending, unlike a cancelled one.
    """
    if turn.done() and not turn.cancelled():
        return False
    # The loop may be closed if the coroutine is collected only now.
    with suppress(RuntimeError):
        turn.cancel()
    return True


def _answer(turn: asyncio.Future[bool], handed: bool) -> bool:
    """Tell the task that waits for *turn*; return False if its event loop is closed."""
    if turn.get_loop().is_closed():
        return False
    turn.set_result(handed)
    return True
