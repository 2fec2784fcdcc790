"""Greenlets that are in the middle of a call."""

from greenlet import greenlet


def is_busy(each: object) -> bool:
    """Return whether an object is a suspended greenlet, other than an idle one of the bridge.

    By type(): Django's lazy objects lie about their class, and begin to work for that.
    """
    if not issubclass(type(each), greenlet):
        return False
    assert isinstance(each, greenlet)
    suspended = bool(each) and each.parent is not None
    # Between two calls the bridge's greenlets belong to no task.
    return suspended and getattr(each, "owner", each) is not None
