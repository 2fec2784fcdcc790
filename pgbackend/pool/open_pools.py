"""The open pools of each event loop in this process."""

from __future__ import annotations

import asyncio
import os
from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .borrowers import Loan


class Pool(Protocol):
    """The part of `pool.ConnectionPool` that this module uses."""

    alias: str
    name: str
    counts: Any

    @property
    def closed(self) -> bool: ...

    def start(self) -> None: ...

    def borrowers(self) -> list[tuple[str, asyncio.Task[Any]]]: ...

    def loans(self) -> list[Loan]: ...

    def waits(self) -> list[Loan]: ...

    async def close(self, timeout: float = ...) -> None: ...  # noqa: ASYNC109  # psycopg_pool's

    async def close_when_idle(self, timeout: float) -> None: ...  # noqa: ASYNC109  # as close()


P = TypeVar("P", bound=Pool)

_pools: WeakKeyDictionary[AbstractEventLoop, dict[Hashable, Pool]] = WeakKeyDictionary()

# The pools that a forked child inherited. They are kept alive: a pending task of the parent's loop
# that is collected says so on stderr.
_inherited: list[Any] = []


def _forget_inherited() -> None:
    """Let a forked child open its own pools: the inherited sockets belong to the parent."""
    _inherited.append(dict(_pools))
    _pools.clear()


os.register_at_fork(after_in_child=_forget_inherited)


def get_pool(key: Hashable, make: Callable[[], P]) -> P:
    """Return the running loop's pool for *key*; if none is open, open the one from *make*."""
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
    # An earlier *make* for the same key returned the same type.
    return cast(P, pool)


def forget(pool: object) -> None:
    """Remove a closed pool from the running loop's pools."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    for key in [key for key, each in pools.items() if each is pool]:
        del pools[key]


def open_pools(alias: str | None = None) -> list[Pool]:
    """Return the running loop's open pools, all of them or those of one alias."""
    pools = _pools.get(asyncio.get_running_loop(), {})
    return [pool for pool in pools.values() if not pool.closed and alias in (None, pool.alias)]


def pools_of_loops() -> list[tuple[AbstractEventLoop, Pool]]:
    """Return the open pools of all event loops of this process, with their loops, in any thread."""
    found: list[tuple[AbstractEventLoop, Pool]] = []
    # A list of references is made in one step, whatever another thread adds meanwhile.
    for reference in _pools.keyrefs():
        loop = reference()
        pools = None if loop is None else _pools.get(loop)
        if loop is not None and pools:
            found += [(loop, each) for each in list(pools.values()) if not each.closed]
    return found
