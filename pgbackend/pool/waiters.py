"""The queue of a pool: the tasks that wait for a connection, in order of arrival.

psycopg_pool gives each waiting client its own condition and timer, and hands it a connection in
many steps. Here each client has a future, and the whole queue has one timer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import Context
from time import monotonic

from psycopg_pool import PoolClosed, PoolTimeout
from psycopg_pool.pool_async import WaitingClient

from .borrowers import Loan, of_request, request_of
from .physical import PooledConnection


class Client(WaitingClient[PooledConnection]):
    """A task that waits for a connection until *deadline*, by `time.monotonic`."""

    __slots__ = ("_future", "_request", "_since", "_task", "deadline")

    def __init__(self, deadline: float) -> None:
        # Do not call psycopg_pool's `__init__`, which would make the condition.
        self.conn: PooledConnection | None = None
        self.error: BaseException | None = None
        self.deadline = deadline
        self._future = asyncio.get_running_loop().create_future()
        self._task = asyncio.current_task()
        self._request = of_request.get()
        self._since = monotonic()

    async def wait(self, timeout: float = 0.0) -> PooledConnection:  # noqa: ASYNC109  # as there
        """Wait for a connection and return it; `deadline` counts, *timeout* is ignored.

        Raise `psycopg_pool.PoolTimeout` after the deadline, or the error that `fail` was given.
        """
        await self._future
        if self.error is not None:
            raise self.error
        assert self.conn is not None
        return self.conn

    def give(self, conn: PooledConnection) -> bool:
        """Hand over *conn*; return False if the client does not wait any more."""
        if self._future.done():
            return False
        self.conn = conn
        self._future.set_result(None)
        return True

    def as_loan(self) -> Loan:
        """Return who waits."""
        name = "" if self._task is None else self._task.get_name()
        return Loan(name, request_of(self._request), monotonic() - self._since)

    async def set(self, conn: PooledConnection) -> bool:
        """Do what `give` does, under psycopg_pool's name."""
        return self.give(conn)

    async def fail(self, error: Exception) -> bool:
        """Make `wait` raise *error*; return False if the client does not wait any more."""
        return self.fail_now(error)

    def fail_now(self, error: Exception) -> bool:
        """Do what `fail` does, without a coroutine."""
        if self._future.done():
            return False
        self.error = error
        self._future.set_result(None)
        return True


class Queue(deque[WaitingClient[PooledConnection]]):
    """The waiting clients of a pool, each a `Client`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        # The timer for the first deadline, and that deadline.
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def append(self, client: WaitingClient[PooledConnection]) -> None:
        """Add a client that is about to wait."""
        assert isinstance(client, Client)
        super().append(client)
        if self._timer is None or client.deadline < self._due:
            self._set_timer(client.deadline)

    def clear(self) -> None:
        """Remove all clients, and the timer: the pool is being closed.

        Tell the clients at once. psycopg_pool tells them only after its workers have ended, or
        never if it is interrupted before.
        """
        for client in self:
            assert isinstance(client, Client)
            client.fail_now(PoolClosed(f"the pool {self._name!r} was closed"))
        super().clear()
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, deadline: float) -> None:
        self._cancel_timer()
        loop = asyncio.get_running_loop()
        self._due = deadline
        # Use an empty context: a task's own context would keep the task alive.
        self._timer = loop.call_later(
            deadline - monotonic(), self._expire_clients, context=Context()
        )

    def _expire_clients(self) -> None:
        """Tell the clients whose deadline has passed."""
        self._timer = None
        now = monotonic()
        deadlines = []
        for client in list(self):
            assert isinstance(client, Client)
            if client.deadline <= now:
                self.remove(client)
                client.fail_now(PoolTimeout("no connection came free"))
            else:
                deadlines.append(client.deadline)
        if deadlines:
            self._set_timer(min(deadlines))
