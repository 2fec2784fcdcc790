"""Snapshots: one sampler for all who look, and none where nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest
from django.db import transaction

from pgbackend.status import process, sampling
from pgbackend.status.sampling import close_streams, one_snapshot, snapshots
from tests.support.fix_loops import Main
from tests.support.server import Server
from tests.support.wrapper import avalue, until


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Snapshots that come faster than a reader wants them."""
    monkeypatch.setattr(sampling, "INTERVAL", 0.05)
    yield
    assert not sampling._running


def looking() -> Any:
    return aclosing(snapshots())


async def answered(stream: Any) -> Any:
    """Return the first snapshot that has an answer of the server's."""
    async for text in stream:
        found = json.loads(text)
        if all(each["answer"] for each in found["servers"].values()):
            return found
    raise AssertionError("the stream has ended")


async def ended(tasks: int) -> None:
    """Wait until there are as many tasks as before."""
    await until(lambda: len(asyncio.all_tasks()) <= tasks)


def test_snapshot(run_main: Main) -> None:
    """A snapshot has this process and each server; on each kind of loop."""

    async def main() -> None:
        tasks = len(asyncio.all_tasks())
        async with looking() as stream:
            found = await answered(stream)
        assert {"default", "other"} <= found["servers"].keys()
        assert {"default", "other"} <= found["process"]["aliases"].keys()
        assert found["servers"]["default"]["answer"]["database"] == "pgbackend_tests"
        await ended(tasks)

    run_main(main())


async def test_one_sampler(server: Server) -> None:
    """All who look get the same snapshots, by one connection for each alias; it goes with the last.

    200 streams that come and go leave no task and no connection.
    """
    tasks, backends = len(asyncio.all_tasks()), server.backends()
    async with looking() as first:
        await answered(first)
        asked = server.backends()
        assert asked > backends

        async def look() -> str:
            async with looking() as stream:
                return str(await anext(stream))

        found = await asyncio.gather(*(look() for _ in range(200)))
        assert len(set(found)) <= 3
        assert server.backends() == asked
    await ended(tasks)
    await until(lambda: server.backends() == backends)


async def test_cancelled_looker(server: Server) -> None:
    """A looker that is cancelled, as by a client that goes away, takes nothing from another one."""
    tasks = len(asyncio.all_tasks())
    async with looking() as stream:
        await anext(stream)

        async def look() -> None:
            async with looking() as other:
                async for _ in other:
                    pass

        lookers = [asyncio.create_task(look()) for _ in range(20)]
        await asyncio.sleep(0)
        for each in lookers:
            each.cancel()
        await asyncio.wait(lookers)
        await anext(stream)
        await anext(stream)
    await ended(tasks)


async def test_not_of_the_lookers_transaction() -> None:
    """The first looker's transaction is not the sampler's, nor is its end."""
    async with transaction.atomic():
        await avalue("SELECT 1")
        async with looking() as stream:
            found = await answered(stream)
            assert found["process"]["aliases"]["default"]["on_loan"] == 1


async def test_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream ends after its time, but not while tasks wait: the next one would wait with them."""
    monkeypatch.setattr(sampling, "LIFETIME", 0.0)
    monkeypatch.setattr(sampling, "some_wait", lambda: True)
    async with looking() as stream:
        await anext(stream)
        await anext(stream)
        monkeypatch.setattr(sampling, "some_wait", process.some_wait)
        assert len([text async for text in stream]) <= 1


async def test_close_streams() -> None:
    """They end at once, and new ones may begin."""
    async with looking() as stream:
        await anext(stream)
        close_streams()
        assert len([text async for text in stream]) <= 1
    async with looking() as stream:
        await anext(stream)


async def test_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that fails says so, and ends the streams."""

    def fail(aliases: Any) -> Any:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(sampling, "process_part", fail)
    with caplog.at_level(logging.ERROR, "pgbackend.status"):
        assert [text async for text in snapshots()] == []
    assert "of the test" in caplog.text


async def test_one_snapshot(server: Server) -> None:
    """One that is made alone has waited for the servers, and leaves no connection."""
    backends = server.backends()
    found = json.loads(await one_snapshot())
    assert found["servers"]["default"]["answer"]
    await until(lambda: server.backends() == backends)
