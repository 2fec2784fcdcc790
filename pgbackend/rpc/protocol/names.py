"""The names that a message may use: enumerations, and the form of all others."""

from __future__ import annotations

import re
from typing import Any

from .errors import Malformed


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPERATIONS = _names(
    "all none filter exclude annotate alias order_by reverse distinct slice values values_list"
    " dates datetimes only defer select_related prefetch_related select_for_update"
    " union intersection difference and or xor"
)

# Ends that write. `call` may write: the service knows.
WRITES = _names(
    "create bulk_create bulk_update update delete get_or_create update_or_create insert save"
    " related_add related_remove related_set related_clear"
)

READS = _names(
    "rows get first last latest earliest count exists contains aggregate in_bulk explain describe"
    " changes"
)

ENDS = READS | WRITES | {"call"}

CONNECTORS = frozenset({"and", "or", "xor"})

OPERATORS = frozenset({"+", "-", "*", "/", "%", "^", "&", "|", "#", "<<", ">>"})

AGGREGATES = _names(
    "Count Sum Avg Min Max StdDev Variance AnyValue StringAgg ArrayAgg JSONBAgg BoolAnd BoolOr"
    " BitAnd BitOr BitXor"
)

# Functions whose result is no longer than what they are given: no Repeat, no LPad.
FUNCTIONS = _names(
    "Coalesce Greatest Least NullIf Now"
    " Abs Ceil Exp Floor Ln Mod Power Round Sign Sqrt"
    " Concat Left Length Lower LTrim Replace Reverse Right RTrim StrIndex Substr Trim Upper"
    " ExtractYear ExtractIsoYear ExtractMonth ExtractDay ExtractWeek ExtractWeekDay"
    " ExtractIsoWeekDay ExtractQuarter ExtractHour ExtractMinute ExtractSecond"
    " TruncYear TruncMonth TruncDay TruncWeek TruncQuarter TruncHour TruncMinute TruncSecond"
    " TruncDate TruncTime"
)

KINDS = frozenset({"model", "instance", "dict", "tuple", "flat", "named"})

BOUNDS = frozenset({"[]", "[)", "(]", "()", "empty"})

# A letter comes first: Q's and filter's own arguments, `_connector` and `_negated`, begin with an
# underscore, and a name from outside must never be one of them.
_NAME = re.compile(r"[^\W\d_]\w*")
_MODEL = re.compile(r"[^\W\d_]\w*\.[^\W\d_]\w*")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{32}")
_TOKEN = re.compile(r"[!-~]{1,100}")

LONGEST = 200


def is_name(text: Any) -> bool:
    """Tell whether *text* is a name or a path: a letter, then letters, digits and underscores."""
    return isinstance(text, str) and len(text) <= LONGEST and _NAME.fullmatch(text) is not None


def is_model(text: Any) -> bool:
    """Tell whether *text* has the form "app.Model"."""
    return isinstance(text, str) and len(text) <= LONGEST and _MODEL.fullmatch(text) is not None


def is_key_id(text: Any) -> bool:
    """Tell whether *text* is a key's id: 1 to 64 of ``A-Z a-z 0-9 _ -``, and not "-" alone."""
    return isinstance(text, str) and _KEY_ID.fullmatch(text) is not None and text != "-"


def is_hex(text: Any) -> bool:
    """Tell whether *text* is 16 bytes as 32 lowercase hexadecimal digits."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def is_token(text: Any) -> bool:
    """Tell whether *text* is 1 to 100 printable characters of ASCII, no space."""
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


def is_line(text: Any) -> bool:
    """Tell whether *text* may stand in a log: 1 to 200 printable characters."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable()


def name(text: Any, what: str) -> str:
    """Return *text* if it is a name; raise `Malformed` for *what* otherwise."""
    if not is_name(text):
        raise Malformed(f"{what} must be a name, not {shown(text)}")
    return str(text)


def model_name(text: Any) -> str:
    """Return *text* if it has the form "app.Model"; raise `Malformed` otherwise."""
    if not is_model(text):
        raise Malformed(f'a model must be named "app.Model", not {shown(text)}')
    return str(text)


def shown(value: Any) -> str:
    """Return *value* for an error's message: short, and never its whole content."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dict):
        return "an object"
    return f"a value of type {type(value).__name__}"
