"""Django's guard ``async_unsafe``, which lets calls in the bridge pass.

The methods that it marks wait in the bridge without blocking the loop. Each guard calls the name
``get_running_loop`` of its module to ask whether a loop runs. `get_running_loop` here replaces that
name, and so works for every guard: those of Django's wrappers, those of any subclass or mixin, and
those that an instrumentation took from a class before.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType, ModuleType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql

from ..bridge.current import is_bridged
from ..fingerprints import fingerprint, is_known
from ..wrapper.attributes import BackendWrapper

_GUARDS = "django.utils.asyncio"

# Whether bridged code may use aliases that are not bridged, such as those of other engines.
_others_in_place = False


@contextmanager
def others_in_place() -> Iterator[None]:
    """Let bridged code in the block use aliases that are not bridged, blocking the loop.

    Only for test runs: nothing else is blocked there, and tests use such aliases as if no loop ran.
    """
    global _others_in_place
    outer, _others_in_place = _others_in_place, True
    try:
        yield
    finally:
        _others_in_place = outer


def get_running_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop, or raise RuntimeError to let the guarded call pass.

    Outside the bridge, on a running loop, a wrapper of this backend raises SynchronousOnlyOperation
    as Django does, with a message that names the way out.
    """
    subject = _guarded(sys._getframe(1))
    if isinstance(subject, BackendWrapper):
        if subject.bridge_enabled:
            subject.check_not_on_loop()
            raise RuntimeError("the call may wait for the database here")
        if _others_in_place and is_bridged():
            raise RuntimeError("an alias that is switched off is used in place")
    elif isinstance(subject, BaseDatabaseWrapper) and is_bridged():
        if _others_in_place:
            raise RuntimeError("the alias of another engine is used in place")
        if subject.vendor == "unknown":
            raise RuntimeError("Django's dummy backend has an error of its own, which says more")
    return asyncio.get_running_loop()


def _guarded(frame: FrameType) -> Any:
    """Return the object whose method the guard in *frame* is about to call, or None."""
    if frame.f_globals.get("__name__") != _GUARDS:
        return None
    args = frame.f_locals.get("args")
    return args[0] if args else None


def skip_frame_lookup() -> None:
    """Let Django's own methods, the most frequent ones, skip the look at the caller's frame.

    Replace them on Django's classes rather than override them: Django's test cases replace some of
    them there to forbid queries.
    """
    for cls in (BaseDatabaseWrapper, postgresql.DatabaseWrapper):
        for name, method in list(vars(cls).items()):
            if isinstance(method, FunctionType) and method.__globals__["__name__"] == _GUARDS:
                setattr(cls, name, _skipping_frame_lookup(method))


def _skipping_frame_lookup(guarded: Any) -> Callable[..., Any]:
    unguarded = guarded.__wrapped__

    @functools.wraps(unguarded)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, BackendWrapper) and self.bridge_enabled:
            if self.bridged_state() is None:
                self.check_not_on_loop()
            return unguarded(self, *args, **kwargs)
        return guarded(self, *args, **kwargs)

    return method


def patch(module: ModuleType) -> None:
    """Let the methods that are marked ``async_unsafe`` run in the bridge. (5.2 to 6.1.)"""
    if is_known(
        "django.utils.asyncio.async_unsafe",
        fingerprint(module.async_unsafe),
        "the synchronous ORM is refused in asynchronous code",
    ):
        module.get_running_loop = get_running_loop  # type: ignore[attr-defined]  # the patch
        skip_frame_lookup()
