"""``atomic``: in turns on the loop, with ``async with``, on coroutine functions and for views."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import asgiref.sync
from django.db import connections, transaction

from ..fingerprints import fingerprint, is_known
from ..wrapper.dispatch import is_enabled
from . import atomic_awaited, atomic_blocks, atomic_decorated, early


def patch(module: ModuleType) -> None:
    """Add ``async with`` to ``atomic``, and turns for tasks that share a transaction.

    ``Atomic`` itself stays Django's and does all the work. Functions that it has decorated before
    are found and treated like those decorated later. (Django 5.2 to 6.1.)
    """
    cls = module.Atomic
    enter, leave = cls.__enter__, cls.__exit__
    for function in (enter, leave):
        if not is_known(
            f"django.db.transaction.{function.__qualname__}",
            fingerprint(function),
            "`async with transaction.atomic()` is not available",
        ):
            return

    for name in atomic_decorated.adopt_decorated(cls):
        early.report_made_early(
            f"@transaction.atomic decorated the coroutine function {name}",
            "it runs in a transaction, but who looked at it before took it for a synchronous one",
        )
    for name, changed in (
        ("__enter__", atomic_blocks.entering(enter)),
        ("__exit__", atomic_blocks.leaving(leave)),
        ("__aenter__", atomic_awaited.aenter),
        ("__aexit__", atomic_awaited.aexit),
        ("__call__", atomic_decorated.decorating(cls.__call__)),
        ("_recreate_cm", atomic_decorated.recreating(cls._recreate_cm)),
    ):
        setattr(cls, name, changed)


def patch_requests(module: ModuleType) -> None:
    """Apply ``ATOMIC_REQUESTS`` to asynchronous views, which Django refuses. (5.2 to 6.1.)"""
    handler = module.BaseHandler
    make_view_atomic = handler.make_view_atomic
    if not is_known(
        "django.core.handlers.base.BaseHandler.make_view_atomic",
        fingerprint(make_view_atomic),
        "ATOMIC_REQUESTS does not hold for asynchronous views",
    ):
        return

    @functools.wraps(make_view_atomic)
    def patched(self: Any, view: Callable[..., Any]) -> Any:
        aliases = [
            alias
            for alias, conf in connections.settings.items()
            if conf["ATOMIC_REQUESTS"] and alias not in getattr(view, "_non_atomic_requests", ())
        ]
        if not asgiref.sync.iscoroutinefunction(view) or not all(map(is_enabled, aliases)):
            return make_view_atomic(self, view)
        for alias in aliases:
            view = transaction.atomic(using=alias)(view)
        return view

    handler.make_view_atomic = patched
