"""Connections that a wrapper borrows, and keeps no longer than needed."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import (
    connection,
    connections,
)

from pgbackend import await_bridged, bridged
from tests.support.server import Server
from tests.support.wrapper import AddAlias, avalue


@pytest.mark.parametrize(
    "call",
    [
        lambda wrapper: wrapper.get_autocommit(),
        lambda wrapper: wrapper.ensure_connection(),
        lambda wrapper: wrapper.on_commit(lambda: None),
        lambda wrapper: wrapper.pg_version,
        lambda wrapper: wrapper.is_usable(),
    ],
    ids=["get_autocommit", "ensure_connection", "on_commit", "pg_version", "is_usable"],
)
async def test_no_connection_is_kept(add_alias: AddAlias, call: Callable[[Any], object]) -> None:
    """What asks about the connection does not keep one from other tasks."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1, "timeout": 3}})

    @bridged
    def work() -> None:
        call(connections[alias])
        # Another task can have the pool's only connection while this call goes on.
        assert await_bridged(asyncio.create_task(avalue("SELECT 1", alias))) == 1

    await work()


async def test_close_pool(server: Server) -> None:
    """close_pool() in the bridge closes the alias's connections; the next query opens some."""
    await avalue("SELECT 1")
    await avalue("SELECT 1", "other")
    assert server.backends() == 2
    await bridged(connection.close_pool)()
    server.wait_for_backends(1)
    assert await avalue("SELECT 1") == 1
