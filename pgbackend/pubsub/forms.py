"""How the annotation of a field becomes JSON and a value again.

A form is made once for each channel class. Its `encode` refuses a value that does not fit, its
`decode` a JSON that does not; both raise PayloadError, and `ChannelForm` adds class and field.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from . import scalars
from .containers import DictForm, Form, SequenceForm, TupleForm, UnionForm
from .errors import PayloadError


class ChannelForm(Form):
    """The form of a dataclass: that of each of its fields."""

    nature = "object"

    def __init__(self, cls: type, of: Callable[[Any], Form], described: str) -> None:
        self.cls = cls
        self.described = described
        self.fields: dict[str, tuple[Form, bool]] = {}
        hints = resolved(cls)
        for field in dataclasses.fields(cls):
            # `date: datetime.date = None`, as people write it.
            nullable = field.default is None
            with _of_field(described, field.name):
                self.fields[field.name] = (of(hints[field.name]), nullable)

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.cls)

    def encode(self, value: Any) -> Any:
        if not isinstance(value, self.cls):
            raise PayloadError(f"{value!r:.100} is no {self.described}")
        encoded = {}
        for name, (form, nullable) in self.fields.items():
            with _of_field(self.described, name):
                found = getattr(value, name)
                encoded[name] = None if nullable and found is None else form.encode(found)
        return encoded

    def decode(self, data: Any) -> dict[str, Any]:
        """Return the values of those fields that *data* has."""
        if not isinstance(data, Mapping):
            raise PayloadError(f"{data!r:.100} is no object with the fields of {self.described}")
        decoded = {}
        name = ""
        # One block for all fields: this is done for each notification.
        try:
            for name, (form, nullable) in self.fields.items():
                if name in data:
                    found = data[name]
                    decoded[name] = None if nullable and found is None else form.decode(found)
        except PayloadError as error:
            raise _of_field(self.described, name).named(error) from error.__cause__
        return decoded


class NestedForm(ChannelForm):
    """The form of a dataclass inside of a payload."""

    def decode(self, data: Any) -> Any:
        values = super().decode(data)
        made = {
            f.name: values.pop(f.name)
            for f in dataclasses.fields(self.cls)
            if f.name in values and f.init
        }
        try:
            return self.cls(**made)
        except TypeError as error:
            raise PayloadError(f"{self.described}: {error}") from error


def form_of(channel: type[Any]) -> ChannelForm:
    """Return the form of *channel*. Raise PayloadError for an annotation that has none."""
    found = vars(channel).get("_payload_form")
    if found is None:
        found = _make(channel)
        channel._payload_form = found
    return found  # type: ignore[no-any-return]  # of any class


def _make(channel: type[Any]) -> ChannelForm:
    if "__dataclass_fields__" not in vars(channel):
        raise PayloadError(
            f"{channel.__module__}.{channel.__qualname__} is no dataclass: decorate the class"
            " by @dataclass"
        )
    return ChannelForm(channel, _Maker().form, f"{channel.__module__}.{channel.__qualname__}")


def resolved(cls: type) -> dict[str, Any]:
    """Return the types of the fields of *cls*, strings resolved.

    Raise PayloadError for a name that cannot be found where the class was defined.
    """
    try:
        return typing.get_type_hints(cls, include_extras=False)
    except NameError as error:
        raise PayloadError(
            f"An annotation of {cls.__module__}.{cls.__qualname__} names {error.name!r}, which its"
            " module does not have at run time: import it there, not under TYPE_CHECKING, and not"
            " in a function"
        ) from error


class _Maker:
    """Makes the forms of one channel; those of dataclasses that contain themselves once."""

    def __init__(self) -> None:
        self.nested: dict[type, NestedForm] = {}

    def form(self, hint: Any) -> Form:
        """Return the form of the annotation *hint*."""
        alias = getattr(typing, "TypeAliasType", None)
        if alias is not None and isinstance(hint, alias):
            return self.form(hint.__value__)
        if isinstance(hint, typing.NewType):
            return self.form(hint.__supertype__)
        if isinstance(hint, dataclasses.InitVar):
            return self.form(hint.type)
        if hint is Any or isinstance(hint, typing.TypeVar):
            return scalars.AnyForm()
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Annotated, typing.Final, typing.ClassVar):
            return self.form(arguments[0])
        if origin is typing.Literal:
            return scalars.LiteralForm(arguments)
        if origin in (typing.Union, types.UnionType):
            return UnionForm([self.form(each) for each in arguments], str(hint))
        return self._of_class(origin or hint, arguments)

    def _of_class(self, cls: Any, arguments: tuple[Any, ...]) -> Form:
        if not isinstance(cls, type):
            raise PayloadError(f"{cls!r} has no form in a payload")
        known = scalars.form_of(cls)
        if known is not None:
            return known
        if dataclasses.is_dataclass(cls):
            return self._nested(cls)
        if issubclass(cls, tuple):
            return self._of_tuple(cls, arguments)
        if issubclass(cls, Mapping):
            key, value = arguments or (str, Any)
            return DictForm(cls, self.form(key), self.form(value))
        made = SequenceForm.maker(cls)
        if made is not None:
            return SequenceForm(cls, made, self.form(arguments[0] if arguments else Any))
        raise PayloadError(
            f"{cls.__module__}.{cls.__qualname__} has no form in a payload: use a dataclass, or"
            " send a key by which the listener finds it"
        )

    def _of_tuple(self, cls: type, arguments: tuple[Any, ...]) -> Form:
        # Tuple[str] is any number of strings in django-pgpubsub, and so here.
        if not arguments or len(arguments) == 1 or arguments[1:] == (Ellipsis,):
            return SequenceForm(cls, tuple, self.form(arguments[0] if arguments else Any))
        return TupleForm([self.form(each) for each in arguments])

    def _nested(self, cls: type) -> Form:
        if cls not in self.nested:
            # Known before its fields are: it may contain itself.
            form = self.nested[cls] = NestedForm.__new__(NestedForm)
            form.__init__(cls, self.form, cls.__qualname__)  # type: ignore[misc]  # see above
        return self.nested[cls]


class _of_field:
    """Names the field in the errors of the block."""

    def __init__(self, described: str, field: str) -> None:
        self.path = f"{described}.{field}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, PayloadError):
            raise self.named(error) from error.__cause__

    def named(self, error: PayloadError) -> PayloadError:
        """Return *error* with the field before its words."""
        return PayloadError(f"{self.path}: {error}").with_traceback(sys.exc_info()[2])
