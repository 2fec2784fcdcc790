"""What a session begins with: time-outs by OPTIONS, and a name in pg_stat_activity."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connections, transaction

from pgbackend import bridged
from pgbackend.transaction import pinned
from pgbackend.wrapper.session_defaults import application_name
from tests.models import Author
from tests.support.checks import NAN
from tests.support.wrapper import AddAlias, avalue, value

TIMEOUTS = {
    "statement_timeout": 1.5,
    "lock_timeout": timedelta(milliseconds=250),
    "idle_in_transaction_session_timeout": timedelta(minutes=2),
}
SHOWN = ["1500ms", "250ms", "2min"]


def shown(alias: str) -> list[Any]:
    return [value(f"SHOW {name}", alias) for name in TIMEOUTS]


def test_on_djangos_own_path(add_alias: AddAlias) -> None:
    """A thread's connection has the time-outs."""
    alias = add_alias(dict(TIMEOUTS))
    assert shown(alias) == SHOWN
    connections[alias].close()


async def test_of_each_borrower(add_alias: AddAlias) -> None:
    """A borrower who sets another leaves the next one those of the settings."""
    alias = add_alias({**TIMEOUTS, "pool": {"max_size": 1}})
    assert await bridged(shown)(alias) == SHOWN
    async with transaction.atomic(using=alias):
        await avalue("SELECT set_config('lock_timeout', '1h', true)", alias)
    assert await bridged(shown)(alias) == SHOWN
    async with pinned(using=alias):
        await avalue("SELECT set_config('lock_timeout', '1h', false)", alias)
        assert await avalue("SHOW lock_timeout", alias) == "1h"
    assert await bridged(shown)(alias) == SHOWN


@bridged
def test_none_and_zero(add_alias: AddAlias) -> None:
    """None leaves the server's own, and 0 is no time-out, where the rest of `options` has one."""
    options = "-c lock_timeout=77 -c statement_timeout=88"
    alias = add_alias({"options": options, "lock_timeout": None})
    assert value("SHOW lock_timeout", alias) == "77ms"
    alias = add_alias({"options": options, "lock_timeout": 0})
    assert value("SHOW lock_timeout", alias) == "0"
    assert value("SHOW statement_timeout", alias) == "88ms"
    # Less than the server can count is not none.
    assert value("SHOW lock_timeout", add_alias({"lock_timeout": 0.0001})) == "1ms"


@bridged
def test_options_of_the_environment(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGOPTIONS is kept."""
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=99")
    alias = add_alias({"lock_timeout": 1})
    assert value("SHOW statement_timeout", alias) == "99ms"
    assert value("SHOW lock_timeout", alias) == "1s"


async def test_statement_that_takes_longer(add_alias: AddAlias) -> None:
    """The server ends it, and the connection goes on."""
    alias = add_alias({"statement_timeout": 0.05, "pool": {"max_size": 1}})
    with pytest.raises(OperationalError, match="statement timeout"):
        await avalue("SELECT pg_sleep(10)", alias)
    assert await Author.objects.using(alias).acount() == 0


@pytest.mark.parametrize("wrong", [-1, NAN, "5s", True, timedelta(seconds=-1), 3_000_000])
async def test_wrong_values(add_alias: AddAlias, wrong: Any) -> None:
    """Another value is reported by its name."""
    with pytest.raises(ImproperlyConfigured, match=r"'lock_timeout'.* is a number"):
        await avalue("SELECT 1", add_alias({"lock_timeout": wrong}))


# The name


NAME = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"


def nameless(add_alias: AddAlias) -> str:
    alias = add_alias({})
    connections[alias].settings_dict["OPTIONS"].pop("application_name", None)
    return alias


def look_at_names(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    alias = nameless(add_alias)
    found = value(NAME, alias)
    assert found == application_name(alias)
    assert f"[{os.getpid()}] {alias}" in found
    named = add_alias({"application_name": "till"})
    assert value(NAME, named) == "till"
    monkeypatch.setenv("PGAPPNAME", "by the environment")
    of_environment = nameless(add_alias)
    assert value(NAME, of_environment) == "by the environment"
    for each in (alias, named, of_environment):
        connections[each].close()


def test_name_on_djangos_own_path(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server knows project, program, process and alias; who names a session has that name."""
    look_at_names(add_alias, monkeypatch)


@bridged
def test_name(add_alias: AddAlias, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is in the bridge."""
    look_at_names(add_alias, monkeypatch)


@pytest.mark.parametrize(
    ("argv", "program"),
    [
        (["/usr/bin/uvicorn", "shop.asgi:application"], "uvicorn"),
        (["/srv/shop/manage.py", "listen", "--verbosity=2"], "listen"),
        (["/usr/bin/django-admin", "migrate"], "migrate"),
        (["/lib/django/__main__.py", "shell"], "shell"),
        (["/lib/celery/__main__.py", "worker"], "celery"),
        (["/srv/import_orders.py"], "import_orders"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_program(argv: list[str], program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program is the command of manage.py, or the script."""
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "shop.settings.production")
    assert application_name("default") == f"shop {program}[{os.getpid()}] default"
    monkeypatch.delenv("DJANGO_SETTINGS_MODULE")
    assert application_name("default") == f"{program}[{os.getpid()}] default"


def test_long_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would cut off the end: the program's name is cut instead."""
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "p" * 80)
    assert len(application_name("default")) == 63
    assert application_name("default").endswith(f"[{os.getpid()}] default")
