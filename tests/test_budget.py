"""The system check that sums the pools up."""

from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections

from tests.wrapper import AddAlias


def budget(*aliases: str) -> list[Any]:
    return [each for each in run_checks(databases=aliases) if each.id == "pgbackend.W002"]


def test_pools_that_fit(add_alias: AddAlias) -> None:
    """Pools that fit into max_connections are not warned of."""
    assert budget(add_alias({"pool": {"max_size": 4}}), add_alias()) == []


def test_pools_that_do_not_fit(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases of one server are added up, times processes, and both sides where both pool."""
    aliases = add_alias({"pool": {"max_size": 30}}), add_alias()
    monkeypatch.setenv("WEB_CONCURRENCY", "8")
    (warning,) = budget(*aliases)
    assert "'added0', 'added1' may open 80 connections in each of 8 processes" in warning.msg


def test_databases_that_are_not_asked_for() -> None:
    """Without --database no connection is made for it."""
    assert budget() == []
    assert connections["default"].connection is None
