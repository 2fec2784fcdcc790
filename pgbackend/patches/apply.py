"""Every change this backend makes to Django and others at run time, each with its reason.

Where Django's asynchronous methods hand their synchronous twin to a thread and that leads to
the database, the twin runs bridged instead (`dispatch`): no thread, and the project's own
overrides of the twin are honoured, since it is what is called.

A changed function of Django is fingerprinted; see `fingerprints` for an unknown one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import asgiref.sync
from django.conf import settings
from django.core import checks
from django.db import connections, transaction

from .. import asgi
from ..bridge import held_locks
from ..bridge.greenlets import await_bridged, is_bridged, run_bridged
from ..fingerprints import check_unpatched, fingerprint, fingerprint_of_calls, is_known
from ..tasks import thread_calls
from ..validation import check_budget
from ..wrapper import aliases, settings_checks
from ..wrapper.dispatch import bridged, is_enabled, sync_to_async_in
from . import (
    atomic,
    atomic_awaited,
    atomic_decorated,
    context_locals,
    early,
    guards,
    iterators,
    toolbar,
)
from .import_hooks import after_import
from .where_to_run import RULES

_applied = False


def apply() -> None:
    """Apply all patches; a second call does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    for name in RULES:
        after_import(name, _patch_module)
    after_import("django.utils.asyncio", _patch_guards)
    after_import("django.db.utils", _patch_router)
    after_import("django.db.transaction", _patch_atomic)
    after_import("django.db.models.query", _patch_aiterator)
    after_import("django.db.models.query", _patch_fetch_all)
    after_import("django.core.handlers.asgi", _patch_handler)
    after_import("django.core.handlers.base", _patch_atomic_requests)
    after_import("django.core.handlers.base", _patch_adaption)
    after_import("django.urls.resolvers", _patch_error_handlers)
    after_import("django.test.client", _patch_client)
    after_import("django.utils.log", _patch_error_mails)
    after_import("debug_toolbar.panels.sql.panel", toolbar.patch)
    for name in context_locals.MODULES:
        after_import(name, context_locals.replace)
    after_import("pghistory.runtime", _patch_history)
    _patch_asgiref()
    _patch_threads()
    _patch_logging()
    checks.register(check_unpatched, checks.Tags.async_support)
    checks.register(early.check_early, checks.Tags.async_support)
    checks.register(check_budget, checks.Tags.database)
    checks.register(settings_checks.check_options)
    checks.register(settings_checks.check_own_settings)


# Asynchronous methods: bridged instead of in a thread


def _patch_module(module: ModuleType) -> None:
    """Let a module's a-methods run bridged: replace the name ``sync_to_async`` in it."""
    if hasattr(module, "sync_to_async") and is_known(
        f"{module.__name__}:sync_to_async",
        fingerprint_of_calls(module),
        "its asynchronous methods keep using threads",
    ):
        module.sync_to_async = sync_to_async_in(module.__name__)  # type: ignore[attr-defined]


def _patch_aiterator(module: ModuleType) -> None:
    """Let ``aiterator()`` close its cursor when it is left early; see `iterators`. (5.2 to 6.1.)"""
    iterable, queryset = module.BaseIterable, module.QuerySet
    for function in (iterable._async_generator, queryset.aiterator):
        if not is_known(
            f"{module.__name__}.{function.__qualname__}",
            fingerprint(function),
            "aiterator() left early closes its connection",
        ):
            return
    aiterator = queryset.aiterator
    iterable._async_generator = iterators.chunks
    iterable.__aiter__ = iterators.rows
    queryset.aiterator = functools.wraps(aiterator)(iterators.closing(aiterator))


def _patch_fetch_all(module: ModuleType) -> None:
    """Let tasks that evaluate one queryset at once not disturb each other; see `evaluation`.

    (5.2 to 6.1.)
    """
    plain, raw = module.QuerySet, module.RawQuerySet
    for function in (
        plain._fetch_all,
        plain._prefetch_related_objects,
        raw._fetch_all,
        raw._prefetch_related_objects,
        raw.iterator,
    ):
        if not is_known(
            f"{module.__name__}.{function.__qualname__}",
            fingerprint(function),
            "tasks that evaluate one queryset at once may see it without what it prefetches",
        ):
            return
    from . import evaluation  # which needs that module

    plain._fetch_all = functools.wraps(plain._fetch_all)(evaluation.fetch_all)
    raw._fetch_all = functools.wraps(raw._fetch_all)(evaluation.fetch_all_raw)
    raw.iterator = evaluation.iterating(raw.iterator)


# Synchronous methods: allowed in the bridge


def _patch_guards(module: ModuleType) -> None:
    """Let the methods that are marked ``async_unsafe`` run in the bridge; see `guards`.

    (5.2 to 6.1.)
    """
    if is_known(
        "django.utils.asyncio.async_unsafe",
        fingerprint(module.async_unsafe),
        "the synchronous ORM is refused in asynchronous code",
    ):
        module.get_running_loop = guards.get_running_loop  # type: ignore[attr-defined]  # the patch
        guards.shorten()


def _patch_router(module: ModuleType) -> None:
    """Let the router's answer be found by the twin that it was asked for; see `aliases`.

    (5.2 to 6.1.)
    """
    router = module.ConnectionRouter
    for name in ("db_for_read", "db_for_write"):
        setattr(router, name, aliases.answering(name, getattr(router, name)))


# Transactions


def _patch_atomic(module: ModuleType) -> None:
    """Add ``async with`` to ``atomic``, and turns for tasks that share a transaction.

    ``Atomic`` itself stays Django's and does all the work. What it has decorated before is found,
    and done as what comes later. (5.2 to 6.1.)
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
        early.note(
            f"@transaction.atomic decorated the coroutine function {name}",
            "it runs in a transaction, but who looked at it before took it for a synchronous one",
        )
    for name, changed in (
        ("__enter__", atomic.entering(enter)),
        ("__exit__", atomic.leaving(leave)),
        ("__aenter__", atomic_awaited.aenter),
        ("__aexit__", atomic_awaited.aexit),
        ("__call__", atomic_decorated.decorating(cls.__call__)),
        ("_recreate_cm", atomic_decorated.recreating(cls._recreate_cm)),
    ):
        setattr(cls, name, changed)


def _patch_atomic_requests(module: ModuleType) -> None:
    """Let ``ATOMIC_REQUESTS`` hold for asynchronous views, which Django refuses. (5.2 to 6.1.)"""
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


def _patch_error_handlers(module: ModuleType) -> None:
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
            part = functools.partial(asgi.work, callback)
            return functools.wraps(callback)(asgiref.sync.async_to_sync(part))
        return callback

    resolver.resolve_error_handler = patched


def _patch_adaption(module: ModuleType) -> None:
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
            method = functools.wraps(method)(functools.partial(asgi.work, method))
        return adapt(self, is_async, method, method_is_async, **names)

    handler.adapt_method_mode = patched


# Requests


def _patch_handler(module: ModuleType) -> None:
    """Let each request be one bridge, with wrappers of its own; see `asgi`.

    In 5.2 and 6.0 ``handle()`` gets and sends the response in a task of its own, in 6.1 in
    its own task: the parts are bridged wherever they run.
    """
    handler = module.ASGIHandler
    early.note_application(handler)
    for name, where in (
        ("handle", asgi.serve),
        ("read_body", asgi.read),
        ("listen_for_disconnect", asgi.work),
        ("run_get_response", asgi.work),
        ("send_response", asgi.respond),
    ):
        setattr(handler, name, _within(where, getattr(handler, name)))


def _patch_client(module: ModuleType) -> None:
    """Let the requests of ``AsyncClient`` be bridged like a server's. (5.2 to 6.1.)

    They keep the test's wrappers: it looks at their queries and is in a transaction of theirs.
    """
    handler = module.AsyncClientHandler
    handler.__call__ = _within(asgi.in_request, handler.__call__)


def _within(where: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    async def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await where(method, self, *args, **kwargs)

    return patched


def _patch_error_mails(module: ModuleType) -> None:
    """Let error mails be sent from a thread when the error is logged in the bridge.

    Django hands the whole handling of an exception to a thread; here it stays on the event
    loop, where a mail server must not be waited for. (5.2 to 6.1.)
    """
    handler = module.AdminEmailHandler
    handle = handler.handle

    @functools.wraps(handle)
    def patched(self: Any, record: logging.LogRecord) -> Any:
        if not is_bridged() or not (
            settings.ADMINS or type(self).send_mail is not handler.send_mail
        ):
            return handle(self, record)

        def send() -> Any:
            try:
                return handle(self, record)
            finally:
                # The thread's own: what the mail tells of the request may have been fetched.
                connections.close_all()

        return await_bridged(asgiref.sync.sync_to_async(send, thread_sensitive=False)())

    handler.handle = patched


def _patch_history(module: ModuleType) -> None:
    """Let django-pghistory's ``async with context()`` do on the loop what concerns the loop.

    It adds an ``execute_wrapper`` in a thread of ``sync_to_async``, whose wrapper is another one:
    outside requests what the loop executes had no context. (3.)
    """

    def sync_to_async(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return bridged(function)

    if hasattr(module, "sync_to_async"):
        module.sync_to_async = sync_to_async  # type: ignore[attr-defined]  # the patch


# asgiref


class _Caller:
    """A bridged call of async_to_sync, known to what it waits for."""

    waits = True

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    @property
    def waits_here(self) -> bool:
        """Whether it waits for the running coroutine, on the same loop."""
        return self.waits and asyncio.get_running_loop() is self.loop


_caller: ContextVar[_Caller | None] = ContextVar("pgbackend_caller", default=None)


def _patch_asgiref() -> None:
    """Let ``async_to_sync``, called in the bridge, wait in place.

    On a running loop it refuses; but bridged code can wait. Thread-sensitive functions
    called from there by ``sync_to_async`` belong on the thread of that outer synchronous
    caller, by asgiref's own rule: they run bridged. With *force_new_loop* the coroutine has a
    loop of its own, in a thread, for which bridged code waits. (asgiref 3.8 and later.)
    """
    call_sync: Callable[..., Any] = asgiref.sync.AsyncToSync.__call__
    call_async: Callable[..., Any] = asgiref.sync.SyncToAsync.__call__

    @functools.wraps(call_sync)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_bridged():
            return call_sync(self, *args, **kwargs)
        if self.force_new_loop:
            return _in_thread(lambda: call_sync(self, *args, **kwargs))
        caller = _Caller()
        token = _caller.set(caller)
        try:
            return await_bridged(self.awaitable(*args, **kwargs))
        finally:
            caller.waits = False
            _caller.reset(token)

    @functools.wraps(call_async)
    async def __acall__(self: Any, *args: Any, **kwargs: Any) -> Any:
        caller = _caller.get()
        if self._thread_sensitive and caller is not None and caller.waits_here:
            return await run_bridged(self.func, *args, **kwargs)
        return await thread_calls.sync_to_async(call_async, self, args, kwargs)

    def _in_thread(call: Callable[[], Any]) -> Any:
        """Make a call in a thread of its own, in the caller's context, and wait bridged."""

        def work() -> Any:
            try:
                return call()
            finally:
                # The thread's own; what it joined is the loop's.
                connections.close_all()

        executor = ThreadPoolExecutor(1, "pgbackend-new-loop")
        thread: Any = asgiref.sync.SyncToAsync(work, thread_sensitive=False, executor=executor)
        try:
            return await_bridged(call_async(thread))
        finally:
            executor.shutdown(wait=False)

    asgiref.sync.AsyncToSync.__call__ = __call__  # type: ignore[method-assign]  # the patch
    asgiref.sync.SyncToAsync.__call__ = __acall__  # type: ignore[method-assign]  # the patch


def _patch_threads() -> None:
    """Let no thread be taken by a call that waits for its turn; see `thread_calls`.

    (asgiref 3.8 and later, CPython 3.11 and later.)
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
        # Also where it was imported by name before.
        if getattr(module, "__dict__", {}).get("to_thread") is original:
            module.to_thread = replacement  # type: ignore[attr-defined]  # see the condition


# logging


def _patch_logging() -> None:
    """Name logging handlers that wait in the bridge with their lock held; see `held_locks`.

    (CPython 3.11 and later.)
    """
    held_locks.patch()
