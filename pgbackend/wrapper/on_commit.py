"""Hooks of ``transaction.on_commit``; those that are coroutine functions are awaited."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import async_to_sync

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged


class Hook:
    """A function registered by ``on_commit``, called synchronously.

    If the function returns a coroutine, the hook waits for it: bridged on the same task, elsewhere
    by asgiref's ``async_to_sync``. The hook equals the function, since tests look for the function
    among captured hooks.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)

    def __getattr__(self, name: str) -> Any:
        # Django logs the ``__qualname__``, which a partial does not have. Compute it only on
        # request: the repr() of a queryset, or of a partial of its method, runs the query.
        if name == "__qualname__":
            return repr(self.function)
        raise AttributeError(name)

    def __call__(self) -> Any:
        result = self.function()
        return _wait(result, self.function) if inspect.iscoroutine(result) else result

    def __eq__(self, other: object) -> bool:
        return self.function == (other.function if isinstance(other, Hook) else other)

    def __hash__(self) -> int:
        return hash(self.function)


def _wait(coroutine: Coroutine[Any, Any, Any], function: Callable[[], Any]) -> Any:
    if is_bridged():
        return await_bridged(coroutine)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return async_to_sync(_awaited)(coroutine)
    coroutine.close()
    raise RuntimeError(
        f"on_commit() was called on a running event loop, outside a transaction, with {function!r},"
        " which has to be awaited at once: `await pgbackend.transaction.aon_commit(...)`"
    )


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine
