"""execute_wrapper() and the tasks that share a wrapper."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.signals import connection_created

from pgbackend import bridged
from tests.models import Author
from tests.support.wrapper import AddAlias, value


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


async def test_appending_inside_a_block(server: object) -> None:
    """What is appended while a block has added another is called, in its tasks and after it."""
    of_block, appended = Log(), Log()
    with connection.execute_wrapper(of_block):
        connection.execute_wrappers.append(appended)
        assert connection.execute_wrappers == [appended, of_block]
        assert appended in connection.execute_wrappers
        await Author.objects.acount()
        await asyncio.gather(Author.objects.acount())
    assert of_block.seen == appended.seen == ["SELECT"] * 2
    await Author.objects.acount()
    assert (len(of_block.seen), len(appended.seen)) == (2, 3)
    connection.execute_wrappers.remove(appended)
    await Author.objects.acount()
    assert len(appended.seen) == 3


async def test_changing_the_list_inside_a_block(server: object) -> None:
    """The list can be changed inside a block by every method of a list, that of the block too."""
    logs = [Log() for _ in range(4)]
    with connection.execute_wrapper(logs[0]):
        functions = connection.execute_wrappers
        functions.insert(0, logs[1])
        functions.extend(logs[2:])
        assert list(functions) == [logs[1], logs[2], logs[3], logs[0]]
        assert functions[1:3] == logs[2:]
        assert functions[-1] is logs[0]
        del functions[0]
        functions[0] = logs[1]
        assert functions.pop(1) is logs[3]
        assert connection.execute_wrappers == [logs[1], logs[0]]
        connection.execute_wrappers.remove(logs[0])
        await Author.objects.acount()
        assert [len(each.seen) for each in logs] == [0, 1, 0, 0]
        del connection.execute_wrappers[:]
        await Author.objects.acount()
    assert [len(each.seen) for each in logs] == [0, 1, 0, 0]
    assert connection.execute_wrappers == []


@pytest.mark.parametrize("where", ["task", "bridge"])
async def test_appending_when_a_connection_is_created(where: str, add_alias: AddAlias) -> None:
    """A receiver of connection_created that appends sees the statements of all borrowers, once."""
    alias = add_alias({"pool": {"max_size": 2}})
    log = Log()

    def install(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias and log not in connection.execute_wrappers:
            connection.execute_wrappers.append(log)

    async def count() -> None:
        await Author.objects.using(alias).acount()
        await asyncio.gather(*(Author.objects.using(alias).acount() for _ in range(3)))
        await bridged(value)("SELECT 1", alias)

    connection_created.connect(install)
    try:
        await (bridged(count)() if where == "bridge" else count())
    finally:
        connection_created.disconnect(install)
    assert log.seen == ["SELECT"] * 5
    assert connections["default"].execute_wrappers == []
