"""What is wrong with values, as a ValidationError's `details` say it: by field, or as a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Invalid:
    """One thing that is wrong: a text, into which *params* go if there are any, and its *code*."""

    message: str
    code: str | int | None = None
    params: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return self.message % self.params if self.params else self.message

    def sent(self) -> tuple[Any, ...]:
        """Return it as `details` have it."""
        return self.message, self.code, None if self.params is None else dict(self.params)


# By field, a list, or the only one where the error is of one alone.
Invalids = dict[str, list[Invalid]] | list[Invalid] | Invalid


def invalids(details: Mapping[str, Any]) -> Invalids | None:
    """Return what *details* say is wrong; None where they do not.

    A service that sends no codes has texts alone, of which a list of one is the only one.
    """
    found = _read(details.get("errors"), _coded)
    if found is None:
        found = _read(details.get("messages"), _text)
        if isinstance(found, list) and len(found) == 1:
            return found[0]
    return found


def _read(found: Any, one: Callable[[Any], Invalid | None]) -> Invalids | None:
    if isinstance(found, dict):
        by_field: dict[str, list[Invalid]] = {}
        for name, below in found.items():
            read = _list(below, one)
            if read is None:
                return None
            by_field[str(name)] = read
        return by_field
    return _list(found, one) if isinstance(found, list) else one(found)


def _list(found: Any, one: Callable[[Any], Invalid | None]) -> list[Invalid] | None:
    if not isinstance(found, list):
        return None
    read = [made for each in found if (made := one(each)) is not None]
    return read if len(read) == len(found) else None


def _coded(found: Any) -> Invalid | None:
    match found:
        case (str(message), str() | int() | None as code, dict() | None as params):
            made = Invalid(message, code, params)
            try:
                str(made)
            except (LookupError, TypeError, ValueError):
                # Not a text for these params.
                return None
            return made
    return None


def _text(found: Any) -> Invalid | None:
    return Invalid(found) if isinstance(found, str) else None
