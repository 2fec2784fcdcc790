"""Requests of Django's: each is one bridge, also where a test's client makes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import asgiref.sync

from ..requests import serving
from . import early


def patch_error_handlers(module: ModuleType) -> None:
    """Let ``handler404`` and its like be asynchronous: Django takes the coroutine for a response.

    (5.2 to 6.1.)
    """
    resolver = module.URLResolver
    resolve = resolver.resolve_error_handler

    @functools.wraps(resolve)
    def patched(self: Any, view_type: int) -> Any:
        callback = resolve(self, view_type)
        if asgiref.sync.iscoroutinefunction(callback):
            # A part of the request, also where the thread of synchronous middleware calls it.
            part = functools.partial(serving.work, callback)
            return functools.wraps(callback)(asgiref.sync.async_to_sync(part))
        return callback

    resolver.resolve_error_handler = patched


def patch_adaption(module: ModuleType) -> None:
    """Let what synchronous middleware calls by ``async_to_sync`` be a part of the request.

    It runs in a task of its own. (5.2 to 6.1.)
    """
    handler = module.BaseHandler
    adapt = handler.adapt_method_mode

    @functools.wraps(adapt)
    def patched(
        self: Any, is_async: bool, method: Any, method_is_async: bool | None = None, **names: Any
    ) -> Any:
        if method_is_async is None:
            method_is_async = asgiref.sync.iscoroutinefunction(method)
        if method_is_async and not is_async:
            method = functools.wraps(method)(functools.partial(serving.work, method))
        return adapt(self, is_async, method, method_is_async, **names)

    handler.adapt_method_mode = patched


def patch(module: ModuleType) -> None:
    """Let each request be one bridge, with wrappers of its own; see `serving`.

    In 5.2 and 6.0 ``handle()`` gets and sends the response in a task of its own, in 6.1 in
    its own task: the parts are bridged wherever they run.
    """
    handler = module.ASGIHandler
    early.note_application(handler)
    for name, where in (
        ("handle", serving.serve),
        ("read_body", serving.read),
        ("listen_for_disconnect", serving.work),
        ("run_get_response", serving.work),
        ("send_response", serving.respond),
    ):
        setattr(handler, name, _within(where, getattr(handler, name)))


def patch_client(module: ModuleType) -> None:
    """Let the requests of ``AsyncClient`` be bridged like a server's. (5.2 to 6.1.)

    They keep the test's wrappers: it looks at their queries and is in a transaction of theirs.
    """
    handler = module.AsyncClientHandler
    handler.__call__ = _within(serving.in_request, handler.__call__)


def _within(where: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await where(method, self, *args, **kwargs)

    return patched
