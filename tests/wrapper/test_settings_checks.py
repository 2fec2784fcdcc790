"""The system checks of OPTIONS and of this backend's own settings."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import Error, Warning
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.test import override_settings
from psycopg.rows import dict_row

from pgbackend import conf
from pgbackend.wrapper.settings_checks import check_own_settings
from tests.support.checks import INF, NAN, of
from tests.support.script import ROOT, run_script
from tests.support.wrapper import AddAlias


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bridge": "yes"}, "['bridge'] is True or False, not 'yes'"),
        ({"bridge": 1}, "['bridge'] is True or False, not 1"),
        ({"turn_timeout": "30"}, "['turn_timeout'] is a number of seconds above 0, not '30'"),
        ({"turn_timeout": NAN}, "['turn_timeout'] is a number of seconds above 0, not nan"),
        ({"turn_timeout": INF}, "['turn_timeout'] is a number of seconds above 0, not inf"),
        ({"turn_timeout": 0}, "['turn_timeout'] is a number of seconds above 0, not 0"),
        ({"cancel_timeout": -1.0}, "['cancel_timeout'] is a number of seconds above 0, not -1.0"),
        ({"cancel_timeout": True}, "['cancel_timeout'] is a number of seconds above 0, not True"),
        ({"reset": "allways"}, "['reset'] is 'dirty' or 'always', not 'allways'"),
        ({"reset": []}, "['reset'] is 'dirty' or 'always', not []"),
        ({"isolation_level": 99}, "['isolation_level'] is one of psycopg.IsolationLevel, not 99"),
        ({"assume_role": 5}, "['assume_role'] is a role's name, not 5"),
        ({"server_side_binding": "no"}, "['server_side_binding'] is True or False, not 'no'"),
        (
            {"prepare_threshold": -1},
            "['prepare_threshold'] is a whole number of 0 or more, or None, not -1",
        ),
        ({"row_factory": dict_row}, "['row_factory'] is left out, since Django sets it, not"),
        ({"autocommit": True}, "['autocommit'] is left out, since Django sets it, not True"),
        ({"context": None}, "['context'] is left out, since Django sets it, not None"),
        ({"pool": "big"}, "['pool'] is a bool or a dict, not 'big'"),
        ({"pool": {"max_size": 0}}, "['max_size'] is a whole number of 1 or more, or None, not 0"),
        ({"pool": {"max_size": 2.5}}, "['max_size'] is a whole number of 1 or more, or None, not"),
        ({"pool": {"min_size": 3, "max_size": 2}}, "max_size must be greater or equal"),
        ({"pool": {"max_waiting": NAN}}, "['max_waiting'] is a whole number of 0 or more, not nan"),
        ({"pool": {"max_lifetime": NAN}}, "['max_lifetime'] is a number of seconds above 0, not"),
        ({"pool": {"reconnect_timeout": -1}}, "['reconnect_timeout'] is a number of seconds of 0"),
        ({"pool": {"num_workers": 0}}, "['num_workers'] is a whole number of 1 or more, not 0"),
        ({"pool": {"name": 5}}, "['name'] is a text, or None, not 5"),
        ({"pool": {"maxsize": 5}}, "'maxsize' (did you mean 'max_size'?)"),
    ],
)
async def test_wrong_options(options: dict[str, Any], words: str, add_alias: AddAlias) -> None:
    """A wrong value is an error of the check that names option and value; a pool's keys, too."""
    alias = add_alias(options)
    (message,) = of(alias)
    assert (type(message), message.id) == (Error, "pgbackend.E001")
    assert words in message.msg
    # What ends the test makes a wrapper, and closes its pool.
    connections.settings[alias]["OPTIONS"] = {}


def test_options_of_the_pool(add_alias: AddAlias) -> None:
    """A key that belongs in the pool's own options is an error that says so."""
    (message,) = of(add_alias({"max_size": 10}))
    assert (type(message), message.id) == (Error, "pgbackend.E002")
    assert message.hint == "It is an option of the pool: {'pool': {'max_size': ...}}."


@pytest.mark.process
def test_used() -> None:
    """The check says so if the application is installed, but no alias uses the backend."""
    script = """
        import django
        from django.core.checks import run_checks

        settings.configure(
            INSTALLED_APPS=["pgbackend"], DATABASES={{"default": {{"ENGINE": "{}", "NAME": "a"}}}}
        )
        django.setup()
        print([message.id for message in run_checks()])
    """
    assert run_script(script.format("django.db.backends.postgresql")) == "['pgbackend.W006']\n"
    assert run_script(script.format("pgbackend")) == "[]\n"


def test_right_options(add_alias: AddAlias) -> None:
    """What is right is not reported, nor what other engines have."""
    for options in (
        {},
        {"bridge": False, "turn_timeout": 1, "cancel_timeout": 0.5, "reset": "always"},
        {"pool": True},
        {"pool": {"min_size": 1, "max_size": None, "max_idle": INF, "check": print, "name": "a"}},
        {"sslmode": "prefer", "prepare_threshold": None, "assume_role": None, "connect_timeout": 5},
        {"isolation_level": 2, "server_side_binding": True},
    ):
        alias = add_alias(options)
        assert of(alias) == []
        connections.settings[alias]["OPTIONS"] = {}
    assert of(add_alias({"nonsense": 1}, ENGINE="django.db.backends.postgresql")) == []


def test_pool_beside_persistent_connections(add_alias: AddAlias) -> None:
    """CONN_MAX_AGE beside a pool, which Django refuses, is found by the check."""
    alias = add_alias({"pool": True}, CONN_MAX_AGE=5)
    (message,) = of(alias)
    connections.settings[alias]["OPTIONS"] = {}
    assert "CONN_MAX_AGE of 5" in message.msg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGBACKEND_IMPLICIT_IO", "no"),
        ("PGBACKEND_SYNC_ON_LOOP", 1),
        ("PGBACKEND_BLOCKING_TIME", NAN),
        ("PGBACKEND_BLOCKING_TIME", INF),
        ("PGBACKEND_BLOCKING_TIME", -1),
        ("PGBACKEND_BLOCKING_TIME", "0.1"),
        ("PGBACKEND_CLIENT_TIMEOUT", 0),
        ("PGBACKEND_CLIENT_TIMEOUT", "30"),
    ],
)
def test_wrong_settings(name: str, value: Any) -> None:
    """A wrong value of a setting is an error of the check that names it."""
    with override_settings(**{name: value}):
        (message,) = check_own_settings()
    assert (type(message), message.id) == (Error, "pgbackend.E003")
    assert message.msg.startswith(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PGBACKEND_IMPLICIT_I0", "PGBACKEND_IMPLICIT_IO"),
        ("PGBACKEND_SYNC_ON_THE_LOOP", "PGBACKEND_SYNC_ON_LOOP"),
        ("PG_BACKEND_BLOCKING_TIME", "PGBACKEND_BLOCKING_TIME"),
        ("PGBACKED_SYNC_ON_LOOP", "PGBACKEND_SYNC_ON_LOOP"),
        ("PGBACKEND_XYZ_QQ", None),
    ],
)
def test_misspelt_settings(name: str, meant: str | None) -> None:
    """A setting whose name is like one of ours, and is none, is a warning with the nearest."""
    with override_settings(**{name: True}):
        (message,) = check_own_settings()
    assert (type(message), message.id) == (Warning, "pgbackend.W004")
    assert message.msg.startswith(name)
    assert message.hint == (meant and f"Did you mean {meant}?")


def test_right_settings() -> None:
    """Right settings, and names of others, are not reported."""
    with override_settings(
        PGBACKEND_IMPLICIT_IO=False, PGBACKEND_BLOCKING_TIME=1, PG_DUMP="x", BACKEND_LOOP=1
    ):
        assert check_own_settings() == []


def test_every_setting_is_known() -> None:
    """Each name of a setting in the source is one that the check knows."""
    import re

    for path in (ROOT / "pgbackend").glob("**/*.py"):
        names = set(re.findall(r"\bPGBACKEND_[A-Z_]+\b", path.read_text())) - {"PGBACKEND_"}
        assert names <= conf.SETTINGS.keys(), path


@pytest.mark.process
def test_manage_py_check(add_alias: AddAlias) -> None:
    """`manage.py check` runs them, without a database."""
    add_alias({"turn_timout": 1}, PORT=1)
    with pytest.raises(SystemCheckError, match="Did you mean 'turn_timeout'"):
        call_command("check")
    run_script(
        """
        settings.configure(**conf, PGBACKEND_SYNC_ON_LOP=True)
        import io, django
        django.setup()
        from django.core.management import call_command
        told = io.StringIO()
        call_command("check", stdout=told, stderr=told)
        assert "Did you mean PGBACKEND_SYNC_ON_LOOP?" in told.getvalue(), told.getvalue()
        """
    )
