"""Replace a ``threading.local`` of another package by one of the context.

On the event loop one thread serves all requests, and several threads may serve one request. A
package that keeps a request's data in a ``threading.local`` would show it to other requests, or
miss it. A `ContextLocal` belongs to the context instead, as Django's own state does: tasks and
threads of a request inherit it, and asgiref moves its values between them and back. A
`RequestLocal` is shared by all tasks and threads of a request.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from ..tasks.request import running_request


class ContextLocal:
    """Attributes of the running context, with the interface of `threading.local`.

    With *copied*, a set, list or dict is copied whenever it is read: changing it changes it for
    this context, and for those that are begun from here later.
    """

    _values: ContextVar[dict[str, Any]]
    _copied: bool

    def __init__(self, *, copied: bool = False) -> None:
        self.__dict__["_values"] = ContextVar("pgbackend_context_local")
        self.__dict__["_copied"] = copied

    def __getattr__(self, name: str) -> Any:
        try:
            value = self._values.get({})[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            ) from None
        if self._copied and isinstance(value, set | list | dict):
            value = copy.copy(value)
            setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._values.set({**self._values.get({}), name: value})

    def __delattr__(self, name: str) -> None:
        values = dict(self._values.get({}))
        if name not in values:
            raise AttributeError(name, name=name, obj=self)
        del values[name]
        self._values.set(values)


class RequestLocal:
    """Attributes of the running context's request, shared by all its tasks and threads.

    Outside of requests, the attributes belong to the context in which the first one was set, and to
    contexts begun from there.
    """

    _values: ContextVar[tuple[object, dict[str, Any]]]

    def __init__(self) -> None:
        self.__dict__["_values"] = ContextVar("pgbackend_request_local")

    def _of_request(self) -> dict[str, Any]:
        owner, values = self._values.get((self, {}))
        request = running_request()
        if owner is not request:
            values = {}
            self._values.set((request, values))
        return values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._of_request()[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._of_request()[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in (values := self._of_request()):
            raise AttributeError(name, name=name, obj=self)
        del values[name]


Local = ContextLocal | RequestLocal

# The replacement for each module. django-pgtrigger keeps the triggers to ignore in a set that it
# changes in place. django-silk's collector gathers what a request executes.
MODULES: dict[str, Callable[[], Local]] = {
    "pghistory.runtime": ContextLocal,
    "pgtrigger.runtime": functools.partial(ContextLocal, copied=True),
    "silk.collector": RequestLocal,
}


def replace(module: ModuleType) -> None:
    """Replace each ``threading.local`` in the globals of *module*, and the class itself there.

    An attribute of an object among the globals is replaced, too. The calling thread's values are
    taken over.
    """
    make = MODULES[module.__name__]
    _replace(module, make)
    for value in list(vars(module).values()):
        if type(value).__module__ == module.__name__ and hasattr(value, "__dict__"):
            _replace(value, make)


def _replace(owner: Any, make: Callable[[], Local]) -> None:
    for name, value in list(vars(owner).items()):
        if value is threading.local:
            setattr(owner, name, make)
        elif type(value) is threading.local:
            local = make()
            for attribute, content in vars(value).items():
                setattr(local, attribute, content)
            setattr(owner, name, local)
