"""Transactions in asynchronous code, in addition to ``django.db.transaction``.

``async with transaction.atomic()``, ``@transaction.atomic`` on coroutine functions and
``transaction.on_commit`` with them are Django's own names. This module has what Django has no name
for: asynchronous counterparts of its lower-level functions, `atomic` with more arguments,
`retrying`, `pinned`, `detached` and `deferred_savepoint`. In the bridge Django's synchronous
functions work as well.

https://docs.djangoproject.com/en/stable/topics/db/transactions/
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from .deferred import deferred_savepoint
from .isolation import atomic
from .retries import retrying
from .tasks.actors import running_task
from .tasks.lease import Lease, unpin_for_task
from .tasks.membership import detached
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import run_for_alias

__all__ = [
    "acommit",
    "aon_commit",
    "arollback",
    "asavepoint",
    "asavepoint_commit",
    "asavepoint_rollback",
    "aset_autocommit",
    "atomic",
    "deferred_savepoint",
    "detached",
    "pinned",
    "retrying",
]


async def aset_autocommit(autocommit: bool, using: str | None = None) -> None:
    """Turn autocommit off, which binds a connection to the running task, or on again."""
    await _call(using, transaction.set_autocommit, autocommit, using)


async def acommit(using: str | None = None) -> None:
    """Commit the transaction of a task with autocommit off; see ``transaction.commit``."""
    await _call(using, transaction.commit, using)


async def arollback(using: str | None = None) -> None:
    """Roll back the transaction of a task with autocommit off; see ``transaction.rollback``."""
    await _call(using, transaction.rollback, using)


async def asavepoint(using: str | None = None) -> str | None:
    """Create a savepoint and return its id; None outside a transaction."""
    sid: str | None = await _call(using, _savepoint, using)
    return sid


def _savepoint(using: str | None) -> Any:
    # Django 6.1 renames transaction.savepoint(), but not this method.
    return transaction.get_connection(using).savepoint()


async def asavepoint_commit(sid: str, using: str | None = None) -> None:
    """Release the savepoint *sid*."""
    await _call(using, transaction.savepoint_commit, sid, using)


async def asavepoint_rollback(sid: str, using: str | None = None) -> None:
    """Roll back to the savepoint *sid*."""
    await _call(using, transaction.savepoint_rollback, sid, using)


async def aon_commit(
    func: Callable[[], Any], using: str | None = None, robust: bool = False
) -> None:
    """Call *func* after the commit; outside a transaction call it, and await it, at once."""
    await _call(using, transaction.on_commit, func, using, robust)


async def _call(using: str | None, function: Callable[..., Any], *args: Any) -> Any:
    return await run_for_alias(using or DEFAULT_DB_ALIAS, function, *args)


class pinned:
    """Keep one connection for the running task as long as the block lasts.

    Use it for what lives in a session: ``SET``, temporary tables, advisory locks, ``LISTEN``.

        async with pinned() as connection:
            with connection.cursor() as cursor:   # in a request, or in a bridged function
                cursor.execute("SELECT pg_advisory_lock(42)")
            await Order.objects.aupdate(...)

    In bridged code ``with pinned()`` does the same. The value is the `DatabaseWrapper` of *using*.
    Transactions begun in the block run on the connection; tasks started in the block have
    connections of their own. At the end the session is reset before another borrower gets it. On
    Django's own path, where a thread keeps its connection anyway, the block changes nothing.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = using or DEFAULT_DB_ALIAS
        # One object may serve many tasks, as `atomic` may; each task leaves the block it entered
        # last.
        self._leases: WeakKeyDictionary[asyncio.Task[Any], list[Lease | None]] = WeakKeyDictionary()
        # How often the object was ever entered.
        self._entered = 0

    def __enter__(self) -> Any:
        wrapper = connections[self.using]
        if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled:
            wrapper.check_not_on_loop()
        if isinstance(wrapper, BackendWrapper) and wrapper.bridged:
            lease, task = wrapper.pin_for_task(), running_task()
            assert task is not None
            self._leases.setdefault(task, []).append(lease)
            self._entered += 1
        return wrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, lease = self._pop()
        if task is not None and lease is not None:
            # Release on the loop's own thread: the collector may close a generator in any thread.
            lease.pool.on_loop(functools.partial(unpin_for_task, lease, task))

    def _pop(self) -> tuple[asyncio.Task[Any] | None, Lease | None]:
        """Return the block to leave: the running task's, or the only one that was ever entered.

        A generator that is left early may be closed by another task, or outside any task.
        """
        running = running_task()
        own = self._leases.get(running) if running is not None else None
        if running is not None and own:
            return running, own.pop()
        entered = [(task, leases) for task, leases in self._leases.items() if leases]
        if self._entered != 1 or len(entered) != 1:
            return None, None
        task, leases = entered[0]
        return task, leases.pop()

    async def __aenter__(self) -> Any:
        return await run_for_alias(self.using, self.__enter__)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc_value, traceback)
