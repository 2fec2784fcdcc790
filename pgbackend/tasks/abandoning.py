"""Blocks of ``atomic`` that are left where their end cannot be waited for.

An asynchronous generator to which nobody refers any more is closed by the loop, later, in a task
of its own; a coroutine may be closed, or be collected in another thread. The block in it belongs to
the task that entered it: it is ended for that one, by its next use of the transaction, or by a task
in its place, whichever comes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextvars import Context
from types import FrameType
from typing import Any
from weakref import WeakSet, ref

from django.db import connections
from greenlet import GreenletExit

from ..bridge.current import is_bridged
from ..bridge.greenlets import can_wait, run_bridged
from .actors import Actor, current_actor, work_for
from .frames import Frame
from .taken import stack_ids, take_away
from .turns import Turns

_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

# What starts the generators of `contextlib.contextmanager` and its asynchronous sister.
_CONTEXT_MANAGERS = frozenset(
    {
        contextlib._GeneratorContextManager.__enter__.__code__,
        contextlib._AsyncGeneratorContextManager.__aenter__.__code__,
    }
)

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR

# Tasks that end blocks: an event loop keeps no reference to its own.
_tasks: set[asyncio.Task[None]] = set()


class BlockLeftError(GeneratorExit):
    """What ends the block of *frame*, in place of what has left it."""

    def __init__(self, frame: Frame) -> None:
        super().__init__("the block was left where its end could not be waited for")
        self.frame = frame


def own_frame(atomic: Any, caller: FrameType | None, actor: Actor) -> Frame | None:
    """Return the frame of *atomic* that *actor* leaves in *caller*, also one that is gone.

    None if it is in no block of *atomic* any more: another one of its blocks is not meant.
    """
    entered: Sequence[Frame] = getattr(atomic, "_pgbackend_frames", ())
    own = [frame for frame in entered if frame.actor == actor and not frame.abandoned]
    return _of_caller(own, caller)


def _of_caller(frames: list[Frame], caller: FrameType | None) -> Frame | None:
    """Return the one of *frames* that is left in *caller*: where it was entered, or else the last.

    One in a generator is left there only.
    """
    here = [frame for frame in frames if frame.entered_in == id(caller)]
    found = here or [frame for frame in frames if frame.body is None]
    return found[-1] if found else None


def abandoned_frame(
    atomic: Any, exc_type: type[BaseException] | None, caller: FrameType | None, actor: Actor
) -> Frame | None:
    """Return the frame of *atomic* that *actor* leaves in *caller*, if its end cannot be awaited.

    A generator that is closed does not wait either: the collector may have closed it in the middle
    of anything.
    """
    entered: Sequence[Frame] = getattr(atomic, "_pgbackend_frames", ())
    frames = [frame for frame in entered if not frame.left]
    if not frames or (exc_type is not None and issubclass(exc_type, BlockLeftError)):
        return None
    own = _of_caller([frame for frame in frames if frame.actor == actor], caller)
    if own is not None:
        closed = exc_type is not None and (
            issubclass(exc_type, GeneratorExit | GreenletExit) or _is_closed()
        )
        return own if closed else None
    here = [frame for frame in frames if frame.entered_in == id(caller)]
    if here:
        return here[-1]
    # Of several tasks' blocks it cannot be known which is meant: their generators are watched. Nor
    # where the caller's own block was taken away before.
    if len(frames) > 1 or any(frame.actor == actor for frame in entered):
        return None
    return frames[0]


def left_elsewhere(frame: Frame) -> RuntimeError:
    """Return the error for who leaves the block of *frame* as if nothing were wrong: not its task.

    Without it rows that will be rolled back would count as committed.
    """
    return RuntimeError(
        f"this atomic block was entered by {frame.actor.name} and is left by another task: it is"
        " rolled back. Enter and leave a block in one task: where asyncio.wait_for() or"
        " create_task() runs only a part of it, that part is another task's"
    )


def may_wait(frame: Frame, caller: FrameType | None) -> bool:
    """Return whether the end of *frame* can be waited for in *caller*, a block's body.

    In an asynchronous generator whose own task has asked for its end and awaits that: not where
    nobody refers to it any more, nor where the coroutine that does so is itself being closed.
    """
    if frame.abandoned or frame.actor != current_actor() or caller is None:
        return False
    if not caller.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    while caller is not None and caller.f_code.co_flags & _ASYNC:
        # What `async with` hands to the ends of its blocks.
        if caller.f_code.co_name == "__aexit__" and _has_exit(caller.f_locals.values()):
            return False
        caller = caller.f_back
    return True


def _has_exit(values: Iterable[Any]) -> bool:
    """Return whether GeneratorExit, or one of its like, is among *values* or in a tuple there."""
    for value in values:
        if isinstance(value, tuple):
            if _has_exit(value):
                return True
        elif value is GeneratorExit or isinstance(value, GeneratorExit | GreenletExit):
            return True
    return False


def _is_closed() -> bool:
    return is_bridged() and not can_wait()


def abandon(frame: Frame) -> None:
    """Have the block of *frame* ended for its task, without waiting; from any thread."""
    transaction = frame.state.transaction
    if frame.left or frame.abandoned or transaction is None:
        return
    frame.when_on_top = functools.partial(_end_soon, frame)
    frame.abandoned = True
    if not transaction.loop.is_closed():
        # With a closed loop its connections are closed.
        transaction.loop.call_soon_threadsafe(frame.when_on_top, context=Context())


def _end_soon(frame: Frame) -> None:
    """Start the task that ends the block, in the context of the one that entered it.

    Not while one inside it is to be ended before.
    """
    if frame.left or frame.ender is not None:
        return
    frames = frame.state.frames
    if any(each.abandoned for each in frames[frames.index(frame) + 1 :]):
        return
    context = frame.actor.context
    task = asyncio.get_running_loop().create_task(
        _end(frame), context=Context() if context is None else context.copy()
    )
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _nobody_waits(turn: bool) -> None:
    """Be told whether the task waits for its turn; no thread is held up meanwhile."""


async def _end(frame: Frame) -> None:
    wrapper: Any = frame.wrapper
    # asgiref hides a thread's wrappers from contexts that were copied.
    connections[wrapper.alias] = wrapper
    with work_for(frame.actor, wrapper, _nobody_waits):
        await run_bridged(end, frame)


def end_abandoned(state: Turns) -> None:
    """End the blocks on top of *state* that the running task has abandoned, innermost first."""
    while state.frames and state.frames[-1].abandoned:
        frame = state.frames[-1]
        if frame.ender is not None or frame.actor != current_actor():
            # Whose turn it is not waits.
            return
        end(frame)


def end(frame: Frame) -> None:
    """End the block of *frame*, which was abandoned, in the place of its task."""
    if frame.ender is None and not frame.left:
        frame.ender = asyncio.current_task()
        frame.atomic.__exit__(BlockLeftError, BlockLeftError(frame), None)


def end_within(frame: Frame) -> None:
    """End the blocks that the running task has entered inside that of *frame* and not left.

    They are in generators that are suspended still, or in coroutines that do not know that they
    were closed. *frame* is about to be left: what comes afterwards is not for them. Those below a
    block of another task's end when that is left.
    """
    frames, actor = frame.state.frames, current_actor()
    for each in frames[frames.index(frame) + 1 :]:
        if each.actor == actor and not each.abandoned:
            take_away(each)
            abandon(each)
    while frame in frames and (top := frames[-1]) is not frame and top.actor == actor:
        if top.ender is not None:
            # A task in the place of this one ends it already, and is waited for.
            return
        end(top)


# Asynchronous generators


def watch(frame: Frame, caller: FrameType | None) -> None:
    """Note where the block of *frame* stands: in *caller*, unless that enters it for others.

    Abandon *frame* as soon as nobody refers to a generator any more that *caller* runs in. The loop
    tells it later, when other statements of its reader have run.
    """
    if caller is not None and _holds_block(caller):
        frame.entered_in = id(caller)
        if caller.f_code.co_flags & _GENERATORS and not _is_context_manager(caller):
            frame.body = caller
    loop = _get_running_loop()
    if loop is None:
        return
    for generator in _generators(loop, caller):
        frame.generators.append(ref(generator, lambda _: abandon(frame)))


def _holds_block(caller: FrameType) -> bool:
    """Return whether a block that *caller* enters may stand in it: a stack's does not."""
    module = str(caller.f_globals.get("__name__", ""))
    return module != "contextlib" and not module.startswith("pgbackend.")


def _is_context_manager(body: FrameType) -> bool:
    """Return whether the generator of *body* is a context manager: the block is its user's."""
    return body.f_back is not None and body.f_back.f_code in _CONTEXT_MANAGERS


def abandon_lost(state: Turns) -> None:
    """Abandon the blocks of *state* in generators that wait for what nobody will tell them.

    Before CPython 3.13 a coroutine that is closed does not close the asynchronous generator that
    it waits in: that counts as running, but is not where the running task is.
    """
    stack = set(stack_ids())
    for frame in reversed(state.frames):
        generators = [generator for each in frame.generators if (generator := each())]
        if any(each.ag_running and id(each.ag_frame) not in stack for each in generators):
            abandon(frame)


def _generators(loop: AbstractEventLoop, frame: FrameType | None) -> list[AsyncGenerator[Any, Any]]:
    """Return the asynchronous generators that *frame* runs in, of the running task."""
    frames: list[FrameType] = []
    while frame is not None and frame.f_code.co_flags & _ASYNC:
        if frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
            frames.append(frame)
        frame = frame.f_back
    if not frames:
        return []
    return [each for each in _started_on(loop) if each.ag_frame in frames]


def _started_on(loop: AbstractEventLoop) -> list[Any]:
    """Return the asynchronous generators that *loop* has to close at its end.

    A frame does not say whose it is before CPython 3.14. uvloop keeps the set out of sight.
    """
    known = getattr(loop, "_asyncgens", None)
    sets = [known] if known is not None else gc.get_referents(loop)
    return [
        each
        for found in sets
        if isinstance(found, WeakSet)
        for each in found
        if inspect.isasyncgen(each)
    ]
