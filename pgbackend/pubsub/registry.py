"""The listeners of each channel."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction

from .errors import PubsubError
from .settings import require_installed

F = TypeVar("F", bound=Callable[..., Any])

# By the channel's class, in the order in which they were registered.
listeners: dict[type[Any], list[Listener]] = defaultdict(list)


@dataclass(frozen=True)
class Listener:
    """A function that was registered for a channel.

    *operations* are those of the table's triggers, such as ``"AFTER INSERT"``; None: all.
    """

    callback: Callable[..., Any]
    channel: type[Any]
    operations: frozenset[str] | None
    is_async: bool

    @property
    def name(self) -> str:
        """The dotted path of the function, for logs and errors."""
        callback = self.callback
        name = getattr(callback, "__qualname__", type(callback).__qualname__)
        return f"{getattr(callback, '__module__', None)}.{name}"

    def hears(self, operation: str | None, when: str | None) -> bool:
        """Whether the function is to be called for *operation*, such as "INSERT".

        *when* is "BEFORE" or "AFTER", or None in a payload of django-pgpubsub, which says it not.
        """
        if self.operations is None or operation is None:
            return True
        if when is not None:
            return f"{when} {operation}" in self.operations
        return any(each.endswith(operation) for each in self.operations)


def register(channel: type[Any], callback: F, operations: frozenset[str] | None = None) -> F:
    """Register *callback* for *channel* and return it.

    Raise PubsubError for what is no function, and ImproperlyConfigured without the application.
    """
    require_installed()
    _check_function(channel, callback)
    known = listeners[channel]
    if not any(each.callback is callback and each.operations == operations for each in known):
        # Of an object with a __call__, that method.
        method = callback if inspect.isroutine(callback) else type(callback).__call__
        is_async = iscoroutinefunction(callback) or iscoroutinefunction(method)
        known.append(Listener(callback, channel, operations, is_async))
    return callback


def _check_function(channel: type[Any], callback: Any) -> None:
    what = None
    if inspect.isclass(callback):
        what = f"the class {callback.__qualname__}"
    elif not callable(callback):
        what = repr(callback)
    elif inspect.isgeneratorfunction(callback) or inspect.isasyncgenfunction(callback):
        what = f"the generator function {callback.__qualname__}, whose body would never run"
    if what is not None:
        raise PubsubError(
            f"A listener of {channel.name()} is a function or a coroutine function, not {what}"
        )
