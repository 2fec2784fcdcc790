"""Callbacks at the end of bridged calls, and of longer scopes such as a request."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import ref

from greenlet import getcurrent

from .current import Bridge, BridgeError, is_bridged


def on_exit(callback: Callable[[], None]) -> None:
    """Call *callback* at the end of the outermost bridged call around the caller.

    The callback runs inside the bridge, even after an exception, and may use `await_bridged`. A
    callback registered again (by equality) is still called once. Raise `BridgeError` outside the
    bridge.
    """
    if not is_bridged():
        raise BridgeError("on_exit() was called outside the bridge")
    bridge: Any = getcurrent()
    if bridge.exits is None:
        bridge.exits = {}
    bridge.exits[callback] = None


def last(keep: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Mark the outermost bridged call around the caller as a lasting scope, such as a request.

    The database session may be kept until the scope ends. If the call is only a part of the scope,
    *keep* takes the callbacks to be called when the whole scope ends. Raise `BridgeError` outside
    the bridge.
    """
    if not is_bridged():
        raise BridgeError("last() was called outside the bridge")
    bridge: Any = getcurrent()
    bridge.lasting = True
    bridge.keep = keep


def on_end(callback: Callable[[], None]) -> None:
    """Call *callback* when the scope that `last` marked ends; without one, when the call ends.

    The callback must not wait.
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
    """Return a function that registers callbacks as `on_end` does, but may be called anywhere.

    The callbacks run at the end of the scope that `last` marked around the caller. Return None if
    there is no such scope. Once the scope has ended, the function does nothing.
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
