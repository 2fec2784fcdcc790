"""Faults, row 38: more connections configured than the server admits."""

from __future__ import annotations

import io

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from tests.conftest import Server
from tests.wrapper import AddAlias


def test_38_more_than_the_server_admits(
    server: Server, add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`manage.py check` does the sum, pools times processes, and warns from one too many on."""
    left = server.one(
        "SELECT current_setting('max_connections')::int"
        " - current_setting('superuser_reserved_connections')::int"
    )
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
