"""Locks of Python's own that a function in the bridge holds while it waits: they are named.

A lock that threads share does not keep tasks of one thread apart. While a module is imported, its
lock is the importing thread's: another task that imports it goes past, and gets a module that is
not complete. A logging handler holds its lock while it emits: another task goes past, and a thread
that logs waits; if the event loop then logs, everything does. The first wait in each is told to the
logger ``pgbackend.detector``.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import FrameType
from typing import Any

logger = logging.getLogger("pgbackend.detector")

# What CPython keeps of modules that are being imported, by any thread; empty otherwise.
importing: dict[str, Any] = importlib._bootstrap._module_locks  # type: ignore[attr-defined]  # private
_IMPORT = importlib._bootstrap._find_and_load.__code__  # type: ignore[attr-defined]  # private

# The handlers that emit just now, in any thread.
emitting: list[logging.Handler] = []
_HANDLE = logging.Handler.handle.__code__

_named: set[str] = set()


def name_held() -> None:
    """Warn if the caller is part of an import, or of a handler that emits, and is about to wait."""
    if not importing and not emitting:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _IMPORT:
            _name(
                f"the import of {frame.f_locals['name']}",
                "other tasks that import it meanwhile get a module that is not complete. Import it"
                " at start-up, or query in a function",
            )
        elif frame.f_code is _HANDLE:
            _name(
                f"the logging handler {type(frame.f_locals['self']).__qualname__}",
                "it holds its lock meanwhile: other tasks go past it, and threads that log wait,"
                " the event loop's too. Put a logging.handlers.QueueHandler before it, or emit from"
                " a task of its own",
            )
        frame = frame.f_back


def _name(what: str, consequence: str) -> None:
    if what not in _named:
        # Before it is told: a handler may be told by the very one that waits.
        _named.add(what)
        logger.warning("%s waits in the bridge: %s", what, consequence)
