"""Decide where synchronous code called from asynchronous code runs: the bridge or a thread.

`bridged` is for applications. Django's asynchronous methods pass their synchronous twin to
`sync_to_async`; see `patches.a_methods` for the replacement.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar, overload

import asgiref.sync
from django.db import connections
from django.db.utils import load_backend
from greenlet import getcurrent

from ..bridge.current import Bridge, is_bridged
from ..bridge.ends import begin_scope
from ..bridge.greenlets import await_bridged, run_bridged
from ..tasks.membership import joined_transaction
from ..tasks.transaction import Transaction
from ..wrapper.attributes import BackendWrapper

P = ParamSpec("P")
T = TypeVar("T")

# The aliases with an open transaction on the synchronous path. Coroutines that the thread waits for
# in async_to_sync inherit the variable.
thread_transactions: ContextVar[frozenset[str]] = ContextVar(
    "pgbackend_thread_transactions", default=frozenset()
)


@overload
def bridged(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]: ...


@overload
def bridged(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]: ...


def bridged(function: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return an asynchronous function that runs *function* bridged.

    For a synchronous *function* this is the counterpart of asgiref's ``sync_to_async``, without its
    thread: as a call, ``await bridged(transfer)(source, target)``, or as a decorator on a ``def``,
    for example a view. Inside, the ORM, ``transaction.atomic()``, raw cursors and lazy relations
    wait for the database without blocking the event loop. Anything else that blocks does block the
    loop.

    For an asynchronous *function*, the whole coroutine runs in one bridge, as each request does:
    lazy relations work in it, too, for example in a task of its own.

    Where Django's a-methods go back to the thread of a synchronous caller (see `runs_bridged`), so
    does a synchronous *function*. Where ``OPTIONS["bridge"]`` is False for every database, it runs
    in a thread, too.

    Raise TypeError for an asynchronous generator function: decorate the function that iterates over
    it.
    """
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"bridged() takes a function or a coroutine function; {function!r} is an"
            " asynchronous generator: decorate the function that iterates over it"
        )
    if asgiref.sync.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_coroutine(*args: Any, **kwargs: Any) -> Any:
            return await in_bridge(function, *args, **kwargs)

        return run_coroutine

    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        if is_bridged() or runs_bridged(None):
            return await run_bridged(function, *args, **kwargs)
        return await asgiref.sync.sync_to_async(function)(*args, **kwargs)

    return run


async def in_bridge(
    function: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``function(...)``, with the whole coroutine in one bridge where that is possible."""
    if is_bridged() or not runs_bridged(None):
        return await function(*args, **kwargs)
    return await run_bridged(_await_call, function, args, kwargs)


def _await_call(
    function: Callable[..., Coroutine[Any, Any, T]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> T:
    begin_scope()
    return await_bridged(function(*args, **kwargs))


async def run_for_alias(alias: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call *function*, which uses *alias*, where the a-methods for that alias run."""
    return await run_for_aliases({alias}, functools.partial(function, *args))


async def run_for_aliases(
    used: Iterable[str | None], function: Callable[[], T], **options: Any
) -> T | None:
    """Call *function* where the a-methods for all of the *used* aliases run.

    If one of the aliases cannot be bridged, call it in a thread by `sync_to_async` with *options*.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # No loop runs: a coroutine of a closed loop is being collected, and its connection with it.
        return None
    if all(map(runs_bridged, used)):
        return await run_bridged(function)
    for alias in used:
        if (transaction := _joined(alias)) is not None:
            result: T = await connections[alias].ahand_over(transaction, function)
            return result
    return await asgiref.sync.sync_to_async(function, **options)()


def _joined(alias: str | None) -> Transaction | None:
    """Return the transaction of *alias*, on another loop, that the running coroutine is in.

    A thread that joined the transaction waits for the coroutine.
    """
    if alias is None or alias not in connections.settings or not is_enabled(alias):
        return None
    return joined_transaction(alias)


def runs_bridged(alias: str | None) -> bool:
    """Return whether asynchronous access to *alias* runs bridged on the running loop.

    None stands for any alias. Access to another engine or to a switched-off alias does not. Nor
    does access on behalf of a thread that waits in ``async_to_sync``: it must see the data, and
    hold the locks, of its caller. That concerns the loop that ``async_to_sync`` made, and the main
    loop while the thread is in a transaction.
    """
    in_transaction = thread_transactions.get()
    if alias is None:
        enabled = any(map(is_enabled, connections))
    elif alias in connections.settings:
        enabled = is_enabled(alias)
        in_transaction &= {alias}
    else:
        # Either path ends in Django's ConnectionDoesNotExist for an unknown alias.
        return True
    return enabled and (is_bridged() or not _waiting_thread(in_transaction))


def all_run_bridged() -> bool:
    """Return whether asynchronous access to every alias runs bridged on the running loop."""
    return _all_enabled() and (is_bridged() or not _waiting_thread(thread_transactions.get()))


def all_begin_here() -> bool:
    """Return whether `all_run_bridged` is true and a bridged call begins here: `drive` may run."""
    # In a greenlet of the bridge the caller is bridged, or a task there has started it eagerly.
    return (
        not isinstance(getcurrent(), Bridge)
        and _all_enabled()
        and not _waiting_thread(thread_transactions.get())
    )


def begins_here(alias: str) -> bool:
    """Return whether `runs_bridged` is true and a bridged call begins here: `drive` may run."""
    return (
        not isinstance(getcurrent(), Bridge)
        and asyncio._get_running_loop() is not None
        and alias in connections.settings
        and is_enabled(alias)
        and not _waiting_thread(thread_transactions.get() & {alias})
    )


def _all_enabled() -> bool:
    # Check the settings only: making every alias's wrapper for each task would cost more.
    for conf in connections.settings.values():
        if _is_ours(conf["ENGINE"]):
            if not conf["OPTIONS"].get("bridge", True):
                return False
        elif not _waits_in_bridge(conf["ENGINE"]):
            return False
    return True


@functools.cache
def _is_ours(engine: str) -> bool:
    return issubclass(load_backend(engine).DatabaseWrapper, BackendWrapper)


@functools.cache
def _waits_in_bridge(engine: str) -> bool:
    """Tell whether an engine without SQL waits in bridged code without blocking the loop."""
    return getattr(load_backend(engine).DatabaseWrapper, "waits_in_bridge", False)


def is_enabled(alias: str) -> bool:
    """Return whether *alias* belongs to this backend and is not switched off."""
    wrapper = connections[alias]
    return isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled


def _waiting_thread(in_transaction: frozenset[str]) -> bool:
    """Return whether a thread waits in ``async_to_sync`` and its connection must be used."""
    # asgiref's loop_thread_executors has the loops that run for a thread waiting in async_to_sync.
    loops = asgiref.sync.AsyncToSync.loop_thread_executors
    return bool(in_transaction) or asyncio.get_running_loop() in loops
