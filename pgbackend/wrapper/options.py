"""The backend's own ``OPTIONS``, checked: unknown names and wrong values are reported.

`manage.py check` reports all problems (see `settings_checks`). Using the database raises the first
one as ImproperlyConfigured. Making a wrapper does not: Django makes it in a frame that holds the
password, which the error's traceback would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..pool.values import Values, a_count, a_timeout, one_of, or_none, seconds, switch
from .session_defaults import TIMEOUTS


@dataclass(frozen=True)
class Options:
    """The options of an alias in addition to Django's own and psycopg's."""

    # False keeps the alias on Django's own path everywhere.
    bridge: bool = True
    # How long a task waits for its turn in a transaction that it shares, seconds.
    turn_timeout: float = 30.0
    # How long the server may take for clean-up, seconds.
    cancel_timeout: float = 5.0
    # When a session is reset: "dirty", after statements that may have changed it; "always".
    reset: str = "dirty"

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        """Return the valid values among *options*, with defaults for the others."""
        if options.keys().isdisjoint(NAMES):
            return _DEFAULTS
        given = {name: options[name] for name in cls.__dataclass_fields__ if name in options}
        return cls(**{name: value for name, value in given.items() if VALUES[name].allow(value)})


def check(alias: str, options: dict[str, Any]) -> None:
    """Raise ImproperlyConfigured for the first of the *options* whose value is wrong.

    Check the backend's own options, and those of psycopg whose error would name no option.
    """
    for problem in (*problems_of(alias, options), *problems_of(alias, options, OF_PSYCOPG)):
        raise ImproperlyConfigured(problem)


VALUES = {
    "bridge": switch(),
    "turn_timeout": seconds(),
    "cancel_timeout": seconds(),
    "reset": one_of("dirty", "always"),
    # Those that the server keeps; see `session_defaults`.
    **dict.fromkeys(TIMEOUTS, or_none(a_timeout())),
}

NAMES = tuple(VALUES)

_LEFT_OUT = Values(lambda value: False, "left out, since Django sets it")

# Arguments of psycopg's connect(). Those that Django sets itself would have no effect, or break the
# ORM.
OF_PSYCOPG = {
    "autocommit": _LEFT_OUT,
    "context": _LEFT_OUT,
    "prepare_threshold": or_none(a_count(0)),
    "row_factory": _LEFT_OUT,
}

_DEFAULTS = Options()


def problems_of(
    alias: str, options: dict[str, Any], values: dict[str, Values] = VALUES
) -> list[str]:
    """Return the problems, in words, of the *options* that are among *values*."""
    return [
        f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is {values[name].words}, not {value!r}"
        for name, value in options.items()
        if name in values and not values[name].allow(value)
    ]
