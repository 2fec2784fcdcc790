"""Values as JSON, each with its type: `encode` and `decode`."""

from __future__ import annotations

from typing import Any

from .limits import Limits
from .reading import Reader
from .writing import Default, Writer


def encode(value: Any, default: Default | None = None) -> Any:
    """Return *value* as JSON: None, bools, numbers, strings, lists, and objects of one name.

    *default* is called with what has no form of its own and returns what is sent instead, or
    NotImplemented. Raise `BadValue` for what cannot be sent and `TooDeep`.
    """
    return Writer(default).value(value)


def decode(item: Any, limits: Limits | None = None) -> Any:
    """Return the value that *item*, JSON as `loaded` parses it, stands for.

    Raise `Malformed` for what `encode` never makes, and with *limits* `TooManyNodes`.
    """
    return Reader(limits).value(item)
