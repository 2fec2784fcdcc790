"""A line of those who wait for something that one has at a time; the first come is called first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from threading import get_ident


class Place:
    """The place of a task that waits in a line, until it is called or gives up.

    *number* says how many came before; *since* is when it came, as of the event loop's clock, and
    *seconds* how long it will wait.
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
        # Whether it was called because its time is over.
        self.expired = False
        # Whether nobody waits at it any more: cancelled, closed, or served.
        self.gone = False

    def again(self) -> Place:
        """Return a place for the same task, which was called and has to wait on."""
        place = Place(self.number, self.seconds)
        place.since = self.since
        return place

    async def wait(self) -> None:
        """Wait to be called."""
        await self._future

    def call(self) -> bool:
        """Let the task go on; return False if it does not wait any more, or never can."""
        loop = self._future.get_loop()
        if self.called or self.gone or loop.is_closed():
            return False
        self.called = True
        if self._thread == get_ident():
            self._wake()
        else:
            # The collector ends somebody's turn in whichever thread it happens to run.
            loop.call_soon_threadsafe(self._wake)
        return True

    def expire(self) -> None:
        """Let the task, if it still waits, go on to say that it has waited too long."""
        if self.call():
            self.expired = True

    def _wake(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Line:
    """Places in the order of their numbers."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: deque[Place] = deque()

    def __bool__(self) -> bool:
        """Whether there are places, also such as nobody waits at any more."""
        return bool(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def add(self, place: Place) -> None:
        """Add a place, mostly the last one."""
        if self._places and self._places[-1].number > place.number:
            self._places.append(place)
            self._sort()
        else:
            self._places.append(place)

    def take_over(self, other: Line) -> None:
        """Add all places of *other*, which loses them."""
        if not self._places:
            self._places, other._places = other._places, self._places
        elif other._places:
            self._places += other._places
            other._places.clear()
            self._sort()

    def call_next(self) -> Place | None:
        """Call the first one who waits, take his place away and return it; None if nobody does."""
        while self._places:
            place = self._places.popleft()
            if place.call():
                return place
        return None

    def _sort(self) -> None:
        # Of two runs that are in order already: linear.
        self._places = deque(sorted(self._places, key=lambda place: place.number))
