"""Errors of this backend's own."""

from __future__ import annotations

from django.db import OperationalError


class CommitInDoubt(OperationalError):
    """The connection was lost while the server was committing: it may have, or may not.

    Nothing is tried again and no hooks of ``on_commit`` run. A transaction that noted its id
    (``SELECT pg_current_xact_id()``) is settled by ``SELECT pg_xact_status(id)`` on another
    connection.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
    """
