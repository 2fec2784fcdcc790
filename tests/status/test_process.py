"""What a process tells of itself."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import Any

import pytest
from django.db import connections

from pgbackend.asgi import BridgedApplication
from pgbackend.pool.counts import ended
from pgbackend.status.process import process_part, some_wait
from pgbackend.transaction import pinned
from tests.support.wrapper import PID, AddAlias, avalue, until

SCOPE = {"type": "http", "method": "GET", "path": "/report/", "query_string": b"token=secret"}


def of(alias: str) -> Any:
    part = process_part([alias])
    json.dumps(part)
    return part["aliases"][alias]


@pytest.fixture
def alias(add_alias: AddAlias) -> str:
    return add_alias({"pool": {"min_size": 1, "max_size": 1, "timeout": 30}})


async def test_unused(alias: str) -> None:
    """An alias that has no pool yet has zeros, and asking makes none."""
    found = of(alias)
    assert (found["size"], found["short"], found["loans"], found["waits"]) == (0, 0, [], [])
    assert process_part([alias])["pid"] == os.getpid()


async def test_loans_and_waits(alias: str) -> None:
    """Who has a connection, and who waits for one, is named by task, request and seconds."""
    held, release = asyncio.Event(), asyncio.Event()
    pid = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal pid
        async with pinned(alias):
            pid = await avalue(PID, alias)
            held.set()
            await release.wait()

    async def call(*args: Any) -> None:
        raise AssertionError("nothing is read or sent")

    request: Any = BridgedApplication(application)(SCOPE, call, call)
    reader = asyncio.create_task(request, name="the reader")
    await held.wait()
    waiter = asyncio.create_task(avalue("SELECT 1", alias), name="the waiter")
    await until(lambda: of(alias)["waits"])
    found = of(alias)
    assert some_wait()
    (loan,), (wait,) = found["loans"], found["waits"]
    assert (loan["task"], loan["request"], loan["pid"]) == ("the reader", "GET /report/", pid)
    assert (wait["task"], wait["request"], wait["pid"]) == ("the waiter", "", 0)
    assert loan["seconds"] >= wait["seconds"] >= 0
    assert "secret" not in json.dumps(found)
    assert (found["on_loan"], found["waiting"], found["max_size"]) == (1, 1, 1)
    before = found["cursor"]
    release.set()
    await asyncio.gather(reader, waiter)
    found = of(alias)
    assert (found["loans"], found["waits"], found["waiting"]) == ([], [], 0)
    assert found["cursor"] == before + 1
    assert not some_wait()


async def test_counts_stay(alias: str) -> None:
    """What only grows does not shrink when a pool is closed: the page makes rates of it."""
    await avalue("SELECT 1", alias)
    before = of(alias)["cursor"]
    await connections[alias].async_pool.close()
    assert of(alias)["cursor"] == before == 1


async def test_alias_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pools of an alias had counted is not shown once nothing of it is left."""
    monkeypatch.setitem(ended, "gone", Counter(short=1))
    assert "gone" not in process_part(["default"])["aliases"]
