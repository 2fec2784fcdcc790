"""The forms of single values in a payload.

Conversions that lose nothing are made: "5" for an int, a UUID for a str. Others are refused.
"""

from __future__ import annotations

import base64
import datetime
import enum
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from django.utils.dateparse import parse_duration
from django.utils.duration import duration_iso_string
from django.utils.functional import Promise

from .containers import Form
from .errors import PayloadError
from .payload import MOST_DIGITS


class ScalarForm(Form):
    """A type with a function for each direction."""

    def __init__(
        self,
        cls: type,
        nature: str,
        encode: Callable[[Any], Any],
        decode: Callable[[Any], Any],
        strict: tuple[type, ...] = (),
    ) -> None:
        self.cls = cls
        self.nature = nature
        self._encode = encode
        self._decode = decode
        # Subclasses that are another annotation's values: bool is no int in a union.
        self.others = strict

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.cls) and not isinstance(value, self.others)

    def encode(self, value: Any) -> Any:
        return self._convert(self._encode, value)

    def decode(self, data: Any) -> Any:
        return self._convert(self._decode, data)

    def _convert(self, convert: Callable[[Any], Any], value: Any) -> Any:
        try:
            found = convert(value)
        except PayloadError:
            raise
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise PayloadError(f"{_shown(value)} is no {self.cls.__name__}") from error
        if found is None:
            raise PayloadError(f"{value!r:.100} is no {self.cls.__name__}")
        return found


class NoneForm(Form):
    """None."""

    nature = "null"

    def fits(self, value: Any) -> bool:
        return value is None

    def encode(self, value: Any) -> None:
        if value is not None:
            raise PayloadError(f"{value!r:.100} is not None")

    def decode(self, data: Any) -> None:
        return self.encode(data)


class AnyForm(Form):
    """What JSON can say: it comes back as JSON has it, a tuple as a list.

    A float from 1e16 on comes back from a stored notification as an int: jsonb writes its digits.
    """

    nature = "json"

    def fits(self, value: Any) -> bool:
        return True

    def encode(self, value: Any) -> Any:
        match value:
            case None | bool():
                return value
            case int() if -_END_OF_INT < value < _END_OF_INT:
                return value
            case float() if math.isfinite(value):
                return value
            case str():
                return _text(value)
            case list() | tuple():
                return [self.encode(each) for each in value]
            case dict() if all(isinstance(key, str) for key in value):
                return {_text(key): self.encode(each) for key, each in value.items()}
        raise PayloadError(
            f"{_shown(value)} is no JSON: annotate the field with {type(value).__name__}"
        )

    def decode(self, data: Any) -> Any:
        match data:
            case Decimal():
                return float(data)
            case list():
                return [self.decode(each) for each in data]
            case dict():
                return {key: self.decode(each) for key, each in data.items()}
        return data


class LiteralForm(Form):
    """One of some values that JSON can say, or of an enumeration."""

    nature = "any"

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values

    def fits(self, value: Any) -> bool:
        return any(value == each and type(value) is type(each) for each in self.values)

    def encode(self, value: Any) -> Any:
        if not self.fits(value):
            raise PayloadError(f"{value!r:.100} is none of {self.values!r}")
        return _of_member(value) if isinstance(value, enum.Enum) else value

    def decode(self, data: Any) -> Any:
        for value in self.values:
            encoded = self.encode(value)
            if encoded == data and type(encoded) is type(data):
                return value
        raise PayloadError(f"{data!r:.100} is none of {self.values!r}")


class EnumForm(Form):
    """An enumeration, by the values of its members; by their names where JSON has not the value."""

    nature = "any"

    def __init__(self, cls: type[enum.Enum]) -> None:
        self.cls = cls
        self.members = {(type(_of_member(each)), _of_member(each)): each for each in cls}
        kinds = {type(_of_member(each)) for each in cls}
        if kinds == {str}:
            self.nature = "string"
        elif kinds == {int}:
            self.nature = "number"

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.cls)

    def encode(self, value: Any) -> Any:
        if not isinstance(value, self.cls):
            return _of_member(self.decode(value))
        return _of_member(value)

    def decode(self, data: Any) -> Any:
        found = self.members.get((type(data), data)) if isinstance(data, str | int) else None
        if found is not None:
            return found
        value = float(data) if isinstance(data, Decimal) else data
        try:
            return self.cls(value)
        except (ValueError, TypeError) as error:
            raise PayloadError(f"{data!r:.100} is no member of {self.cls.__name__}") from error


def form_of(cls: type) -> Form | None:
    """Return the form of the class *cls*; None if it is no single value."""
    if issubclass(cls, enum.Enum):
        return EnumForm(cls)
    if cls is object:
        return AnyForm()
    return _FORMS.get(cls)


def _of_member(member: enum.Enum) -> Any:
    value = member.value
    return value if type(value) in (str, int, float, bool) else member.name


def _text(value: Any) -> str:
    """Return *value* as text that PostgreSQL's jsonb takes."""
    if isinstance(value, Promise):
        value = str(value)
    if not isinstance(value, str):
        raise TypeError
    if "\0" in value:
        raise PayloadError(f"{value!r:.100} has a NUL character, which PostgreSQL does not store")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"{value!r:.100} has half of a surrogate pair: {error}") from error
    # A str of its own: subclasses may say something else.
    return str.__str__(value)


def _str(value: Any) -> str:
    if isinstance(value, int | uuid.UUID | Decimal | PurePath) and not isinstance(value, bool):
        return str(value)
    return _text(value)


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.100}"
    except ValueError:
        return f"a number of more than {MOST_DIGITS:,} digits"


def _short(value: int) -> int:
    if not -_END_OF_INT < value < _END_OF_INT:
        raise ValueError
    return value


_END_OF_INT = 10**MOST_DIGITS


def _int(value: Any) -> int:
    if isinstance(value, float | Decimal) and value != int(value):
        raise ValueError
    if isinstance(value, str | int | float | Decimal):
        return _short(int(value))
    raise TypeError


def _bool(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError


def _float_out(value: Any) -> float | str:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise TypeError
    number = float(value)
    # JSON has neither infinity nor NaN, and jsonb no -0.0.
    return number if math.isfinite(number) and str(number) != "-0.0" else str(number)


def _float_in(data: Any) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float | Decimal | str):
        raise TypeError
    return float(data)


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise TypeError
    # A float's own digits, not those of its binary fraction.
    return Decimal(str(value)) if isinstance(value, float) else Decimal(value)


def _uuid(value: Any) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def _datetime(value: Any) -> datetime.datetime:
    if isinstance(value, datetime.datetime):
        return value
    return datetime.datetime.fromisoformat(value)


def _date(value: Any) -> datetime.date:
    if isinstance(value, datetime.datetime):
        raise PayloadError(f"{value!r} has a time, which a date loses: use .date()")
    return value if isinstance(value, datetime.date) else datetime.date.fromisoformat(value)


def _time(value: Any) -> datetime.time:
    return value if isinstance(value, datetime.time) else datetime.time.fromisoformat(value)


def _duration(value: Any) -> datetime.timedelta | None:
    return value if isinstance(value, datetime.timedelta) else parse_duration(value)


def _bytes_out(value: Any) -> str:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return base64.b64encode(bytes(value)).decode()


def _bytes_in(data: Any) -> bytes:
    return base64.b64decode(data, validate=True)


_FORMS: dict[type, Form] = {
    type(None): NoneForm(),
    bool: ScalarForm(bool, "boolean", _bool, _bool),
    int: ScalarForm(int, "number", _int, _int, strict=(bool, enum.Enum)),
    float: ScalarForm(float, "number", _float_out, _float_in),
    str: ScalarForm(str, "string", _str, _str, strict=(enum.Enum,)),
    bytes: ScalarForm(bytes, "string", _bytes_out, _bytes_in),
    Decimal: ScalarForm(Decimal, "string", lambda value: str(_decimal(value)), _decimal),
    uuid.UUID: ScalarForm(uuid.UUID, "string", lambda value: str(_uuid(value)), _uuid),
    datetime.datetime: ScalarForm(
        datetime.datetime, "string", lambda value: _datetime(value).isoformat(), _datetime
    ),
    datetime.date: ScalarForm(
        datetime.date,
        "string",
        lambda value: _date(value).isoformat(),
        _date,
        strict=(datetime.datetime,),
    ),
    datetime.time: ScalarForm(
        datetime.time, "string", lambda value: _time(value).isoformat(), _time
    ),
    datetime.timedelta: ScalarForm(
        datetime.timedelta,
        "string",
        lambda value: duration_iso_string(_duration(value)),
        _duration,
    ),
}
