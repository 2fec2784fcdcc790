"""The forms of containers and unions in a payload."""

from __future__ import annotations

import collections
import collections.abc
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from .errors import PayloadError


class Form(ABC):
    """How values of one annotation become JSON and come back.

    *nature* is the kind of JSON that it makes, by which a union tells its members apart: "null",
    "boolean", "number", "string", "array", "object"; "any" of several; "json" for all there is.
    """

    nature: str

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether *value* is of this annotation, without conversion."""

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """Return *value* as JSON. Raise PayloadError if it does not fit."""

    @abstractmethod
    def decode(self, data: Any) -> Any:
        """Return the value that *data* is the JSON of. Raise PayloadError if it does not fit."""


class SequenceForm(Form):
    """A list, set, frozenset or tuple whose items are of one type."""

    nature = "array"

    def __init__(self, cls: type[Any], made: Callable[[Any], Any], item: Form) -> None:
        self.cls = cls
        self.made = made
        self.item = item

    @staticmethod
    def maker(cls: type) -> Callable[[Any], Any] | None:
        """Return what makes a value of the annotation *cls*; None if it is no sequence or set."""
        for made in (list, set, frozenset, collections.deque):
            if issubclass(cls, made):
                return made
        if cls is collections.abc.Set:
            return frozenset
        if cls is collections.abc.MutableSet:
            return set
        abstract = (
            collections.abc.Iterable,
            collections.abc.Collection,
            collections.abc.Sequence,
            collections.abc.MutableSequence,
        )
        return list if cls in abstract else None

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, self.cls)
            and not isinstance(value, str | bytes)
            and all(self.item.fits(each) for each in value)
        )

    def encode(self, value: Any) -> Any:
        if isinstance(value, str | bytes | collections.abc.Mapping) or not isinstance(
            value, collections.abc.Iterable
        ):
            raise PayloadError(f"{value!r:.100} is no {self.cls.__name__}")
        return [self.item.encode(each) for each in value]

    def decode(self, data: Any) -> Any:
        return self.made(self.item.decode(each) for each in _array(data))


class TupleForm(Form):
    """A tuple of a fixed length, each item with a type of its own."""

    nature = "array"

    def __init__(self, items: list[Form]) -> None:
        self.items = items

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) == len(self.items)
            and all(form.fits(each) for form, each in zip(self.items, value, strict=True))
        )

    def encode(self, value: Any) -> Any:
        if not isinstance(value, tuple | list) or len(value) != len(self.items):
            raise PayloadError(f"{value!r:.100} is no tuple of {len(self.items)} items")
        return [form.encode(each) for form, each in zip(self.items, value, strict=True)]

    def decode(self, data: Any) -> Any:
        if len(_array(data)) != len(self.items):
            raise PayloadError(f"{data!r:.100} has not {len(self.items)} items")
        return tuple(form.decode(each) for form, each in zip(self.items, data, strict=True))


class DictForm(Form):
    """A mapping. JSON has no keys but strings: others are written as JSON in them."""

    nature = "object"

    def __init__(self, cls: type[Any], key: Form, value: Form) -> None:
        self.cls = cls
        self.key = key
        self.value = value
        self.made: Callable[[Any], Any] = dict
        if issubclass(cls, collections.OrderedDict | collections.Counter):
            self.made = cls

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.cls) and all(
            self.key.fits(key) and self.value.fits(each) for key, each in value.items()
        )

    def encode(self, value: Any) -> Any:
        if not isinstance(value, collections.abc.Mapping):
            raise PayloadError(f"{value!r:.100} is no {self.cls.__name__}")
        return {self._key(key): self.value.encode(each) for key, each in value.items()}

    def decode(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise PayloadError(f"{data!r:.100} is no JSON object")
        return self.made(
            {self._from_key(key): self.value.decode(each) for key, each in data.items()}
        )

    def _key(self, key: Any) -> str:
        encoded = self.key.encode(key)
        if self.key.nature == "string":
            return str(encoded)
        if self.key.nature == "json" and isinstance(encoded, str):
            return encoded
        return json.dumps(encoded)

    def _from_key(self, key: str) -> Any:
        if self.key.nature in ("string", "json"):
            return self.key.decode(key)
        try:
            return self.key.decode(json.loads(key))
        except ValueError as error:
            if isinstance(error, PayloadError):
                raise
            raise PayloadError(f"the key {key!r:.100} is no JSON") from error


class UnionForm(Form):
    """One of several types.

    Where the JSON tells them apart, as with ``int | str | None``, it is that of the value. Where it
    does not, as with ``date | str``, it is an array of the member's number and the value.
    """

    def __init__(self, members: list[Form], described: str) -> None:
        self.members = members
        self.described = described
        natures = [each.nature for each in members if each.nature != "null"]
        several = {"any", "json", "union"} & set(natures)
        self.tagged = len(natures) > 1 and bool(len(set(natures)) < len(natures) or several)
        self.nature = "array" if self.tagged else "union"

    def fits(self, value: Any) -> bool:
        return any(each.fits(value) for each in self.members)

    def encode(self, value: Any) -> Any:
        number, encoded = self._encode(value)
        return [number, encoded] if self.tagged else encoded

    def _encode(self, value: Any) -> tuple[int, Any]:
        for number, member in enumerate(self.members):
            if member.fits(value):
                return number, member.encode(value)
        for number, member in enumerate(self.members):
            try:
                return number, member.encode(value)
            except PayloadError:
                continue
        raise PayloadError(f"{value!r:.100} is none of {self.described}")

    def decode(self, data: Any) -> Any:
        if self.tagged:
            match data:
                case [int(number), encoded] if 0 <= number < len(self.members):
                    return self.members[number].decode(encoded)
            raise PayloadError(f"{data!r:.100} is none of {self.described}")
        nature = _nature(data)
        # The member of this nature first; then any that takes it, as int takes "5".
        for member in sorted(self.members, key=lambda each: each.nature != nature):
            if nature == "null" and member.nature not in ("null", "any", "json", "union"):
                continue
            try:
                return member.decode(data)
            except PayloadError:
                continue
        raise PayloadError(f"{data!r:.100} is none of {self.described}")


def _array(data: Any) -> Any:
    if not isinstance(data, list):
        raise PayloadError(f"{data!r:.100} is no JSON array")
    return data


def _nature(data: Any) -> str:
    match data:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "number"
