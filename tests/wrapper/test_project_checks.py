"""The system checks that say what a project has left to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import global_settings
from django.core.checks.registry import registry
from django.db import connections
from django.test import override_settings

from pgbackend.management.commands import runserver
from pgbackend.wrapper import project_checks
from tests.support.wrapper import AddAlias

INSTALLED = ["pgbackend", "django.contrib.contenttypes"]


CHECKS: dict[str, Callable[[], list[Any]]] = {
    "W007": project_checks.check_installed,
    "W008": project_checks.check_development_server,
    "W009": project_checks.check_test_runner,
    "W010": project_checks.check_lifespan,
    "W011": project_checks.check_persistent,
}


def said(id: str) -> list[Any]:
    """Return what the check says that has an id."""
    found = CHECKS[id]()
    assert {each.id for each in found} <= {f"pgbackend.{id}"}
    return found


def test_registered() -> None:
    """`manage.py check` runs the checks, two of them with --deploy alone."""
    found = registry.get_checks()
    assert [each in found for each in CHECKS.values()] == [True] * 3 + [False] * 2
    found = registry.get_checks(include_deployment_checks=True)
    assert all(each in found for each in CHECKS.values())


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make packages look as if they were not installed."""

    def hide(*names: str) -> None:
        for module in (project_checks, runserver):
            find: Any = module.find_spec
            monkeypatch.setattr(
                module, "find_spec", lambda name, find=find: None if name in names else find(name)
            )

    return hide


def test_application_that_is_not_installed() -> None:
    """W007 says under DEBUG that the application is to be installed, until it is."""
    with override_settings(DEBUG=True):
        assert said("W007") == []
    with override_settings(DEBUG=True, WSGI_APPLICATION="mysite.wsgi.application"):
        (warning,) = said("W007")
        assert warning.hint == "Put 'pgbackend' first in INSTALLED_APPS."
        with override_settings(INSTALLED_APPS=INSTALLED):
            assert said("W007") == []


def test_alias_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the checks concerns a project whose aliases do not use the bridge."""
    for alias, conf in connections.settings.items():
        if conf["ENGINE"] == "pgbackend":
            options = {**conf["OPTIONS"], "bridge": False}
            monkeypatch.setitem(connections.settings, alias, {**conf, "OPTIONS": options})
    with override_settings(DEBUG=True, ASGI_APPLICATION="tests.settings.application"):
        assert [said(id) for id in CHECKS] == [[]] * 5


def test_development_server(missing: Callable[..., None]) -> None:
    """W008 says under DEBUG that runserver is WSGI, and what to install."""
    with override_settings(INSTALLED_APPS=INSTALLED, DEBUG=True):
        assert said("W008") == []
        missing("uvicorn")
        (warning,) = said("W008")
        assert "pip install uvicorn; or install daphne" in warning.hint
    with override_settings(INSTALLED_APPS=INSTALLED, DEBUG=False):
        assert said("W008") == []


def test_development_server_of_another_application() -> None:
    """W008 says that an application above hides the command of this one."""
    apps = ["django.contrib.staticfiles", *INSTALLED]
    with override_settings(INSTALLED_APPS=apps, DEBUG=True):
        project_checks.get_commands.cache_clear()
        (warning,) = said("W008")
        assert warning.hint.startswith("Put 'pgbackend' first in INSTALLED_APPS")
    project_checks.get_commands.cache_clear()


def test_test_runner(missing: Callable[..., None]) -> None:
    """W009 names the runner, unless there is another, or pytest-django."""
    served = {"DEBUG": True, "WSGI_APPLICATION": "mysite.wsgi.application"}
    with override_settings(**served, TEST_RUNNER=global_settings.TEST_RUNNER):
        missing("pytest_django")
        (warning,) = said("W009")
        assert warning.hint == "TEST_RUNNER = 'pgbackend.test.DiscoverRunner'"
        with override_settings(TEST_RUNNER="pgbackend.test.DiscoverRunner"):
            assert said("W009") == []
        with override_settings(DEBUG=False):
            assert said("W009") == []


def test_test_runner_beside_pytest() -> None:
    """W009 is silent where pytest-django is installed: the plugin for pytest loads by itself."""
    served = {"DEBUG": True, "WSGI_APPLICATION": "mysite.wsgi.application"}
    with override_settings(**served, TEST_RUNNER=global_settings.TEST_RUNNER):
        assert said("W009") == []


@pytest.mark.parametrize("setting", ["ASGI_APPLICATION", "ROOT_URLCONF"])
def test_lifespan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """W010 names an asgi.py without LifespanApplication; it is not imported."""
    package = tmp_path / f"with_{setting.lower()}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "urls.py").write_text("urlpatterns = []\n")
    asgi = package / "asgi.py"
    asgi.write_text("raise AssertionError('it is imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    value = {"ASGI_APPLICATION": "asgi.application", "ROOT_URLCONF": "urls"}[setting]
    with override_settings(**{setting: f"{package.name}.{value}"}):
        (warning,) = said("W010")
        assert str(asgi) in warning.msg
        asgi.write_text("application = LifespanApplication(...)\n")
        assert said("W010") == []


def test_no_asgi() -> None:
    """A project without an asgi.py is left alone."""
    with override_settings(ROOT_URLCONF="tests.missing.urls"):
        assert said("W010") == []
        assert said("W011") == []


def test_persistent_connections(add_alias: AddAlias) -> None:
    """W011 warns of a CONN_MAX_AGE without a pool."""
    alias = add_alias(CONN_MAX_AGE=60)
    with override_settings(ASGI_APPLICATION="proj.asgi.application"):
        (warning,) = said("W011")
        assert f"DATABASES[{alias!r}] has a CONN_MAX_AGE of 60" in warning.msg
