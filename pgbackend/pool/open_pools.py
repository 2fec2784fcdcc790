"""Which pools are open: those of an event loop, of this process."""

from __future__ import annotations

import asyncio
import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary


class Pool(Protocol):
    """What is asked here of a `pool.ConnectionPool`."""

    alias: str
    name: str

    @property
    def closed(self) -> bool: ...

    def start(self) -> None: ...

    def borrowers(self) -> list[tuple[str, asyncio.Task[Any]]]: ...

    async def close(self, timeout: float = ...) -> None: ...  # noqa: ASYNC109  # psycopg_pool's

    async def close_when_idle(self, timeout: float) -> None: ...  # noqa: ASYNC109  # as close()


P = TypeVar("P", bound=Pool)

_pools: WeakKeyDictionary[AbstractEventLoop, dict[Hashable, Pool]] = WeakKeyDictionary()

# What a forked child found open. Kept, for a task of the parent's loop that is collected
# pending says so on stderr.
_inherited: list[Any] = []


def _forget_inherited() -> None:
    """Let a forked child open pools of its own: the sockets of these are the parent's."""
    _inherited.append(dict(_pools))
    _pools.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def get_pool(key: Hashable, make: Callable[[], P]) -> P:
    """Return the running loop's pool for *key*; open the one that *make* returns if none is."""
    loop = asyncio.get_running_loop()
    pools = _pools.get(loop)
    if pools is None:
        for ended in [each for each in _pools if each.is_closed()]:
            del _pools[ended]
        pools = _pools[loop] = {}
    pool = pools.get(key)
    if pool is None or pool.closed:
        pool = make()
        pool.start()
        pools[key] = pool
    # What *make* once made for the same key.
    return cast(P, pool)


def forget(pool: object) -> None:
    """Drop a closed pool from the running loop's."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    for key in [key for key, each in pools.items() if each is pool]:
        del pools[key]


def open_pools(alias: str | None = None) -> list[Pool]:
    """Return the running loop's open pools, all of them or those of one alias."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    return [pool for pool in pools.values() if not pool.closed and alias in (None, pool.alias)]
