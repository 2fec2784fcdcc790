"""Connection pools: one `ConnectionPool` for each alias and settings, event loop and process.

psycopg_pool keeps charge of size, lifetime and health; who waits is in `waiters`. What is added
here: the defaults, the names of bad options, the server's own words when connecting fails, a
give-back that never waits, and an end together with the event loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from operator import itemgetter
from time import monotonic
from types import coroutine
from typing import Any
from weakref import WeakSet

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import capabilities
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import AddConnection

from ..bridge.greenlets import run_bridged
from ..wrapper.options import pool_arguments
from .open_pools import forget, open_pools
from .passwords import forget_passwords
from .physical import PooledConnection, cancel
from .waiters import Client, Queue


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

# How many of those who hold connections an error names.
_NAMES = 5

# How often a closing pool looks whether all connections are back, seconds.
_IDLE_INTERVAL = 0.05

# How long the reset of an idle connection's session is put off, seconds: locks, say, go with it.
_RESET_AFTER = 0.05

# How long, when the loop ends, pools are kept open for cancelled tasks on their way out, seconds.
_END_TIMEOUT = 5.0


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
        self._reset_timer: asyncio.TimerHandle | None = None
        self._physical: WeakSet[PooledConnection] = WeakSet()
        self._keeper: asyncio.Task[None] | None = None
        # What wrappers keep of it; see `opening.find_pool`.
        self.found: Any = None
        # The loop it was started on.
        self.loop: asyncio.AbstractEventLoop | None = None
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
        self._waiting = Queue(self.name)

    def start(self) -> None:
        """Open the pool on the running loop; connections are made when first asked for.

        It never waits, so concurrent first requests cannot race.
        """
        self._context.run(self._detach, self.open())
        self.loop = asyncio.get_running_loop()
        self._keeper = self.loop.create_task(
            self._keep(), name=f"{self.name}-keeper", context=self._context
        )

    async def _keep(self) -> None:
        """Close the pool when the loop ends: `asyncio.run` then cancels every task.

        Without it a worker that is cancelled while it connects, and swallows that, would
        wait for work for ever, and `asyncio.run` for the worker.

        What the other tasks still write on their way out opens pools that nobody cancels: they
        are closed here, too, when those tasks have ended.
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
            # Not who waits for the cancelled ones: the keepers are among them.
            others = [
                each for each in asyncio.all_tasks() if each.cancelling() and not is_of_pool(each)
            ]
            await self.close()
            if others:
                await asyncio.wait(others, timeout=_END_TIMEOUT)
            for pool in open_pools():
                await pool.close()

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # psycopg_pool's
        """Close the pool and its idle connections; those on loan close when given back.

        Wait up to *timeout* seconds for connections being opened.
        """
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
        if self._reset_timer is not None:
            self._reset_timer.cancel()
            self._reset_timer = None
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
                conn.finish()
            forget(self)
            await self._stop_detached(timeout)

    async def _stop_detached(self, timeout: float) -> None:  # noqa: ASYNC109  # as close()
        """Wait for the pool's own tasks: where the loop ends, nobody else does."""
        current = asyncio.current_task()
        while tasks := [task for task in self._detached if task is not current]:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()

    async def close_when_idle(self, timeout: float) -> None:  # noqa: ASYNC109  # as close()
        """Close the pool once no connection is on loan, after *timeout* seconds at the latest."""
        deadline = monotonic() + timeout
        while len(self._pool) < self._nconns and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_IDLE_INTERVAL)
        await self.close()

    @property
    def is_full(self) -> bool:
        """Whether all connections that it may have are open: who finds none idle has to wait."""
        return self._nconns >= self._max_size

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a connection, and no more can be opened."""
        return bool(self._waiting) and self.is_full

    def take(self) -> PooledConnection | None:
        """Borrow an idle connection without waiting; None: `checkout` may know of one.

        What `checkout` does with one that is idle and alive. The caller owes a `give_back`.
        """
        if not self._pool or self._check is not None or self._closed or self._lock.locked():
            return None
        conn = self._pool[0]
        if conn.closed or conn.says_goodbye():
            return None
        self._pool.popleft()
        self._nconns_min = min(self._nconns_min, len(self._pool))
        self._stats[self._REQUESTS_NUM] += 1
        conn._pool = self
        conn.borrower = asyncio.current_task()
        return conn

    def _put(self, conn: PooledConnection) -> bool:
        """Put a connection back that is idle and alive, or hand it to whoever waits; say if it was.

        For anything else psycopg_pool's way is needed.
        """
        if (
            self._closed
            or self._reset is not None
            or self._pool_full_event is not None
            or self._lock.locked()
            or conn.pgconn.transaction_status != TransactionStatus.IDLE
            or conn._created_at <= self._drained_at
            or conn._expire_at <= monotonic()
        ):
            return False
        conn._pool = None
        while self._waiting:
            client = self._waiting.popleft()
            assert isinstance(client, Client)
            if client.give(conn):
                return True
        if conn.face.reset_due:
            # It is taken first: its reset costs a statement little, and one of its own much.
            self._pool.appendleft(conn)
        else:
            self._pool.append(conn)
        return True

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
            # One may have come free at the last moment, when nobody was told any more.
            late = self.take()
            if late is None:
                raise PoolTimeout(
                    f"no connection of the pool {self.name!r} came free within {self.timeout:g} s:"
                    f" {self._shortage(task)}. See 'timeout' and 'max_size' in {self._setting}"
                ) from None
            conn = late
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
        conn.borrower = task
        return conn

    async def _getconn_unchecked(
        self,
        timeout: float,  # noqa: ASYNC109  # psycopg_pool's
    ) -> PooledConnection:
        """Return an idle connection, or wait in the queue for one that comes free.

        Who leaves the queue, cancelled, closed or by the time-out, leaves no place behind.
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
                    # It came together with the cancellation.
                    client.conn._pool = self
                    self.give_back(client.conn)
                elif client in self._waiting:
                    self._waiting.remove(client)
                raise
            finally:
                self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * (monotonic() - began))
        conn._pool = self
        return conn

    def _maybe_grow_pool(self) -> None:
        """Open one more connection for those who wait, unless those being reset are enough.

        A reset takes one message, a new connection a process of the server's.
        """
        if len(self._waiting) > self._resetting:
            super()._maybe_grow_pool()

    def give_back(
        self, conn: PooledConnection, *, dirty: bool = False, suspect: bool = False
    ) -> None:
        """Return *conn* without waiting, from any code on the loop's thread.

        The session of a *dirty* one is reset at once, that of a *suspect* one before the next
        statement in it; see `session_reset`.

        What cannot be done at once (a rollback, a contended lock) is left to a task of the
        pool, so that neither cancelling the borrower nor closing its coroutine loses the
        connection. Elsewhere than on its loop see `_give_back_elsewhere`.
        """
        if _get_running_loop() is not self.loop:
            self._give_back_elsewhere(conn, dirty or suspect)
            return
        conn.borrower = None
        if suspect and not dirty:
            dirty = not self._put_off(conn)
        if conn.face.reset_due and self._reset_timer is None and self.loop is not None:
            # Not in the context of a task, which it would keep.
            self._reset_timer = self.loop.call_later(
                _RESET_AFTER, self._reset_idle, context=self._context
            )
        if dirty and not conn.closed and not self.closed:
            # Not begun here, in the middle of the borrower's bridge.
            self._begin_reset(conn)
        elif not self._put(conn):
            self._detach(self._return(conn), conn)

    def _put_off(self, conn: PooledConnection) -> bool:
        """Have the next statement on *conn* reset its session, if it can."""
        face = conn.face
        # Those who check or reset connections by means of their own want them as they were.
        if self._check is not None or self._reset is not None or not face.reset.can_wait(face):
            return False
        face.reset_due = True
        return True

    def _begin_reset(self, conn: PooledConnection) -> None:
        self._resetting += 1
        self.spawn(self._renew(conn), conn)

    def _reset_idle(self) -> None:
        """Reset the sessions of idle connections that nobody has used since it was put off."""
        self._reset_timer = None
        for conn in [each for each in self._pool if each.face.reset_due]:
            self._pool.remove(conn)
            conn._pool = self
            self._begin_reset(conn)
        self._nconns_min = min(self._nconns_min, len(self._pool))

    def _give_back_elsewhere(self, conn: PooledConnection, dirty: bool) -> None:
        """Do what `give_back` does where the pool's loop does not run, or runs in another thread.

        If it does not run, nobody can say whether it will again: the connection is closed at once,
        and its place is free when the loop runs again.
        """
        assert self.loop is not None
        if not self.loop.is_running():
            conn.borrower = None
            conn.finish()
        if not self.loop.is_closed():
            back = functools.partial(self.give_back, conn, dirty=dirty)
            self.loop.call_soon_threadsafe(back, context=Context())

    def on_loop(self, callback: Callable[[], None]) -> None:
        """Call *callback* where connections are given back: soon, on the pool's loop.

        At once if that is the running one, or does not run at all.
        """
        loop = self.loop
        if loop is None or loop is _get_running_loop() or not loop.is_running():
            callback()
        else:
            loop.call_soon_threadsafe(callback, context=Context())

    def abandon(self, conn: PooledConnection) -> None:
        """Close *conn* at once, in the middle of a statement, and have the server stop that."""
        if _get_running_loop() is self.loop and capabilities.has_cancel_safe():
            self.spawn(cancel(conn.pgconn.cancel_conn(), conn.face.cancel_timeout))
        conn.finish()

    async def _return(self, conn: PooledConnection) -> None:
        returned = False
        try:
            await self.putconn(conn)
            returned = not self.closed
        finally:
            if not returned:
                # Cancelled with the loop, or the pool was closed meanwhile: nobody else would.
                conn.finish()

    async def _renew(self, conn: PooledConnection) -> None:
        """Return *conn* with its session as it was after connecting; close it if that fails."""
        try:
            async with asyncio.timeout(conn.face.cancel_timeout):
                if conn.pgconn.transaction_status != TransactionStatus.IDLE:
                    await conn.rollback()
                await run_bridged(self._reset_session, conn)
        except BaseException as error:
            conn.finish()
            if not isinstance(error, Exception):
                raise
            logger.warning("closed %s, whose session could not be reset: %s", conn, error)
        finally:
            self._resetting -= 1
            if not self._put(conn):
                await self._return(conn)

    def drain_now(self) -> None:
        """Do what `drain` does before the next checkout, from any code on the loop's thread."""
        logger.warning("the server of %r has become read-only: connecting anew", self.name)
        self._detach(self.drain())

    def _get_measures(self) -> dict[str, int]:
        """Return psycopg_pool's sizes and ``pool_resetting``: how many sessions are being reset."""
        return {**super()._get_measures(), "pool_resetting": self._resetting}

    def _shortage(self, task: asyncio.Task[Any] | None) -> str:
        """Say where the connections are that *task* has waited for."""
        names = [name for name, _ in self.borrowers()]
        if len(names) < self.max_size:
            words = f"{len(names)} of {self.max_size} are on loan and no other could be opened"
        else:
            more = ", ..." if len(names) > _NAMES else ""
            words = f"all {self.max_size} are on loan, to {', '.join(names[:_NAMES])}{more}"
        waiting = sum(not (each.conn or each.error) for each in self._waiting)
        words += f", and {waiting} other tasks wait"
        for pool in open_pools():
            if pool is not self and any(borrower is task for _, borrower in pool.borrowers()):
                assert task is not None
                words += f"; {task.get_name()}, which asked, holds one of the pool {pool.name!r}"
        return words

    def borrowers(self) -> list[tuple[str, asyncio.Task[Any]]]:
        """Return the tasks, with their names, that have connections on loan."""
        tasks = [conn.borrower for conn in self._physical if conn.borrower is not None]
        return sorted(((task.get_name(), task) for task in tasks), key=itemgetter(0))

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
        if conn.closed or conn.says_goodbye():
            self._drop_idle(PooledConnection.says_goodbye)
            raise psycopg.OperationalError("the server closed the idle connection")
        if self._check is not None:
            try:
                with conn.face.limited():
                    await _call_hook(self._check, conn)
            except Exception:
                if conn.closed:
                    self._drop_idle(lambda idle: True)
                raise

    def _drop_idle(self, dead: Callable[[PooledConnection], bool]) -> None:
        """Close the idle connections that are *dead*, as one of them was.

        What ended it has mostly ended all, and psycopg_pool waits longer after each it meets.
        """
        for conn in [each for each in self._pool if dead(each)]:
            self._pool.remove(conn)
            conn.finish()
            # It is opened again when it is asked for.
            self._nconns -= 1
        self._nconns_min = min(self._nconns_min, len(self._pool))
        while self._nconns < self._min_size:
            self._nconns += 1
            self.run_task(AddConnection(self))

    async def _reset_connection(self, conn: PooledConnection) -> None:
        """Roll back what a borrower left, and call the option ``reset``."""
        with conn.face.limited():
            await super()._reset_connection(conn)

    async def _connect(  # psycopg_pool's signature
        self,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> PooledConnection:
        """Connect; tell a failure to those who wait, unless some connection still lives."""
        try:
            return await super()._connect(timeout)
        except Exception as error:
            forget_passwords(error)
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
            task.add_done_callback(lambda task: conn.finish() if task.cancelled() else None)


# Where the coroutines of a pool's own tasks are, psycopg_pool's aside.
_OF_POOLS = (__name__, PooledConnection.__module__, f"{__package__}.face")


def is_of_pool(task: asyncio.Task[Any]) -> bool:
    """Return whether *task* is a pool's own, not one of the application's."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    module = "" if frame is None else frame.f_globals.get("__name__", "")
    return module in _OF_POOLS or module.startswith("psycopg_pool.")


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
