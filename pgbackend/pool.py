"""Connection pools: one `ConnectionPool` for each alias and settings, event loop and process.

psycopg_pool keeps charge of size, waiting, lifetime and health. What is added here: the
defaults, the names of bad options, the server's own words when connecting fails, a
give-back that never waits, and an end together with the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import select
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from time import monotonic
from types import coroutine
from typing import Any
from weakref import WeakSet

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base import AttemptWithBackoff

from .bridge import run_bridged
from .options import pool_arguments
from .registry import forget


def _says_something(record: logging.LogRecord) -> bool:
    """Return False for warnings of psycopg_pool that are none here.

    A connect that the end of the loop cancels has not failed, and whoever keeps the record
    would keep the half-open connection. That no retry followed is what was asked for.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    return not (
        any(isinstance(each, asyncio.CancelledError) for each in arguments)
        or (str(record.msg).startswith("reconnection attempt") and arguments[-1] == 0.0)
    )


logging.getLogger("psycopg.pool").addFilter(_says_something)

logger = logging.getLogger("pgbackend.pool")

# How long the reset of a session may take, seconds.
_RENEW_TIMEOUT = 5.0

# How often a closing pool looks whether all connections are back, seconds.
_IDLE_INTERVAL = 0.05


class PooledConnection(psycopg.AsyncConnection[Any]):
    """A pool's physical connection, with the DB-API face that borrowers see."""

    # A `connection.BridgedConnection` on the same PGconn, made once, before the first use.
    face: Any = None
    # What gives its session back the state after configuring; see `session.reset_message`.
    reset_message = ""

    def found_read_only(self) -> None:
        """Have the pool connect anew if this server was to take writes and no longer does."""
        pool = self._pool
        if not isinstance(pool, ConnectionPool) or not _was_demoted(self.pgconn):
            return
        # Once, not for each connection that was on loan then.
        if self._created_at > pool._drained_at:
            pool.drain_now()


class ConnectionPool(AsyncConnectionPool[PooledConnection]):
    """A pool of asynchronous connections that lives on the running event loop.

    *options* are ``OPTIONS["pool"]``: True, None, or psycopg_pool's arguments; *kwargs*
    returns those of `psycopg.AsyncConnection.connect`, asked for each new connection.
    *configure* is a synchronous function that gets each new `PooledConnection`, bridged,
    before its first use; it sets ``face``. *context_setup* is called once in the context
    that all of this runs in.

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
        arguments = pool_arguments(alias, options)
        if arguments.get("reset") is not None:
            arguments["reset"] = functools.partial(_call_hook, arguments["reset"])
        if check:
            arguments.setdefault("check", AsyncConnectionPool.check_connection)
        arguments.setdefault("name", alias)
        self.alias = alias
        self._borrowers_configure = configure
        self._reset_session = reset_session
        self._resetting = 0
        self._physical: WeakSet[PooledConnection] = WeakSet()
        self._keeper: asyncio.Task[None] | None = None
        # Tasks of the pool start here: they must not see the context of whichever request
        # happened to open it.
        self._context = Context()
        self._context.run(context_setup)
        self._detached: set[asyncio.Task[Any]] = set()
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

    def start(self) -> None:
        """Open the pool on the running loop; connections are made when first asked for.

        It never waits, so concurrent first requests cannot race.
        """
        self._context.run(self._detach, self.open())
        loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(
            self._keep(), name=f"{self.name}-keeper", context=self._context
        )

    async def _keep(self) -> None:
        """Close the pool when the loop ends: `asyncio.run` then cancels every task.

        Without it a worker that is cancelled while it connects, and swallows that, would
        wait for work for ever, and `asyncio.run` for the worker.
        """
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._keeper is None:
                # By close() itself.
                raise
            self._keeper = None
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            await self.close()

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # psycopg_pool's
        """Close the pool and its idle connections; those on loan close when given back.

        Wait up to *timeout* seconds for connections being opened.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
        idle = list(self._pool)
        try:
            await super().close(timeout)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The workers were cancelled, with the loop, not whoever closes the pool.
        finally:
            for conn in idle:
                conn.pgconn.finish()
            forget(self)

    async def close_when_idle(self, timeout: float) -> None:  # noqa: ASYNC109  # as close()
        """Close the pool once no connection is on loan, after *timeout* seconds at the latest."""
        deadline = monotonic() + timeout
        while len(self._pool) < self._nconns and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_IDLE_INTERVAL)
        await self.close()

    async def checkout(self) -> PooledConnection:
        """Borrow a connection; the caller owes a `give_back`.

        Wait up to the option ``timeout`` seconds. Raise `psycopg_pool.PoolTimeout` after
        that, `psycopg_pool.TooManyRequests` at once beyond ``max_waiting``, and what
        connecting raised (psycopg's error, with the server's words) when that failed and no
        connection is left to wait for.
        """
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            conn = await self.getconn()
        except PoolTimeout:
            raise PoolTimeout(
                f"no connection of the pool {self.name!r} came free within {self.timeout:g} s:"
                f" all {self.max_size} are on loan and {len(self._waiting)} other tasks wait."
                f" See 'timeout' and 'max_size' in {self._setting}"
            ) from None
        except TooManyRequests:
            raise TooManyRequests(
                f"the pool {self.name!r} (max_size {self.max_size}) has {self.max_waiting}"
                f" tasks waiting already. See 'max_waiting' and 'max_size' in {self._setting}"
            ) from None
        if task is not None and task.cancelling() > cancelling:
            # CPython 3.11: asyncio.wait_for, which psycopg_pool waits by, may swallow a
            # cancellation that comes together with the result.
            self.give_back(conn)
            raise asyncio.CancelledError
        return conn

    async def _getconn_unchecked(
        self,
        timeout: float,  # noqa: ASYNC109  # psycopg_pool's
    ) -> PooledConnection:
        """Wait in the queue; who leaves it, cancelled or by the time-out, leaves no place behind.

        psycopg_pool counts them among ``max_waiting`` until a connection comes free.
        """
        try:
            return await super()._getconn_unchecked(timeout)
        except BaseException:
            for each in [each for each in self._waiting if each.error is not None]:
                self._waiting.remove(each)
            raise

    def give_back(self, conn: PooledConnection, *, dirty: bool = False) -> None:
        """Return *conn* without waiting, from any code on the loop's thread.

        The session of a *dirty* one is reset before another borrower gets it.

        What cannot be done at once (a rollback, a contended lock) is left to a task of the
        pool, so that neither cancelling the borrower nor closing its coroutine loses the
        connection. With no running loop the connection is closed.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            conn.pgconn.finish()
            return
        if dirty and not conn.closed and not self.closed:
            # Not begun here, in the middle of the borrower's bridge.
            self._resetting += 1
            self.spawn(self._renew(conn))
        else:
            self._detach(self._return(conn))

    async def _return(self, conn: PooledConnection) -> None:
        returned = False
        try:
            await self.putconn(conn)
            returned = not self.closed
        finally:
            if not returned:
                # Cancelled with the loop, or the pool was closed meanwhile: nobody else would.
                conn.pgconn.finish()

    async def _renew(self, conn: PooledConnection) -> None:
        """Return *conn* with its session as it was after connecting; close it if that fails."""
        try:
            async with asyncio.timeout(_RENEW_TIMEOUT):
                if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                    await conn.rollback()
                await run_bridged(self._reset_session, conn)
        except Exception as error:
            logger.warning("closing %s, whose session could not be reset: %s", conn, error)
            conn.pgconn.finish()
        finally:
            self._resetting -= 1
            await self._return(conn)

    def drain_now(self) -> None:
        """Do what `drain` does before the next checkout, from any code on the loop's thread."""
        logger.warning("the server of %r has become read-only: connecting anew", self.name)
        self._detach(self.drain())

    def _get_measures(self) -> dict[str, int]:
        """Return psycopg_pool's sizes and ``pool_resetting``: how many sessions are being reset."""
        return {**super()._get_measures(), "pool_resetting": self._resetting}

    @property
    def _setting(self) -> str:
        return f"DATABASES[{self.alias!r}]['OPTIONS']['pool']"

    async def _configure_bridged(self, conn: PooledConnection) -> None:
        try:
            await run_bridged(self._borrowers_configure, conn)
        except BaseException:
            await conn.close()
            raise
        self._physical.add(conn)

    async def _check_connection(self, conn: PooledConnection) -> None:
        """Raise psycopg's error for a connection that is dead: the pool then tries the next."""
        if conn.closed or _says_goodbye(conn):
            raise psycopg.OperationalError("the server closed the idle connection")
        if self._check is not None:
            await _call_hook(self._check, conn)

    async def _connect(  # psycopg_pool's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PooledConnection:
        """Connect; tell a failure to those who wait, unless some connection still lives."""
        try:
            return await super()._connect(timeout)
        except Exception as error:
            if all(conn.closed for conn in self._physical):
                while self._waiting:
                    await self._waiting.popleft().fail(_copy_of(error))
            raise

    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        if attempt is None and not self.reconnect_timeout:
            # psycopg_pool gives up at a second failure, if it is late enough; here at the first.
            attempt = AttemptWithBackoff(timeout=0.0)
            attempt.give_up_at = monotonic()
        await super()._add_connection(attempt, growing)

    def _detach(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Run *coro* as far as it goes without waiting; a task of the pool does the rest."""
        try:
            waiting = coro.send(None)
        except StopIteration:
            return
        self.spawn(_rest(coro, waiting))

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> None:
        """Run *coro* as a task of the pool."""
        task = asyncio.get_running_loop().create_task(coro, context=self._context)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)


async def _rest(coro: Coroutine[Any, Any, Any], waiting: Any) -> None:
    await _continue(coro, waiting)


@coroutine
def _continue(coro: Coroutine[Any, Any, Any], waiting: Any) -> Generator[Any, Any, Any]:
    """Drive a coroutine that was started elsewhere and has yielded *waiting*."""
    while True:
        try:
            value = yield waiting
        except GeneratorExit:
            coro.close()
            raise
        except BaseException as error:
            step = functools.partial(coro.throw, error)
        else:
            step = functools.partial(coro.send, value)
        try:
            waiting = step()
        except StopIteration as stop:
            return stop.value


def _says_goodbye(conn: PooledConnection) -> bool:
    """Return whether the server has closed an idle connection, without asking it.

    The socket of one that it closed is readable; so is one with a notification, which is read.
    """
    poll = select.poll()
    poll.register(conn.pgconn.socket, select.POLLIN)
    # Until nothing is left: the server says why it closes, and the end is behind that.
    while poll.poll(0):
        try:
            conn.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
        if conn.pgconn.status != ConnStatus.OK:
            return True
    return False


def _was_demoted(pgconn: PGconn) -> bool:
    """Return whether ``target_session_attrs`` asks for a primary, and this is none any more."""
    wanted = {each.val for each in pgconn.info if each.keyword == b"target_session_attrs"}
    return not wanted.isdisjoint((b"read-write", b"primary")) and b"on" in (
        pgconn.parameter_status(b"in_hot_standby"),
        pgconn.parameter_status(b"default_transaction_read_only"),
    )


async def _call_hook(hook: Callable[[Any], Any], conn: PooledConnection) -> None:
    """Call a ``check`` or ``reset``: an asynchronous one, or one written for Django's pool."""
    if inspect.iscoroutinefunction(hook):
        await hook(conn)
    else:
        await run_bridged(hook, conn.face)


def _copy_of(error: Exception) -> Exception:
    """Return an error for one more waiter: an instance raised twice mixes its tracebacks."""
    if not isinstance(error, psycopg.Error):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return copy
