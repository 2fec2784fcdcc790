"""The forms of parsed JSON: an array, an object with these names, a text; `Malformed` otherwise."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from .errors import Malformed
from .names import shown
from .scalars import is_text


def text_in(item: Any) -> str:
    """Return *item* if it is a string that UTF-8 has."""
    if not isinstance(item, str) or not is_text(item):
        raise Malformed("a string is text, without half a surrogate pair")
    return item


def array_in(item: Any, what: str, length: int | None = None) -> list[Any]:
    """Return *item* if it is an array, of *length* items where that is given."""
    if not isinstance(item, list) or (length is not None and len(item) != length):
        wanted = "an array" if length is None else f"an array of {length}"
        raise Malformed(f"{what} must be {wanted}, not {shown(item)}")
    return item


def object_in(item: Any, what: str, names: Set[str]) -> dict[str, Any]:
    """Return *item* if it is an object with just *names*."""
    if not isinstance(item, dict) or item.keys() != names:
        raise Malformed(f"{what} has the names {', '.join(sorted(names))}")
    return item


def is_one_of(item: Any, names: Set[str]) -> bool:
    """Tell whether *item* is a string of *names*."""
    return isinstance(item, str) and item in names
