"""What the backend adds to ``OPTIONS``, checked: an unknown name or a bad value says so."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from psycopg_pool import AsyncConnectionPool


@dataclass(frozen=True)
class Options:
    """The options of an alias beside Django's own and psycopg's."""

    # False keeps the alias on Django's own path everywhere.
    bridge: bool = True
    # How long a task waits for its turn in a transaction it shares, seconds.
    turn_timeout: float = 30.0
    # How long the server may take over what is only to clean up, seconds.
    cancel_timeout: float = 5.0
    # When a session is reset: "dirty", after statements that may have changed it; "always".
    reset: str = "dirty"

    @classmethod
    def of(cls, alias: str, options: dict[str, Any]) -> Options:
        """Return those among *options*; raise ImproperlyConfigured for a value that is none."""
        if options.keys().isdisjoint(NAMES):
            return _DEFAULTS
        given = {name: options[name] for name in NAMES if name in options}
        for name, value in given.items():
            allowed, words = _VALUES[name]
            if not allowed(value):
                raise ImproperlyConfigured(
                    f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is {words}, not {value!r}"
                )
        return cls(**given)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bridge": (lambda value: isinstance(value, bool), "True or False"),
    "turn_timeout": (_is_seconds, "a number of seconds"),
    "cancel_timeout": (_is_seconds, "a number of seconds"),
    "reset": (lambda value: value in ("dirty", "always"), "'dirty' or 'always'"),
}

NAMES = tuple(_VALUES)

_DEFAULTS = Options()


# The pool

# What OPTIONS["pool"] leaves open. Seconds where psycopg_pool has seconds.
POOL_DEFAULTS: dict[str, Any] = {
    "min_size": 0,
    "max_size": 20,
    "timeout": 30.0,
    "max_waiting": 1000,
    "max_lifetime": 60 * 60.0,
    "max_idle": 10 * 60.0,
    # No retries in the background: a failure is told to whoever waits, and the next
    # checkout connects anew.
    "reconnect_timeout": 0.0,
}

# Arguments of psycopg_pool that the backend itself gives, or that would mean nothing.
_RESERVED = frozenset(
    {"self", "conninfo", "connection_class", "kwargs", "open", "configure", "close_returns"}
)


def pool_arguments(alias: str, options: Any) -> dict[str, Any]:
    """Return psycopg_pool's arguments for ``OPTIONS["pool"]``, defaults filled in.

    Raise ImproperlyConfigured that names each unknown key.
    """
    setting = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if options is None or isinstance(options, bool):
        options = {}
    elif not isinstance(options, dict):
        raise ImproperlyConfigured(f"{setting} is a bool or a dict, not {options!r}")
    known = set(inspect.signature(AsyncConnectionPool.__init__).parameters) - _RESERVED
    if unknown := sorted(set(options) - known, key=str):
        raise ImproperlyConfigured(
            f"{setting} has unknown keys: {', '.join(map(repr, unknown))};"
            f" known are {', '.join(sorted(known))}"
        )
    arguments = {**POOL_DEFAULTS, **options}
    if "max_size" not in options and options.get("min_size"):
        # psycopg_pool's own rule: a lower bound alone means a pool of that size.
        arguments["max_size"] = options["min_size"]
    return arguments
