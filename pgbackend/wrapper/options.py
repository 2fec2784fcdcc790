"""What the backend adds to ``OPTIONS``, checked: an unknown name or a bad value says so.

`manage.py check` reports all that is wrong (see `settings_checks`), and whoever uses the database
gets the first of it as ImproperlyConfigured. Not whoever only makes a wrapper: Django does that in
a frame in which the password is, and the error would show it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
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
    def of(cls, options: dict[str, Any]) -> Options:
        """Return those among *options* whose values are right, and the defaults of the others."""
        if options.keys().isdisjoint(NAMES):
            return _DEFAULTS
        given = {name: options[name] for name in NAMES if name in options}
        return cls(**{name: value for name, value in given.items() if VALUES[name].allow(value)})


def check(alias: str, options: dict[str, Any]) -> None:
    """Raise ImproperlyConfigured for the first of the *options* whose value is wrong.

    Ours are looked at, and those of psycopg's that would fail with an error that names nothing.
    """
    for problem in (*problems_of(alias, options), *problems_of(alias, options, OF_PSYCOPG)):
        raise ImproperlyConfigured(problem)


@dataclass(frozen=True)
class Values:
    """The values that an option may have, and their name in words."""

    allow: Callable[[Any], bool]
    words: str


def _switch() -> Values:
    return Values(lambda value: isinstance(value, bool), "True or False")


def _one_of(*values: str) -> Values:
    return Values(lambda value: value in values, " or ".join(map(repr, values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _seconds() -> Values:
    return Values(
        lambda value: _is_number(value) and 0 < value < math.inf, "a number of seconds above 0"
    )


def _perhaps_endless(least: str) -> Values:
    above = "above 0" if least == "above" else "of 0 or more"
    return Values(
        lambda value: _is_number(value) and (value > 0 or (least == "from" and value == 0)),
        f"a number of seconds {above}",
    )


def _count(least: int) -> Values:
    return Values(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number of {least} or more",
    )


def _or_none(values: Values) -> Values:
    return Values(lambda value: value is None or values.allow(value), f"{values.words}, or None")


def _text() -> Values:
    return Values(lambda value: isinstance(value, str) and bool(value), "a text")


def _callable() -> Values:
    return Values(callable, "a function")


VALUES = {
    "bridge": _switch(),
    "turn_timeout": _seconds(),
    "cancel_timeout": _seconds(),
    "reset": _one_of("dirty", "always"),
}

NAMES = tuple(VALUES)

_LEFT_OUT = Values(lambda value: False, "left out, since Django sets it")

# Arguments of psycopg's connect(). What Django sets itself would have no effect, or break the ORM.
OF_PSYCOPG = {
    "autocommit": _LEFT_OUT,
    "context": _LEFT_OUT,
    "prepare_threshold": _or_none(_count(0)),
    "row_factory": _LEFT_OUT,
}

_DEFAULTS = Options()


def problems_of(
    alias: str, options: dict[str, Any], values: dict[str, Values] = VALUES
) -> list[str]:
    """Return in words what is wrong with the *options* that are among *values*."""
    return [
        f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is {values[name].words}, not {value!r}"
        for name, value in options.items()
        if name in values and not values[name].allow(value)
    ]


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of the *known* names that a misspelt one is most like, if any is."""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def with_nearest(name: Any, known: Iterable[str]) -> str:
    """Return the repr of an unknown name, and which of the *known* may have been meant."""
    meant = nearest(name, known)
    return repr(name) if meant is None else f"{name!r} (did you mean {meant!r}?)"


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

_POOL_VALUES = {
    "min_size": _count(0),
    "max_size": _or_none(_count(1)),
    "timeout": _seconds(),
    "max_waiting": _count(0),
    "max_lifetime": _perhaps_endless("above"),
    "max_idle": _perhaps_endless("above"),
    "reconnect_timeout": _perhaps_endless("from"),
    "reconnect_failed": _or_none(_callable()),
    "num_workers": _count(1),
    "name": _or_none(_text()),
    "check": _or_none(_callable()),
    "reset": _or_none(_callable()),
}


def pool_problems(alias: str, options: Any) -> list[str]:
    """Return in words what is wrong with ``OPTIONS["pool"]``."""
    setting = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if options is None or isinstance(options, bool):
        return []
    if not isinstance(options, dict):
        return [f"{setting} is a bool or a dict, not {options!r}"]
    known = set(inspect.signature(AsyncConnectionPool.__init__).parameters) - _RESERVED
    problems = []
    if unknown := sorted(set(options) - known, key=str):
        words = ", ".join(with_nearest(each, known) for each in unknown)
        problems.append(
            f"{setting} has unknown keys: {words}; known are {', '.join(sorted(known))}"
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
    """Return psycopg_pool's arguments for ``OPTIONS["pool"]``, defaults filled in.

    Raise ImproperlyConfigured that names an unknown key or a wrong value.
    """
    for problem in pool_problems(alias, options):
        raise ImproperlyConfigured(problem)
    return _with_defaults(options if isinstance(options, dict) else {})


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    arguments = {**POOL_DEFAULTS, **options}
    if "max_size" not in options and options.get("min_size"):
        # psycopg_pool's own rule: a lower bound alone means a pool of that size.
        arguments["max_size"] = options["min_size"]
    return arguments
