"""Callbacks at the end of bridged calls, and of what lasts longer, such as a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import ref

from greenlet import getcurrent

from .current import Bridge, BridgeError, is_bridged


def on_exit(callback: Callable[[], None]) -> None:
    """Call *callback* at the end of the outermost bridged call around the caller.

    It runs inside the bridge, also after an exception, and may wait by `await_bridged`. A
    callback registered again (by equality) is still called once.
    """
    if not is_bridged():
        raise BridgeError("on_exit() was called outside the bridge")
    bridge: Any = getcurrent()
    if bridge.exits is None:
        bridge.exits = {}
    bridge.exits[callback] = None


def last(keep: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Mark the outermost bridged call around the caller as one that lasts, such as a request.

    What belongs to a database session may be kept until its end. If it is only a part of what
    lasts, *keep* takes the callbacks that are to be called at the end of the whole.
    """
    if not is_bridged():
        raise BridgeError("last() was called outside the bridge")
    bridge: Any = getcurrent()
    bridge.lasting = True
    bridge.keep = keep


def on_end(callback: Callable[[], None]) -> None:
    """Call *callback* at the end of what `last` marked, as `on_exit` does at that of a call.

    It may not wait.
    """
    keep = getattr(getcurrent(), "keep", None)
    if keep is None:
        on_exit(callback)
    else:
        keep(callback)


def lasts() -> bool:
    """Return whether `last` marked the outermost bridged call around the caller."""
    return bool(getattr(getcurrent(), "lasting", False))


def ending() -> Callable[[Callable[[], None]], None] | None:
    """Return what does as `on_end` for what `last` marked around the caller, also called elsewhere.

    None if nothing was marked. After that end it does nothing.
    """
    bridge: Any = getcurrent()
    if not getattr(bridge, "lasting", False):
        return None
    keep: Callable[[Callable[[], None]], None] | None = bridge.keep
    return functools.partial(_on_exit_of, ref(bridge)) if keep is None else keep


def _on_exit_of(bridge: Callable[[], Bridge | None], callback: Callable[[], None]) -> None:
    found = bridge()
    if found is not None and found.lasting:
        if found.exits is None:
            found.exits = {}
        found.exits[callback] = None
