"""Transactions that are run again if the server has undone them for the sake of others.

https://www.postgresql.org/docs/current/mvcc-serialization-failure-handling.html
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from types import TracebackType
from typing import Any, TypeVar, overload

import django.db
import psycopg
from asgiref.sync import iscoroutinefunction

from .bridge.current import can_wait, is_bridged
from .bridge.greenlets import await_bridged
from .errors import CommitInDoubt
from .isolation import Atomic, Isolation, characteristics

F = TypeVar("F", bound=Callable[..., Any])

# SQLSTATE of serialization_failure and of deadlock_detected.
_CONFLICTS = ("40001", "40P01")


@overload
def retrying(using: F, /) -> F: ...


@overload
def retrying(
    using: str | None = None,
    *,
    attempts: int = 10,
    delay: float = 0.02,
    max_delay: float = 1.0,
    isolation: Isolation | None = None,
    read_only: bool | None = None,
    deferrable: bool | None = None,
) -> Retrying: ...


def retrying(
    using: Any = None,
    *,
    attempts: int = 10,
    delay: float = 0.02,
    max_delay: float = 1.0,
    isolation: Isolation | None = None,
    read_only: bool | None = None,
    deferrable: bool | None = None,
) -> Any:
    """Return what runs a transaction again after a serialization failure or a deadlock.

        @retrying(isolation="serializable")
        async def transfer(source, target, amount): ...

        async for attempt in retrying(isolation="serializable"):
            async with attempt:
                ...

    Functions and coroutine functions are decorated; ``for`` and ``with`` do what ``async for`` and
    ``async with`` do in bridged code and in threads. Each attempt is a transaction of its own, as
    `atomic` makes it with the last three arguments, and has to be the outermost: RuntimeError
    inside an open one. Hooks of ``on_commit`` run for the attempt that is committed alone.

    There are at most *attempts*; then the last error is raised. Before the second one a random time
    passes, up to *delay* seconds; before each other one up to twice as long as before, *max_delay*
    seconds at most. Meanwhile no connection is held. Only errors of the database with the codes
    40001 and 40P01 are answered so, never `CommitInDoubt`.
    """
    if callable(using):
        return Retrying(None, 10, 0.02, 1.0, characteristics("retrying()", None, None, None))(using)
    asked = characteristics("retrying()", isolation, read_only, deferrable)
    return Retrying(using, attempts, delay, max_delay, asked)


class Retrying:
    """A transaction that is tried a number of times, as often as it is called or iterated over."""

    def __init__(
        self, using: str | None, attempts: int, delay: float, max_delay: float, asked: Any
    ) -> None:
        if attempts < 1 or delay < 0 or max_delay < 0:
            raise ValueError(
                "attempts is 1 or more, delay and max_delay are seconds, 0 or more; not"
                f" {attempts!r}, {delay!r} and {max_delay!r}"
            )
        self._using, self._asked = using, asked
        self.attempts, self.delay, self.max_delay = attempts, delay, max_delay

    def __repr__(self) -> str:
        return f"<{self._asked.name} on {self._using or 'default'!r}, {self.attempts} attempts>"

    def block(self) -> Atomic:
        """Return the block of one attempt."""
        return Atomic(self._using, True, False, self._asked)

    def wait_before(self, number: int) -> float:
        """Return how long to wait before the attempt *number*, seconds."""
        if number == 1:
            return 0.0
        # Those who met once must not meet again, so all of the time is random.
        longest = min(self.max_delay, self.delay * 2.0 ** min(number - 2, 60))
        return random.uniform(0, longest)

    def __iter__(self) -> Iterator[Attempt]:
        return _Attempts(self)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        return _Attempts(self)

    def __call__(self, function: F) -> F:
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise TypeError(
                f"retrying() cannot decorate {function!r}, a generator, whose values are gone when"
                " an attempt fails. Decorate a function that returns them"
            )
        decorate = self._awaiting if iscoroutinefunction(function) else self._calling
        decorated: F = decorate(function)
        return decorated

    def _awaiting(self, function: Any) -> Any:
        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            async for attempt in self:
                async with attempt:
                    result = await function(*args, **kwargs)
            return result

        return call

    def _calling(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for attempt in self:
                with attempt:
                    result = function(*args, **kwargs)
                    if inspect.iscoroutine(result):
                        result.close()
                        raise TypeError(
                            f"retrying() cannot see that {function!r} is asynchronous: decorate the"
                            " coroutine function itself, below other decorators"
                        )
            return result

        return call


class _Attempts:
    """The attempts of one call or loop."""

    def __init__(self, retrying: Retrying) -> None:
        self._retrying = retrying
        self._newest: Attempt | None = None

    def __iter__(self) -> Iterator[Attempt]:
        return self

    def __aiter__(self) -> AsyncIterator[Attempt]:
        return self

    def __next__(self) -> Attempt:
        if (attempt := self._next()) is None:
            raise StopIteration
        if seconds := self._retrying.wait_before(attempt.number):
            if is_bridged() and can_wait():
                await_bridged(asyncio.sleep(seconds))
            else:
                time.sleep(seconds)
        return attempt

    async def __anext__(self) -> Attempt:
        if (attempt := self._next()) is None:
            raise StopAsyncIteration
        if seconds := self._retrying.wait_before(attempt.number):
            await asyncio.sleep(seconds)
        return attempt

    def _next(self) -> Attempt | None:
        """Return the next attempt; None after the last."""
        before = self._newest
        if before is not None and before.goes_on is None:
            raise RuntimeError(
                "an attempt of retrying() was not run: put what belongs to the transaction into"
                " `async with attempt:`, or `with attempt:`"
            )
        if before is not None and not before.goes_on:
            return None
        self._newest = Attempt(self._retrying, 1 if before is None else before.number + 1)
        return self._newest


class Attempt:
    """The block of one attempt: a transaction, whose conflict with others does not leave it."""

    def __init__(self, retrying: Retrying, number: int) -> None:
        self._retrying = retrying
        # Which attempt this is, from 1 on.
        self.number = number
        # Whether another one follows; None: this one has not ended.
        self.goes_on: bool | None = None
        self._block: AbstractContextManager[None] | None = None
        self._ablock: AbstractAsyncContextManager[None] | None = None

    def __repr__(self) -> str:
        return f"<attempt {self.number} of {self._retrying!r}>"

    def __enter__(self) -> Attempt:
        self._block = _entered(self._retrying.block())
        self._block.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._block is not None
        try:
            self._block.__exit__(exc_type, exc_value, traceback)
        except BaseException as error:
            if self._ended(error):
                return True
            raise
        return self._ended(exc_value)

    async def __aenter__(self) -> Attempt:
        self._ablock = _aentered(self._retrying.block())
        await self._ablock.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._ablock is not None
        try:
            await self._ablock.__aexit__(exc_type, exc_value, traceback)
        except BaseException as error:
            if self._ended(error):
                return True
            raise
        return self._ended(exc_value)

    def _ended(self, error: BaseException | None) -> bool:
        """Note how the block ended; return whether *error* is answered by another attempt."""
        conflict = error is not None and is_conflict(error)
        self.goes_on = conflict and self.number < self._retrying.attempts
        if conflict and not self.goes_on and error is not None:
            error.add_note(f"This was the last of {self.number} attempts of retrying().")
        return self.goes_on


def is_conflict(error: BaseException) -> bool:
    """Return whether *error* says that the transaction, run again, may succeed."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_conflict, error.exceptions))
    found: BaseException | None = error
    while isinstance(found, django.db.Error | psycopg.Error):
        if isinstance(found, CommitInDoubt):
            return False
        if isinstance(found, psycopg.Error):
            return found.sqlstate in _CONFLICTS
        found = found.__cause__
    return False


# Blocks know the frame that they were entered in, which has to last as long as they do.


@contextmanager
def _entered(block: Atomic) -> Iterator[None]:
    with block:
        yield


@asynccontextmanager
async def _aentered(block: Atomic) -> AsyncIterator[None]:
    async with block:
        yield
