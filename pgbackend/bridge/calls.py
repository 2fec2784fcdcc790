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


def call_handling(
    handled: BaseException,
    function: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T:
    """Run *function* as if it were called where *handled* is handled: `sys.exception()` is that."""
    traceback = handled.__traceback__
    try:
        raise handled
    except BaseException:
        # `raise` has added this frame.
        handled.__traceback__ = traceback
        del traceback
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
