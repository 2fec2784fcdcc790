"""Django's asynchronous methods: their synchronous twins run bridged instead of in a thread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import asgiref.sync

from ..bridge.greenlets import drive, run_bridged
from ..fingerprints import fingerprint_of_calls, is_known
from ..wrapper.dispatch import all_begin_here, all_run_bridged, run_for_aliases
from . import aliases
from .where_to_run import RULES, always


def sync_to_async_in(module: str) -> Callable[..., Any]:
    """Return the function that replaces ``sync_to_async`` in a module of Django."""
    leads_to_database = RULES[module]
    # Django names a middleware in errors by the instance that its method is of.
    names_owners = module == "django.core.handlers.base"

    def sync_to_async(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(sync_to_async, **options)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if leads_to_database is not always and not leads_to_database(function, args):
                return await asgiref.sync.sync_to_async(function, **options)(*args, **kwargs)
            if all_begin_here():
                return await drive(function, args, kwargs)
            if all_run_bridged():
                return await run_bridged(function, *args, **kwargs)
            with aliases.remembering():
                used = aliases.of(function, args, kwargs)
                work = functools.partial(function, *args, **kwargs)
                return await run_for_aliases(used or {None}, work, **options)

        if names_owners and hasattr(function, "__self__"):
            call.__self__ = function.__self__  # type: ignore[attr-defined]  # as asgiref's has it
        return call

    return sync_to_async


def patch(module: ModuleType) -> None:
    """Let a module's a-methods run bridged: replace the name ``sync_to_async`` in it."""
    if hasattr(module, "sync_to_async") and is_known(
        f"{module.__name__}:sync_to_async",
        fingerprint_of_calls(module),
        "its asynchronous methods keep using threads",
    ):
        module.sync_to_async = sync_to_async_in(module.__name__)  # type: ignore[attr-defined]
