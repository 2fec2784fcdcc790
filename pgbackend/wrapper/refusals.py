"""The message for the synchronous ORM on a running event loop: what was used, and its cure.

The stack of the refused call says what was used. It is read only for the message.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

import asgiref.sync
from django.db import models, transaction
from django.db.models.query import RawQuerySet

# Code of these packages is not the application's.
_BELOW = ("django.db.", "pgbackend.", "django.utils.asyncio")

_BRIDGED = (
    "; or decorate the function with @pgbackend.bridged and await it. Requests are bridged under an"
    " ASGI server, and tests with pgbackend's test runner or pytest plugin."
)

# `bridged` takes no asynchronous generator.
_GENERATOR = "decorate the function that iterates over this asynchronous generator"

_UNDER_WSGI = (
    "; or move the code into a synchronous function, and `await pgbackend.bridged(function)(...)`,"
    " which runs it in the thread. This event loop is one of async_to_sync, as for an asynchronous"
    " view under a WSGI server; requests are bridged under an ASGI server, such as `manage.py"
    " runserver` where uvicorn is installed."
)

# Methods of Django's models that have no asynchronous form.
_SYNCHRONOUS = ("clean_fields", "full_clean", "validate_constraints", "validate_unique")

_IN_GENERAL = (
    "Await the asynchronous form, as in `await queryset.aget()`, `async for row in queryset`,"
    " `await instance.asave()` or `async with transaction.atomic()`, and fetch relations by"
    " select_related()"
)


def refusal(alias: str) -> str:
    """Return the message for the running code, which has used *alias* on the running loop."""
    what = _used(inspect.currentframe())
    first = f"The synchronous ORM was used on the running event loop (alias {alias!r})"
    first += f": {what}" if what else f". {_IN_GENERAL}"
    # The loops that run for a thread which waits in async_to_sync.
    waited_for = asyncio.get_running_loop() in asgiref.sync.AsyncToSync.loop_thread_executors
    if waited_for:
        return first + _UNDER_WSGI
    in_generator = _is_in_generator(inspect.currentframe())
    return first + (
        _BRIDGED.replace("decorate the function", _GENERATOR) if in_generator else _BRIDGED
    )


def _is_in_generator(frame: FrameType | None) -> bool:
    """Return whether the application's own call is in an asynchronous generator."""
    while frame is not None and _is_below(frame):
        frame = frame.f_back
    return frame is not None and bool(frame.f_code.co_flags & inspect.CO_ASYNC_GENERATOR)


def _is_below(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith(_BELOW)


def _used(frame: FrameType | None) -> str | None:
    """Say what the application used, and what it would use instead; None if that is unclear."""
    words = None
    cursor = False
    for each in _frames_below(frame):
        name, subject = each.f_code.co_name, _subject(each)
        # The last one is the application's own call.
        words = _of_attribute(name, subject, each) or _of_call(name, subject) or words
        cursor = cursor or name in ("cursor", "chunked_cursor")
    if words is None and cursor:
        return (
            "a cursor was opened, which has no asynchronous form. Put what uses it into a function"
            " that is decorated with @pgbackend.bridged, and await that"
        )
    return words


def _frames_below(frame: FrameType | None) -> Iterator[FrameType]:
    """Return the frames from *frame* to the last one below the application's."""
    while frame is not None and _is_below(frame):
        yield frame
        frame = frame.f_back


def _subject(frame: FrameType) -> Any:
    """Return the object whose method runs in *frame*."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _of_attribute(name: str, subject: Any, frame: FrameType) -> str | None:
    """Say it for an attribute of an instance: a relation, or a deferred field."""
    instance = frame.f_locals.get("instance")
    if name != "__get__" or not isinstance(instance, models.Model):
        return None
    model = type(instance).__name__
    if hasattr(subject, "related"):
        attribute = subject.related.get_accessor_name()
    elif hasattr(subject, "is_cached"):
        attribute = subject.field.name
    else:
        attribute = subject.field.attname
        return (
            f"{model}.{attribute} is deferred. Load it by `await instance.arefresh_from_db("
            f"fields=[{attribute!r}])`, or with the instance"
        )
    return (
        f"{model}.{attribute} was not fetched. Fetch it with the instance, by"
        f" `select_related({attribute!r})`; or before, by `await"
        f" aprefetch_related_objects([instance], {attribute!r})`"
    )


def _of_call(name: str, subject: Any) -> str | None:
    """Say it for a method with an asynchronous form, for iterating, or for a block."""
    if isinstance(subject, transaction.Atomic):
        return "`with atomic()`. Write `async with transaction.atomic():`"
    if name == "prefetch_related_objects":
        return "prefetch_related_objects(). Write `await aprefetch_related_objects(...)`"
    if not isinstance(subject, models.Model | models.QuerySet | models.Manager | RawQuerySet):
        return None
    of = subject if isinstance(subject, models.Model) else subject.model
    model = type(of).__name__ if isinstance(of, models.Model) else of.__name__
    if isinstance(subject, models.Model) and name in _SYNCHRONOUS:
        return (
            f"{name}() of {model}, which has no asynchronous form. Put it into a"
            " function that is decorated with @pgbackend.bridged, and await that"
        )
    if name.lstrip("_") == "iterator" and hasattr(subject, "aiterator"):
        return f"iterator() of {model}. Write `async for row in queryset.aiterator()`"
    if not name.startswith("_") and hasattr(subject, f"a{name}"):
        return f"{name}() of {model}. Write `await ... .a{name}(...)`"
    if name in ("__iter__", "__len__", "__bool__", "__getitem__", "__repr__", "__contains__"):
        return (
            f"a queryset of {model} was evaluated, by {name}(). Write `async for row in queryset`,"
            " or await acount(), aexists(), afirst() or acontains()"
        )
    return None
