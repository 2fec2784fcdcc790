"""The payload of a notification: JSON from the values of a channel, and back.

The form is django-pgpubsub's: ``{"kwargs": {field: value}}`` from `notify`, and ``{"app", "model",
"old", "new", "context"}`` from a trigger, here with ``"operation"`` and ``"when"``.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Protocol, Self, TypeVar

from .errors import PayloadError

# How many digits of a number Python reads and writes, unless somebody has changed that; see
# https://docs.python.org/3/library/stdtypes.html#integer-string-conversion-length-limitation
MOST_DIGITS = 4300


class _Channel(Protocol):
    @classmethod
    def name(cls) -> str: ...
    @classmethod
    def from_payload(cls, data: dict[str, Any]) -> Self: ...
    def serialize(self) -> str: ...


C = TypeVar("C", bound=_Channel)


class PayloadDecoder(json.JSONDecoder):
    """Read JSON with numbers as Decimal: a float would lose digits of a numeric column.

    What the server stores and Python does not read is no error, so that such rows can be looked at:
    a whole number of more digits than Python allows is a Decimal, too, and JSON that is nested more
    deeply stays text.
    """

    def __init__(self) -> None:
        super().__init__(parse_float=Decimal, parse_int=_int)

    def decode(self, s: str, *args: Any) -> Any:
        """Return the value of the text *s*."""
        try:
            return super().decode(s, *args)
        except RecursionError:
            return s


def _int(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MOST_DIGITS else Decimal(digits)


# `json.loads` would make one for each payload.
_DECODER = PayloadDecoder()


def encode(channel: _Channel) -> str:
    """Return the payload of *channel*, a notification, as JSON in ASCII.

    Raise PayloadError, which names the class and the field, for a value that does not fit.
    """
    return channel.serialize()


def decode(channel: type[C], payload: str | dict[str, Any]) -> C:
    """Return the notification of *channel* that *payload* holds.

    Raise PayloadError where it does not fit.
    """
    try:
        data = _DECODER.decode(payload) if isinstance(payload, str) else payload
    except ValueError:
        data = None
    # Nearly all payloads are an object; errors of the others have the name of the channel.
    if not isinstance(data, dict):
        data = payload_object(channel.name(), payload)
    return channel.from_payload(data)


def payload_object(channel: str, payload: str | dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object of *payload*; *channel* is the name for errors."""
    data: object = payload
    # Triggers of django-pgpubsub before 1.1 stored the object as text, inside of a JSON string.
    for _ in range(2):
        if isinstance(data, str):
            try:
                data = _DECODER.decode(data)
            except ValueError as error:
                raise PayloadError(f"The payload of {channel} is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise PayloadError(f"The payload of {channel} is no JSON object: {data!r:.100}")
    return data
