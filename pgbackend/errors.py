"""Errors of this backend's own."""

from __future__ import annotations

from django.db import OperationalError


class NotCommitted(OperationalError):
    """A block was left without an exception, but what it did was rolled back.

    Something in it had ended in a way that only a rollback could answer, and the application
    caught that: the connection was lost, or the end of a block inside was interrupted. The cause
    is in ``__cause__``. Of an outermost block nothing is committed, and no hooks of ``on_commit``
    run; of a nested one nothing is kept, and the block around it may go on.
    """


class CommitInDoubt(OperationalError):
    """The connection was lost while the server was committing: it may have, or may not.

    Nothing is tried again and no hooks of ``on_commit`` run. A transaction that noted its id
    (``SELECT pg_current_xact_id()``) is settled by ``SELECT pg_xact_status(id)`` on another
    connection.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
    """
