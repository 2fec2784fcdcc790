"""Excerpts of exceptions: as much of them as can be kept in a row, and logged, in little time.

What a listener raises may have a text of any size, a chain of any length, or a text that cannot be
had since its own `__str__` raises. Whoever formats it holds the event loop, or ends it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Any

# Characters up to which a text is told whole, and how many are told of a longer one.
LONGEST = 10_000
KEPT = 2_000

# How many exceptions are told, with their causes and the members of groups; and how many frames of
# each, the innermost ones.
MOST = 50
FRAMES = 200

# How deep arguments are looked into, and how many items of each are told of long ones.
_DEPTH = 20
_ITEMS = 5

_CONTAINERS = (list, tuple, set, frozenset, dict)
_LINKS = ("__cause__", "__context__")


def error_text(error: BaseException) -> str:
    """Return what `last_error` keeps of an error: its traceback, the innermost frames last."""
    text = "".join(traceback.format_exception(excerpt(error))).strip()
    # Names of files may have half of a surrogate pair, which no text of the server has.
    return text.encode(errors="backslashreplace").decode()


def excerpt(error: BaseException) -> BaseException:
    """Return *error*, if it is formatted soon; else one that is, of the same name, in its place.

    That one has the beginnings of the texts, the innermost frames, and the nearest of the causes.
    """
    try:
        reached = 0
        for reached, each in enumerate(_reached(error), 1):
            if reached > MOST or not _is_short(each):
                break
        else:
            return error
    except BaseException:
        # Of a property of the exception's own.
        reached = 0
    return _Excerpts().of(error)


def _reached(error: BaseException) -> Iterator[BaseException]:
    """Yield *error* and all that would be told with it, the nearest first."""
    seen: set[int] = set()
    waiting = [error]
    for each in waiting:
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [found for link in _LINKS if (found := getattr(each, link)) is not None]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions[: MOST + 1]


def _is_short(error: BaseException) -> bool:
    sizes = [_size(error.args), _size(getattr(error, "__notes__", ()))]
    return max(sizes) <= LONGEST and len(str(error)) <= LONGEST and len(_frames(error)) <= FRAMES


def _size(value: Any, depth: int = _DEPTH) -> int:
    """Return about how many characters the text of *value* has, or more than LONGEST."""
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    if isinstance(value, int):
        # Python refuses to format a long one.
        return value.bit_length()
    total = 0
    if isinstance(value, _CONTAINERS):
        for each in value.items() if isinstance(value, dict) else value:
            total += 1 + (_size(each, depth - 1) if depth else LONGEST)
            if total > LONGEST:
                break
    return total


def _frames(error: BaseException) -> list[TracebackType]:
    found = []
    frame = error.__traceback__
    while frame is not None:
        found.append(frame)
        frame = frame.tb_next
    return found


class _Excerpts:
    """Makes exceptions in place of others, up to MOST of them."""

    def __init__(self) -> None:
        self._made: dict[int, Exception] = {}

    def of(self, error: BaseException) -> Exception:
        """Return one in the place of *error*, and of what caused it."""
        first = self._one(error)
        waiting = [(error, first)]
        for each, made in waiting:
            for link in _LINKS:
                cause = _part(each, link)
                if isinstance(cause, BaseException):
                    is_new = id(cause) not in self._made
                    if is_new and len(self._made) >= MOST:
                        continue
                    setattr(made, link, self._one(cause))
                    if is_new:
                        waiting.append((cause, self._made[id(cause)]))
            made.__suppress_context__ = _part(each, "__suppress_context__") is True
        return first

    def _one(self, error: BaseException) -> Exception:
        made = self._made.get(id(error))
        if made is None:
            kind = type(error)
            text = _text(error)
            if isinstance(error, BaseExceptionGroup):
                text += "".join(
                    f"\n- {type(each).__name__}: {_text(each)}" for each in _members(error)
                )
            names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
            made = self._made[id(error)] = type(kind.__name__, (Exception,), names)(text)
            frames = _frames(error)
            made.__traceback__ = frames[max(0, len(frames) - FRAMES)] if frames else None
        return made


def _members(group: BaseExceptionGroup[Any]) -> tuple[BaseException, ...]:
    found = _part(group, "exceptions")
    return found[:_ITEMS] if isinstance(found, tuple) else ()


def _part(error: BaseException, name: str) -> Any:
    """Return what Python's own classes have under *name*, whatever the exception's own says."""
    base = BaseExceptionGroup if name == "exceptions" else BaseException
    return vars(base)[name].__get__(error)


def _text(error: BaseException) -> str:
    try:
        if _size(error.args) <= LONGEST:
            text = str(error)
        elif len(error.args) == 1 and isinstance(error.args[0], str):
            (text,) = error.args
        else:
            text = ", ".join(map(_shown, error.args[:_ITEMS]))
        notes = map(_shown, list(getattr(error, "__notes__", ()))[:_ITEMS])
        length = len(text)
        shown = text if length <= LONGEST else f"{text[:KEPT]}... ({length:,} characters)"
        return "\n".join([shown, *notes])
    except BaseException as trouble:
        # As the module traceback does, whatever it is.
        return f"<its text cannot be had: {type(trouble).__name__}>"


def _shown(value: Any, depth: int = 3) -> str:
    """Return the beginning of the representation of *value*."""
    if isinstance(value, str | bytes | bytearray):
        return repr(value[:KEPT])
    if depth and isinstance(value, _CONTAINERS):
        items = islice(value.items() if isinstance(value, dict) else value, _ITEMS)
        shown = ", ".join(_shown(each, depth - 1) for each in items)
        if len(value) <= _ITEMS:
            return f"({shown})"
        return f"{type(value).__name__} of {len(value):,}: {shown}, ..."
    return repr(value)[:KEPT] if depth else "..."
