"""Values that options may have, with their names in words, and names that are like others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Values:
    """The values that an option may have, and their name in words."""

    allow: Callable[[Any], bool]
    words: str


def switch() -> Values:
    """Return what stands for a bool."""
    return Values(lambda value: isinstance(value, bool), "True or False")


def one_of(*values: str) -> Values:
    """Return what stands for one of *values*."""
    return Values(lambda value: value in values, " or ".join(map(repr, values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def seconds() -> Values:
    """Return what stands for a time."""
    return Values(
        lambda value: _is_number(value) and 0 < value < math.inf, "a number of seconds above 0"
    )


def perhaps_endless(least: str) -> Values:
    """Return what stands for a time that may be infinite: "above" 0, or "from" 0 on."""
    above = "above 0" if least == "above" else "of 0 or more"
    return Values(
        lambda value: _is_number(value) and (value > 0 or (least == "from" and value == 0)),
        f"a number of seconds {above}",
    )


def count(least: int) -> Values:
    """Return what stands for a whole number."""
    return Values(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number of {least} or more",
    )


def or_none(values: Values) -> Values:
    """Return what stands for *values* and None."""
    return Values(lambda value: value is None or values.allow(value), f"{values.words}, or None")


def text() -> Values:
    """Return what stands for a text that is not empty."""
    return Values(lambda value: isinstance(value, str) and bool(value), "a text")


def function() -> Values:
    """Return what stands for something that can be called."""
    return Values(callable, "a function")


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the one of the *known* names that a misspelt one is most like, if any is."""
    by_lower = {each.lower(): each for each in known}
    found = get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def with_nearest(name: Any, known: Iterable[str]) -> str:
    """Return the repr of an unknown name, and which of the *known* may have been meant."""
    meant = nearest(name, known)
    return repr(name) if meant is None else f"{name!r} (did you mean {meant!r}?)"
