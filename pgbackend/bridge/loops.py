"""Event loops and greenlets: what asyncio's own loops, and others such as uvloop, allow."""

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

# asyncio's private set of the tasks whose first step runs where they are made, from Python 3.12 on.
# Where the name is missing, assume that such a task may be starting at any time.
_starting: Any = getattr(tasks, "_eager_tasks", [None] if sys.version_info >= (3, 12) else [])


def calls_from_python(loop: AbstractEventLoop | None) -> bool:
    """Return whether *loop* calls back from Python code only, as asyncio's own loops do.

    uvloop calls back from within libuv, which meanwhile keeps pointers into the C stack. A greenlet
    that was started elsewhere may have its own stack laid over the memory they point to, and libuv
    writes there when it is then told to forget a socket. So no greenlet may be resumed or reused in
    callbacks of such a loop; tasks that the loop runs later are safe. See `in_step`.
    """
    return loop is None or isinstance(loop, SelectorEventLoop)


def in_step() -> bool:
    """Return whether the caller runs in a task's step that the loop itself has called.

    A loop such as uvloop's calls steps when libuv has no pointers into the C stack, and always at
    the same depth of it: a greenlet that began in a step may run in any later step. A task may also
    be started in the middle of a callback; its first step does not count.
    """
    return not _starting and current_task() is not None


def may_touch_loop(loop: AbstractEventLoop) -> bool:
    """Return whether the caller may tell *loop* to forget a socket now.

    A greenlet inside a callback from libuv may not, and the garbage collector may close a call
    there; see `calls_from_python`.
    """
    bridge = getcurrent()
    if calls_from_python(loop) or not isinstance(bridge, Bridge):
        return True
    # A closed call unwinds as its own task wherever that happens, so `in_step` alone proves
    # nothing.
    return _get_running_loop() is not loop or (in_step() and not bridge.call_closed)


def may_run_nested(loop: AbstractEventLoop) -> bool:
    """Return whether *loop* was changed so that it may be run while it runs, as in notebooks.

    Libraries that do this, such as nest_asyncio, replace the private method ``_run_once``, which
    calls the ready callbacks.
    """
    turn = getattr(type(loop), "_run_once", None)
    return turn is not None and turn.__module__ != BaseEventLoop.__module__
