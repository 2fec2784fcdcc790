"""Blocks whose task has ended inside them, while other code may believe to be inside.

``create_task(stack.enter_async_context(transaction.atomic()))`` enters a block in a task of its
own; so does ``create_task(anext(generator))``, and before Python 3.12 ``asyncio.wait_for()`` with
its argument. The transaction belongs to that task, and is rolled back when the task ends. Code that
goes on in the block's body is in no transaction, and its statements would be committed at once.
They are refused until the block is left, or nothing can leave it any more.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Task, _get_running_loop
from collections.abc import Callable
from typing import Any
from weakref import ref

from ..bridge.current import can_wait
from ..bridge.greenlets import await_bridged
from .abandoning import FRAMES, abandon
from .frames import Frame
from .request import running_request
from .revoked import check_not_revoked, revoke, revoked_blocks
from .transaction import Transaction
from .turns import Turns

# The open transactions, by the id of their request, or 0 without one. A task's done callbacks may
# run after the code that waits for the task has resumed: so `_note_who_has_ended` checks the
# owners.
open_transactions: dict[int, list[ref[Transaction]]] = {}

# The outermost blocks whose tasks ended inside them; usually empty.
orphans: list[Orphan] = []

# How many iterations the event loop needs to close a generator that was dropped, with a margin.
_TURNS = 5


def register(transaction: Transaction) -> None:
    """Register *transaction*, which is being begun."""
    transaction.request = request = running_request()
    open_transactions.setdefault(0 if request is None else id(request), []).append(ref(transaction))


def unregister(transaction: Transaction) -> None:
    """Undo `register`."""
    request = transaction.request
    key = 0 if request is None else id(request)
    entered = open_transactions.get(key, [])
    if len(entered) == 1 and entered[0]() is transaction:
        del open_transactions[key]
    # Drop also the transactions whose tasks were collected together with their loop.
    elif rest := [each for each in entered if each() not in (None, transaction)]:
        open_transactions[key] = rest
    else:
        open_transactions.pop(key, None)
    # A context may keep the transaction alive: the request's wrappers must not stay with it.
    transaction.request = None


class Orphan:
    """The outermost block of a task that has ended inside it."""

    def __init__(self, atomic: Any, alias: str, task: Task[Any]) -> None:
        # The orphan is removed when the object that could leave the block is collected, or the loop
        # on which that could be.
        self.atomic: Callable[[], Any] = ref(atomic, self._forget)
        self.task_name = task.get_name()
        self._alias = alias
        self._request = running_request()
        self._loop: Callable[[], AbstractEventLoop | None] = ref(task.get_loop(), self._forget)

    def _forget(self, _: Any) -> None:
        if self in orphans:
            orphans.remove(self)

    def concerns(self, alias: str) -> bool:
        """Return whether the caller may be in the block: in the same request, or in none.

        A thread outside of requests cannot be assigned to any block.
        """
        loop = _get_running_loop()
        return (
            self._alias == alias
            and self._request is running_request()
            and (loop is self._loop() or (loop is None and self._request is not None))
        )


def owner_has_ended(state: Turns, task: Task[Any]) -> None:
    """Note the blocks of *state* that *task* ended inside of, before they are forgotten."""
    transaction = state.transaction
    if transaction is None:
        return
    unregister(transaction)
    for frame in state.frames:
        atomic = frame.atomic
        if frame.actor.task is not task or atomic is None:
            continue
        # The task's coroutine refers to whatever may leave the block. Remove the references back,
        # so that no cycle keeps them all alive.
        getattr(atomic, FRAMES).remove(frame)
        frame.actor = frame.actor.without_task()
        if frame.is_abandoned:
            continue
        if frame.body is not None:
            # Only the generator that holds the block can go on in its body.
            revoke(frame)
        else:
            orphans.append(Orphan(atomic, transaction.wrapper.alias, task))


def remove_orphan_of(atomic: Any) -> None:
    """Note that a caller which has not entered a block of *atomic* leaves it."""
    for orphan in reversed(orphans):
        if orphan.atomic() is atomic:
            orphans.remove(orphan)
            return


def check_in_no_orphan(alias: str, state: Turns) -> None:
    """Raise RuntimeError where the caller may believe to be in a block that has ended."""
    if state.transaction is None and not state.in_atomic_block and (open_transactions or orphans):
        _note_who_has_ended()
        if _concerning(alias) and can_wait():
            # The loop closes generators that were dropped with the task, in another task: let it
            # run.
            await_bridged(_some_turns_of_the_loop())
        if (orphan := _concerning(alias)) is not None:
            raise _ended_inside_error(orphan.task_name)
    if revoked_blocks:
        check_not_revoked()


def _note_who_has_ended() -> None:
    request = running_request()
    for each in open_transactions.get(0 if request is None else id(request), ()):
        transaction = each()
        if transaction is not None and (owner := transaction.owner()) and owner.done():
            transaction.state.owner_has_ended(owner)


def _concerning(alias: str) -> Orphan | None:
    return next((orphan for orphan in orphans if orphan.concerns(alias)), None)


async def _some_turns_of_the_loop() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)


def end_orphan_on_top(state: Turns) -> None:
    """Do not wait for a task that has ended inside the innermost blocks of *state*.

    Roll back blocks in generators, which cannot go on inside them. Raise RuntimeError for any other
    block: some code may take the rest of the block's body for a part of the transaction.
    """
    found: list[Frame] = []
    for frame in reversed(state.frames):
        task = frame.actor.task
        if frame.is_abandoned or frame.is_leaving or task is None or not task.done():
            break
        if frame.body is None:
            raise _ended_inside_error(task.get_name())
        found.append(frame)
    for frame in found:
        revoke(frame)
        abandon(frame)


def _ended_inside_error(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} has entered an atomic block and ended inside it: the block was rolled back with"
        " the task, and what is executed in the rest of its body would be in no transaction."
        " Enter and leave a block in one task: asyncio.create_task(), and before Python 3.12"
        " asyncio.wait_for(), give a part of it a task of its own; asyncio.timeout() does not"
    )
