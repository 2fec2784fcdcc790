"""``aiterator()`` that closes its cursor in the bridge when it is left early.

Django drops the inner generators: the one that holds the cursor would be finalized where nothing
can be awaited, at any later time. The functions here become methods of Django's iterables and
querysets; see `patch`.
"""

from __future__ import annotations

import functools
import logging
import sys
from asyncio import _get_running_loop
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from itertools import islice
from types import ModuleType
from typing import Any
from weakref import ref

import psycopg
from django.db import DatabaseError, InterfaceError, connections

from ..fingerprints import fingerprint, is_known
from ..wrapper.cursors import LeaseHolder, collect_opened_cursors
from ..wrapper.dispatch import all_run_bridged, run_for_aliases, runs_bridged
from . import aliases

logger = logging.getLogger("pgbackend.connection")


class Reading:
    """One iteration by ``aiterator()``: its generators, and the cursors they have opened."""

    def __init__(self) -> None:
        self.generators: list[AsyncGenerator[Any, None]] = []
        # The server-side cursors.
        self.cursors: list[LeaseHolder] = []

    def close(self) -> None:
        """Close the cursors in the server, waiting through the bridge."""
        for cursor in self.cursors:
            cursor.close_in_server()

    def close_later(self) -> None:
        """Have the cursors closed later, without waiting; from any thread."""
        for cursor in self.cursors:
            cursor.close_later()


# The readings of the generators made by `closing`, by weak references to the generators.
_readings: dict[ref[AsyncGenerator[Any, None]], Reading] = {}


def _close_dropped(generator: ref[AsyncGenerator[Any, None]]) -> None:
    """Have the cursors of a generator that is no longer referenced closed.

    The loop closes the generator, too, but in a task of its own, and later: by then the reader may
    be in another transaction, or have rolled back to a savepoint.
    """
    _readings.pop(generator).close_later()


class Chunks:
    """The rows of an iterable, a chunk with each call into the bridge."""

    def __init__(self, iterable: Any, reading: Reading) -> None:
        self._iterable = iterable
        self._reading = reading
        # It is made in the bridge: for values_list() that already executes the statement.
        self._rows: Iterator[Any] | None = None
        self._used: set[str | None] = set()

    async def fetch(self) -> list[Any]:
        """Return the next rows; fewer than the size of a chunk are the last."""
        found: list[Any] = await self._call(self._next_slice)
        return found

    async def end(self) -> None:
        """Close what was opened, while the exception that ends the reading is handled."""
        ended_by = sys.exception()
        closed = isinstance(ended_by, GeneratorExit)
        try:
            if closed and (_get_running_loop() is None or all(map(runs_bridged, self._used))):
                # The reader's coroutine may be the one that was closed, where nothing can be
                # awaited.
                self._reading.close_later()
            else:
                await self._call(self._close)
        except (psycopg.Error, DatabaseError, InterfaceError) as error:
            if ended_by is None:
                raise
            # Do not replace the exception, possibly a cancellation, that ends the reading.
            logger.warning("a server-side cursor could not be closed: %s", error)
        finally:
            # The exception refers to this frame: drop the reference back.
            del ended_by

    def _next_slice(self) -> list[Any]:
        with collect_opened_cursors(self._reading.cursors):
            if self._rows is None:
                self._rows = iter(self._iterable)
            return list(islice(self._rows, self._iterable.chunk_size))

    async def _call(self, function: Callable[[], Any]) -> Any:
        used = self._used
        if used:
            return await run_for_aliases(used, function)
        with aliases.remembering():
            queryset = self._iterable.queryset
            used.update({None} if all_run_bridged() else aliases.of_queryset(queryset))
            return await run_for_aliases(used, function)

    def _close(self) -> None:
        # Close the inner generator explicitly: closing the outer one leaves the inner one, and its
        # cursor, to a destructor, where errors and cancellations are lost.
        self._reading.close()
        if isinstance(self._rows, Generator):
            self._rows.close()


async def chunks(self: Any) -> AsyncGenerator[Any, None]:
    """Yield an iterable's rows; fetch one chunk with each call into the bridge."""
    found = Chunks(self, getattr(self.queryset, "_pgbackend_reading", None) or Reading())
    try:
        while True:
            chunk = await found.fetch()
            for item in chunk:
                yield item
            if len(chunk) < self.chunk_size:
                break
    finally:
        await found.end()


def rows(self: Any) -> AsyncGenerator[Any, None]:
    """Return the generator of `chunks`, and register it with the queryset's ``aiterator()``."""
    found: AsyncGenerator[Any, None] = self._async_generator()
    reading = getattr(self.queryset, "_pgbackend_reading", None)
    if reading is not None:
        reading.generators.append(found)
    return found


def closing(
    aiterator: Callable[..., AsyncGenerator[Any, None]],
) -> Callable[..., AsyncGenerator[Any, None]]:
    """Return *aiterator* with an end that closes what it opened."""

    def patched(self: Any, chunk_size: int = 2000) -> AsyncGenerator[Any, None]:
        # Use a copy, so that each iteration has its own reading.
        queryset = self._chain()
        reading = queryset._pgbackend_reading = Reading()
        if queryset._prefetch_related_lookups or _iterates_itself(queryset):
            generator = _read(aiterator(queryset, chunk_size), reading)
        else:
            generator = _read_rows(queryset, chunk_size, reading)
        _readings[ref(generator, _close_dropped)] = reading
        return generator

    return patched


def _iterates_itself(queryset: Any) -> bool:
    """Return whether *queryset*'s iterables may have asynchronous iteration of their own."""
    # It may be a function that makes them.
    cls = queryset._iterable_class
    return (
        getattr(cls, "__aiter__", None) is not rows
        or getattr(cls, "_async_generator", None) is not chunks
    )


async def _read(items: AsyncGenerator[Any, None], reading: Reading) -> AsyncGenerator[Any, None]:
    try:
        async for item in items:
            yield item
    except GeneratorExit:
        reading.close_later()
        raise
    finally:
        each: Any
        for each in (items, *reading.generators):
            # Before CPython 3.13 a waiting generator is not told that its waiting reader was
            # closed.
            if not each.ag_running:
                await each.aclose()


async def _read_rows(queryset: Any, chunk_size: int, reading: Reading) -> AsyncGenerator[Any, None]:
    """Do what ``aiterator()`` does without prefetches, and `chunks` for it.

    Each row costs less in one generator than in three, one in another.
    """
    if chunk_size <= 0:
        raise ValueError("Chunk size must be strictly positive.")
    settings = connections[queryset.db].settings_dict
    iterable = queryset._iterable_class(
        queryset,
        chunked_fetch=not settings.get("DISABLE_SERVER_SIDE_CURSORS"),
        chunk_size=chunk_size,
    )
    found = Chunks(iterable, reading)
    try:
        while True:
            chunk = await found.fetch()
            for item in chunk:
                yield item
            # Its class may set another size.
            if len(chunk) < iterable.chunk_size:
                break
    except GeneratorExit:
        reading.close_later()
        raise
    finally:
        await found.end()


def patch(module: ModuleType) -> None:
    """Let ``aiterator()`` close its cursor when it is left early. (Django 5.2 to 6.1.)"""
    iterable, queryset = module.BaseIterable, module.QuerySet
    for function in (iterable._async_generator, iterable.__aiter__, queryset.aiterator):
        if not is_known(
            f"{module.__name__}.{function.__qualname__}",
            fingerprint(function),
            "aiterator() left early closes its connection",
        ):
            return
    aiterator = queryset.aiterator
    iterable._async_generator = chunks
    iterable.__aiter__ = rows
    queryset.aiterator = functools.wraps(aiterator)(closing(aiterator))
