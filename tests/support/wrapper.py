"""Wrappers with settings of their own, queries on them, and waiting for what they lead to."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import run_bridged
from tests.support.limits import PATIENCE

# The type of the fixture `add_alias`.
AddAlias = Callable[..., str]


def make_wrapper(
    alias: str = DEFAULT_DB_ALIAS, *, options: dict[str, Any] | None = None, **settings: Any
) -> DatabaseWrapper:
    """Return a wrapper for *alias* with other *settings*, and with *options* in OPTIONS."""
    conf = deepcopy(connections[alias].settings_dict)
    conf.update(settings)
    conf["OPTIONS"].update(options or {})
    return DatabaseWrapper(conf, alias)


def use_wrapper(alias: str = DEFAULT_DB_ALIAS, **changes: Any) -> DatabaseWrapper:
    """Make a wrapper and let the running task, and those it starts, use it for *alias*."""
    wrapper = make_wrapper(alias, **changes)
    connections[alias] = wrapper
    return wrapper


PID = "SELECT pg_backend_pid()"


async def run(wrapper: DatabaseWrapper, query: str, params: Any = None) -> Any:
    """Run a query bridged and return the first column of its first row, if it has rows."""

    def execute() -> Any:
        with wrapper.cursor() as cursor:
            cursor.execute(query, params)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    return await run_bridged(execute)


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until *condition* holds and return its value; TimeoutError after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if value := condition():
                return value
            await asyncio.sleep(0.001)


def small_pool(size: int = 1) -> DatabaseWrapper:
    """Give the running task a pool of *size*: one that holds too much gets nothing more."""
    return use_wrapper(options={"pool": {"max_size": size, "timeout": 2.0}})


def on_loan(wrapper: DatabaseWrapper) -> int:
    """Return how many connections of the pool are on loan, or just being opened."""
    stats = wrapper.async_pool.get_stats()
    return stats["pool_size"] - stats["pool_available"] - stats["pool_resetting"]


async def check_all_back(wrapper: DatabaseWrapper) -> None:
    """Check that nothing is on loan and the pool works; a closed connection is replaced."""
    assert await run(wrapper, "SELECT 1") == 1
    await until(lambda: not on_loan(wrapper))


def pid_of(cursor: Any) -> int:
    cursor.execute(PID)
    return int(cursor.fetchone()[0])


def value(query: str, alias: str = "default") -> Any:
    """Return the first column of a query's first row."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


avalue = bridged(value)
