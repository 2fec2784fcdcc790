"""The sessions that requests keep, shared by the tasks started in them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import (
    connections,
    transaction,
)
from django.db.models.expressions import RawSQL

from pgbackend import bridged
from pgbackend.transaction import detached
from pgbackend.wrapper.dispatch import in_bridge
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.session import SETTING, run
from tests.support.wrapper import AddAlias


def in_request(alias: str, *coroutines: Callable[[], Any]) -> Any:
    """Return a coroutine function: a view that sets a role, and then gathers others."""

    async def view() -> list[Any]:
        run(alias, "SET ROLE pg_monitor")
        return list(await asyncio.gather(*(each() for each in coroutines)))

    return in_bridge(view)


USER = "SELECT current_user"


async def test_tasks_use_the_session_of_their_request(add_alias: AddAlias) -> None:
    """What a request has set is in force in the tasks it starts then, by whatever they read."""
    alias = add_alias({"pool": {"max_size": 3}})

    async def by_cursor() -> Any:
        return await bridged(run)(alias, USER)

    async def by_orm() -> Any:
        authors = Author.objects.using(alias).annotate(user=RawSQL("current_user::text", ()))
        return await authors.values_list("user", flat=True).aget()

    async def in_a_transaction() -> Any:
        async with transaction.atomic(alias):
            return await bridged(run)(alias, USER)

    async def by_iterator() -> Any:
        authors = Author.objects.using(alias).annotate(user=RawSQL("current_user::text", ()))
        return [user async for user in authors.values_list("user", flat=True).aiterator()].pop()

    async def in_a_task() -> Any:
        return await asyncio.create_task(by_cursor())

    await Author.objects.acreate(name="a")
    await bridged(run)(alias, "GRANT SELECT ON tests_author TO pg_monitor")
    try:
        ways = [by_cursor, by_orm, in_a_transaction, by_iterator, in_a_task] * 3
        assert await in_request(alias, *ways) == ["pg_monitor"] * 15
        assert await by_cursor() != "pg_monitor"
    finally:
        await bridged(run)(alias, "REVOKE SELECT ON tests_author FROM pg_monitor")


async def test_requests_whose_tasks_use_their_sessions(add_alias: AddAlias) -> None:
    """As many requests as connections, each with a session and tasks, do not wait for others."""
    alias = add_alias({"pool": {"max_size": 4, "timeout": 20}})
    together = asyncio.Barrier(4)

    async def view(number: int) -> list[Any]:
        run(alias, f"SET app.one = '{number}'")
        await together.wait()
        return await asyncio.gather(*(bridged(run)(alias, SETTING) for _ in range(5)))

    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(in_bridge(view, number) for number in range(4)))
    assert found == [[str(number)] * 5 for number in range(4)]
    assert await bridged(run)(alias, SETTING) == ""


async def test_transactions_of_tasks_in_one_session(add_alias: AddAlias) -> None:
    """Tasks of a request with a session have their transactions in turns, each for itself."""
    alias = add_alias({"pool": {"max_size": 1}})
    authors = Author.objects.using(alias)

    async def write(number: int) -> None:
        await asyncio.sleep(0)
        async with transaction.atomic(alias):
            await authors.acreate(name=f"in {number}")
            await asyncio.sleep(0)
            if number % 2:
                raise ZeroDivisionError

    async def write_outside(number: int) -> None:
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await authors.acreate(name=f"out {number}")

    async def view() -> list[Any]:
        run(alias, "SET app.one = 'a'")
        tasks = [write(number) for number in range(20)]
        tasks += [write_outside(number) for number in range(20)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = await in_bridge(view)
    assert [type(each) for each in outcomes[:20]] == [type(None), ZeroDivisionError] * 10
    assert outcomes[20:] == [None] * 20
    names = {name async for name in authors.values_list("name", flat=True)}
    expected = {f"in {number}" for number in range(0, 20, 2)}
    assert names == expected | {f"out {number}" for number in range(20)}


async def test_a_task_that_outlives_its_requests_session(add_alias: AddAlias) -> None:
    """A task that goes on after the request's session has ended is told, before any SQL."""
    alias = add_alias({"pool": {"max_size": 2}})
    go_on = asyncio.Event()

    async def late() -> Any:
        await go_on.wait()
        return await bridged(run)(alias, USER)

    async def view() -> list[Any]:
        early = asyncio.create_task(late())
        run(alias, "SET ROLE pg_monitor")
        outliving = asyncio.create_task(late())
        with detached():
            apart = asyncio.create_task(late())
        return [early, outliving, apart]

    early, outliving, apart = await in_bridge(view)
    go_on.set()
    with pytest.raises(RuntimeError, match="started in a request that has made something"):
        await outliving
    assert await early == await apart == await bridged(run)(alias, USER)


async def test_a_task_does_not_close_its_requests_session(add_alias: AddAlias) -> None:
    """connection.close() in a task leaves its request's session alone; in the request it ends."""
    alias = add_alias({"pool": {"max_size": 2}})

    async def close() -> None:
        await bridged(lambda: connections[alias].close())()

    async def view() -> list[Any]:
        run(alias, "SET ROLE pg_monitor")
        await asyncio.create_task(close())
        seen = [run(alias, USER)]
        connections[alias].close()
        seen.append(await asyncio.create_task(bridged(run)(alias, USER)))
        return seen

    assert await in_bridge(view) == ["pg_monitor", await bridged(run)(alias, USER)]


async def test_two_calls_with_sessions_at_once(add_alias: AddAlias) -> None:
    """Calls that run at once each have their own session, whoever started them."""
    alias = add_alias({"pool": {"max_size": 4}})

    @bridged
    async def call(number: int) -> list[Any]:
        run(alias, f"SET app.one = '{number}'")
        await asyncio.sleep(0)
        found = await asyncio.gather(*(bridged(run)(alias, SETTING) for _ in range(3)))
        return [*found, run(alias, SETTING)]

    found = await asyncio.gather(*map(call, range(4)))
    assert found == [[str(number)] * 4 for number in range(4)]


async def test_a_session_kept_by_a_task_of_a_transaction(add_alias: AddAlias) -> None:
    """A session that a task makes in the transaction of its request is the request's, then."""
    alias = add_alias({"pool": {"max_size": 2}})

    async def view() -> list[Any]:
        async with transaction.atomic(alias):
            await asyncio.create_task(bridged(run)(alias, "SET ROLE pg_monitor"))
        return [run(alias, USER), await asyncio.create_task(bridged(run)(alias, USER))]

    assert await in_bridge(view) == ["pg_monitor", "pg_monitor"]
