"""How the listening connection connects: as the alias does, or by a DSN of its own."""

from __future__ import annotations

from typing import Any

from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from .settings import listen_dsn

# Arguments of a database wrapper that are for its own cursors and pools.
_OF_WRAPPERS = ("context", "cursor_factory", "prepare_threshold", "row_factory")


def arguments_of(alias: str) -> dict[str, Any]:
    """Return the arguments for psycopg that the database wrapper of *alias* connects with.

    The wrapper may be this backend's or Django's own. What the setting ``PGPUBSUB_LISTEN_DSN``
    says, a DSN or one for each alias, comes before what ``DATABASES`` says: the server itself,
    where a pooler stands before it.
    """
    arguments = {
        name: value
        for name, value in connections[alias].get_connection_params().items()
        if name not in _OF_WRAPPERS
    }
    dsn = listen_dsn()
    if isinstance(dsn, dict):
        dsn = dsn.get(alias)
    if dsn:
        arguments.update(conninfo_to_dict(dsn))
    return arguments
