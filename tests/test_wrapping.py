"""execute_wrapper() and the tasks that share a wrapper."""

import asyncio
from collections.abc import Callable
from typing import Any

from django.db import connection

from tests.models import Author


class Log:
    """An execute_wrapper that notes the statements it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        self.seen.append(sql.split()[0])
        return execute(sql, *args)


async def test_children_inherit(server: object) -> None:
    """Tasks started in the block are seen by its wrapper, as the task itself is."""
    log = Log()
    with connection.execute_wrapper(log):
        await Author.objects.acount()
        await asyncio.gather(Author.objects.acount(), Author.objects.acount())
    await Author.objects.acount()
    assert log.seen == ["SELECT"] * 3
    assert connection.execute_wrappers == []


async def test_a_childs_wrapper_is_its_own(server: object) -> None:
    """What a child task adds is called neither for its parent nor for its siblings."""
    inside, leave = asyncio.Event(), asyncio.Event()
    childs, parents = Log(), Log()

    async def child() -> None:
        with connection.execute_wrapper(childs):
            await Author.objects.acreate(name="child")
            inside.set()
            await leave.wait()

    with connection.execute_wrapper(parents):
        task = asyncio.create_task(child())
        await inside.wait()
        await Author.objects.acount()
        leave.set()
        await task
    assert childs.seen == ["INSERT"]
    assert parents.seen == ["INSERT", "SELECT"]


def test_a_thread_keeps_djangos_list(server: object) -> None:
    """Without a loop the wrappers are in Django's own list, also those appended to it."""
    log = Log()
    connection.execute_wrappers.append(log)
    try:
        with connection.execute_wrapper(log):
            Author.objects.count()
            assert len(connection.execute_wrappers) == 2
    finally:
        connection.execute_wrappers.remove(log)
    assert log.seen == ["SELECT", "SELECT"]
