"""The messages that wait for an answer: each has a future and ends by its deadline."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from asyncio import TimerHandle
from typing import NamedTuple

from ...futures.result import Future
from ..protocol.errors import DeadlinePassed, RemoteError, Unavailable

# No timer is set for longer than a day: what the platforms' selectors take is bounded.
_LONGEST = 86_400.0


class _Waiting(NamedTuple):
    future: Future[str]
    timer: TimerHandle | None


class Pending:
    """The futures of a transport by the ids of their messages.

    It belongs to the loop of the transport's thread, `new_id` aside. An id begins with `prefix`,
    which no other process has, and consists of hexadecimal digits and a dash.
    """

    def __init__(self) -> None:
        self.prefix = secrets.token_hex(8)
        # Why no answer can come at the moment; None: nothing is known.
        self.trouble: BaseException | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[str, _Waiting] = {}

    def __repr__(self) -> str:
        trouble = "" if self.trouble is None else f" trouble={self.trouble!r}"
        return f"<{type(self).__name__} {len(self._waiting)}{trouble}>"

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._waiting

    def new_id(self) -> str:
        """Return an id that was never used; from any thread."""
        return f"{self.prefix}-{next(self._numbers):x}"

    def ids(self) -> list[str]:
        """Return the ids that wait, the oldest first."""
        return list(self._waiting)

    def add(self, message_id: str, future: Future[str], deadline: float) -> None:
        """Have *future* wait for the answer until *deadline*, in seconds since the epoch."""
        left = min(deadline - time.time(), _LONGEST)
        if left <= 0:
            future.set_exception(DeadlinePassed("the deadline had passed before it was sent"))
            return
        timer = asyncio.get_running_loop().call_later(left, self._too_late, message_id)
        self._waiting[message_id] = _Waiting(future, timer)

    def answer(self, message_id: str, wire: str) -> bool:
        """Resolve the future; return False where nobody waits, as for an answer that came twice."""
        waiting = self._take(message_id)
        return waiting is not None and waiting.future.set_result(wire)

    def fail(self, message_id: str, error: RemoteError) -> bool:
        """End the future with *error*; return False where nobody waits."""
        waiting = self._take(message_id)
        return waiting is not None and waiting.future.set_exception(error)

    def forget(self, message_id: str) -> None:
        """Wait for the answer no longer: the future was cancelled."""
        self._take(message_id)

    def fail_all(self, error: RemoteError) -> None:
        """End all futures with *error*."""
        for each in self.ids():
            self.fail(each, error)

    def _take(self, message_id: str) -> _Waiting | None:
        waiting = self._waiting.pop(message_id, None)
        if waiting is not None and waiting.timer is not None:
            waiting.timer.cancel()
        return waiting

    def _too_late(self, message_id: str) -> None:
        words = "no answer came before the deadline"
        if self.trouble is None:
            self.fail(message_id, DeadlinePassed(words))
        else:
            self.fail(message_id, Unavailable(f"{words}: {self.trouble}"))
