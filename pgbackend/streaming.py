"""``aiterator()`` that closes its cursor, inside the bridge, when it is left early.

Django drops the generators inside it: the one that holds the cursor would be finalized where
nothing can be awaited, and whenever the event loop gets to it. These functions are methods of
its iterables and querysets; see `patches`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncGenerator, Callable
from itertools import islice
from typing import Any

import psycopg
from django.db import DatabaseError, InterfaceError

from . import aliases
from .cursor import collect_opened
from .routing import all_run_bridged, run_for_aliases

logger = logging.getLogger("pgbackend.connection")


async def chunks(self: Any) -> AsyncGenerator[Any, None]:
    """Yield an iterable's rows, a chunk of them for each call into the bridge."""
    rows = iter(self)
    used: set[str | None] = set()
    cursors: list[Any] = []

    def next_slice() -> list[Any]:
        with collect_opened(cursors):
            return list(islice(rows, self.chunk_size))

    async def call(function: Callable[[], Any]) -> Any:
        if used:
            return await run_for_aliases(used, function)
        with aliases.remembering():
            used.update({None} if all_run_bridged() else aliases.of_queryset(self.queryset))
            return await run_for_aliases(used, function)

    def close() -> None:
        # By name: closing the outer generator leaves the inner one, and with it the
        # cursor, to a destructor, where errors and cancellations are lost.
        for cursor in cursors:
            cursor.close()
        rows.close()

    try:
        while True:
            chunk = await call(next_slice)
            for item in chunk:
                yield item
            if len(chunk) < self.chunk_size:
                break
    finally:
        ended_by = sys.exception()
        try:
            await call(close)
        except (psycopg.Error, DatabaseError, InterfaceError) as error:
            if ended_by is None:
                raise
            # Not in place of the exception, a cancellation perhaps, that ends the reading.
            logger.warning("a server-side cursor could not be closed: %s", error)
        finally:
            # It refers to this frame.
            del ended_by


def rows(self: Any) -> AsyncGenerator[Any, None]:
    """Return what `chunks` yields, and let the queryset's ``aiterator()`` know of it."""
    found: AsyncGenerator[Any, None] = self._async_generator()
    if hasattr(self.queryset, "_pgbackend_rows"):
        self.queryset._pgbackend_rows.append(found)
    return found


def closing(
    aiterator: Callable[..., AsyncGenerator[Any, None]],
) -> Callable[..., AsyncGenerator[Any, None]]:
    """Return *aiterator* with an end that closes what it opened."""

    async def patched(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        # A copy, to learn of no other iteration's rows.
        queryset = self._chain()
        queryset._pgbackend_rows = []
        items = aiterator(queryset, *args, **kwargs)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()
            for each in queryset._pgbackend_rows:
                await each.aclose()

    return patched
