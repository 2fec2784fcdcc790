"""Every change this backend makes to Django and asgiref at run time, each with its reason.

Django's asynchronous methods hand their synchronous twin to a thread by ``sync_to_async``.
Where that leads to the database, the twin runs bridged instead: no thread, and the
project's own overrides of the twin are honoured, since it is what is called.

Each place is fingerprinted. A place that is none of the supported versions' stays as it is,
and the system check ``pgbackend.W001`` says so.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import asgiref.sync
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql

from .base import DatabaseWrapper
from .bridge import await_bridged, is_bridged, run_bridged
from .fingerprints import KNOWN

django_sync_to_async = asgiref.sync.sync_to_async

# Where a call of `sync_to_async` leads to the database. `fingerprint_of_calls` covers all
# calls in such a module, `_subject_alias` decides for each.
MODULES = (
    "django.contrib.contenttypes.fields",
    "django.contrib.sessions.backends.db",
    "django.core.cache.backends.base",
    "django.db.models.base",
    "django.db.models.fields.related_descriptors",
    "django.db.models.query",
    "django.dispatch.dispatcher",
)

# What was left alone because its fingerprint is unknown: (place, consequence).
unpatched: list[tuple[str, str]] = []


def apply() -> None:
    """Apply all patches; a second call does nothing."""
    if getattr(apply, "done", False):
        return
    apply.done = True  # type: ignore[attr-defined]  # applied once for each process
    for name in MODULES:
        _after_import(name, _patch_module)
    _after_import("django.db.models.query", _patch_async_generator)
    _patch_guards()
    _patch_atomic()
    _patch_asgiref()
    checks.register(check_patches, checks.Tags.async_support)


def check_patches(**kwargs: Any) -> list[checks.CheckMessage]:
    """Report what stays unpatched because this Django is not one of those known."""
    return [
        checks.Warning(
            f"{place} is not a version of Django's that pgbackend knows: {consequence}.",
            hint="Use a release of pgbackend that supports this Django.",
            id="pgbackend.W001",
        )
        for place, consequence in unpatched
    ]


# Fingerprints


def fingerprint(function: FunctionType | Callable[..., Any]) -> str:
    """Return a short hash of a function's source, indentation and blank lines aside."""
    lines, _ = inspect.getsourcelines(inspect.unwrap(function))
    return _digest(lines)


def fingerprint_of_calls(module: ModuleType) -> str:
    """Return a short hash of all lines of a module that mention ``sync_to_async``."""
    lines = linecache.getlines(inspect.getsourcefile(module) or "")
    return _digest([line for line in lines if "sync_to_async" in line])


def _digest(lines: Sequence[str]) -> str:
    text = "\n".join(line.strip() for line in lines if line.strip())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _known(place: str, value: str, consequence: str) -> bool:
    """Return whether *value* is a supported version's fingerprint of *place*."""
    if value in KNOWN.get(place, ()):
        return True
    unpatched.append((place, consequence))
    return False


# Asynchronous methods: bridged instead of in a thread


class _AfterImport(MetaPathFinder):
    """Calls back when a module has been imported for the first time.

    Several modules of Django's cannot be imported before the applications are loaded, while
    this backend is imported as soon as the first model class is made.
    """

    def __init__(self, name: str, callback: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.callback = callback

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                self.callback(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this spec's only
        return spec


def _after_import(name: str, callback: Callable[[ModuleType], None]) -> None:
    if name in sys.modules:
        callback(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, callback))


def _patch_module(module: ModuleType) -> None:
    """Let a module's a-methods run bridged: replace the name ``sync_to_async`` in it."""
    if _known(
        f"{module.__name__}:sync_to_async",
        fingerprint_of_calls(module),
        "its asynchronous methods keep using threads",
    ):
        module.sync_to_async = sync_to_async  # type: ignore[attr-defined]  # imported by name


def sync_to_async(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return an asynchronous form of Django's *function*: bridged where that is right."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        if runs_bridged(_alias_of(function, args, kwargs)):
            return await run_bridged(function, *args, **kwargs)
        return await django_sync_to_async(function, **options)(*args, **kwargs)

    return call


def runs_bridged(alias: str | None) -> bool:
    """Return whether asynchronous access to *alias* runs bridged on the running loop.

    Not for another engine or a switched-off alias; and, so that it sees the data and holds
    the locks of its caller, not on behalf of a thread that waits in ``async_to_sync``: on
    the loop that made, or on the main one while the thread is in a transaction.
    """
    if alias is None:
        return False
    if alias not in connections.settings:
        # Either path ends in Django's ConnectionDoesNotExist.
        return True
    wrapper = connections[alias]
    if not isinstance(wrapper, DatabaseWrapper) or not wrapper.bridge_enabled:
        return False
    if is_bridged():
        return True
    if asyncio.get_running_loop() in asgiref.sync.AsyncToSync.loop_thread_executors:
        return False
    return alias not in thread_transactions.get()


def _alias_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """Return the alias a synchronous twin will use; None if it is not the database's."""
    from django.core.cache.backends.base import BaseCache
    from django.core.cache.backends.db import BaseDatabaseCache
    from django.core.signals import got_request_exception, request_finished, request_started
    from django.db.models import Model
    from django.dispatch import Signal

    subject: Any = getattr(function, "__self__", None)
    if isinstance(subject, BaseCache):
        if not isinstance(subject, BaseDatabaseCache):
            return None
        return router.db_for_write(subject.cache_model_class)
    if subject is None and function.__name__ == "sync_send":
        # Receivers of a signal, in Signal.asend() and asend_robust(). Those of the request
        # signals look after the connections of the thread that served the request.
        signal = inspect.getclosurevars(function).nonlocals.get("self")
        if isinstance(signal, Signal) and signal in (
            request_started,
            request_finished,
            got_request_exception,
        ):
            return None
    if len(connections.settings) == 1:
        return DEFAULT_DB_ALIAS
    if kwargs.get("using"):
        return str(kwargs["using"])
    if isinstance(subject, Model):
        return subject._state.db or router.db_for_write(type(subject), instance=subject)
    if hasattr(subject, "db"):
        # A queryset, a raw queryset or a related manager.
        return str(subject.db)
    if args and isinstance(args[0], Sequence) and args[0] and isinstance(args[0][0], Model):
        # prefetch_related_objects(instances, ...)
        return args[0][0]._state.db or DEFAULT_DB_ALIAS
    return DEFAULT_DB_ALIAS


def _patch_async_generator(module: ModuleType) -> None:
    """Let ``aiterator()`` close its cursor inside the bridge.

    Django drops the synchronous generator when the asynchronous one ends early; its clean-up
    would then run where nothing can be awaited. (5.2 to 6.1.)
    """
    iterable = module.BaseIterable
    if not _known(
        "django.db.models.query.BaseIterable._async_generator",
        fingerprint(iterable._async_generator),
        "aiterator() left early closes its connection",
    ):
        return

    async def _async_generator(self: Any) -> AsyncIterator[Any]:
        rows = iter(self)
        alias = self.queryset.db

        def next_slice() -> list[Any]:
            return list(islice(rows, self.chunk_size))

        async def call(function: Callable[[], Any]) -> Any:
            if runs_bridged(alias):
                return await run_bridged(function)
            return await django_sync_to_async(function)()

        try:
            while True:
                chunk = await call(next_slice)
                for item in chunk:
                    yield item
                if len(chunk) < self.chunk_size:
                    break
        finally:
            await call(rows.close)

    iterable._async_generator = _async_generator


# Synchronous methods: allowed in the bridge


def _patch_guards() -> None:
    """Let the methods that Django marks ``async_unsafe`` run in the bridge.

    There they wait without blocking the loop. Elsewhere on a running loop they raise
    SynchronousOnlyOperation as ever, for this backend with a message that names its way out.
    The guards are replaced on Django's classes, not overridden: its test cases replace some
    of these methods there to forbid queries. (5.2 to 6.1.)
    """
    for cls in (BaseDatabaseWrapper, postgresql.DatabaseWrapper):
        for name, method in list(vars(cls).items()):
            if _is_guarded(method):
                setattr(cls, name, _guard(method))


def _is_guarded(method: Any) -> bool:
    code = getattr(method, "__code__", None)
    return hasattr(method, "__wrapped__") and getattr(code, "co_filename", "").endswith(
        "asyncio.py"
    )


def _guard(guarded: Callable[..., Any]) -> Callable[..., Any]:
    unguarded = guarded.__wrapped__  # type: ignore[attr-defined]  # see _is_guarded

    @functools.wraps(unguarded)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, DatabaseWrapper) and self.bridge_enabled:
            self.check_not_on_loop()
            return unguarded(self, *args, **kwargs)
        return guarded(self, *args, **kwargs)

    return method


# Transactions


# The aliases with a transaction open on the synchronous path, inherited by the coroutines
# that the thread then waits for in async_to_sync.
thread_transactions: ContextVar[frozenset[str]] = ContextVar(
    "pgbackend_thread_transactions", default=frozenset()
)


def _patch_atomic() -> None:
    """Add ``async with`` to ``atomic``, and turns for tasks that share a transaction.

    ``Atomic`` itself stays Django's and does all the work. (5.2 to 6.1.)
    """
    cls = transaction.Atomic
    enter, leave, decorate = cls.__enter__, cls.__exit__, cls.__call__
    for function in (enter, leave):
        if not _known(
            f"django.db.transaction.{function.__qualname__}",
            fingerprint(function),
            "`async with transaction.atomic()` is not available",
        ):
            return

    def __enter__(self: Any) -> None:
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, DatabaseWrapper):
            return enter(self)
        if not wrapper.bridged:
            enter(self)
            thread_transactions.set(thread_transactions.get() | {wrapper.alias})
            return None
        state = wrapper.state_in_turn()
        frame = state.enter_frame(wrapper)
        try:
            return enter(self)
        except BaseException:
            state.leave_frame(frame)
            raise

    def __exit__(self: Any, exc_type: Any, exc_value: Any, traceback: Any) -> Any:
        wrapper = transaction.get_connection(self.using)
        if not isinstance(wrapper, DatabaseWrapper):
            return leave(self, exc_type, exc_value, traceback)
        if not wrapper.bridged:
            try:
                return leave(self, exc_type, exc_value, traceback)
            finally:
                if not wrapper.in_atomic_block:
                    thread_transactions.set(thread_transactions.get() - {wrapper.alias})
        frame = wrapper.frame_to_leave(failed=exc_type is not None)
        if frame is None:
            return None
        try:
            return leave(self, exc_type, exc_value, traceback)
        finally:
            frame.state.leave_frame(frame)

    async def __aenter__(self: Any) -> None:
        await _on_connection(self, self.__enter__)

    async def __aexit__(self: Any, *exc_info: Any) -> Any:
        return await _on_connection(self, self.__exit__, *exc_info)

    def __call__(self: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            return decorate(self, function)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return await function(*args, **kwargs)

        return call

    for patched in (__enter__, __exit__, __aenter__, __aexit__, __call__):
        setattr(cls, patched.__name__, patched)


async def _on_connection(atomic: Any, function: Callable[..., Any], *args: Any) -> Any:
    """Call a method of *atomic* where the a-methods for its alias run."""
    if runs_bridged(atomic.using or DEFAULT_DB_ALIAS):
        return await run_bridged(function, *args)
    return await django_sync_to_async(function)(*args)


# asgiref


# True in what a bridged call of async_to_sync waits for.
_in_place: ContextVar[bool] = ContextVar("pgbackend_in_place", default=False)


def _patch_asgiref() -> None:
    """Let ``async_to_sync``, called in the bridge, wait in place.

    On a running loop it refuses; but bridged code can wait. Thread-sensitive functions
    called from there by ``sync_to_async`` belong on the thread of that outer synchronous
    caller, by asgiref's own rule: they run bridged. (asgiref 3.8 and later.)
    """
    call_sync = asgiref.sync.AsyncToSync.__call__
    call_async = asgiref.sync.SyncToAsync.__call__

    @functools.wraps(call_sync)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_bridged():
            return call_sync(self, *args, **kwargs)
        token = _in_place.set(True)
        try:
            return await_bridged(self.awaitable(*args, **kwargs))
        finally:
            _in_place.reset(token)

    @functools.wraps(call_async)
    async def __acall__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._thread_sensitive and _in_place.get():
            return await run_bridged(self.func, *args, **kwargs)
        return await call_async(self, *args, **kwargs)

    asgiref.sync.AsyncToSync.__call__ = __call__  # type: ignore[method-assign]  # the patch
    asgiref.sync.SyncToAsync.__call__ = __acall__  # type: ignore[method-assign]  # the patch
