"""Where synchronous code called from asynchronous code goes: into the bridge, or to a thread.

`bridged` is for applications. Django's asynchronous methods hand their synchronous twin to
`sync_to_async`; the one here takes its place in the modules that `patches` names.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import asgiref.sync
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.signals import got_request_exception, request_finished, request_started
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model

from .base import DatabaseWrapper
from .bridge import is_bridged, run_bridged

P = ParamSpec("P")
T = TypeVar("T")

# The aliases with a transaction open on the synchronous path, inherited by the coroutines
# that the thread then waits for in async_to_sync.
thread_transactions: ContextVar[frozenset[str]] = ContextVar(
    "pgbackend_thread_transactions", default=frozenset()
)

# Their receivers look after the connections of the thread that served the request.
_REQUEST_SIGNALS = (request_started, request_finished, got_request_exception)


def bridged(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Return an asynchronous function that runs the synchronous *function* bridged.

    The counterpart of asgiref's ``sync_to_async`` without its thread: as a call,
    ``await bridged(transfer)(source, target)``, and as a decorator on a ``def``. Inside,
    the ORM, ``transaction.atomic()``, raw cursors and lazy relations wait for the database
    without blocking the event loop; anything else that blocks does block it.

    Where Django's a-methods go back to the thread of a synchronous caller (see
    `runs_bridged`), so does *function*; and where ``OPTIONS["bridge"]`` is False for every
    database, it runs in a thread, too.

    Raise TypeError for an asynchronous function: that is awaited as it is.
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(
            f"bridged() takes a synchronous function; {function!r} is asynchronous: await it"
        )

    @functools.wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if is_bridged() or (
            not _waiting_thread(thread_transactions.get())
            and any(_is_enabled(alias) for alias in connections)
        ):
            return await run_bridged(function, *args, **kwargs)
        return await asgiref.sync.sync_to_async(function)(*args, **kwargs)

    return run


def sync_to_async(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return an asynchronous form of Django's *function*: bridged where that is right."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        if leads_to_database(function) and runs_bridged(alias_of(function, args, kwargs)):
            return await run_bridged(function, *args, **kwargs)
        return await asgiref.sync.sync_to_async(function, **options)(*args, **kwargs)

    return call


async def run_for_alias(alias: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call *function*, which uses *alias*, where the a-methods for that alias run."""
    if runs_bridged(alias):
        return await run_bridged(function, *args)
    return await asgiref.sync.sync_to_async(function)(*args)


def runs_bridged(alias: str) -> bool:
    """Return whether asynchronous access to *alias* runs bridged on the running loop.

    Not for another engine or a switched-off alias; and, so that it sees the data and holds
    the locks of its caller, not on behalf of a thread that waits in ``async_to_sync``: on
    the loop that made, or on the main one while the thread is in a transaction.
    """
    if alias not in connections.settings:
        # Either path ends in Django's ConnectionDoesNotExist.
        return True
    if not _is_enabled(alias):
        return False
    return is_bridged() or not _waiting_thread(thread_transactions.get() & {alias})


def _is_enabled(alias: str) -> bool:
    wrapper = connections[alias]
    return isinstance(wrapper, DatabaseWrapper) and wrapper.bridge_enabled


def _waiting_thread(in_transaction: frozenset[str]) -> bool:
    """Return whether a thread waits in ``async_to_sync`` whose connection must be used."""
    loops = asgiref.sync.AsyncToSync.loop_thread_executors
    return bool(in_transaction) or asyncio.get_running_loop() in loops


def leads_to_database(function: Callable[..., Any]) -> bool:
    """Return whether a synchronous twin is the ORM's, or may call it.

    Caches other than the database's are not, nor are the request signals' receivers.
    """
    subject: Any = getattr(function, "__self__", None)
    if isinstance(subject, BaseCache):
        return isinstance(subject, BaseDatabaseCache)
    if getattr(function, "__qualname__", "").endswith("<locals>.sync_send"):
        # The receivers of a signal, grouped in Signal.asend() and asend_robust().
        return inspect.getclosurevars(function).nonlocals.get("self") not in _REQUEST_SIGNALS
    return True


def alias_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the alias that a synchronous twin will use, by Django's own rules."""
    subject: Any = getattr(function, "__self__", None)
    alias: Any = None
    if len(connections.settings) == 1:
        pass
    elif isinstance(subject, BaseDatabaseCache):
        alias = router.db_for_write(subject.cache_model_class)
    elif kwargs.get("using"):
        alias = kwargs["using"]
    elif isinstance(subject, Model):
        alias = subject._state.db or router.db_for_write(type(subject), instance=subject)
    elif hasattr(subject, "db"):
        # A queryset, a raw queryset or a related manager.
        alias = subject.db
    elif args and isinstance(args[0], Sequence) and args[0] and isinstance(args[0][0], Model):
        # prefetch_related_objects(instances, ...)
        alias = args[0][0]._state.db
    return str(alias or DEFAULT_DB_ALIAS)
