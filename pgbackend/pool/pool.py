"""Connection pools: one `ConnectionPool` for each alias and settings, event loop and process.

psycopg_pool manages size, lifetime and health; `waiters` holds the queue. This module adds the
defaults, error messages for wrong options, the server's own words when connecting fails, giving
back without waiting, and an end together with the event loop.

The class inherits from psycopg_pool's, although it overrides or reads about thirty of its private
names. What it inherits is long, hard to get right and in use elsewhere: the workers, the back-off,
growing and shrinking, lifetimes, draining, and the options, counters and errors that users know
from psycopg's documentation. A pool of our own would have to do all of that again to be rid of
those names, and it would keep the private names of psycopg's connections. The names are listed in
docs/reference/private-parts.md, a test looks at each of them, and only the minor version that was
tested is admitted. Weigh it again when a release of psycopg_pool changes one of them.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from operator import itemgetter
from time import monotonic
from typing import Any
from weakref import WeakSet

from django.core.exceptions import ImproperlyConfigured
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from .borrowers import Loan, describe, loans, of_request
from .connecting import call_hook
from .counts import Counts, observe
from .open_pools import open_pools
from .options import pool_arguments
from .physical import PooledConnection
from .returning import ReturningPool
from .waiters import Client, Queue


def _says_something(record: logging.LogRecord) -> bool:
    """Return False for psycopg_pool's warnings that do not apply here.

    A connection attempt that the end of the loop cancels has not failed, and a handler that keeps
    the record would keep the half-open connection. A missing retry is what the options asked for.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not (
        any(isinstance(each, asyncio.CancelledError) for each in arguments)
        or (str(record.msg).startswith("reconnection attempt") and arguments[-1] == 0.0)
    )


logger = logging.getLogger("pgbackend.pool")


class ConnectionPool(ReturningPool):
    """A pool of asynchronous connections that lives on the running event loop.

    *options* are ``OPTIONS["pool"]``: True, None, or psycopg_pool's arguments. *kwargs* returns the
    arguments of `psycopg.AsyncConnection.connect`; it is called for each new connection.
    *configure* is a synchronous function that gets each new `PooledConnection`, bridged, before its
    first use; it sets ``face``. *reset_session* is a synchronous function that gives a session back
    its configured state. *context_setup* is called once in the context that all of these run in.
    *check* turns on psycopg_pool's check of idle connections before they are lent.

    Raise ImproperlyConfigured for options that psycopg_pool does not take. Source:
    https://www.psycopg.org/psycopg3/docs/api/pool.html
    """

    def __init__(
        self,
        alias: str,
        options: Any,
        *,
        kwargs: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
        configure: Callable[[PooledConnection], None],
        reset_session: Callable[[PooledConnection], None],
        context_setup: Callable[[], None],
        check: bool = False,
    ) -> None:
        # The logger keeps a filter only once, however many pools there are.
        logging.getLogger("psycopg.pool").addFilter(_says_something)
        arguments = pool_arguments(alias, options)
        if arguments.get("reset") is not None:
            arguments["reset"] = functools.partial(call_hook, arguments["reset"])
        if check:
            arguments.setdefault("check", AsyncConnectionPool.check_connection)
        arguments.setdefault("name", alias)
        self.alias = alias
        self._borrowers_configure = configure
        self._reset_session = reset_session
        self.counts = Counts()
        self._resetting = 0
        self._reset_timer: asyncio.TimerHandle | None = None
        self._physical: WeakSet[PooledConnection] = WeakSet()
        self._keeper: asyncio.Task[None] | None = None
        # The `opening.PoolForSettings` that wrappers share; see `opening.find_pool`.
        self.settings_entry: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._context = Context()
        self._context.run(context_setup)
        self._background_tasks: set[asyncio.Task[Any]] = set()
        try:
            super().__init__(
                connection_class=PooledConnection,
                kwargs=kwargs,
                configure=self._configure_bridged,
                open=False,
                **arguments,
            )
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS']['pool']: {error}"
            ) from error
        self._waiting = Queue(self.name)

    @property
    def is_full(self) -> bool:
        """Whether the pool has max_size connections: a task that finds none idle has to wait."""
        return self._nconns >= self._max_size

    @property
    def is_exhausted(self) -> bool:
        """Whether somebody waits for a connection, and no more can be opened."""
        return bool(self._waiting) and self.is_full

    def take(self) -> PooledConnection | None:
        """Borrow an idle connection without waiting; return None if `checkout` is needed.

        This is the fast path of `checkout` for a connection that is idle and alive. The caller owes
        a `give_back`.
        """
        if not self._pool or self._check is not None or self._closed or self._lock.locked():
            return None
        conn = self._pool[0]
        if conn.closed or conn.was_closed_by_server():
            return None
        self._pool.popleft()
        self._nconns_min = min(self._nconns_min, len(self._pool))
        self._stats[self._REQUESTS_NUM] += 1
        conn._pool = self
        conn.borrower = asyncio.current_task()
        conn.lent_at, conn.lent_for = monotonic(), of_request.get()
        return conn

    async def checkout(self) -> PooledConnection:
        """Borrow a connection; the caller owes a `give_back`.

        Wait up to the option ``timeout`` seconds. Raise `psycopg_pool.PoolTimeout` after that,
        `psycopg_pool.TooManyRequests` at once if ``max_waiting`` tasks wait already, and psycopg's
        error with the server's words if connecting failed and no connection is left to wait for.
        """
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            conn = await self.getconn()
        except PoolTimeout:
            # A connection may have come back at the last moment, after this task had left the
            # queue.
            late = self.take()
            if late is None:
                self.counts.timeouts += 1
                raise PoolTimeout(
                    f"no connection of the pool {self.name!r} came free within {self.timeout:g} s:"
                    f" {self._shortage(task)}. See 'timeout' and 'max_size' in {self._setting}"
                ) from None
            conn = late
        except TooManyRequests:
            raise TooManyRequests(
                f"the pool {self.name!r} (max_size {self.max_size}) has {self.max_waiting}"
                f" tasks waiting already{self._loans()}. See 'max_waiting' and 'max_size' in"
                f" {self._setting}"
            ) from None
        if task is not None and task.cancelling() > cancelling:
            # CPython 3.11: `asyncio.wait_for`, which psycopg_pool uses, may swallow a cancellation
            # that comes together with the result.
            self.give_back(conn)
            raise asyncio.CancelledError
        conn.borrower = task
        conn.lent_at, conn.lent_for = monotonic(), of_request.get()
        return conn

    async def _getconn_unchecked(
        self,
        timeout: float,  # noqa: ASYNC109  # psycopg_pool's
    ) -> PooledConnection:
        """Return an idle connection, or wait in the queue for one.

        A task that is cancelled, closed or timed out leaves no entry in the queue.
        """
        async with self._lock:
            conn = await self._get_ready_connection(timeout)
            if conn is None:
                began = monotonic()
                client = Client(began + timeout)
                self._waiting.append(client)
                self._stats[self._REQUESTS_QUEUED] += 1
                self._maybe_grow_pool()
        if conn is None:
            try:
                conn = await client.wait()
            except BaseException:
                self._stats[self._REQUESTS_ERRORS] += 1
                if client.conn is not None:
                    # The connection came at the same moment as the cancellation.
                    client.conn._pool = self
                    self.give_back(client.conn)
                elif client in self._waiting:
                    self._waiting.remove(client)
                raise
            finally:
                seconds = monotonic() - began
                self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * seconds)
                self.counts.waited(seconds)
                observe(self, "wait", seconds)
        conn._pool = self
        return conn

    def _maybe_grow_pool(self) -> None:
        """Open one more connection for the queue, unless the connections being reset suffice.

        A reset takes one message; a new connection takes a new process of the server.
        """
        if len(self._waiting) > self._resetting:
            super()._maybe_grow_pool()

    def drain_now(self) -> None:
        """Drain the pool before the next checkout, from any code on the loop's thread."""
        logger.warning("the server of %r has become read-only: connecting anew", self.name)
        self._run_in_background(self.drain())

    def _get_measures(self) -> dict[str, int]:
        """Return psycopg_pool's sizes and ``pool_resetting``, the number of sessions in reset."""
        return {**super()._get_measures(), "pool_resetting": self._resetting}

    def _shortage(self, task: asyncio.Task[Any] | None) -> str:
        """Say who holds the connections that *task* has waited for."""
        words = self._loans().removeprefix(": ") or (
            f"{len(self.borrowers())} of {self.max_size} are on loan and no other could be opened"
        )
        waiting = sum(not (each.conn or each.error) for each in self._waiting)
        words += f", and {waiting} other tasks wait"
        for pool in open_pools():
            if pool is not self and any(borrower is task for _, borrower in pool.borrowers()):
                assert task is not None
                words += f"; {task.get_name()}, which asked, holds one of the pool {pool.name!r}"
        return words

    def _loans(self) -> str:
        """Say to whom the connections are on loan, if all of them are."""
        if len(self.borrowers()) < self.max_size:
            return ""
        return f": all {self.max_size} are on loan, to {describe(self._physical)}"

    def borrowers(self) -> list[tuple[str, asyncio.Task[Any]]]:
        """Return the tasks that have connections on loan, with their names, sorted by name."""
        tasks = [conn.borrower for conn in self._physical if conn.borrower is not None]
        return sorted(((task.get_name(), task) for task in tasks), key=itemgetter(0))

    def loans(self) -> list[Loan]:
        """Return the connections on loan, and to whom; call it on the pool's loop."""
        return loans(self._physical)

    def waits(self) -> list[Loan]:
        """Return the tasks that wait for a connection; call it on the pool's loop."""
        return [each.as_loan() for each in self._waiting if isinstance(each, Client)]

    @property
    def _setting(self) -> str:
        return f"DATABASES[{self.alias!r}]['OPTIONS']['pool']"
