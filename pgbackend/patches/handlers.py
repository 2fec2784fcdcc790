"""Django's requests: each runs in one bridge, also from a test client."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import asgiref.sync

from ..requests import serving
from . import early


def patch_error_handlers(module: ModuleType) -> None:
    """Allow asynchronous ``handler404`` etc.: Django takes the coroutine for a response.

    (Django 5.2 to 6.1.)
    """
    resolver = module.URLResolver
    resolve = resolver.resolve_error_handler

    @functools.wraps(resolve)
    def patched(self: Any, view_type: int) -> Any:
        callback = resolve(self, view_type)
        if asgiref.sync.iscoroutinefunction(callback):
            # The handler is a part of the request, even if synchronous middleware calls it in a
            # thread.
            part = functools.partial(serving.work, callback)
            return functools.wraps(callback)(asgiref.sync.async_to_sync(part))
        return callback

    resolver.resolve_error_handler = patched


def patch_adaption(module: ModuleType) -> None:
    """Make the coroutine that synchronous middleware calls a part of the request.

    ``async_to_sync`` runs it in a task of its own. (Django 5.2 to 6.1.)
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
            owner = getattr(method, "__self__", None)
            method = functools.wraps(method)(functools.partial(serving.work, method))
            if owner is not None:
                # Django names a middleware in errors by the instance that its method is of.
                method.__self__ = owner
        return adapt(self, is_async, method, method_is_async, **names)

    handler.adapt_method_mode = patched


def patch(module: ModuleType) -> None:
    """Run each request in one bridge, with wrappers of its own; see `serving`.

    In Django 5.2 and 6.0 ``handle()`` gets and sends the response in a task of its own, in 6.1 in
    its own task: the parts are bridged wherever they run.
    """
    handler = module.ASGIHandler
    early.report_early_applications(handler)
    for name, where in (
        ("handle", serving.serve),
        ("read_body", serving.read),
        ("listen_for_disconnect", serving.work),
        ("run_get_response", serving.work),
        ("send_response", serving.respond),
    ):
        setattr(handler, name, _within(where, getattr(handler, name)))


def patch_client(module: ModuleType) -> None:
    """Run the requests of ``AsyncClient`` bridged, as a server's. (Django 5.2 to 6.1.)

    The requests keep the test's wrappers, since the test checks their queries and may have a
    transaction open on them.
    """
    handler = module.AsyncClientHandler
    handler.__call__ = _within(serving.in_request, handler.__call__)


def _within(where: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await where(method, self, *args, **kwargs)

    return patched
