"""Find the greenlet that the running call is bridged in."""

from __future__ import annotations

import os
from asyncio import current_task
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
    # The callbacks of `on_exit`, called last registered first when the function has ended. A dict
    # keeps their order and holds each only once.
    exits: dict[Callable[[], None], None] | None = None
    # True once the coroutine that drives this greenlet was closed: nothing can be awaited any more.
    abandoned = False
    # The id of the greenlet's thread: no other thread can switch to the greenlet.
    thread = 0
    # Whether the bridged call has a session of its own, as a request has; see `ends.last`.
    lasting = False
    # The function that takes the callbacks of `on_end`. None: they run when the function has ended.
    keep: Callable[[Callable[[], None]], None] | None = None
    # The value that the running call passed to `keep_here`.
    here: Any = None


def is_bridged() -> bool:
    """Return whether the caller runs bridged, so that `await_bridged` is possible.

    True if the current greenlet is the bridge's and belongs to the running task.
    """
    bridge = getcurrent()
    if not isinstance(bridge, Bridge):
        return False
    try:
        return bridge.owner is current_task()
    except RuntimeError:
        # No event loop runs: this process was forked inside the bridge.
        return False


def keep_here(value: object) -> None:
    """Keep *value* as ``here`` of the running greenlet until the bridged call ends.

    Do nothing outside the bridge. Readers must check that the value was kept in the same context:
    an eager task may run in the greenlet of the task that starts it, and a nested run of the event
    loop may run other tasks there.
    """
    if is_bridged():
        bridge: Any = getcurrent()
        bridge.here = value


def _forget_here() -> None:
    """Clear ``here`` in a forked child: nothing is bridged there."""
    bridge = getcurrent()
    if isinstance(bridge, Bridge):
        bridge.here = None


os.register_at_fork(after_in_child=_forget_here)
