"""Who has a connection on loan, as the message of an exhausted pool says it."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from django.db import OperationalError

from pgbackend.asgi import BridgedApplication
from pgbackend.pool.borrowers import of_request
from pgbackend.transaction import pinned
from tests.models import Author
from tests.support.wrapper import AddAlias, use_wrapper

SCOPE = {"type": "http", "method": "GET", "path": "/report/", "query_string": b"token=secret"}


async def exhausted(scope: Any, add_alias: AddAlias, **options: Any) -> str:
    """Return what is said while the only connection of a pool is on loan to a request."""
    alias = add_alias({"pool": {"max_size": 1, "timeout": 0.2, **options}})
    authors = Author.objects.using(alias)
    held, release = asyncio.Event(), asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with pinned(alias):
            await authors.acount()
            held.set()
            await release.wait()

    async def call(*args: Any) -> None:
        raise AssertionError("nothing is read or sent")

    request: Any = BridgedApplication(application)(scope, call, call)
    task = asyncio.create_task(request, name="the reader")
    await held.wait()
    with pytest.raises(OperationalError) as caught:
        await asyncio.gather(*(authors.acount() for _ in range(3)))
    release.set()
    await task
    assert of_request.get() is None
    return str(caught.value)


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        (SCOPE, "GET /report/"),
        ({"type": "websocket", "path": "/board/"}, "websocket /board/"),
    ],
    ids=["http", "websocket"],
)
async def test_time_out(scope: Any, words: str, add_alias: AddAlias) -> None:
    """A pool that is exhausted names task, method, path and seconds, and no query string."""
    said = await exhausted(scope, add_alias)
    assert re.search(rf"all 1 are on loan, to the reader \({words}, for \d+\.\d s\), and", said)
    assert "secret" not in said


async def test_too_many_waiting(add_alias: AddAlias) -> None:
    """So does one that has too many tasks waiting."""
    said = await exhausted(SCOPE, add_alias, max_waiting=1)
    assert re.search(r"waiting already: all 1 are on loan, to the reader \(GET /report/, ", said)


async def test_longest_first() -> None:
    """The borrowers come by the time for which they have had their connection, five at most."""
    use_wrapper(options={"pool": {"max_size": 7, "timeout": 0.2}})
    release = asyncio.Event()

    async def hold(held: asyncio.Event) -> None:
        async with pinned():
            await Author.objects.acount()
            held.set()
            await release.wait()

    tasks = []
    for number in (3, 1, 2, 7, 5, 6, 4):
        held = asyncio.Event()
        tasks.append(asyncio.create_task(hold(held), name=f"holder {number}"))
        await held.wait()
    with pytest.raises(OperationalError) as caught:
        await Author.objects.acount()
    release.set()
    await asyncio.gather(*tasks)
    assert re.findall(r"holder (\d)", str(caught.value)) == ["3", "1", "2", "7", "5"]
    assert re.search(r"holder 3 \(for \d\.\d s\)", str(caught.value))
    assert ", ..., and 0 other tasks wait" in str(caught.value)
