"""Faults, row 38: more connections configured than the server admits."""

from __future__ import annotations

import io

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from tests.faults.fix_servers import cluster, folder_for_servers
from tests.support.server import Server
from tests.support.wrapper import AddAlias

ADMITTED = (
    "SELECT sum(CASE name WHEN 'max_connections' THEN 1 ELSE -1 END * setting::int)::int"
    " FROM pg_settings WHERE name IN"
    " ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
)


def test_38_more_than_the_server_admits(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`manage.py check` does the sum, pools times processes, and warns from one too many on."""
    left = server.one(ADMITTED)
    # The first is pooled for the loop and for threads, the second for the loop.
    aliases = [add_alias({"pool": {"max_size": 3}}), add_alias()]
    most = left // 26

    def check(processes: int) -> str:
        monkeypatch.setenv("WEB_CONCURRENCY", f"{processes}")
        errors = io.StringIO()
        call_command("check", databases=aliases, fail_level="ERROR", stderr=errors)
        return errors.getvalue()

    assert check(most) == ""
    words = check(most + 1)
    assert "pgbackend.W002" in words
    assert f"may open 26 connections in each of {most + 1} processes" in words
    assert f"the server admits {left}" in words
    with pytest.raises(SystemCheckError, match=r"pgbackend\.W002"):
        call_command("check", databases=aliases, fail_level="WARNING")


@pytest.mark.process
def test_38_connections_that_are_reserved(
    add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PostgreSQL 16 and later reserve for a role's members is not the pools'."""
    monkeypatch.delenv("WEB_CONCURRENCY", raising=False)
    options: dict[str, str | int] = {"reserved_connections": 20}
    with folder_for_servers() as folder, cluster(folder / "small", options=options) as small:
        alias = add_alias(
            HOST="127.0.0.1",
            PORT=small.server.port,
            NAME="postgres",
            USER=small.server.user,
            PASSWORD=small.server.password,
        )
        errors = io.StringIO()
        call_command("check", databases=[alias], fail_level="ERROR", stderr=errors)
        connections[alias].close()
    # 40, less 20 and 3 for superusers; the pool may open 20.
    assert "may open 20 connections in each of 1 processes; the server admits 17" in (
        errors.getvalue()
    )
