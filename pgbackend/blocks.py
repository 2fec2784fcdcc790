"""Blocks of ``atomic``: on the loop, in turns; with ``async with``.

``Atomic`` itself stays Django's and does all the work: here is when, and where.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.db import DEFAULT_DB_ALIAS, transaction

from .base import DatabaseWrapper
from .ending import leave_block
from .routing import run_for_alias, thread_transactions
from .turns import block_has_ended


def entering(enter: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__enter__``: it waits for its turn, in a frame of the task's."""

    @functools.wraps(enter)
    def __enter__(self: Any) -> Any:
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, DatabaseWrapper):
            return enter(self)
        if (joined := wrapper.joined) is not None:
            return wrapper.hand_over(joined, self.__enter__)
        if not wrapper.bridged:
            enter(self)
            thread_transactions.set(thread_transactions.get() | {wrapper.alias})
            return None
        state = wrapper.state_in_turn(entering=True)
        if state.broken_by is not None and not state.in_atomic_block:
            # By hand, after a block: Django would let another one begin.
            wrapper.validate_no_broken_transaction()
        frame = state.enter_block(wrapper)
        try:
            enter(self)
            if frame.left:
                # The block around it was rolled back while SAVEPOINT was waited for.
                _take_back(wrapper, self)
                raise block_has_ended()
        except BaseException:
            if not frame.left:
                # Django leaves it half entered where anything but the database interrupts it.
                state.forget_block(frame)
            state.leave_frame(frame)
            raise
        if len(state.savepoint_ids) > frame.before.savepoint_ids:
            frame.savepoint = state.savepoint_ids[-1]
        return None

    return __enter__


def _take_back(wrapper: DatabaseWrapper, atomic: Any) -> None:
    """Undo what ``Atomic.__enter__`` has just noted of *atomic*, a nested block."""
    wrapper.savepoint_ids.pop()
    if wrapper.atomic_blocks[-1:] == [atomic]:
        wrapper.atomic_blocks.pop()


def leaving(leave: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``Atomic.__exit__``: it waits until the blocks within are left."""

    @functools.wraps(leave)
    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, DatabaseWrapper):
            return leave(self, exc_type, exc_value, traceback)
        try:
            joined = wrapper.joined
        except RuntimeError:
            # The transaction has ended, and the block with it.
            if exc_type is None:
                raise
            return None
        if joined is not None:
            return wrapper.hand_over(joined, self.__exit__, exc_type, exc_value, traceback)
        if not wrapper.bridged:
            try:
                return leave(self, exc_type, exc_value, traceback)
            finally:
                if not wrapper.in_atomic_block:
                    thread_transactions.set(thread_transactions.get() - {wrapper.alias})
        return leave_block(
            wrapper,
            lambda: leave(self, exc_type, exc_value, traceback),
            failed=exc_type is not None,
            error=exc_value,
        )

    return __exit__


async def aenter(self: Any) -> None:
    await run_for_alias(self.using or DEFAULT_DB_ALIAS, self.__enter__)


async def aexit(self: Any, *exc_info: Any) -> Any:
    alias = self.using or DEFAULT_DB_ALIAS
    return await run_for_alias(alias, self.__exit__, *exc_info)
