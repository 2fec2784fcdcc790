"""Option values, with their descriptions in words, and suggestions for misspelt names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Values:
    """The values that an option may have, and their description in words."""

    allow: Callable[[Any], bool]
    words: str


def switch() -> Values:
    """Return the values of a switch."""
    return Values(lambda value: isinstance(value, bool), "True or False")


def one_of(*values: str) -> Values:
    """Return the values of an option that takes one of *values*."""
    return Values(lambda value: value in values, " or ".join(map(repr, values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def seconds() -> Values:
    """Return the values of a finite time in seconds."""
    return Values(
        lambda value: _is_number(value) and 0 < value < math.inf, "a number of seconds above 0"
    )


def perhaps_endless(least: str) -> Values:
    """Return the values of a time that may be infinite: "above" 0, or "from" 0 on."""
    above = "above 0" if least == "above" else "of 0 or more"
    return Values(
        lambda value: _is_number(value) and (value > 0 or (least == "from" and value == 0)),
        f"a number of seconds {above}",
    )


def a_timeout() -> Values:
    """Return the values of a time-out of the server's, which counts milliseconds in 32 bits."""

    def allow(value: Any) -> bool:
        number = value.total_seconds() if isinstance(value, timedelta) else value
        return _is_number(number) and 0 <= number < 2**31 / 1000

    return Values(allow, "a number of seconds of 0 or more, or a timedelta")


def a_count(least: int) -> Values:
    """Return the values of a whole number of at least *least*."""
    return Values(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number of {least} or more",
    )


def or_none(values: Values) -> Values:
    """Return *values* and None."""
    return Values(lambda value: value is None or values.allow(value), f"{values.words}, or None")


def a_text() -> Values:
    """Return the values of a text that is not empty."""
    return Values(lambda value: isinstance(value, str) and bool(value), "a text")


def a_callable() -> Values:
    """Return the values of an option that takes something callable."""
    return Values(callable, "a function")


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return which of the *known* names is most like a misspelt *name*, if any is."""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def with_nearest(name: Any, known: Iterable[str]) -> str:
    """Return the repr of an unknown name, with the *known* name that may have been meant."""
    meant = nearest(name, known)
    return repr(name) if meant is None else f"{name!r} (did you mean {meant!r}?)"
