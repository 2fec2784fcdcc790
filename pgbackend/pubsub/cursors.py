"""Cursors for the statements of this package."""

from __future__ import annotations

from typing import Any

from django.db import connections

from ..session.clean import CleanSQL
from ..sql.direct import DirectCursor, cursor_for
from ..wrapper.attributes import BackendWrapper

# The statements of this package leave the session as it was, as those of the ORM do.
_OWN = CleanSQL()


def own_cursor(alias: str) -> Any:
    """Return a cursor for statements of this package alone, with the part of DB-API they use.

    Where the ORM's statements go the short way, so do these: the first one of a transaction and the
    BEGIN are one message, and no cursor of psycopg is made. Elsewhere it is Django's cursor. A
    statement with SQL of the project in it needs ``connections[alias].cursor()``, which looks at
    what it does to the session.
    """
    wrapper = connections[alias]
    if isinstance(wrapper, BackendWrapper):
        return cursor_for(wrapper, _OWN)
    return wrapper.cursor()


def takes_several(cursor: Any) -> bool:
    """Return whether several statements of *cursor* may be one text; the first has the result."""
    return isinstance(cursor, DirectCursor)
