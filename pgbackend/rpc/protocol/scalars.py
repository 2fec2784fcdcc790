"""Single values: those that JSON has, and those with a tag. None is guessed from its text."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Any
from uuid import UUID

from .errors import BadValue, Malformed
from .limits import DIGITS
from .names import shown

# Up to here each integer is a number of JSON: readers that have floats alone read it as it is.
LARGEST = 2**53

# Numbers with more digits than this count as nodes: any number of them may share one hash.
NARROW = 18

_DATE = r"(\d{4}-\d\d-\d\d)"
# Python from 3.14 on takes 24:00, too.
_MINUTES = r"([01]\d|2[0-3]):[0-5]\d"
_TIME = rf"({_MINUTES}:[0-5]\d\.\d{{6}})"
_DATETIME = re.compile(rf"{_DATE}T{_TIME}([+-]{_MINUTES}(:[0-5]\d)?)?", re.ASCII)
_DATE_ALONE = re.compile(_DATE, re.ASCII)
_TIME_ALONE = re.compile(_TIME, re.ASCII)
_INTEGER = re.compile(r"-?[1-9]\d*", re.ASCII)
_MICROSECONDS = re.compile(r"0|-?[1-9]\d{0,20}", re.ASCII)
_DECIMAL = re.compile(r"-?\d+(\.\d+)?(E[+-]\d{1,4})?|NaN|-?Infinity", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MICROSECOND = timedelta(microseconds=1)


def text_of(value: str) -> str:
    """Return *value* as a plain str; raise `BadValue` for half a surrogate pair."""
    plain = str.__str__(value)
    if not is_text(plain):
        raise BadValue("a string holds half a surrogate pair, which UTF-8 has not")
    return plain


def is_text(value: str) -> bool:
    """Tell whether UTF-8 has *value*."""
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def encode_integer(value: int) -> Any:
    value = int(value)
    if -LARGEST <= value <= LARGEST:
        return value
    # Before the conversion, whose time grows with the square of the digits.
    if abs(value) >= 10**DIGITS:
        raise BadValue(f"an integer of more than {DIGITS} digits")
    return {"$int": str(value)}


def encode_float(value: float) -> Any:
    value = float(value)
    if math.isfinite(value):
        return value
    return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}


def _encode_datetime(value: datetime) -> Any:
    offset = value.utcoffset()
    if offset is not None and offset.microseconds:
        raise BadValue(f"an offset from UTC has whole seconds, not {offset}")
    return {"$dt": value.isoformat(timespec="microseconds")}


def _encode_time(value: time) -> Any:
    if value.tzinfo is not None:
        raise BadValue("a time of day with a time zone cannot be sent")
    return {"$time": value.isoformat(timespec="microseconds")}


def _encode_decimal(value: Decimal) -> Any:
    if value.is_snan():
        raise BadValue("a signaling NaN cannot be sent")
    if value.is_nan():
        return {"$dec": "NaN"}
    if value.is_finite() and not _fits(value):
        raise BadValue(f"a decimal of more than {DIGITS} digits")
    return {"$dec": str(value)}


def _fits(value: Decimal) -> bool:
    """Tell whether a finite decimal, written out, has few enough digits."""
    _, digits, exponent = value.as_tuple()
    return isinstance(exponent, int) and len(digits) <= DIGITS and abs(exponent) <= DIGITS


# By class; a subclass is taken as the first one here that it derives from.
ENCODERS: dict[type, Callable[[Any], Any]] = {
    datetime: _encode_datetime,
    date: lambda value: {"$date": value.isoformat()},
    time: _encode_time,
    timedelta: lambda value: {"$td": str(value // _MICROSECOND)},
    Decimal: _encode_decimal,
    UUID: lambda value: {"$uuid": str(value)},
    **dict.fromkeys(
        (bytes, bytearray, memoryview),
        lambda value: {"$bytes": base64.b64encode(value).decode("ascii")},
    ),
    # The interfaces are addresses, too.
    **dict.fromkeys(
        (IPv4Interface, IPv6Interface, IPv4Address, IPv6Address),
        lambda value: {"$ip": str(value)},
    ),
}


def _matched(pattern: re.Pattern[str], text: Any, tag: str) -> re.Match[str]:
    found = pattern.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise Malformed(f"{tag} does not take {shown(text)}")
    return found


def _integer(text: Any) -> int:
    _matched(_INTEGER, text, "$int")
    if len(text) > DIGITS + 1 or len(text.lstrip("-")) > DIGITS:
        raise Malformed(f"$int takes at most {DIGITS} digits")
    value = int(text)
    if -LARGEST <= value <= LARGEST:
        raise Malformed("$int is for integers beyond 2**53")
    return value


def _float(text: Any) -> float:
    if not isinstance(text, str) or text not in _FLOATS:
        raise Malformed(f"$float takes nan, inf and -inf, not {shown(text)}")
    return _FLOATS[text]


def _datetime(text: Any) -> datetime:
    _matched(_DATETIME, text, "$dt")
    value = datetime.fromisoformat(text)
    offset = value.utcoffset()
    if offset is None:
        return value
    return value.replace(tzinfo=timezone(offset) if offset else UTC)


def _date(text: Any) -> date:
    _matched(_DATE_ALONE, text, "$date")
    return date.fromisoformat(text)


def _time(text: Any) -> time:
    _matched(_TIME_ALONE, text, "$time")
    return time.fromisoformat(text)


def _timedelta(text: Any) -> timedelta:
    _matched(_MICROSECONDS, text, "$td")
    return timedelta(microseconds=int(text))


def _decimal(text: Any) -> Decimal:
    # The length first: its conversion is what takes time.
    if isinstance(text, str) and len(text) > DIGITS + 10:
        raise Malformed(f"$dec takes at most {DIGITS} digits")
    _matched(_DECIMAL, text, "$dec")
    value = Decimal(text)
    if value.is_finite() and not _fits(value):
        raise Malformed(f"$dec takes at most {DIGITS} digits, and exponents up to {DIGITS}")
    return value


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise Malformed(f"$bytes does not take {shown(text)}")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise Malformed(f"$bytes takes base64, not {shown(text)}") from None


def _ip(text: Any) -> Any:
    if not isinstance(text, str) or len(text) > 50 or not text.isascii() or "%" in text:
        raise Malformed(f"$ip does not take {shown(text)}")
    return ip_interface(text) if "/" in text else ip_address(text)


DECODERS: dict[str, Callable[[Any], Any]] = {
    "$int": _integer,
    "$float": _float,
    "$dt": _datetime,
    "$date": _date,
    "$time": _time,
    "$td": _timedelta,
    "$dec": _decimal,
    "$uuid": lambda text: UUID(_matched(_UUID, text, "$uuid")[0]),
    "$bytes": _bytes,
    "$ip": _ip,
}


def decode_scalar(tag: str, content: Any) -> Any:
    """Return the value of ``{tag: content}``; raise `Malformed` for what no value is written as."""
    try:
        return DECODERS[tag](content)
    except (ValueError, OverflowError) as error:
        raise Malformed(f"{tag} does not take {shown(content)}: {error}") from None


def is_wide(value: Any) -> bool:
    """Tell whether *value* is a number with more than 18 digits."""
    if isinstance(value, int):
        return abs(value) >= 2**63
    return isinstance(value, Decimal) and len(value.as_tuple().digits) > NARROW
