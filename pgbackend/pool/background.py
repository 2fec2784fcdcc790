"""A pool's own tasks on the event loop, and its end together with the loop."""

from __future__ import annotations

import asyncio
import functools
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from time import monotonic
from types import coroutine
from typing import Any

from psycopg_pool import AsyncConnectionPool

from .counts import keep
from .open_pools import forget, open_pools
from .physical import PooledConnection

# How often a closing pool checks whether all connections are back, seconds.
_IDLE_INTERVAL = 0.05

# How long pools stay open for cancelled tasks on their way out when the loop ends, seconds.
_END_TIMEOUT = 5.0


class PoolOfLoop(AsyncConnectionPool[PooledConnection]):
    """A pool that begins and ends with its event loop, and whose tasks are its own."""

    # The loop that the pool was started on.
    loop: asyncio.AbstractEventLoop | None
    # The task that closes the pool when the loop ends; None before `start` and from `close` on.
    _keeper: asyncio.Task[None] | None
    # The context that the pool's tasks start in: they must not see the context of the request that
    # happened to open the pool.
    _context: Context
    _background_tasks: set[asyncio.Task[Any]]
    # The timer for postponed resets of idle connections' sessions.
    _reset_timer: asyncio.TimerHandle | None

    def start(self) -> None:
        """Open the pool on the running loop; connections are made when first asked for.

        `start` never waits, so concurrent first requests cannot race.
        """
        self._context.run(self._run_in_background, self.open())
        self.loop = asyncio.get_running_loop()
        self._keeper = self.loop.create_task(
            self._keep(), name=f"{self.name}-keeper", context=self._context
        )

    async def _keep(self) -> None:
        """Close the pool when the loop ends: `asyncio.run` then cancels every task.

        Without this task, a worker that is cancelled while it connects, and swallows the
        cancellation, would wait for work for ever, and `asyncio.run` for the worker.

        The other tasks may still query on their way out, which opens pools that nobody cancels:
        this task closes those pools, too, once the other tasks have ended.
        """
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if self._keeper is None:
                # `close()` itself cancelled this task.
                raise
            self._keeper = None
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            # Leave out the pools' own tasks: the other keepers wait for the same tasks as this one.
            others = [
                each for each in asyncio.all_tasks() if each.cancelling() and not is_of_pool(each)
            ]
            await self.close()
            if others:
                await asyncio.wait(others, timeout=_END_TIMEOUT)
                # The statements that they have left are being stopped in the server.
                await self._end_background_tasks(_END_TIMEOUT)
            for pool in open_pools():
                await pool.close()

    async def close(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109  # psycopg_pool's
        """Close the pool and its idle connections; a connection on loan closes when given back.

        Wait up to *timeout* seconds for connections that are being opened.
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
            # The end of the loop cancelled the workers, not the task that closes the pool.
        finally:
            for conn in idle:
                conn.finish()
            forget(self)
            keep(self)
            await self._end_background_tasks(timeout)

    async def _end_background_tasks(self, timeout: float) -> None:  # noqa: ASYNC109  # as close()
        """Wait for the pool's own tasks: where the loop ends, nothing else waits for them."""
        current = asyncio.current_task()
        while tasks := [task for task in self._background_tasks if task is not current]:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()

    async def close_when_idle(self, timeout: float) -> None:  # noqa: ASYNC109  # as close()
        """Close the pool once no connection is on loan, or after *timeout* seconds."""
        deadline = monotonic() + timeout
        while len(self._pool) < self._nconns and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_IDLE_INTERVAL)
        await self.close()

    def on_loop(self, callback: Callable[[], None]) -> None:
        """Call *callback* soon on the pool's loop, where connections are given back.

        Call it at once if the pool's loop is the running one, or does not run at all.
        """
        loop = self.loop
        if loop is None or loop is _get_running_loop() or not loop.is_running():
            callback()
        else:
            loop.call_soon_threadsafe(callback, context=Context())

    def _run_in_background(
        self, coro: Coroutine[Any, Any, Any], conn: PooledConnection | None = None
    ) -> None:
        """Run *coro* up to its first wait; a background task does the rest."""
        try:
            waiting = coro.send(None)
        except StopIteration:
            return
        self.start_task(_rest(coro, waiting), conn)

    def start_task(
        self, coro: Coroutine[Any, Any, Any], conn: PooledConnection | None = None
    ) -> asyncio.Task[Any]:
        """Run *coro* in a background task, which is returned.

        Close *conn*, which the task gives back, if it is cancelled.
        """
        # A copy: an eager task enters its context at once, and the caller may be in the pool's own.
        context = self._context.copy()
        task = asyncio.get_running_loop().create_task(coro, context=context)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)
        if conn is not None:
            # The loop may cancel the task before its first step, so that no code of *coro* ever
            # runs.
            task.add_done_callback(lambda task: conn.finish() if task.cancelled() else None)
        return task


def is_of_pool(task: asyncio.Task[Any]) -> bool:
    """Return whether *task* belongs to a pool, not to the application."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    module = "" if frame is None else frame.f_globals.get("__name__", "")
    return module.startswith((f"{__package__}.", "psycopg_pool."))


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
