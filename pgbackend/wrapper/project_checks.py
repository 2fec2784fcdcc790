"""System checks that say what a project has left to do once its ``ENGINE`` is set.

``manage.py check`` runs them without a connection. Those about development are for ``DEBUG``, and
those about production for ``check --deploy``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import global_settings, settings
from django.core import checks
from django.core.management import get_commands, load_command_class
from django.core.management.commands.runserver import Command as DjangoRunserver
from django.db import connections
from django.db.utils import load_backend

from .attributes import BackendWrapper


def _bridged_aliases() -> list[str]:
    """Return the aliases of this backend that are not switched off."""
    return [
        alias
        for alias, conf in connections.settings.items()
        if issubclass(load_backend(conf["ENGINE"]).DatabaseWrapper, BackendWrapper)
        and conf["OPTIONS"].get("bridge", True)
    ]


def _is_developed() -> bool:
    """Return whether this is a site, as `startproject` makes one, in development.

    A script that configures settings of its own has no application.
    """
    names = ("ASGI_APPLICATION", "WSGI_APPLICATION")
    return settings.DEBUG and any(getattr(settings, each, None) for each in names)


def check_installed(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn under DEBUG if the backend is used without the application "pgbackend"."""
    if not _is_developed() or apps.is_installed("pgbackend") or not _bridged_aliases():
        return []
    return [
        checks.Warning(
            "'pgbackend' is not in INSTALLED_APPS: the backend is loaded late, and `runserver` is"
            " WSGI.",
            hint="Put 'pgbackend' first in INSTALLED_APPS.",
            id="pgbackend.W007",
        )
    ]


def check_development_server(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn under DEBUG if ``runserver``, with "pgbackend" installed, is a WSGI server."""
    if not (settings.DEBUG and apps.is_installed("pgbackend") and _bridged_aliases()):
        return []
    command: Any = get_commands()["runserver"]
    if isinstance(command, str):
        command = load_command_class(command, "runserver")
    if hasattr(command, "serves_asgi"):
        is_wsgi = not command.serves_asgi()
        hint = "pip install uvicorn"
    else:
        is_wsgi = type(command).inner_run is DjangoRunserver.inner_run
        hint = "Put 'pgbackend' first in INSTALLED_APPS, and pip install uvicorn"
    if not is_wsgi:
        return []
    return [
        checks.Warning(
            "`runserver` is a WSGI server: asynchronous views run there, but lazy relations and raw"
            " cursors are errors in them.",
            hint=f"{hint}; or install daphne, and add 'daphne' above 'django.contrib.staticfiles'.",
            id="pgbackend.W008",
        )
    ]


def check_test_runner(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn under DEBUG if tests run by Django's own runner, and there is no pytest-django."""
    if (
        not _is_developed()
        or settings.TEST_RUNNER != global_settings.TEST_RUNNER
        or not _bridged_aliases()
        # pgbackend's plugin for pytest is loaded by itself.
        or find_spec("pytest_django") is not None
    ):
        return []
    return [
        checks.Warning(
            "TEST_RUNNER is Django's: asynchronous tests run in threads, and what they call is not"
            " bridged as requests are.",
            hint="TEST_RUNNER = 'pgbackend.test.DiscoverRunner'",
            id="pgbackend.W009",
        )
    ]


def check_lifespan(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn, with --deploy, if the project's ``asgi.py`` does not name `LifespanApplication`.

    The file is read and not imported: importing it would make the application.
    """
    path = _asgi_file()
    if path is None or not _bridged_aliases() or "LifespanApplication" in path.read_text():
        return []
    return [
        checks.Warning(
            f"{path} does not name LifespanApplication: nothing opens the pools before the first"
            " request, or closes them after the last.",
            hint="from pgbackend.asgi import LifespanApplication;"
            " application = LifespanApplication(get_asgi_application())",
            id="pgbackend.W010",
        )
    ]


def _asgi_file() -> Path | None:
    """Return the file of ``ASGI_APPLICATION``, or else the one that ``startproject`` makes."""
    named = getattr(settings, "ASGI_APPLICATION", None)
    urlconf = getattr(settings, "ROOT_URLCONF", "")
    module = named.rpartition(".")[0] if named else urlconf.rpartition(".")[0] + ".asgi"
    try:
        spec = find_spec(module) if module.strip(".") == module else None
    except ImportError:
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None


def check_persistent(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn, with --deploy, of a ``CONN_MAX_AGE`` in a project that has an ``asgi.py``."""
    if _asgi_file() is None:
        return []
    return [
        checks.Warning(
            f"DATABASES[{alias!r}] has a CONN_MAX_AGE of {conf['CONN_MAX_AGE']!r}. Under ASGI the"
            " synchronous code of each request has a thread of its own, whose connection nothing"
            " uses again.",
            hint="Set CONN_MAX_AGE to 0, and OPTIONS['pool'], which those threads use, too.",
            id="pgbackend.W011",
        )
        for alias in _bridged_aliases()
        if (conf := connections.settings[alias])["CONN_MAX_AGE"] != 0
        # E001 speaks of both together.
        and not conf["OPTIONS"].get("pool")
    ]
