"""Calls in threads from inside a transaction, by asgiref and asyncio."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any

import asgiref.sync

from ..tasks import thread_calls


def patch() -> None:
    """Keep calls that wait for their turn from occupying a thread; see `thread_calls`.

    (asgiref 3.12 and 3.13, CPython 3.11 and later.)
    """
    sync: Any = asgiref.sync
    sync.CurrentThreadExecutor = thread_calls.current_thread_executor
    leave = asgiref.sync.ThreadSensitiveContext.__aexit__

    @functools.wraps(leave)
    async def __aexit__(self: Any, *exc_info: Any) -> Any:
        return await thread_calls.context_ends(leave, self, *exc_info)

    sync.ThreadSensitiveContext.__aexit__ = __aexit__
    original: Any = asyncio.to_thread
    replacement: Any = functools.wraps(original)(thread_calls.to_thread)
    for module in list(sys.modules.values()):
        # Replace the function also where it was imported by name before.
        if getattr(module, "__dict__", {}).get("to_thread") is original:
            module.to_thread = replacement  # type: ignore[attr-defined]  # the module has the name
