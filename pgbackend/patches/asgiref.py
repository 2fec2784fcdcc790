"""``async_to_sync`` in the bridge, and ``sync_to_async`` calls of its coroutine."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import asgiref.sync
from django.db import connections

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged, run_bridged
from ..tasks import thread_calls


class _Caller:
    """A bridged call of async_to_sync, known to the coroutine that it waits for."""

    waits = True

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    @property
    def waits_here(self) -> bool:
        """Whether the call waits for the running coroutine, on the same loop."""
        return self.waits and asyncio.get_running_loop() is self.loop


_caller: ContextVar[_Caller | None] = ContextVar("pgbackend_caller", default=None)


def patch() -> None:
    """Let ``async_to_sync``, called in the bridge, wait in place.

    asgiref refuses the call on a running loop, but bridged code can wait. By asgiref's own rule,
    thread-sensitive functions that the coroutine calls by ``sync_to_async`` belong on the thread of
    the outer synchronous caller: so they run bridged. With *force_new_loop* the coroutine has its
    own loop in a thread, and bridged code waits for it. (asgiref 3.12 and 3.13.)
    """
    call_sync: Callable[..., Any] = asgiref.sync.AsyncToSync.__call__
    call_async: Callable[..., Any] = asgiref.sync.SyncToAsync.__call__

    @functools.wraps(call_sync)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_bridged():
            return call_sync(self, *args, **kwargs)
        if self.force_new_loop:
            return _in_thread(lambda: call_sync(self, *args, **kwargs))
        caller = _Caller()
        token = _caller.set(caller)
        try:
            return await_bridged(self.awaitable(*args, **kwargs))
        finally:
            caller.waits = False
            _caller.reset(token)

    @functools.wraps(call_async)
    async def __acall__(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = _caller.get()
        if self._thread_sensitive and caller is not None and caller.waits_here:
            return await run_bridged(self.func, *args, **kwargs)
        return await thread_calls.sync_to_async(call_async, self, args, kwargs)

    def _in_thread(call: Callable[[], Any]) -> Any:
        """Make a call in a new thread, in the caller's context, and wait bridged."""

        def work() -> Any:
            try:
                return call()
            finally:
                # Close the thread's own connections; one that the thread joined belongs to the
                # loop.
                connections.close_all()

        executor = ThreadPoolExecutor(1, "pgbackend-new-loop")
        thread: Any = asgiref.sync.SyncToAsync(work, thread_sensitive=False, executor=executor)
        try:
            return await_bridged(call_async(thread))
        finally:
            executor.shutdown(wait=False)

    asgiref.sync.AsyncToSync.__call__ = __call__  # type: ignore[method-assign]  # the patch
    asgiref.sync.SyncToAsync.__call__ = __acall__  # type: ignore[method-assign]  # the patch
