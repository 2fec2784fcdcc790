"""Channels: dataclasses whose fields are the payload of a notification."""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pydoc import locate
from types import FunctionType as Function
from typing import Any, ClassVar, Literal, Self

from django.db.models import Model

from . import registry, settings
from .errors import ChannelNotFound, PayloadError, PubsubError
from .forms import form_of
from .names import old_name, wire_name
from .payload import payload_object
from .registry import Listener as Listener
from .rows import row_from_columns
from .stream import Stream


class Options:
    """The options of a channel class: attributes in its body, without annotation.

    They are in a class that is no dataclass, or they would be fields of the payload.
    """

    # Whether notifications are stored and handled once; False: whoever listens gets them, and
    # those that nobody hears are gone.
    lock_notifications: ClassVar[bool] = False
    # The alias of the database; None: that of the router for `Notification`.
    using: ClassVar[str | None] = None
    # Seconds for which a worker has a stored notification whose listeners run outside the
    # transaction of the claim; None: they run inside of it.
    lease: ClassVar[float | None] = None
    # How often a stored notification whose listener failed is tried again.
    retries: ClassVar[int] = 5
    # Seconds until the first of these; each further one waits twice as long, with jitter.
    backoff: ClassVar[float] = 1.0
    # Seconds that one listener may take; None: no bound.
    timeout: ClassVar[float | None] = None
    # How many notifications of the channel one process handles at once.
    concurrency: ClassVar[int] = 1
    # The field (of a trigger: the model's) for each value of which notifications are handled one
    # at a time and in order.
    ordered_by: ClassVar[str | None] = None
    # The field or fields for whose values one stored notification waits at a time: another one that
    # is sent meanwhile is that one.
    unique_by: ClassVar[str | tuple[str, ...] | None] = None
    # "poll": a stored notification sends no NOTIFY, which takes a lock of the whole server.
    wake: ClassVar[Literal["notify", "poll"]] = "notify"

    # Where `forms` keeps what it made of the class: a table of classes would keep them alive.
    _payload_form: ClassVar[Any] = None
    # The names of its fields.
    _names: ClassVar[tuple[str, ...] | None] = None


@dataclass
class BaseChannel(Options):
    """What `Channel` and `TriggerChannel` share; an instance is one notification."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let fields have the names of methods, such as ``name``.

        Otherwise dataclass() would take the inherited method for the default of the field. Raise
        PubsubError for the names that instances need.
        """
        super().__init_subclass__(**kwargs)
        for name in inspect.get_annotations(cls):
            inherited = inspect.getattr_static(BaseChannel, name, None)
            if name in vars(cls) or not isinstance(inherited, classmethod | property | Function):
                continue
            if not isinstance(inherited, classmethod):
                raise PubsubError(
                    f"{cls.__module__}.{cls.__qualname__}.{name}: no field can have the name"
                    f" {name!r}, which each channel has. Take another one"
                )
            # A field without a default.
            setattr(cls, name, field())

    @classmethod
    def name(cls) -> str:
        """Return the dotted path by which the channel can be named."""
        return f"{cls.__module__}.{cls.__name__}"

    @classmethod
    def listen_name(cls) -> str:
        """Return the name for LISTEN and NOTIFY, at most 47 bytes of ``[a-z0-9_]``."""
        return wire_name(cls.name())

    @classmethod
    def listen_safe_name(cls) -> str:
        """Return `listen_name`; django-pgpubsub's word for it."""
        return cls.listen_name()

    @classmethod
    def listen_names(cls) -> list[str]:
        """Return all names to LISTEN on: the channel's own, and django-pgpubsub's for it."""
        names = [cls.listen_name()]
        if settings.old_names():
            names.append(old_name(cls.name()))
        return names

    @classmethod
    def stored_names(cls) -> list[str]:
        """Return the names under which rows of the channel may stand, its own one first.

        Triggers of django-pgpubsub store its short name, its `notify` the dotted path.
        """
        return [cls.listen_name(), old_name(cls.name()), cls.name()]

    @classmethod
    def register(cls, callback: Callable[..., Any]) -> None:
        """Register *callback* for all notifications of the channel."""
        registry.register(cls, callback)

    @classmethod
    def registered_listeners(cls) -> list[Listener]:
        """Return the listeners of the class, for any operation."""
        return list(registry.listeners.get(cls, ()))

    @classmethod
    def stream(cls, limit: int = 1000) -> Stream[Self]:
        """Return the notifications from now on, for one reader; see `stream.Stream`.

        At most *limit* of them wait for the reader. Raise PubsubError for a stored channel.
        """
        return Stream(cls, limit)

    @classmethod
    def prune(cls) -> None:
        """Delete what the channel keeps for a time only; workers call it every few minutes."""

    @property
    def listeners(self) -> list[Listener]:
        """The listeners to call for this notification."""
        return type(self).registered_listeners()

    @property
    def signature(self) -> dict[str, Any]:
        """The keyword arguments of the listeners."""
        cls = type(self)
        if (names := vars(cls).get("_names")) is None:
            names = cls._names = tuple(each.name for each in fields(cls))
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_payload(cls, data: dict[str, Any]) -> Self:
        """Return the notification that the payload *data* holds. Raise PayloadError."""
        try:
            return cls(**cls.deserialize(data))
        except TypeError as error:
            raise PayloadError(f"The payload does not fit {cls.name()}: {error}") from error

    @classmethod
    def deserialize(cls, payload: str | dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that *payload* holds. Raise PayloadError if it does not."""
        raise NotImplementedError(f"{cls.name()} is derived from Channel or TriggerChannel")

    def serialize(self) -> str:
        """Return the payload, JSON in ASCII. Raise PayloadError for a value that does not fit."""
        name = type(self).name()
        raise PayloadError(f"{name} is not derived from Channel: it cannot be sent")


# `json.dumps` would make one for each payload.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass
class Channel(BaseChannel):
    """The base of channels that `notify` sends to: its dataclass fields are the payload."""

    @classmethod
    def deserialize(cls, payload: str | dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that *payload* holds. Raise PayloadError if it does not.

        Fields that the class no longer has are left out, and those that the payload has not take
        their defaults: two versions of the code may run at once.
        """
        data = payload if isinstance(payload, dict) else payload_object(cls.name(), payload)
        if not isinstance(kwargs := data.get("kwargs"), dict):
            raise PayloadError(f'The payload of {cls.name()} has no object "kwargs"')
        return form_of(cls).decode(kwargs)

    def serialize(self) -> str:
        """Return the payload, JSON in ASCII. Raise PayloadError for a value that does not fit."""
        try:
            kwargs = form_of(type(self)).encode(self)
            return _ENCODER.encode({"kwargs": kwargs})
        except RecursionError as error:
            raise PayloadError(f"{type(self).name()}: a value is nested too deeply") from error


class OfTable:
    """What a notification of a table has beside its fields."""

    # The model; the class has to set it.
    model: ClassVar[Any] = None
    # "INSERT", "UPDATE" or "DELETE".
    operation: str | None = None
    # "BEFORE" or "AFTER"; None: a trigger of django-pgpubsub sent it, which does not say.
    when: str | None = None


@dataclass
class TriggerChannel(BaseChannel, OfTable):
    """The base of channels of a table: triggers send its rows as they were and as they are.

    Set ``model``. *old* is None for an INSERT, *new* for a DELETE. *context* is what
    `set_notification_context` had set.
    """

    old: Model | None
    new: Model | None
    context: dict[str, Any] | None = None

    @classmethod
    def from_payload(cls, data: dict[str, Any]) -> Self:
        """Return the notification that the payload *data* holds. Raise PayloadError."""
        found = super().from_payload({"context": {}, **data})
        operation = data.get("operation")
        if operation is None:
            operation = "INSERT" if found.old is None else "UPDATE"
            operation = "DELETE" if found.new is None else operation
        found.operation, found.when = operation, data.get("when")
        return found

    @property
    def listeners(self) -> list[Listener]:
        """The listeners of the operation that the notification is of."""
        found = type(self).registered_listeners()
        return [each for each in found if each.hears(self.operation, self.when)]

    @classmethod
    def deserialize(cls, payload: str | dict[str, Any]) -> dict[str, Any]:
        """Return the rows and the context that *payload* holds. Raise PayloadError."""
        data = payload if isinstance(payload, dict) else payload_object(cls.name(), payload)
        rows = {state: row_from_columns(cls.name(), cls.using, data, state) for state in _STATES}
        if "context" in data:
            rows["context"] = data["context"]
        return rows

    def serialize(self) -> str:
        """Raise PayloadError: it is the database that makes such payloads."""
        raise PayloadError(
            f"{type(self).name()} is sent by the triggers of its table; derive a channel that you"
            " notify yourself from Channel"
        )

    @property
    def signature(self) -> dict[str, Any]:
        """The keyword arguments of the listeners: ``context`` only if the project asks for it."""
        found = super().signature
        if not settings.pass_context():
            found.pop("context", None)
        return found


_STATES = ("old", "new")


def registered() -> list[type[BaseChannel]]:
    """Return the channels that have listeners, in the order of registration."""
    return [channel for channel, found in registry.listeners.items() if found]


def select(channels: Iterable[type[BaseChannel] | str] | None) -> list[type[BaseChannel]]:
    """Return the channels with listeners that are among *channels* or derived from one of them.

    None stands for all. Raise ChannelNotFound if there are none.
    """
    if channels is None:
        found = registered()
        if not found:
            raise ChannelNotFound(
                "No listener is registered. Import the modules with your listeners in ready() of"
                " your application's AppConfig"
            )
        return found
    wanted = tuple(locate_channel(each) for each in channels)
    found = [each for each in registered() if issubclass(each, wanted)]
    if not found:
        names = ", ".join(each.name() for each in wanted)
        raise ChannelNotFound(
            f"No listener is registered for {names}. Import the modules with your listeners in"
            " ready() of your application's AppConfig"
        )
    return found


def by_stored_name(name: str) -> type[BaseChannel] | None:
    """Return the channel whose rows stand under *name*, an old one, too; None: there is none.

    Of several, as under a name of django-pgpubsub, it is one with listeners.
    """
    for channel in (*registered(), *derived(BaseChannel)):
        if name in channel.stored_names():
            return channel
    return None


def derived(channel: type[BaseChannel]) -> Iterator[type[BaseChannel]]:
    """Yield the classes that are derived from *channel*, and from those."""
    for each in channel.__subclasses__():
        yield each
        yield from derived(each)


def locate_channel(channel: type[BaseChannel] | str) -> type[BaseChannel]:
    """Return the channel class, which may be given by its dotted path.

    Raise ChannelNotFound where there is none.
    """
    found: object = channel
    if isinstance(channel, str):
        module, _, name = channel.rpartition(".")
        found = getattr(sys.modules.get(module), name, None) or locate(channel)
        if not isinstance(found, type):
            raise ChannelNotFound(f"There is no channel {channel!r}: {_instead(channel)}")
    if inspect.isfunction(found):
        raise ChannelNotFound(
            f"{found.__qualname__}() is no channel: a listener's decorator takes the channel, as in"
            f" @listener(OrderChannel)"
        )
    if not isinstance(found, type) or not issubclass(found, BaseChannel):
        raise ChannelNotFound(
            f"{channel!r} is no channel class: derive it from Channel or TriggerChannel"
        )
    return found


def _instead(path: str) -> str:
    """Return what to give instead of *path*, which names no channel."""
    known = {each.name() for each in derived(BaseChannel)} - _BASES
    # The class alone, or one that is spelled nearly so.
    same = [each for each in sorted(known) if each.rpartition(".")[2] == path]
    near = same or difflib.get_close_matches(path, known, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "give the class, or its path such as 'shop.channels.OrderChannel'"


_BASES = {Channel.name(), TriggerChannel.name()}
