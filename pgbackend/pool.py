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
import os
import select
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Generator, Hashable
from contextvars import Context
from time import monotonic
from types import coroutine
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base import AttemptWithBackoff

from .bridge import run_bridged

# What OPTIONS["pool"] leaves open. Seconds where psycopg_pool has seconds.
DEFAULTS: dict[str, Any] = {
    "min_size": 0,
    "max_size": 20,
    "timeout": 30.0,
    "max_waiting": 1000,
    "max_lifetime": 60 * 60.0,
    "max_idle": 10 * 60.0,
    # No retries in the background: a failure is told to whoever waits, and the next
    # checkout connects anew.
    "reconnect_timeout": 0.0,
}

# Arguments of psycopg_pool that the backend itself gives, or that would mean nothing.
_RESERVED = frozenset(
    {"self", "conninfo", "connection_class", "kwargs", "open", "configure", "close_returns"}
)


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
            if self._detached:
                # What was given back on the way: nobody waits for it after this.
                await asyncio.wait(self._detached, timeout=_RENEW_TIMEOUT)

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
            _forget(self)

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
                f" all {self.max_size} are on loan and {len(self._waiting) - 1} other tasks wait."
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
            self.spawn(self._renew(conn), conn)
        else:
            self._detach(self._return(conn), conn)

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

    def _detach(self, coro: Coroutine[Any, Any, Any], conn: PooledConnection | None = None) -> None:
        """Run *coro* as far as it goes without waiting; a task of the pool does the rest."""
        try:
            waiting = coro.send(None)
        except StopIteration:
            return
        self.spawn(_rest(coro, waiting), conn)

    def spawn(self, coro: Coroutine[Any, Any, Any], conn: PooledConnection | None = None) -> None:
        """Run *coro* as a task of the pool; close *conn*, which it returns, if it is cancelled."""
        task = asyncio.get_running_loop().create_task(coro, context=self._context)
        self._detached.add(task)
        task.add_done_callback(self._detached.discard)
        if conn is not None:
            # Together with the loop, and maybe before its first step.
            task.add_done_callback(lambda task: conn.pgconn.finish() if task.cancelled() else None)


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
    if not poll.poll(0):
        return False
    try:
        conn.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return conn.pgconn.status != ConnStatus.OK


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


def pool_arguments(alias: str, options: Any) -> dict[str, Any]:
    """Return psycopg_pool's arguments for ``OPTIONS["pool"]``, defaults filled in.

    Raise ImproperlyConfigured that names each unknown key.
    """
    setting = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if options is None or isinstance(options, bool):
        options = {}
    elif not isinstance(options, dict):
        raise ImproperlyConfigured(f"{setting} is a bool or a dict, not {options!r}")
    known = set(inspect.signature(AsyncConnectionPool.__init__).parameters) - _RESERVED
    if unknown := sorted(set(options) - known, key=str):
        raise ImproperlyConfigured(
            f"{setting} has unknown keys: {', '.join(map(repr, unknown))};"
            f" known are {', '.join(sorted(known))}"
        )
    arguments = {**DEFAULTS, **options}
    if "max_size" not in options and options.get("min_size"):
        # psycopg_pool's own rule: a lower bound alone means a pool of that size.
        arguments["max_size"] = options["min_size"]
    return arguments


_pools: WeakKeyDictionary[AbstractEventLoop, dict[Hashable, ConnectionPool]] = WeakKeyDictionary()

# What a forked child found open. Kept, for a task of the parent's loop that is collected
# pending says so on stderr.
_inherited: list[Any] = []


def _forget_inherited() -> None:
    """Let a forked child open pools of its own: the sockets of these are the parent's."""
    _inherited.append(dict(_pools))
    _pools.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def get_pool(key: Hashable, make: Callable[[], ConnectionPool]) -> ConnectionPool:
    """Return the running loop's pool for *key*; open the one that *make* returns if none is."""
    loop = asyncio.get_running_loop()
    pools = _pools.get(loop)
    if pools is None:
        for ended in [each for each in _pools if each.is_closed()]:
            del _pools[ended]
        pools = _pools[loop] = {}
    pool = pools.get(key)
    if pool is None or pool.closed:
        pool = make()
        pool.start()
        pools[key] = pool
    return pool


def _forget(pool: ConnectionPool) -> None:
    """Drop a closed pool from the running loop's."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    for key in [key for key, each in pools.items() if each is pool]:
        del pools[key]


def open_pools(alias: str | None = None) -> list[ConnectionPool]:
    """Return the running loop's open pools, all of them or those of one alias."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    return [pool for pool in pools.values() if not pool.closed and alias in (None, pool.alias)]
