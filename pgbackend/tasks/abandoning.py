"""Blocks of ``atomic`` that are left where their end cannot be awaited.

The event loop closes an asynchronous generator that is no longer referenced: later, and in a task
of its own. A coroutine may be closed, or be collected in another thread. A block inside still
belongs to the task that entered it. It is ended on behalf of that task: by the task's next use of
the transaction, or by a task in its place, whichever comes first.
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

from ..bridge.current import can_wait, is_bridged
from ..bridge.greenlets import run_bridged
from .actors import Actor, acting_for, current_actor
from .frames import Frame
from .revoked import revoke, stack_ids
from .turns import Turns

# The attribute of an `Atomic` with the frames of the tasks that are inside it, usually one.
FRAMES = "_pgbackend_frames"

_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

# The functions that start the generators of `contextlib.contextmanager` and
# `contextlib.asynccontextmanager`; both classes are private names of contextlib.
_CONTEXT_MANAGERS = frozenset(
    {
        contextlib._GeneratorContextManager.__enter__.__code__,
        contextlib._AsyncGeneratorContextManager.__aenter__.__code__,
    }
)

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR

# The tasks that end blocks: an event loop keeps only weak references to its tasks.
_tasks: set[asyncio.Task[None]] = set()


class BlockLeftError(GeneratorExit):
    """The exception that ends the block of *frame*, in place of the one that left it."""

    def __init__(self, frame: Frame) -> None:
        super().__init__("the block was left where its end could not be waited for")
        self.frame = frame


def own_frame(atomic: Any, caller: FrameType | None, actor: Actor) -> Frame | None:
    """Return the frame of *atomic* that *actor* leaves in *caller*, even if it was removed.

    Return None if the actor is in no block of *atomic* any more; a block elsewhere does not count.
    """
    entered: Sequence[Frame] = getattr(atomic, FRAMES, ())
    own = [frame for frame in entered if frame.actor == actor and not frame.is_abandoned]
    return _of_caller(own, caller)


def _of_caller(frames: list[Frame], caller: FrameType | None) -> Frame | None:
    """Return which of *frames* is left in *caller*: the one entered there, or else the last.

    A block in a generator is only ever left in that generator.
    """
    here = [frame for frame in frames if frame.entered_in == id(caller)]
    found = here or [frame for frame in frames if frame.body is None]
    return found[-1] if found else None


def abandoned_frame(
    atomic: Any, exc_type: type[BaseException] | None, caller: FrameType | None, actor: Actor
) -> Frame | None:
    """Return the frame of *atomic* that *actor* leaves in *caller*, if its end cannot be awaited.

    The end of a generator that is closed is not awaited either: the collector may have closed the
    generator in the middle of anything.
    """
    entered: Sequence[Frame] = getattr(atomic, FRAMES, ())
    frames = [frame for frame in entered if not frame.is_removed]
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
    # If several tasks have blocks of *atomic* open, nothing shows which one is left; their
    # generators are watched instead. The same is true if the caller's own block was revoked
    # before.
    if len(frames) > 1 or any(frame.actor == actor for frame in entered):
        return None
    return frames[0]


def left_elsewhere_error(frame: Frame) -> RuntimeError:
    """Return the error for another task that leaves the block of *frame* normally.

    Without the error, rows that will be rolled back would count as committed.
    """
    return RuntimeError(
        f"this atomic block was entered by {frame.actor.name} and is left by another task: it is"
        " rolled back. Enter and leave a block in one task: where asyncio.wait_for() or"
        " create_task() runs only a part of it, that part is another task's"
    )


def may_wait(frame: Frame, caller: FrameType | None) -> bool:
    """Return whether the end of *frame* can be awaited in *caller*, the body of a block.

    Waiting is possible in an asynchronous generator whose own task has asked for the generator's
    end and awaits it. It is impossible if nothing references the generator any more, or if the
    awaiting coroutine is itself being closed.
    """
    if frame.is_abandoned or frame.actor != current_actor() or caller is None:
        return False
    if not caller.f_code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return False
    while caller is not None and caller.f_code.co_flags & _ASYNC:
        # `async with` passes the exception to the ``__aexit__`` of the blocks that it ends.
        if caller.f_code.co_name == "__aexit__" and _has_exit(caller.f_locals.values()):
            return False
        caller = caller.f_back
    return True


def _has_exit(values: Iterable[Any]) -> bool:
    """Return whether GeneratorExit or GreenletExit is among *values* or in a tuple there."""
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
    if frame.is_removed or frame.is_abandoned or transaction is None:
        return
    frame.when_on_top = functools.partial(_end_soon, frame)
    frame.is_abandoned = True
    if not transaction.loop.is_closed():
        # If the loop is closed, its connections are closed, too, and nothing is left to end.
        transaction.loop.call_soon_threadsafe(frame.when_on_top, context=Context())


def _end_soon(frame: Frame) -> None:
    """Start the task that ends the block, in a copy of the context that entered the block.

    Do nothing while an abandoned block inside it has to end first: `leave_frame` calls again.
    """
    if frame.is_removed or frame.ending_task is not None:
        return
    frames = frame.state.frames
    if any(each.is_abandoned for each in frames[frames.index(frame) + 1 :]):
        return
    context = frame.actor.context
    task = asyncio.get_running_loop().create_task(
        _end(frame), context=Context() if context is None else context.copy()
    )
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _nobody_waits(turn: bool) -> None:
    """Ignore whether the task waits for its turn: no thread is blocked meanwhile."""


async def _end(frame: Frame) -> None:
    wrapper: Any = frame.wrapper
    # asgiref hides a thread's wrappers from copied contexts, so set the wrapper again.
    connections[wrapper.alias] = wrapper
    with acting_for(frame.actor, wrapper, _nobody_waits):
        await run_bridged(end_frame, frame)


def end_abandoned_frames(state: Turns) -> None:
    """End the blocks on top of *state* that the running task has abandoned, innermost first."""
    while state.frames and state.frames[-1].is_abandoned:
        frame = state.frames[-1]
        if frame.ending_task is not None or frame.actor != current_actor():
            # Another task ends the block, or has to: the caller waits for its turn.
            return
        end_frame(frame)


def end_frame(frame: Frame) -> None:
    """End the abandoned block of *frame* in place of its task."""
    if frame.ending_task is None and not frame.is_removed:
        frame.ending_task = asyncio.current_task()
        frame.atomic.__exit__(BlockLeftError, BlockLeftError(frame), None)


def end_frames_within(frame: Frame) -> None:
    """End the blocks that the running task entered inside *frame* and has not left.

    Those blocks are in suspended generators, or in coroutines that do not know that they were
    closed. *frame* is about to be left, and later statements must not run in those blocks. A block
    below another task's block ends when the other block is left.
    """
    frames, actor = frame.state.frames, current_actor()
    for each in frames[frames.index(frame) + 1 :]:
        if each.actor == actor and not each.is_abandoned:
            revoke(each)
            abandon(each)
    while frame in frames and (top := frames[-1]) is not frame and top.actor == actor:
        if top.ending_task is not None:
            # A task in place of this one is already ending the block, and is waited for.
            return
        end_frame(top)


# Asynchronous generators


def watch(frame: Frame, caller: FrameType | None) -> None:
    """Note where the block of *frame* stands: in *caller*, unless *caller* enters it for others.

    Abandon *frame* as soon as a generator that *caller* runs in is no longer referenced. The loop
    closes the generator later, when its reader has already run other statements.
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
    """Return whether a block entered by *caller* may stand in it: an ExitStack's does not."""
    module = str(caller.f_globals.get("__name__", ""))
    return module != "contextlib" and not module.startswith("pgbackend.")


def _is_context_manager(body: FrameType) -> bool:
    """Return whether the generator of *body* is a context manager: its user has the block."""
    return body.f_back is not None and body.f_back.f_code in _CONTEXT_MANAGERS


def abandon_lost(state: Turns) -> None:
    """Abandon the blocks of *state* in generators that wait for something that never comes.

    Before CPython 3.13, closing a coroutine does not close the asynchronous generator that it waits
    in. Such a generator counts as running, but is not on the stack of the running task.
    """
    stack = set(stack_ids())
    for frame in reversed(state.frames):
        generators = [generator for each in frame.generators if (generator := each())]
        if any(each.ag_running and id(each.ag_frame) not in stack for each in generators):
            abandon(frame)


def _generators(loop: AbstractEventLoop, frame: FrameType | None) -> list[AsyncGenerator[Any, Any]]:
    """Return the asynchronous generators of the running task that *frame* runs in."""
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

    Before CPython 3.14 a frame does not lead to its generator. asyncio keeps the generators in the
    private set ``_asyncgens``; uvloop hides its set, so look for it among the referents.
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
