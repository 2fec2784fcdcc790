"""The greenlet that the running call is bridged in, if it is."""

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
    # What the call that has just ended returned or raised.
    returned: Any = None
    raised: BaseException | None = None
    # Called, last registered first, when the function has ended; see `on_exit`. A dict
    # for its order and because each is kept once.
    exits: dict[Callable[[], None], None] | None = None
    # True once the coroutine driving this greenlet was closed: nobody is left to await.
    abandoned = False
    # The thread that it belongs to: it cannot be switched to from another.
    thread = 0
    # Whether it is the bridge of something that has a session of its own; see `last`.
    lasting = False
    # What takes the callbacks of `on_end`; None: they are called when the function has ended.
    keep: Callable[[Callable[[], None]], None] | None = None
    # What `keep_here` was given in the call that runs.
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
        # No loop runs: this is a child process, forked off inside the bridge.
        return False


def keep_here(value: object) -> None:
    """Keep *value* as ``here`` of the running greenlet until its call ends, if that is bridged.

    Who reads it checks that it was kept in the same context: an eager task may run in the greenlet
    of the task that starts it, and a nested run of the event loop others.
    """
    if is_bridged():
        bridge: Any = getcurrent()
        bridge.here = value


def _forget_here() -> None:
    """Forget what a forked child found: nothing is bridged there."""
    bridge = getcurrent()
    if isinstance(bridge, Bridge):
        bridge.here = None


os.register_at_fork(after_in_child=_forget_here)
