"""The hubs of this process: one for each event loop and alias, whoever hears something there."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from contextvars import Context
from weakref import WeakKeyDictionary

from django.db import DEFAULT_DB_ALIAS

from .hub import Hub

# The hub of each loop and alias.
_hubs: WeakKeyDictionary[AbstractEventLoop, dict[str, Hub]] = WeakKeyDictionary()


def hub_of(alias: str = DEFAULT_DB_ALIAS, **options: float) -> Hub:
    """Return the running loop's hub for *alias*, started on first use, with *options* then.

    The hub ends with its loop: `asyncio.run` cancels its tasks.
    """
    loop = asyncio.get_running_loop()
    if loop not in _hubs:
        _forget_closed_loops()
    hubs = _hubs.setdefault(loop, {})
    hub = hubs.get(alias)
    if hub is None:
        hub = hubs[alias] = Hub(alias, **options)
        hub.unused = _stop_soon
    hub.start()
    return hub


def _forget_closed_loops() -> None:
    """Forget loops that ended while something was heard there: a hub keeps its loop alive."""
    # The list is made in one step, whatever other threads do.
    for reference in _hubs.keyrefs():
        loop = reference()
        if loop is not None and loop.is_closed():
            _hubs.pop(loop, None)


# asyncio itself keeps no task alive.
_stopping: set[asyncio.Task[None]] = set()


def _stop_soon(hub: Hub) -> None:
    """Stop *hub*, unless somebody subscribes first; nothing is left to stop where no loop runs."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    task = loop.create_task(stop_unused(hub), context=Context())
    _stopping.add(task)
    task.add_done_callback(_stopping.discard)


async def stop_unused(hub: Hub) -> None:
    """Stop *hub*, which `hub_of` has returned, if it has no subscription left."""
    hubs = _hubs.get(asyncio.get_running_loop(), {})
    if not hub.has_subscriptions and hubs.get(hub.alias) is hub:
        # Whoever subscribes while this one stops gets another.
        del hubs[hub.alias]
        await hub.stop()
