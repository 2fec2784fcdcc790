"""A line of tasks that wait for something only one of them may have; first come, first called."""

from __future__ import annotations

import asyncio
from collections import deque
from threading import get_ident


class Waiter:
    """A task that waits in a line, until it is called or gives up.

    *number* orders the waiters: a lower number is called first. *since* is the time when the task
    came, by the event loop's clock. *seconds* is how long the task will wait.
    """

    __slots__ = ("_future", "_thread", "called", "expired", "gone", "number", "seconds", "since")

    def __init__(self, number: int, seconds: float) -> None:
        self.number = number
        self.seconds = seconds
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        self._thread = get_ident()
        self._future = loop.create_future()
        self.called = False
        # Whether the task was called because its time is over.
        self.expired = False
        # Whether the task waits no longer: it was cancelled, closed, or served.
        self.gone = False

    def again(self) -> Waiter:
        """Return a new waiter for the same task, which was called and has to wait again."""
        waiter = Waiter(self.number, self.seconds)
        waiter.since = self.since
        return waiter

    async def wait(self) -> None:
        """Wait until the task is called."""
        await self._future

    def call(self) -> bool:
        """Wake the task; return False if it does not wait any more, or never can resume."""
        loop = self._future.get_loop()
        if self.called or self.gone or loop.is_closed():
            return False
        self.called = True
        if self._thread == get_ident():
            self._wake()
        else:
            # The collector may end a turn in any thread.
            loop.call_soon_threadsafe(self._wake)
        return True

    def expire(self) -> None:
        """Wake the task, if it still waits, to report that it has waited too long."""
        if self.call():
            self.expired = True

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class WaitingLine(deque[Waiter]):
    """Waiters in the order of their numbers, including tasks that wait no longer."""

    __slots__ = ()

    def add(self, waiter: Waiter) -> None:
        """Add a waiter; it usually comes last."""
        is_last = not self or self[-1].number <= waiter.number
        self.append(waiter)
        if not is_last:
            self._sort()

    def take_over(self, other: WaitingLine) -> None:
        """Move all waiters of *other* into this line."""
        was_empty = not self
        self.extend(other)
        other.clear()
        if not was_empty:
            self._sort()

    def call_next(self) -> Waiter | None:
        """Call the first waiting task, remove and return its waiter; None if no task waits."""
        while self:
            waiter = self.popleft()
            if waiter.call():
                return waiter
        return None

    def _sort(self) -> None:
        # Sorting two runs that are already in order takes linear time.
        ordered = sorted(self, key=lambda waiter: waiter.number)
        self.clear()
        self.extend(ordered)
