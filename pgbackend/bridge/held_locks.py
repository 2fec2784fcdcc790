"""Warn of Python's own locks that a bridged function holds while it waits.

A lock that threads share does not keep tasks of one thread apart. The import lock of a module
belongs to the importing thread: another task that imports the module passes the lock and gets an
incomplete module. A logging handler holds its lock while it emits: another task passes the lock,
and another thread that logs waits for it. If the emitting thread waits for the event loop, and the
loop logs by the same handler, both wait for ever. The first wait in each import or handler is
logged to ``pgbackend.detector``.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import FrameType
from typing import Any

logger = logging.getLogger("pgbackend.detector")

# CPython's locks of the modules that any thread is importing; empty otherwise.
importing: dict[str, Any] = importlib._bootstrap._module_locks  # type: ignore[attr-defined]  # private
_IMPORT = importlib._bootstrap._find_and_load.__code__  # type: ignore[attr-defined]  # private

# The logging handlers that are emitting now, in any thread.
emitting: list[logging.Handler] = []
_HANDLE = logging.Handler.handle.__code__

_warned_of: set[str] = set()


def warn_of_held_locks() -> None:
    """Warn if the caller is about to wait inside an import or inside an emitting handler."""
    if not importing and not emitting:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _IMPORT:
            _warn_once(
                f"the import of {frame.f_locals['name']}",
                "other tasks that import it meanwhile get a module that is not complete. Import it"
                " at start-up, or query in a function",
            )
        elif frame.f_code is _HANDLE:
            _warn_once(
                f"the logging handler {type(frame.f_locals['self']).__qualname__}",
                "it holds its lock meanwhile: other tasks go past it, and threads that log wait,"
                " the event loop's too. Put a logging.handlers.QueueHandler before it, or emit from"
                " a task of its own",
            )
        frame = frame.f_back


def _warn_once(what: str, consequence: str) -> None:
    if what not in _warned_of:
        # Add the name before logging: the same handler may emit this warning, and come back here.
        _warned_of.add(what)
        logger.warning("%s waits in the bridge: %s", what, consequence)
