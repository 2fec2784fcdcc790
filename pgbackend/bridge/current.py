"""Find the greenlet that the running call is bridged in."""

from __future__ import annotations

import os
from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class BridgeError(RuntimeError):
    """Something was awaited from synchronous code where that is not possible."""


class Bridge(greenlet):
    """The greenlet that outermost calls of `run_bridged` run in, one after the other."""

    # The task whose steps drive this greenlet. It may differ from the running task: an
    # eager task starts inside the greenlet of the task that creates it.
    owner: Any = None
    # The return value or the exception of the call that has just ended.
    returned: Any = None
    raised: BaseException | None = None
    # The exception that the driver handles when the call begins, which takes it from here.
    handled: BaseException | None = None
    # The callbacks of `on_exit`, called last registered first when the function has ended. A dict
    # keeps their order and holds each only once.
    exits: dict[Callable[[], None], None] | None = None
    # True once the coroutine that drives this greenlet was closed: nothing can be awaited any more.
    call_closed = False
    # The id of the greenlet's thread: no other thread can switch to the greenlet.
    thread = 0
    # Whether later calls may have this greenlet. What was spent of the recursion limit where it
    # began is spent in each of its calls. One that began inside another greenlet, as an eager
    # task's does, or below many frames must not be kept: in time, each would begin a deeper one.
    reusable = False
    # Whether the bridged call has a session of its own, as a request has; see `ends.begin_scope`.
    in_scope = False
    # The function that takes the callbacks of `on_scope_end`; None: they run at the call's end.
    add_scope_end: Callable[[Callable[[], None]], None] | None = None
    # The task's state of a connection wrapper, which the running call has looked up and keeps until
    # it ends; the bridge does not read it. Readers must check that it was kept in the same context:
    # an eager task may run in the greenlet of the task that starts it, and a nested run of the
    # event loop may run other tasks there.
    cached_state: Any = None
    # Whether the call is one of several that are driven together; see `sql.together`. The bridge
    # does not read it.
    gathered = False


def is_bridged() -> bool:
    """Return whether the caller runs bridged, so that `await_bridged` is possible.

    True if the current greenlet is the bridge's and belongs to the running task.
    """
    bridge = getcurrent()
    # No event loop runs in a process that was forked inside the bridge.
    return (
        isinstance(bridge, Bridge)
        and (loop := _get_running_loop()) is not None
        and bridge.owner is current_task(loop)
    )


def can_wait() -> bool:
    """Return whether `await_bridged` may be called: bridged, in a call that was not closed."""
    bridge = getcurrent()
    return (
        isinstance(bridge, Bridge)
        and not bridge.call_closed
        and (loop := _get_running_loop()) is not None
        and bridge.owner is current_task(loop)
    )


def _forget_cached_state() -> None:
    """Clear ``cached_state`` in a forked child: nothing is bridged there."""
    bridge = getcurrent()
    if isinstance(bridge, Bridge):
        bridge.cached_state = None


os.register_at_fork(after_in_child=_forget_cached_state)
