"""Whether other code, an instrumentation or a test case, takes part in sending statements.

A subclass of the backend's wrapper may take part, too. Only where none does, the way to the server
may be shorter.
"""

from __future__ import annotations

import functools
from operator import attrgetter, call, itemgetter
from types import FunctionType
from typing import Any, TypeVar

import psycopg
from django.apps import apps
from django.db.backends import utils
from django.db.backends.postgresql.base import Cursor

T = TypeVar("T", bound=type)

# The methods that the short way skips. Code that replaces one of them, as test cases do to forbid
# connections, wants to see statements.
_OF_WRAPPER = (
    "cursor",
    "_cursor",
    "_prepare_cursor",
    "create_cursor",
    "make_cursor",
    "ensure_connection",
    "connect",
)

_OF_DJANGOS = ("execute", "_execute", "_execute_with_wrappers")

_OF_PSYCOPGS = ("execute", "fetchone", "fetchall")

_of_wrapper = attrgetter(*_OF_WRAPPER)

_of_psycopgs = attrgetter(*_OF_PSYCOPGS)

# The backend's own class of wrappers; see `own_wrapper_class`.
_own_wrapper_class: type | None = None


def own_wrapper_class(cls: T) -> T:
    """Register *cls* as the backend's own wrapper class, to compare others with."""
    global _own_wrapper_class
    _own_wrapper_class = cls
    return cls


def may_skip_cursors(wrapper: Any) -> bool:
    """Return whether statements may skip Django's cursors: none of their methods was replaced."""
    if wrapper.configures_pool or not apps.ready:
        return False
    of_wrapper, of_psycopgs, looks, held, of_classes, size = originals()
    replaced: bool = (
        _of_wrapper(type(wrapper)) != of_wrapper
        or _of_psycopgs(Cursor) != of_psycopgs
        or list(map(call, looks, held)) != of_classes
        # Django's class does not define ``fetchone()`` and similar methods: they may have been
        # added.
        or len(utils.CursorWrapper.__dict__) != size
        or not wrapper.__dict__.keys().isdisjoint(_OF_WRAPPER)
    )
    return not replaced


@functools.cache
def originals() -> tuple[Any, ...]:
    """Return the original methods: Django's, psycopg's or ours.

    They are looked up once, when `base` is imported: later on, Django's test cases replace some to
    forbid queries. A method that was already replaced by then counts as None here, so
    `may_skip_cursors()` is always False. Methods that the backend's own methods call by ``super()``
    are compared in the classes that define them.
    """
    assert _own_wrapper_class is not None
    places: list[tuple[type, list[str]]] = [
        (utils.CursorWrapper, list(_OF_DJANGOS)),
        (psycopg.Connection, ["cursor"]),
    ]
    seen: set[str] = set()
    for cls in _own_wrapper_class.__mro__:
        names = vars(cls).keys() & set(_OF_WRAPPER)
        if overridden := sorted(names & seen):
            places.append((cls, overridden))
        seen |= names
    looks, held, of_classes = [], [], []
    for cls, found in places:
        looks.append(itemgetter(*found))
        held.append(vars(cls))
        originals = tuple(_original(vars(cls)[name]) for name in found)
        of_classes.append(originals if len(found) > 1 else originals[0])
    return (
        tuple(map(_original, _of_wrapper(_own_wrapper_class))),
        tuple(map(_original, _of_psycopgs(Cursor))),
        looks,
        held,
        of_classes,
        len(vars(utils.CursorWrapper)),
    )


def _original(function: Any) -> Any:
    modules = ("django.", "psycopg.", "pgbackend.")
    ours = isinstance(function, FunctionType) and function.__globals__["__name__"].startswith(
        modules
    )
    return function if ours else None
