"""The options in ``OPTIONS["pool"]``: psycopg_pool's arguments, with our defaults."""

from __future__ import annotations

import inspect
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from psycopg_pool import AsyncConnectionPool

from .values import a_callable, a_count, a_text, or_none, perhaps_endless, seconds, with_nearest

# Defaults for OPTIONS["pool"]; times in seconds, as in psycopg_pool.
POOL_DEFAULTS: dict[str, Any] = {
    "min_size": 0,
    "max_size": 20,
    "timeout": 30.0,
    "max_waiting": 1000,
    "max_lifetime": 60 * 60.0,
    "max_idle": 10 * 60.0,
    # No retries in the background: the waiting tasks get the error, and the next checkout connects
    # anew.
    "reconnect_timeout": 0.0,
}

# psycopg_pool's arguments that the backend itself passes, or that have no meaning here.
_RESERVED = frozenset(
    {"self", "conninfo", "connection_class", "kwargs", "open", "configure", "close_returns"}
)

_POOL_VALUES = {
    "min_size": a_count(0),
    "max_size": or_none(a_count(1)),
    "timeout": seconds(),
    "max_waiting": a_count(0),
    "max_lifetime": perhaps_endless("above"),
    "max_idle": perhaps_endless("above"),
    "reconnect_timeout": perhaps_endless("from"),
    "reconnect_failed": or_none(a_callable()),
    "num_workers": a_count(1),
    "name": or_none(a_text()),
    "check": or_none(a_callable()),
    "reset": or_none(a_callable()),
}

POOL_OPTIONS = frozenset(_POOL_VALUES)


def pool_problems(alias: str, options: Any) -> list[str]:
    """Return the problems of ``OPTIONS["pool"]``, in words."""
    setting = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if options is None or isinstance(options, bool):
        return []
    if not isinstance(options, dict):
        return [f"{setting} is a bool or a dict, not {options!r}"]
    known = set(inspect.signature(AsyncConnectionPool.__init__).parameters) - _RESERVED
    problems = []
    if unknown := sorted(set(options) - known, key=str):
        named = ", ".join(with_nearest(each, known) for each in unknown)
        problems.append(
            f"{setting} has unknown keys: {named}; known are {', '.join(sorted(known))}"
        )
    for name, values in _POOL_VALUES.items():
        if name in options and not values.allow(options[name]):
            problems.append(f"{setting}[{name!r}] is {values.words}, not {options[name]!r}")
    if not problems:
        arguments = _with_defaults(options)
        least, most = arguments["min_size"], arguments["max_size"]
        if most is not None and most < least:
            problems.append(
                f"{setting}: max_size must be greater or equal than min_size; they are"
                f" {most} and {least}"
            )
        elif most is None and not least:
            problems.append(f"{setting}: without a max_size, min_size must be greater than 0")
    return problems


def pool_arguments(alias: str, options: Any) -> dict[str, Any]:
    """Return psycopg_pool's arguments for ``OPTIONS["pool"]``, with defaults filled in.

    Raise ImproperlyConfigured, naming the key or value, for an unknown key or a wrong value.
    """
    for problem in pool_problems(alias, options):
        raise ImproperlyConfigured(problem)
    return _with_defaults(options if isinstance(options, dict) else {})


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    arguments = {**POOL_DEFAULTS, **options}
    if "max_size" not in options and options.get("min_size"):
        # As in psycopg_pool, a min_size alone means a pool of exactly that size.
        arguments["max_size"] = options["min_size"]
    return arguments
