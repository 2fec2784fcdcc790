"""What runs the function of an outermost bridged call, inside its greenlet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from greenlet import getcurrent

T = TypeVar("T")


def call(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Run *function*, then the callbacks it registered by `on_exit`, inside the greenlet."""
    try:
        return function(*args, **kwargs)
    finally:
        exits = getattr(getcurrent(), "exits", None)
        if exits:
            _call_exits(exits)


def call_handling(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Do what `call` does, as if *function* were called where the driver's exception is handled.

    `sys.exception()` in it is ``handled`` of the greenlet, which has no part in what its driver
    handles.
    """
    bridge: Any = getcurrent()
    handled, bridge.handled = bridge.handled, None
    traceback = handled.__traceback__
    try:
        raise handled
    except BaseException:
        # `raise` has added this frame.
        handled.__traceback__ = traceback
        # A traceback may keep this frame: no name in it may lead to the exception or the greenlet.
        del bridge, handled, traceback
        return call(function, args, kwargs)


# The code of the frame that calls the function of an outermost bridged call.
CALL = call.__code__


def _call_exits(exits: dict[Callable[[], None], None]) -> None:
    """Call the callbacks, last registered first; a failing one does not stop the others."""
    try:
        exits.popitem()[0]()
    finally:
        if exits:
            _call_exits(exits)
