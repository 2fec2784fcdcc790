"""Handlers of logging: that they wait in the bridge, with their lock held, is told."""

from __future__ import annotations

import functools
import logging
from typing import Any

from ..bridge.greenlets import before_waits
from ..bridge.held_locks import emitting, importing, name_held


def patch() -> None:
    """Name what waits in the bridge with a lock of Python's held; see `held_locks`.

    (CPython 3.11 and later.)
    """
    handle = logging.Handler.handle

    @functools.wraps(handle)
    def patched(self: logging.Handler, record: logging.LogRecord) -> Any:
        emitting.append(self)
        try:
            return handle(self, record)
        finally:
            emitting.remove(self)

    logging.Handler.handle = patched  # type: ignore[method-assign]  # the patch
    before_waits((importing, emitting), name_held)
