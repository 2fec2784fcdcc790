"""``async with transaction.atomic()``: entering and leaving blocks asynchronously.

A block may be entered and left in a thread: for another engine, for an alias that is not bridged,
or for a caller that waits in ``async_to_sync``. The thread goes on when the task that waits for it
is cancelled. Then a block that the thread enters would stay open, and the outer block would keep
the work of a block that the thread leaves, although CancelledError has left it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from asyncio import _get_running_loop
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from django.db import DEFAULT_DB_ALIAS, DatabaseError, transaction

from ..bridge.greenlets import drive, run_bridged
from ..pool.stopping import shielded
from ..tasks.abandoning import FRAMES, abandon, end_frame, left_elsewhere_error, may_wait, watch
from ..tasks.frames import block_ended_error
from ..wrapper.attributes import BackendWrapper
from ..wrapper.dispatch import begins_here, run_for_alias, runs_bridged, thread_transactions
from .atomic_blocks import leaving_next, which_block


class _Step:
    """A function that runs to its end once it has begun, even if its caller is cancelled.

    The function may run in a thread. If the caller is cancelled before the function has begun, the
    function is not called any more.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        # The first to take this lock decides: the function begins, or the caller gives up.
        self._begin = threading.Lock()
        self._ended: Future[None] = Future()
        self.begun = self.returned = False
        # The value of the context variable that the function left.
        self.transactions = thread_transactions.get()

    def __call__(self) -> Any:
        if not self._begin.acquire(blocking=False):
            return None
        self.begun = True
        try:
            result = self._function()
            self.returned = True
            return result
        finally:
            self.transactions = thread_transactions.get()
            self._ended.set_result(None)

    async def run(self, alias: str) -> Any:
        """Call the function where *alias* is used; raise a cancellation only after its end."""
        try:
            return await run_for_alias(alias, self)
        except asyncio.CancelledError:
            if not self._begin.acquire(blocking=False):
                if not self._ended.done():
                    await shielded(_wait(self._ended))
                thread_transactions.set(self.transactions)
            raise


async def _wait(ended: Future[None]) -> None:
    await asyncio.wrap_future(ended)


async def aenter(self: Any) -> None:
    """Enter the block as ``Atomic.__aenter__``; if cancelled, the block is not left open."""
    caller = sys._getframe(1)
    alias = self.using or DEFAULT_DB_ALIAS
    if begins_here(alias):
        await drive(self.__enter__, (), {})
    elif _needs_no_thread(alias):
        await run_bridged(self.__enter__)
    else:
        await _enter_elsewhere(self, alias)
    if frames := self.__dict__.get(FRAMES):
        watch(frames[-1], caller)


async def _enter_elsewhere(self: Any, alias: str) -> None:
    step = _Step(self.__enter__)
    try:
        await step.run(alias)
    except asyncio.CancelledError as error:
        if step.returned:
            await _leave(self, alias, error)
        raise


async def aexit(self: Any, *exc_info: Any) -> Any:
    """Leave the block as ``Atomic.__aexit__``; if cancelled, its work is rolled back."""
    caller = sys._getframe(1)
    alias = self.using or DEFAULT_DB_ALIAS
    left = which_block(self, exc_info[0], caller)
    if left.is_revoked:
        if exc_info[0] is None:
            raise block_ended_error()
        return None
    if (frame := left.abandoned_frame) is not None:
        if _needs_no_thread(alias) and may_wait(frame, caller):
            return await run_bridged(end_frame, frame)
        # A coroutine that is being closed cannot await the end of its block.
        abandon(frame)
        if exc_info[0] is None:
            raise left_elsewhere_error(frame)
        return None
    if (begins := begins_here(alias)) or _needs_no_thread(alias):
        leaving_next.set(left)
        try:
            if begins:
                return await drive(self.__exit__, exc_info, {})
            return await run_bridged(self.__exit__, *exc_info)
        finally:
            # A coroutine that is only now collected may run this in another context.
            if leaving_next.get() is left:
                leaving_next.set(None)
    step = _Step(functools.partial(self.__exit__, *exc_info))
    try:
        return await step.run(alias)
    except asyncio.CancelledError as error:
        if not step.begun:
            await _leave(self, alias, error)
        elif step.returned and exc_info[0] is None:
            await shielded(_Step(functools.partial(_break_block, alias, error)).run(alias))
        raise


def _needs_no_thread(alias: str) -> bool:
    # The coroutine of a closed loop is being collected if no loop runs.
    return _get_running_loop() is not None and runs_bridged(alias)


async def _leave(self: Any, alias: str, error: BaseException) -> None:
    """Leave the block because of *error*, even if the task is cancelled again meanwhile."""
    step = _Step(functools.partial(self.__exit__, type(error), error, None))
    try:
        await shielded(step.run(alias))
    except DatabaseError:
        # The block is gone together with its connection.
        pass
    finally:
        thread_transactions.set(step.transactions)


def _break_block(alias: str, error: BaseException) -> None:
    """Have the block that is open on *alias*, if any, rolled back because of *error*."""
    wrapper = transaction.get_connection(alias)
    if not wrapper.in_atomic_block:
        return
    if isinstance(wrapper, BackendWrapper):
        wrapper.state.break_block(error)
    else:
        wrapper.needs_rollback = True
