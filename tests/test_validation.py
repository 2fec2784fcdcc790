"""The system check that connects, and sums the pools up."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections

from pgbackend.bridge.greenlets import run_bridged
from tests.support.wrapper import AddAlias


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port of this machine where nobody listens: it is bound meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def check(*aliases: str) -> list[Any]:
    """Return what the checks say of *aliases*; those of models, which may connect, are left out."""
    return run_checks(app_configs=[], databases=aliases)


def budget(*aliases: str, id: str = "pgbackend.W002") -> list[Any]:
    return [each for each in check(*aliases) if each.id == id]


def test_pools_that_fit(add_alias: AddAlias) -> None:
    """Pools that fit into max_connections are not warned of."""
    assert budget(add_alias({"pool": {"max_size": 4}}), add_alias()) == []


def test_pools_that_do_not_fit(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases of one server are added up, times processes, and both sides where both pool."""
    aliases = add_alias({"pool": {"max_size": 30}}), add_alias()
    monkeypatch.setenv("WEB_CONCURRENCY", "8")
    (warning,) = budget(*aliases)
    named = ", ".join(map(repr, aliases))
    assert f"{named} may open 80 connections in each of 8 processes" in warning.msg


def test_databases_that_are_not_asked_for() -> None:
    """Without --database no connection is made for it."""
    assert budget() == []
    assert connections["default"].connection is None


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"pool": True}, {"CONN_MAX_AGE": 60}),
        ({"pool": {"maxsize": 5}}, {}),
        ({"pool": "big"}, {}),
        ({"bridge": "yes"}, {}),
        ({"isolation_level": 99}, {}),
        ({"aplication_name": "x"}, {}),
    ],
)
def test_wrong_options(
    options: dict[str, Any], settings: dict[str, Any], add_alias: AddAlias
) -> None:
    """What is wrong in OPTIONS is reported once, by the check of those, and nobody connects."""
    alias = add_alias(options, **settings)
    found = [each.id for each in check(alias)]
    # What ends the test makes a wrapper, and closes its pool.
    connections.settings[alias]["OPTIONS"] = {}
    assert [each for each in found if each.startswith("pgbackend.E")] in (
        ["pgbackend.E001"],
        ["pgbackend.E002"],
    )


@pytest.mark.parametrize("options", [{}, {"pool": True}, {"pool": {"max_size": 5}}])
def test_a_server_that_is_down(options: dict[str, Any], add_alias: AddAlias) -> None:
    """A server that cannot be reached is an error with libpq's words, at once, with a pool too."""
    with closed_port() as port:
        alias = add_alias(options, HOST="127.0.0.1", PORT=str(port))
        (error,) = budget(alias, id="pgbackend.E004")
        assert error.is_serious()
        with pytest.raises(SystemCheckError, match="refused"):
            call_command("check", "sessions", databases=[alias])
    assert repr(alias) in error.msg
    assert "refused" in error.msg
    assert budget(alias) == []


async def test_a_server_that_is_down_in_the_bridge(add_alias: AddAlias) -> None:
    """So it is where the checks run bridged, as they do before bridged tests."""
    with closed_port() as port:
        alias = add_alias({"pool": True}, HOST="127.0.0.1", PORT=str(port))
        (error,) = await run_bridged(lambda: budget(alias, id="pgbackend.E004"))
    assert "refused" in error.msg


def test_a_database_that_is_not_there(add_alias: AddAlias) -> None:
    """The server's own words are in the error."""
    alias = add_alias({"pool": True}, NAME="no_such_database")
    (error,) = budget(alias, id="pgbackend.E004")
    assert 'database "no_such_database" does not exist' in error.msg


def test_a_server_that_does_not_say(add_alias: AddAlias) -> None:
    """A server that answers, but does not say what it admits, is a warning with its words."""
    alias = add_alias({"options": "-c search_path=no_settings,pg_catalog"})
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE SCHEMA no_settings")
        cursor.execute(
            "CREATE FUNCTION no_settings.current_setting(text) RETURNS text LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE EXCEPTION 'no settings here'; END $$"
        )
        try:
            (warning,) = budget(alias, id="pgbackend.W005")
        finally:
            cursor.execute("DROP SCHEMA no_settings CASCADE")
    assert not warning.is_serious()
    assert "no settings here" in warning.msg


def test_the_pool_is_not_opened(add_alias: AddAlias) -> None:
    """The check leaves no connection and no pool open."""
    alias = add_alias({"pool": True})
    assert budget(alias) == []
    assert connections[alias].connection is None
    assert alias not in connections[alias]._connection_pools
