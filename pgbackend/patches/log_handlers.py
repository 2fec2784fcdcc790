"""Report logging handlers that wait in the bridge while they hold their lock."""

from __future__ import annotations

import functools
import logging
from typing import Any

from ..bridge.greenlets import check_before_waits
from ..bridge.held_locks import emitting, importing, warn_of_held_locks


def patch() -> None:
    """Report code that waits in the bridge with one of Python's locks held; see `held_locks`.

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
    check_before_waits((importing, emitting), warn_of_held_locks)
