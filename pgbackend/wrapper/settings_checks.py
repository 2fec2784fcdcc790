"""System checks for ``OPTIONS`` and the backend's settings: wrong values, misspelt names.

``manage.py check`` runs them without a connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from django.apps import apps
from django.conf import global_settings, settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import load_backend

from .. import conf
from ..pool.options import POOL_OPTIONS, pool_problems
from ..pool.values import Values, nearest
from ..wrapper.attributes import BackendWrapper
from .options import NAMES, OF_PSYCOPG, problems_of

# Django's own options, and the arguments of psycopg's connect() that are not libpq's.
_OF_DJANGO = ("assume_role", "isolation_level", "pool", "server_side_binding")
_OF_PSYCOPG = ("cursor_factory", *OF_PSYCOPG)


def _libpq() -> list[str]:
    return [each.keyword.decode() for each in psycopg.pq.Conninfo.get_defaults()]


def _is_level(value: Any) -> bool:
    try:
        psycopg.IsolationLevel(value)
    except ValueError:
        return False
    return True


_VALUES = {
    "assume_role": Values(lambda value: value is None or isinstance(value, str), "a role's name"),
    "isolation_level": Values(_is_level, "one of psycopg.IsolationLevel"),
    "server_side_binding": Values(lambda value: isinstance(value, bool), "True or False"),
    **OF_PSYCOPG,
}

_PREFIX = "PGBACKEND_"

# From this similarity on, the name of a setting counts as a misspelling of one of ours.
_LIKE = 0.85


def check_options(**kwargs: Any) -> list[checks.CheckMessage]:
    """Report problems in the ``OPTIONS`` of this backend's aliases."""
    return [message for alias in connections.settings for message in of_alias(alias)]


def of_alias(alias: str) -> Iterator[checks.CheckMessage]:
    """Report problems in the ``OPTIONS`` of one alias, if it is this backend's."""
    conf = connections.settings[alias]
    if not issubclass(load_backend(conf["ENGINE"]).DatabaseWrapper, BackendWrapper):
        return
    options = conf["OPTIONS"]
    problems = [
        *problems_of(alias, options),
        *problems_of(alias, options, _VALUES),
        *pool_problems(alias, options.get("pool")),
    ]
    if options.get("pool") and conf["CONN_MAX_AGE"] != 0:
        problems.append(
            f"DATABASES[{alias!r}] has a CONN_MAX_AGE of {conf['CONN_MAX_AGE']!r} beside"
            " OPTIONS['pool']: pooling doesn't support persistent connections"
        )
    for problem in problems:
        yield checks.Error(f"{problem}.", id="pgbackend.E001")
    known = [*NAMES, *_OF_DJANGO, *_OF_PSYCOPG, *_libpq()]
    for name in options:
        if name not in known:
            # A backend derived from this one may have options of its own, so only warn.
            kind = checks.Error if conf["ENGINE"] == "pgbackend" else checks.Warning
            yield kind(
                f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is neither an option of this backend"
                " or of Django's nor one of a connection to PostgreSQL.",
                hint=_hint(name, known),
                id="pgbackend.E002",
            )


def _hint(name: str, known: list[str]) -> str | None:
    if name in POOL_OPTIONS:
        return f"It is an option of the pool: {{'pool': {{{name!r}: ...}}}}."
    meant = nearest(name, known)
    return f"Did you mean {meant!r}?" if meant else None


def check_used(**kwargs: Any) -> list[checks.CheckMessage]:
    """Warn if the application "pgbackend" is installed, but no alias uses the backend."""
    if not apps.is_installed("pgbackend"):
        return []
    for settings_dict in connections.settings.values():
        if issubclass(load_backend(settings_dict["ENGINE"]).DatabaseWrapper, BackendWrapper):
            return []
    return [
        checks.Warning(
            "'pgbackend' is in INSTALLED_APPS, but no alias of DATABASES uses it.",
            hint="Set 'ENGINE': 'pgbackend'.",
            id="pgbackend.W006",
        )
    ]


def check_own_settings(**kwargs: Any) -> list[checks.CheckMessage]:
    """Report wrong values of this backend's settings, and names similar to theirs."""
    messages: list[checks.CheckMessage] = []
    for read in conf.SETTINGS.values():
        try:
            read()
        except ImproperlyConfigured as error:
            messages.append(checks.Error(f"{error}.", id="pgbackend.E003"))
    for name in dir(settings):
        if not name.isupper() or name in conf.SETTINGS or hasattr(global_settings, name):
            continue
        ours = name.startswith(_PREFIX)
        if ours:
            # Compare without the prefix, which alone makes any two names similar.
            rest = nearest(name[len(_PREFIX) :], [each[len(_PREFIX) :] for each in conf.SETTINGS])
            meant = rest and _PREFIX + rest
        else:
            meant = nearest(name, conf.SETTINGS, _LIKE)
        if ours or meant:
            messages.append(
                checks.Warning(
                    f"{name} is no setting of pgbackend's: nothing reads it.",
                    hint=f"Did you mean {meant}?" if meant else None,
                    id="pgbackend.W004",
                )
            )
    return messages
