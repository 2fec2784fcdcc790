"""System checks; the one of this module connects, and adds up the pools of each server.

``manage.py check --database default`` runs it, as ``migrate`` does.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, OperationalError, connections

from .bridge.current import is_bridged
from .fingerprints import check_unpatched
from .patches.early import check_early
from .pool.options import pool_arguments
from .wrapper.attributes import BackendWrapper
from .wrapper.project_checks import (
    check_development_server,
    check_installed,
    check_lifespan,
    check_persistent,
    check_test_runner,
)
from .wrapper.settings_checks import check_options, check_own_settings, check_used, of_alias


def register() -> None:
    """Register the checks of this backend with Django."""
    checks.register(check_unpatched, checks.Tags.async_support)
    checks.register(check_early, checks.Tags.async_support)
    checks.register(check_connection_limit, checks.Tags.database)
    checks.register(check_options)
    checks.register(check_own_settings)
    checks.register(check_used)
    checks.register(check_installed)
    checks.register(check_development_server)
    checks.register(check_test_runner)
    checks.register(check_lifespan, deploy=True)
    checks.register(check_persistent, deploy=True)


def check_connection_limit(
    *, databases: Sequence[str] | None = None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Report servers that cannot be reached or admit fewer connections than the pools may open.

    A process may open each alias's pool for the event loop and, if ``OPTIONS["pool"]`` is set,
    Django's own pool for threads. The environment variable ``WEB_CONCURRENCY``, as servers use it,
    gives the number of processes; without it, there is one. Aliases with wrong options are left to
    the check of options.

    Whoever names a database wants to know of it, so a database that cannot be connected to is an
    error, and ``check --database`` fails. Django's own backend connects only if a model has
    something that depends on the server's version: then it raises OperationalError.
    """
    messages: list[checks.CheckMessage] = []
    for aliases in _by_server(filter(_is_right, databases or ())).values():
        wanted = sum(map(_may_open, aliases))
        processes = _processes()
        try:
            left = _available(aliases[0])
        except (OperationalError, ImproperlyConfigured) as error:
            messages.append(
                checks.Error(
                    f"There is no connection to the database of {', '.join(map(repr, aliases))}:"
                    f" {str(error).strip()}",
                    id="pgbackend.E004",
                )
            )
            continue
        except Error as error:
            messages.append(
                checks.Warning(
                    f"The server of {', '.join(map(repr, aliases))} could not be asked how many"
                    f" connections it admits: {str(error).strip()}",
                    id="pgbackend.W005",
                )
            )
            continue
        if wanted * processes > left:
            messages.append(
                checks.Warning(
                    f"The pools of {', '.join(map(repr, aliases))} may open {wanted} connections"
                    f" in each of {processes} processes; the server admits {left}.",
                    hint="Lower 'max_size' in OPTIONS['pool'], or raise max_connections.",
                    id="pgbackend.W002",
                )
            )
    return messages


def _is_right(alias: str) -> bool:
    return not any(message.is_serious() for message in of_alias(alias))


def _by_server(databases: Iterable[str]) -> dict[tuple[Any, Any], list[str]]:
    servers: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for alias in databases:
        wrapper = connections[alias]
        if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled:
            params = wrapper.get_connection_params()
            servers[params.get("host"), params.get("port")].append(alias)
    return servers


def _may_open(alias: str) -> int:
    options = connections[alias].settings_dict["OPTIONS"].get("pool")
    arguments = pool_arguments(alias, options)
    size = int(arguments["max_size"] or arguments["min_size"])
    # Without the option, a thread has one connection of its own.
    return size * (2 if options else 1)


def _available(alias: str) -> int:
    wrapper: Any = connections[alias]
    if is_bridged():
        return _ask(wrapper)
    # Bypass Django's pool, which would wait for its time-out, and hide the server's words.
    wrapper = wrapper.copy()
    wrapper.settings_dict["OPTIONS"].pop("pool", None)
    try:
        return _ask(wrapper)
    finally:
        wrapper.close()


def _ask(wrapper: Any) -> int:
    with wrapper.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('max_connections')::int"
            " - current_setting('superuser_reserved_connections')::int"
            # New in PostgreSQL 16.
            " - coalesce(current_setting('reserved_connections', true), '0')::int"
        )
        return int(cursor.fetchone()[0])


def _processes() -> int:
    value = os.environ.get("WEB_CONCURRENCY", "")
    return int(value) if value.isdecimal() and int(value) else 1
