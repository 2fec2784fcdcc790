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


def begin_scope(add_scope_end: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Mark the outermost bridged call around the caller as a scope, such as a request.

    The database session may be kept until the scope ends. If the call is only a part of the scope,
    *add_scope_end* takes the callbacks to be called when the whole scope ends. Raise `BridgeError`
    outside the bridge.
    """
    if not is_bridged():
        raise BridgeError("begin_scope() was called outside the bridge")
    bridge: Any = getcurrent()
    bridge.in_scope = True
    bridge.add_scope_end = add_scope_end


def on_scope_end(callback: Callable[[], None]) -> None:
    """Call *callback* when the scope around the caller ends; without one, when the call ends.

    The callback must not wait.
    """
    add_scope_end = getattr(getcurrent(), "add_scope_end", None)
    if add_scope_end is None:
        on_exit(callback)
    else:
        add_scope_end(callback)


def in_scope() -> bool:
    """Return whether `begin_scope` marked the outermost bridged call around the caller."""
    return bool(getattr(getcurrent(), "in_scope", False))


def scope_end_adder() -> Callable[[Callable[[], None]], None] | None:
    """Return a function that does what `on_scope_end` does, but may be called anywhere.

    The callbacks run at the end of the scope that `begin_scope` marked around the caller. Return
    None if there is no such scope. Once the scope has ended, the function does nothing.
    """
    bridge: Any = getcurrent()
    if not getattr(bridge, "in_scope", False):
        return None
    add_scope_end: Callable[[Callable[[], None]], None] | None = bridge.add_scope_end
    return functools.partial(_on_exit_of, ref(bridge)) if add_scope_end is None else add_scope_end


def _on_exit_of(bridge: Callable[[], Bridge | None], callback: Callable[[], None]) -> None:
    found = bridge()
    if found is not None and found.in_scope:
        if found.exits is None:
            found.exits = {}
        found.exits[callback] = None
