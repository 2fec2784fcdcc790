"""Subscriptions: the rows of a queryset now, and again whenever they have become others.

A subscription is one message after another. Each says what the one before was answered, and the
service answers as soon as it has something else. So a change between two messages is noticed by the
next one, whatever happened meanwhile: a restart, a lost connection, a worker that died.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from ...futures.result import Future
from ..protocol.errors import Malformed, RemoteError

T = TypeVar("T")

logger = logging.getLogger("pgbackend.rpc")

# Seconds that one message waits for changes, within the service's `max_wait`.
WAIT = 10.0

# A longer wait is this one, so that the deadline is within the service's `max_deadline`.
_LONGEST_WAIT = 600.0

# Seconds beside those in which the answer has to come, where the client's time-out is not shorter.
MARGIN = 5.0

# Seconds at least between two answers, so that a burst of changes is one.
EVERY = 0.1

# Seconds for which a service may be away before a subscription ends by the error.
PATIENCE = 60.0

# The codes of errors that pass: the service, its database or the way to it is away. Messages that
# nobody waits for any more, of a client that was started again or has lost its connection, still
# count as subscriptions until they end.
_PASSING = frozenset({"Unavailable", "DeadlinePassed", "OperationalError", "TooManySubscriptions"})

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 5.0

# What the service answers to one message: what it calls the rows, and these; None: no others came.
Answer = tuple[str, T] | None


class Subscription(Generic[T]):
    """Iterate over it for the rows, as they are now and then whenever they are others.

    ``async for`` in tasks, ``for`` in threads and in bridged code; one reader at a time. The
    iteration goes on through outages of up to *patience* seconds, None: of any length, and raises
    what a queryset would raise else: the subscription is over then. `close` ends it, and so do
    ``async with`` and ``with``; from then on nothing is left in the service but a message that ends
    within seconds.

    *ask* sends a message with what was seen, None: nothing, and seconds to wait. *every* are the
    seconds at least between two results.
    """

    def __init__(
        self,
        ask: Callable[[str | None, float], Future[Any]],
        *,
        every: float = EVERY,
        patience: float | None = PATIENCE,
        wait: float = WAIT,
    ) -> None:
        for name, value in (("every", every), ("patience", patience), ("wait", wait)):
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is in seconds, 0 or more, not {value!r}")
        self._ask = ask
        self._every = every
        self._patience = patience
        self._wait = min(wait, _LONGEST_WAIT)
        self._seen: str | None = None
        self._answered_at: float | None = None
        # What the reader waits for now.
        self._current: Future[Any] | None = None
        self._is_read = False
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "new" if self._seen is None else "open"
        return f"<{type(self).__name__} {state}>"

    def close(self) -> None:
        """End the iteration, that of another task or thread too; from any thread."""
        self._is_closed = True
        current = self._current
        if current is not None:
            current.cancel()

    async def aclose(self) -> None:
        """Do what `close` does."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> T:
        # What blocks suspends nothing, so the coroutine ends at once.
        reading = self._next(_block)
        try:
            reading.send(None)
        except StopIteration as ended:
            found: T = ended.value
            return found
        except _Closed:
            raise StopIteration from None
        finally:
            reading.close()
        raise AssertionError("a blocking wait has suspended")

    async def __anext__(self) -> T:
        try:
            return await self._next(_wait)
        except _Closed:
            raise StopAsyncIteration from None

    async def _next(self, wait: _Waiting) -> T:
        """Return the next rows; raise `_Closed` at the end."""
        if self._is_read:
            raise RuntimeError("somebody reads this subscription already: each reader needs one")
        self._is_read = True
        try:
            return await self._rows(wait)
        except _Closed:
            raise
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError | TimeoutError):
                self._is_closed = True
            raise
        finally:
            self._is_read = False

    async def _rows(self, wait: _Waiting) -> T:
        away_since: float | None = None
        failures = 0
        if self._answered_at is not None:
            await self._pause(wait, self._answered_at + self._every - time.monotonic())
        while True:
            asked_at = time.monotonic()
            try:
                found = await self._one(wait, self._ask(self._seen, self._wait), None)
            except Exception as error:
                if not _passes(error):
                    raise
                now = time.monotonic()
                if away_since is None:
                    logger.warning("a subscription is interrupted: %s", error)
                    away_since = asked_at
                if self._patience is not None and now - away_since >= self._patience:
                    raise
                failures += 1
            else:
                away_since = None
                if found is not None:
                    self._answered_at = time.monotonic()
                    self._seen, rows = found
                    return rows  # type: ignore[no-any-return]  # what `ask` has converted
                # One that is about to end answers at once, and another one may not be there yet.
                early = time.monotonic() - asked_at < min(self._wait / 2, 1.0)
                failures = failures + 1 if early else 0
            rest = asked_at + self._every - time.monotonic()
            await self._pause(wait, _delay(failures) if failures else rest)

    async def _pause(self, wait: _Waiting, seconds: float) -> None:
        if seconds > 0:
            await self._one(wait, Future.pending(), seconds)

    async def _one(self, wait: _Waiting, future: Future[Any], seconds: float | None) -> Any:
        """Return the result of *future*, or None if it has none after *seconds*."""
        self._current = future
        try:
            if self._is_closed:
                raise _Closed
            return await wait(future, seconds)
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            if self._is_closed and not _is_being_cancelled():
                raise _Closed from None
            raise
        finally:
            self._current = None
            # Where the reader was cancelled, nobody waits for the answer.
            future.cancel()


class _Closed(Exception):
    """The subscription was closed."""


_Waiting = Callable[[Future[Any], float | None], Awaitable[Any]]


async def _wait(future: Future[Any], seconds: float | None) -> Any:
    if seconds is None or await future.wait(seconds):
        return await future
    return None


async def _block(future: Future[Any], seconds: float | None) -> Any:
    if seconds is None:
        return future.result()
    with suppress(TimeoutError):
        return future.result(seconds)
    return None


def _is_being_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:
        # A plain thread.
        return False
    return task is not None and task.cancelling() > 0


def _passes(error: Exception) -> bool:
    """Return whether *error* is one of an outage; Django's have that of the service as cause."""
    found = error if isinstance(error, RemoteError) else error.__cause__
    return isinstance(found, RemoteError) and found.code in _PASSING


def _delay(failures: int) -> float:
    """Return the seconds until the next attempt: more after each, half of them random."""
    full = min(_FIRST_DELAY * 2.0 ** min(failures - 1, 20), _LONGEST_DELAY)
    return full * random.uniform(0.5, 1.0)


def deadline_of(seconds: float, timeout: float) -> float:
    """Return within how many seconds a message that waits *seconds* is answered."""
    return seconds + min(timeout, MARGIN)


def answer_of(value: Any, convert: Callable[[Any], T]) -> Answer[T]:
    """Return what a service has answered to a message that waited, its rows as *convert* has them.

    Raise `Malformed`.
    """
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        raise Malformed("changes were asked for, and something else was answered")
    return value[0], convert(value[1])
