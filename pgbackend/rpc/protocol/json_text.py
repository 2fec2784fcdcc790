"""JSON as it travels: compact, UTF-8, each object's names once, no NaN, nothing too deep."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from .errors import Malformed, TooDeep
from .limits import DIGITS

# A text that ends within a string is taken to its end, so that each character is looked at once.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def dumped(value: Any) -> str:
    """Return *value*, made by `encode`, as JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loaded(body: bytes, max_depth: int) -> Any:
    """Return what the JSON text *body* holds; raise `Malformed` or `TooDeep`.

    Time grows with the length of *body* alone.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed("the body is not UTF-8") from None
    _look_at_depth(text, max_depth)
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error.msg} at character {error.pos}") from None


def _look_at_depth(text: str, most: int) -> None:
    """Raise `TooDeep` before the parser would recurse further than *most* levels."""
    depth = 0
    for bracket in _BRACKETS.findall(_STRING.sub("", text)):
        if bracket in "[{":
            depth += 1
            if depth > most:
                raise TooDeep(f"more than {most} levels of JSON", {"max_depth": most})
        else:
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of *pairs*: a name that comes twice would be read differently elsewhere."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("an object has a name twice")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS + 1:
        raise Malformed(f"a number of more than {DIGITS} digits")
    return int(text)


def _number(text: str) -> float:
    if len(text) > DIGITS + 1:
        raise Malformed(f"a number of more than {DIGITS} digits")
    value = float(text)
    if math.isinf(value):
        raise Malformed(f"a number that is too large: {text[:40]}")
    return value


def _constant(text: str) -> NoReturn:
    raise Malformed(f"{text} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_number,
    parse_constant=_constant,
)
