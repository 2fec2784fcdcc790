"""django-pghistory's context, which it adds to statements by an ``execute_wrapper``."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..wrapper.dispatch import bridged


def patch(module: ModuleType) -> None:
    """Let django-pghistory's ``async with context()`` run on the event loop.

    django-pghistory adds an ``execute_wrapper`` in a thread of ``sync_to_async``, to the thread's
    database wrapper. Outside of requests, statements of the loop would have no context.
    (django-pghistory 3.)
    """

    def sync_to_async(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return bridged(function)

    if hasattr(module, "sync_to_async"):
        module.sync_to_async = sync_to_async  # type: ignore[attr-defined]  # the patch
