"""What packages over this backend may use of it, beside the modules that applications import.

`pgbackend.pubsub` needs no other part of the backend's: cursors for a package's own statements, and
whether an alias runs on the loop. A package that uses Django's cursors needs none of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from django.db import connections

from .session.clean import CleanSQL
from .sql.direct import DirectCursor, cursor_for
from .sql.kept_statements import KeptStatement
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import runs_bridged

__all__ = [
    "KeptStatement",
    "execute_kept",
    "is_own",
    "look_ahead",
    "own_cursor",
    "runs_elsewhere",
    "runs_on_loop",
    "takes_several",
]

# The statements of such a package leave the session as it was, as those of the ORM do.
_OWN = CleanSQL()


def is_own(wrapper: object) -> bool:
    """Return whether *wrapper*, of ``connections``, is this backend's."""
    return isinstance(wrapper, BackendWrapper)


def runs_on_loop(alias: str) -> bool:
    """Return whether statements of *alias* run on the event loop where a call is bridged."""
    wrapper = connections[alias]
    return isinstance(wrapper, BackendWrapper) and bool(wrapper.bridge_enabled)


def look_ahead(alias: str, *, pool: bool) -> None:
    """Look up what the first statement of this bridged call needs, and keep it for that one.

    That are the wrapper, the running task's state and, with *pool*, the pool: where the loop has
    none yet, it is opened.
    """
    wrapper = connections[alias]
    if isinstance(wrapper, BackendWrapper):
        wrapper.bridged_state()
        if pool:
            _ = wrapper.async_pool


def runs_elsewhere(alias: str) -> bool:
    """Return whether this is a coroutine whose statements on *alias* run in a thread.

    ``connections[alias]`` is not their connection then.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return not runs_bridged(alias)


def own_cursor(alias: str) -> Any:
    """Return a cursor for statements of one package alone, with the part of DB-API they use.

    That is ``execute(sql, params)``, ``rowcount``, ``fetchone()``, ``fetchall()`` and ``with``.
    Where the ORM's statements go the short way, so do these: the first one of a transaction and the
    BEGIN are one message, and no cursor of psycopg is made. Elsewhere, and for other backends, it
    is Django's cursor. The statements must leave the session as it was: one with SQL of the project
    in it needs ``connections[alias].cursor()``, which looks at what it does to the session.
    """
    wrapper = connections[alias]
    if isinstance(wrapper, BackendWrapper):
        return cursor_for(wrapper, _OWN)
    return wrapper.cursor()


def execute_kept(cursor: Any, kept: KeptStatement, params: Sequence[Any]) -> None:
    """Execute a statement on an `own_cursor`, whose connection may have the server plan it once.

    The first statement of a transaction or in autocommit is worth it. The plan may be one that was
    right when the table was smaller.
    """
    if isinstance(cursor, DirectCursor):
        cursor.execute_kept(kept, params)
    else:
        cursor.execute(kept.sql, params)


def takes_several(cursor: Any) -> bool:
    """Return whether several statements of an `own_cursor` may be one text.

    The first of them has the result.
    """
    return isinstance(cursor, DirectCursor)
