"""PostgreSQL's advisory locks as blocks, in asynchronous, bridged and plain synchronous code.

https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from datetime import timedelta
from math import ceil
from types import TracebackType
from typing import Any

import psycopg
from django.db import (
    DEFAULT_DB_ALIAS,
    DatabaseError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)

from .pool.stopping import shielded
from .transaction import pinned
from .wrapper.dispatch import run_for_alias, runs_bridged

__all__ = ["advisory_lock"]


class advisory_lock:
    """Hold an advisory lock as long as the block lasts.

        async with advisory_lock("nightly report"):
            ...

        async with advisory_lock("nightly report", timeout=0) as acquired:
            if not acquired:
                return

    *key* is a name, a whole number of 64 bits, or two of 32. Names become the numbers that
    django-pglock makes of them, so that both exclude each other. With *shared* any number of blocks
    may hold the lock, and none that is not shared.

    *timeout* is how long to wait for the lock, in seconds or as a timedelta; 0: not at all; None:
    as long as it takes, or as the server's ``lock_timeout`` allows. The value of the block is
    whether the lock was acquired; the block is entered in either case.

    Outside a transaction the lock is the session's: the block keeps one connection for it, as
    `transaction.pinned` does, and releases it at its end. Raise `OperationalError` at the end if it
    was not held any more, since the connection was lost. In a transaction the lock is the
    transaction's, and held until that ends, or is rolled back to a savepoint before the block:
    others must not come before they can see what was done under the lock.

    In bridged code and in threads ``with`` does the same. An object is for one block at a time.
    """

    def __init__(
        self,
        key: str | int | tuple[int, int],
        using: str | None = None,
        *,
        shared: bool = False,
        timeout: float | timedelta | None = None,
    ) -> None:
        self.key = key
        self.using = using or DEFAULT_DB_ALIAS
        self.shared = shared
        self.timeout = timeout
        # What the server knows the lock by: one number of 64 bits, or two of 32.
        self.numbers = _numbers(key)
        self._seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        if self._seconds is not None and not self._seconds >= 0:
            raise ValueError(f"timeout is a time of 0 or more, or None, not {timeout!r}")
        self._entered = self._acquired = False
        # What keeps the connection of a lock of the session's.
        self._pin: pinned | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} using {self.using!r}>"

    def __enter__(self) -> bool:
        if self._entered:
            raise RuntimeError(f"{self!r} is entered already: make one for each block")
        wrapper = connections[self.using]
        if not wrapper.in_atomic_block and wrapper.get_autocommit():
            self._pin = pinned(self.using)
            self._pin.__enter__()
        self._entered = True
        try:
            self._acquired = self._acquire()
        except BaseException as error:
            self._leave(type(error), error, error.__traceback__)
            raise
        return self._acquired

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._pin is not None and self._acquired:
                self._release(failed=exc_type is not None)
        finally:
            self._leave(exc_type, exc_value, traceback)

    async def __aenter__(self) -> bool:
        if runs_bridged(self.using):
            return bool(await run_for_alias(self.using, self.__enter__))
        # A thread waits for the lock: it goes on when its caller is cancelled.
        entering = asyncio.ensure_future(run_for_alias(self.using, self.__enter__))
        try:
            return bool(await asyncio.shield(entering))
        except asyncio.CancelledError as error:
            await shielded(self._undo(entering, error))
            raise

    async def _undo(self, entering: asyncio.Future[Any], error: BaseException) -> None:
        with suppress(Exception):
            await entering
            await run_for_alias(self.using, self.__exit__, type(error), error, None)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is GeneratorExit:
            # A coroutine that is closed cannot await: the reset of the session releases the lock.
            self._leave(exc_type, exc_value, traceback)
        else:
            await run_for_alias(self.using, self.__exit__, exc_type, exc_value, traceback)

    def _leave(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pin, self._pin = self._pin, None
        self._entered = self._acquired = False
        if pin is not None:
            pin.__exit__(exc_type, exc_value, traceback)

    def _acquire(self) -> bool:
        if not self._seconds:
            found = self._call("lock", tries=self._seconds == 0)
            return found is not False
        try:
            with transaction.atomic(using=self.using):
                # A lock of the session's outlasts this transaction, and the time-out does not.
                before = self._run("SELECT current_setting('lock_timeout')")
                milliseconds = ceil(self._seconds * 1000)
                self._run("SELECT set_config('lock_timeout', %s, true)", f"{milliseconds}ms")
                self._call("lock")
                self._run("SELECT set_config('lock_timeout', %s, true)", before)
        except OperationalError as error:
            if isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                return False
            raise
        return True

    def _release(self, *, failed: bool) -> None:
        """Release the lock; raise if it was not held any more, unless the block has *failed*."""
        try:
            if not self._call("unlock") and not failed:
                raise OperationalError(
                    f"the advisory lock {self.key!r} was not held until the end of its block: the"
                    " connection was lost, or its session was reset"
                )
        except (DatabaseError, InterfaceError):
            if not failed:
                raise

    def _call(self, what: str, *, tries: bool = False) -> Any:
        """Call PostgreSQL's function that locks or unlocks; return its result."""
        words = {
            "pg": True,
            "try": tries,
            "advisory": True,
            "xact": self._pin is None,
            what: True,
            "shared": self.shared,
        }
        name = "_".join(word for word, is_said in words.items() if is_said)
        marks = ", ".join(["%s"] * len(self.numbers))
        return self._run(f"SELECT pg_catalog.{name}({marks})", *self.numbers)

    def _run(self, sql: str, *params: Any) -> Any:
        with connections[self.using].cursor() as cursor:
            cursor.execute(sql, params)
            return cursor.fetchone()[0]


def _numbers(key: str | int | tuple[int, int]) -> tuple[int, ...]:
    """Return the numbers of a lock; raise TypeError or ValueError if *key* is none of a lock."""
    if isinstance(key, str):
        start = hashlib.sha256(key.encode()).digest()[:8]
        return (int.from_bytes(start, "little", signed=True),)
    numbers = key if isinstance(key, tuple) else (key,)
    if not all(type(each) is int for each in numbers):
        raise TypeError(f"a lock has a name, a whole number or two, not {key!r}")
    limit = {1: 2**63, 2: 2**31}.get(len(numbers), 0)
    if not all(-limit <= each < limit for each in numbers) or not limit:
        raise ValueError(f"a lock has a number of 64 bits, or two of 32, not {key!r}")
    return numbers
