"""How much of the recursion limit is spent where a greenlet begins: all its calls miss that."""

from __future__ import annotations

import sys


def is_shallow() -> bool:
    """Return whether few frames are below the caller: a quarter of the recursion limit at most."""
    frame, left = sys._getframe(), sys.getrecursionlimit() // 4
    while left and (below := frame.f_back) is not None:
        frame, left = below, left - 1
    return left > 0
