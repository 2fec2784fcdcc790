"""What event loops allow to greenlets, asyncio's own and others such as uvloop's."""

from __future__ import annotations

import sys
from asyncio import (
    AbstractEventLoop,
    BaseEventLoop,
    SelectorEventLoop,
    _get_running_loop,
    current_task,
    tasks,
)
from typing import Any

from greenlet import getcurrent

from .current import Bridge

# The tasks whose first step runs where they are made, from Python 3.12 on: asyncio's private name.
# Without it some of them may be starting at any time.
_starting: Any = getattr(tasks, "_eager_tasks", [None] if sys.version_info >= (3, 12) else [])


def calls_from_python(loop: AbstractEventLoop | None) -> bool:
    """Return whether *loop* calls back from Python code only, as asyncio's own do.

    uvloop calls back from within libuv, which keeps pointers into the C stack meanwhile. A
    greenlet that was started elsewhere may have its own stack laid over what they point to, and
    whoever then tells libuv to forget a socket writes there. So in callbacks of such a loop no
    greenlet may be resumed, or used again; tasks that it runs later are safe. See `in_step`.
    """
    return loop is None or isinstance(loop, SelectorEventLoop)


def in_step() -> bool:
    """Return whether the caller runs in a step of a task that the loop has called by itself.

    A loop such as uvloop's does that when libuv has no pointers into the C stack, and always at
    one depth of it: a greenlet that began in a step may run in any later one. A task may also be
    started in the middle of a callback; its first step is then counted as none.
    """
    return not _starting and current_task() is not None


def may_touch_loop(loop: AbstractEventLoop) -> bool:
    """Return whether the caller may tell *loop* to forget a socket now.

    Not from a greenlet inside a callback from libuv, where the collector may end a call; see
    `calls_from_python`.
    """
    bridge = getcurrent()
    if calls_from_python(loop) or not isinstance(bridge, Bridge):
        return True
    # A call that is closed unwinds as its own task, wherever that happens.
    return _get_running_loop() is not loop or (in_step() and not bridge.abandoned)


def may_run_nested(loop: AbstractEventLoop) -> bool:
    """Return whether *loop* was changed so that it may be run while it runs, as in notebooks.

    Who does that, nest_asyncio for one, replaces the method that calls the ready callbacks.
    """
    turn = getattr(type(loop), "_run_once", None)
    return turn is not None and turn.__module__ != BaseEventLoop.__module__
