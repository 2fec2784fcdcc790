"""Every change this backend makes to Django and asgiref at run time, each with its reason.

Where Django's asynchronous methods hand their synchronous twin to a thread and that leads to
the database, the twin runs bridged instead (`routing`): no thread, and the project's own
overrides of the twin are honoured, since it is what is called.

A changed function of Django is fingerprinted; see `fingerprints` for an unknown one.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from itertools import islice
from types import ModuleType
from typing import Any

import asgiref.sync
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql

from .base import DatabaseWrapper
from .bridge import await_bridged, is_bridged, run_bridged
from .cursor import collect_opened
from .fingerprints import check_unpatched, fingerprint, fingerprint_of_calls, is_known
from .routing import run_for_alias, sync_to_async, thread_transactions

# Whose calls of `sync_to_async` lead to the database, all or (`routing`) some of them.
MODULES = (
    "django.contrib.contenttypes.fields",
    "django.contrib.sessions.backends.db",
    "django.core.cache.backends.base",
    "django.db.models.base",
    "django.db.models.fields.related_descriptors",
    "django.db.models.query",
    "django.dispatch.dispatcher",
)

_applied = False


def apply() -> None:
    """Apply all patches; a second call does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    for name in MODULES:
        _after_import(name, _patch_module)
    _after_import("django.db.models.query", _patch_aiterator)
    _patch_guards()
    _patch_ensure_connection()
    _patch_atomic()
    _patch_asgiref()
    checks.register(check_unpatched, checks.Tags.async_support)


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
    if is_known(
        f"{module.__name__}:sync_to_async",
        fingerprint_of_calls(module),
        "its asynchronous methods keep using threads",
    ):
        module.sync_to_async = sync_to_async  # type: ignore[attr-defined]  # imported by name


def _patch_aiterator(module: ModuleType) -> None:
    """Let ``aiterator()`` close its cursor, inside the bridge, when it ends early.

    Django drops the generators inside it: the one that holds the cursor is then finalized
    where nothing can be awaited, and whenever the event loop gets to it. (5.2 to 6.1.)
    """
    iterable, queryset = module.BaseIterable, module.QuerySet
    for function in (iterable._async_generator, queryset.aiterator):
        if not is_known(
            f"{module.__name__}.{function.__qualname__}",
            fingerprint(function),
            "aiterator() left early closes its connection",
        ):
            return
    aiterator = queryset.aiterator

    async def _async_generator(self: Any) -> AsyncGenerator[Any, None]:
        rows = iter(self)
        alias = self.queryset.db
        cursors: list[Any] = []

        def next_slice() -> list[Any]:
            with collect_opened(cursors):
                return list(islice(rows, self.chunk_size))

        def close() -> None:
            # By name: closing the outer generator leaves the inner one, and with it the
            # cursor, to a destructor, where errors and cancellations are lost.
            for cursor in cursors:
                cursor.close()
            rows.close()

        try:
            while True:
                chunk = await run_for_alias(alias, next_slice)
                for item in chunk:
                    yield item
                if len(chunk) < self.chunk_size:
                    break
        finally:
            await run_for_alias(alias, close)

    def __aiter__(self: Any) -> AsyncGenerator[Any, None]:
        rows: AsyncGenerator[Any, None] = self._async_generator()
        if hasattr(self.queryset, "_pgbackend_rows"):
            self.queryset._pgbackend_rows.append(rows)
        return rows

    @functools.wraps(aiterator)
    async def patched(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        # A copy, to learn of no other iteration's rows.
        queryset = self._chain()
        queryset._pgbackend_rows = []
        items = aiterator(queryset, *args, **kwargs)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()
            for rows in queryset._pgbackend_rows:
                await rows.aclose()

    iterable._async_generator = _async_generator
    iterable.__aiter__ = __aiter__
    queryset.aiterator = patched


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
        if self.vendor == "unknown" and is_bridged():
            # Django's dummy backend: its own error says more.
            return unguarded(self, *args, **kwargs)
        return guarded(self, *args, **kwargs)

    return method


def _patch_ensure_connection() -> None:
    """Let ``ensure_connection()`` keep no connection in the bridge.

    It is changed on Django's class, not overridden, for the same reason as the guards: its
    test cases replace it there by one that calls the one before. (5.2 to 6.1.)
    """
    ensure = BaseDatabaseWrapper.ensure_connection

    @functools.wraps(ensure)
    def ensure_connection(self: Any) -> None:
        if isinstance(self, DatabaseWrapper) and self.bridged and not self.state.connecting:
            self.try_connection()
        else:
            ensure(self)

    BaseDatabaseWrapper.ensure_connection = ensure_connection


# Transactions


def _patch_atomic() -> None:
    """Add ``async with`` to ``atomic``, and turns for tasks that share a transaction.

    ``Atomic`` itself stays Django's and does all the work. (5.2 to 6.1.)
    """
    cls = transaction.Atomic
    enter, leave, decorate = cls.__enter__, cls.__exit__, cls.__call__
    for function in (enter, leave):
        if not is_known(
            f"django.db.transaction.{function.__qualname__}",
            fingerprint(function),
            "`async with transaction.atomic()` is not available",
        ):
            return

    def __enter__(self: Any) -> Any:
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
        await run_for_alias(self.using or DEFAULT_DB_ALIAS, self.__enter__)

    async def __aexit__(self: Any, *exc_info: Any) -> Any:
        alias = self.using or DEFAULT_DB_ALIAS
        return await run_for_alias(alias, self.__exit__, *exc_info)

    def __call__(self: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            return decorate(self, function)  # type: ignore[no-any-return]  # Django is untyped

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return await function(*args, **kwargs)

        return call

    for patched in (__enter__, __exit__, __aenter__, __aexit__, __call__):
        setattr(cls, patched.__name__, patched)


# asgiref


class _Caller:
    """A bridged call of async_to_sync, known to what it waits for."""

    waits = True


_caller: ContextVar[_Caller | None] = ContextVar("pgbackend_caller", default=None)


def _patch_asgiref() -> None:
    """Let ``async_to_sync``, called in the bridge, wait in place.

    On a running loop it refuses; but bridged code can wait. Thread-sensitive functions
    called from there by ``sync_to_async`` belong on the thread of that outer synchronous
    caller, by asgiref's own rule: they run bridged. (asgiref 3.8 and later.)
    """
    call_sync: Callable[..., Any] = asgiref.sync.AsyncToSync.__call__
    call_async: Callable[..., Any] = asgiref.sync.SyncToAsync.__call__

    @functools.wraps(call_sync)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_bridged():
            return call_sync(self, *args, **kwargs)
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
        if self._thread_sensitive and caller is not None and caller.waits:
            return await run_bridged(self.func, *args, **kwargs)
        return await call_async(self, *args, **kwargs)

    asgiref.sync.AsyncToSync.__call__ = __call__  # type: ignore[method-assign]  # the patch
    asgiref.sync.SyncToAsync.__call__ = __acall__  # type: ignore[method-assign]  # the patch
