"""``async with transaction.atomic()``: the beginnings and ends of blocks, awaited.

Where a block is entered and left in a thread (another engine, an alias that is not on the bridge,
a caller that waits in ``async_to_sync``), the thread goes on when the task that waits for it is
cancelled. A block that it enters then would stay open, and one that it leaves would be kept by the
block around it, although CancelledError has left it.
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

from ..bridge.greenlets import run_bridged
from ..pool.stopping import shielded
from ..tasks.abandoning import abandon, end, left_elsewhere, may_wait, watch
from ..tasks.frames import block_has_ended
from ..wrapper.attributes import BackendWrapper
from ..wrapper.dispatch import run_for_alias, runs_bridged, thread_transactions
from .atomic_blocks import frames_of, leaving_it, which_block


class _Step:
    """A function that is called once, in a thread perhaps, whatever becomes of who waits for it.

    Only if it has not begun, it is not called any more.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        # Taken by who calls the function, or by who gives up before.
        self._begin = threading.Lock()
        self._ended: Future[None] = Future()
        self.begun = self.returned = False
        # The variable, as the function left it behind.
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
        """Call the function where *alias* is used; cancelled, raise that when it has ended."""
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
    """Be ``Atomic.__aenter__``: what is cancelled is not entered."""
    caller = sys._getframe(1)
    alias = self.using or DEFAULT_DB_ALIAS
    if _needs_no_thread(alias):
        await run_bridged(self.__enter__)
    else:
        await _enter_elsewhere(self, alias)
    if frames := frames_of(self):
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
    """Be ``Atomic.__aexit__``: what is cancelled is not kept by the block around it."""
    caller = sys._getframe(1)
    alias = self.using or DEFAULT_DB_ALIAS
    left = which_block(self, exc_info[0], caller)
    if left.is_gone:
        if exc_info[0] is None:
            raise block_has_ended()
        return None
    if (frame := left.abandoned) is not None:
        if _needs_no_thread(alias) and may_wait(frame, caller):
            return await run_bridged(end, frame)
        # Nothing can be awaited in a coroutine that is being closed.
        abandon(frame)
        if exc_info[0] is None:
            raise left_elsewhere(frame)
        return None
    if _needs_no_thread(alias):
        with leaving_it(left):
            return await run_bridged(self.__exit__, *exc_info)
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
    # Without a loop the coroutine of one that was closed is being collected.
    return _get_running_loop() is not None and runs_bridged(alias)


async def _leave(self: Any, alias: str, error: BaseException) -> None:
    """Leave the block for *error*, whatever else cancels the task meanwhile."""
    step = _Step(functools.partial(self.__exit__, type(error), error, None))
    try:
        await shielded(step.run(alias))
    except DatabaseError:
        # It is gone with its connection.
        pass
    finally:
        thread_transactions.set(step.transactions)


def _break_block(alias: str, error: BaseException) -> None:
    """Have the block that is open on *alias*, if there is one, rolled back for *error*."""
    wrapper = transaction.get_connection(alias)
    if not wrapper.in_atomic_block:
        return
    if isinstance(wrapper, BackendWrapper):
        wrapper.state.break_block(error)
    else:
        wrapper.needs_rollback = True
