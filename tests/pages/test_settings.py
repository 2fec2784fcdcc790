"""The examples that are settings, or that change the connections which settings describe."""

from __future__ import annotations

import asyncio
import logging.config
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.auth.models import Group
from django.core.checks import CheckMessage, run_checks
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import override_settings

from pgbackend import bridged
from tests.pages.examples import Example, example
from tests.support.server import NAME, Server
from tests.support.wrapper import AddAlias

README = example("README.md", "DATABASES")
POOL = example("docs/howto/deployment.md", "DATABASES")
HOSTS = example("docs/howto/failover.md", "DATABASES")
BRIDGE_OFF = example("docs/howto/going-back.md", '"bridge": False')
BRIDGE_OFF_TOO = example("docs/reference/settings.md", '"bridge": False')
STOCK = example("docs/howto/going-back.md", "django.db.backends.postgresql")
PGBOUNCER = example("docs/howto/pgbouncer.md", "DATABASES")
SILENCED = example("docs/howto/pgbouncer.md", "SILENCED_SYSTEM_CHECKS")
LOGGING = example("docs/howto/logging.md", "LOGGING")
PASSWORDS = example("docs/howto/passwords.md", "new_token")
ENGINE = example("docs/reference/packages.md", "DatabaseWrapper")
CREATED = example("docs/reference/connection-created.md", "limit_statements")


@bridged
def setting_of(alias: str, name: str) -> str:
    """Return a setting of the session, asked for on the event loop."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return str(cursor.fetchone()[0])


def add(add_alias: AddAlias, server: Server, settings: dict[str, Any]) -> str:
    """Add the alias that a page describes, with the tests' server in place of the page's."""
    (given,) = settings["DATABASES"].values()
    info = server.conn.info
    # As many hosts and ports as the page has.
    count = len(given.get("HOST", "").split(","))
    places = {
        "NAME": info.dbname,
        "USER": info.user,
        "PASSWORD": info.password,
        "HOST": ",".join([info.host] * count),
        "PORT": ",".join([str(info.port)] * count),
    }
    return add_alias(given.pop("OPTIONS", None), **{**given, **places})


def checked(alias: str) -> list[CheckMessage]:
    """Return what the system checks find, with the database *alias*."""
    # The tests' applications have fields of django.contrib.postgres, which is not installed here,
    # and the alias of a service, which is that of their own tests.
    configs = [each for each in apps.get_app_configs() if not each.name.startswith("tests.")]
    return run_checks(app_configs=configs, databases=[alias])


@pytest.mark.parametrize("databases", [README, POOL, HOSTS, PGBOUNCER], ids=str)
def test_databases(add_alias: AddAlias, server: Server, databases: Example) -> None:
    """With these DATABASES the checks find nothing, and code on the loop reaches the server."""
    alias = add(add_alias, server, databases.settings())
    assert checked(alias) == []
    assert asyncio.run(setting_of(alias, "transaction_read_only")) == "off"


@pytest.mark.parametrize("databases", [BRIDGE_OFF, BRIDGE_OFF_TOO, STOCK], ids=str)
def test_way_back(add_alias: AddAlias, server: Server, databases: Example) -> None:
    """With these DATABASES the a-methods work, and synchronous access on the loop is refused."""
    alias = add(add_alias, server, databases.settings())
    assert checked(alias) == []

    @bridged
    async def count() -> int:
        with pytest.raises(SynchronousOnlyOperation):
            Group.objects.using(alias).count()
        return await Group.objects.using(alias).acount()

    # Its threads are those of this one, which closes what they open.
    assert async_to_sync(count)() == 0


def test_silenced_check(add_alias: AddAlias) -> None:
    """The setting silences the warning of large pools, and that alone is there to silence."""
    alias = add_alias({"pool": {"max_size": 10_000}})
    with override_settings(**SILENCED.settings()):
        (warning,) = checked(alias)
        assert warning.is_silenced()
    assert not warning.is_silenced()


@pytest.fixture
def loggers() -> Iterator[None]:
    """The loggers of the page are afterwards as they were."""
    named = [logging.getLogger(name) for name in ("pgbackend", "psycopg.pool")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in named]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.usefixtures("loggers")
async def test_logging(add_alias: AddAlias, capsys: pytest.CaptureFixture[str]) -> None:
    """The pools say in the console what they do."""
    logging.config.dictConfig(LOGGING.settings()["LOGGING"])
    alias = add_alias()
    await Group.objects.using(alias).acount()
    assert alias in capsys.readouterr().err


@pytest.mark.parametrize("base", [PASSWORDS, ENGINE], ids=str)
def test_backend_of_ones_own(
    add_alias: AddAlias, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Example
) -> None:
    """A package with this `base.py` is an ENGINE, and makes its own connections."""
    asked = tmp_path / "asked"
    base.write(
        tmp_path / "myproject_postgresql" / "base.py",
        after=f"""

def new_token():
    with open({str(asked)!r}, "a") as file:
        file.write("once ")
    return {connections["default"].settings_dict["PASSWORD"]!r}
""",
    )
    (tmp_path / "myproject_postgresql" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        alias = add_alias(ENGINE="myproject_postgresql")
        assert checked(alias) == []
        assert asyncio.run(setting_of(alias, "application_name")) == NAME
    finally:
        for name in ("myproject_postgresql", "myproject_postgresql.base"):
            del sys.modules[name]
    if base is PASSWORDS:
        assert set(asked.read_text().split()) == {"once"}


async def test_receiver(add_alias: AddAlias) -> None:
    """The receiver sets the time-out of each new connection."""
    receiver = CREATED.run().limit_statements
    try:
        assert await setting_of(add_alias(), "statement_timeout") == "10s"
    finally:
        connection_created.disconnect(receiver)
