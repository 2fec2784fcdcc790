"""What a ValidationError says, as `details` that travel: texts, and with them codes and params."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Model

from ..protocol.errors import RemoteError
from ..protocol.invalid import Invalid
from ..protocol.json_text import dumped, loaded
from ..protocol.values import decode, encode
from .sending import sendable

# Of one param, as JSON: characters, and arrays and objects inside each other. An answer has many.
LONGEST, DEEPEST = 2000, 20


def details_of(error: ValidationError) -> dict[str, Any]:
    """Return what *error* says: "messages" for clients that know no codes, and "errors"."""
    if hasattr(error, "error_dict"):
        fields = {
            _text(name): [_invalid(each) for each in below]
            for name, below in error.error_dict.items()
        }
        return {
            "messages": {name: [str(each) for each in below] for name, below in fields.items()},
            "errors": {name: [each.sent() for each in below] for name, below in fields.items()},
        }
    found = [_invalid(each) for each in error.error_list]
    sent: Any = [each.sent() for each in found]
    # That of a single text is not equal to that of a list of one.
    return {
        "messages": [str(each) for each in found],
        "errors": sent[0] if hasattr(error, "message") else sent,
    }


def _invalid(error: Any) -> Invalid:
    """Return *error*, of one text; what of its params cannot be sent is left out."""
    text = _text(error.message % error.params if error.params else error.message)
    code = error.code if isinstance(error.code, int | None) else _text(error.code)
    params = _params(error.params)
    if not params:
        return Invalid(text, code)
    made = Invalid(_text(error.message), code, params)
    try:
        if str(made) == text:
            return made
    except (LookupError, TypeError, ValueError):
        pass
    # Of what was left out, or of a form of its own for numbers: the text as it is.
    return Invalid(text.replace("%", "%%"), code, params)


def _params(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        return {}
    found = {}
    for name, value in given.items():
        try:
            item = encode(value, _plain)
            loaded(text := dumped(item).encode(), DEEPEST)
            if len(text) <= LONGEST and isinstance(name, str):
                found[_text(name)] = decode(item)
        except RemoteError:
            continue
    return found


def _plain(value: Any) -> Any:
    # An instance is not what the error's text shows of it.
    return NotImplemented if isinstance(value, Model) else sendable(value)


def _text(value: Any) -> str:
    """Return *value* as text, without what UTF-8 has not."""
    return str(value).encode("utf-8", "replace").decode("utf-8")
