"""Errors that this backend adds to Django's."""

from __future__ import annotations

from django.db import OperationalError


class NotCommitted(OperationalError):
    """A block was left without an exception, but its work was rolled back.

    The connection was lost in the block, or the end of an inner block was interrupted. Only a
    rollback could answer that, and the application caught the error, which is in ``__cause__``. If
    the block is the outermost one, nothing is committed, and no hooks of ``on_commit`` run. If it
    is nested, none of its work is kept, and the outer block may go on.
    """


class CommitInDoubt(OperationalError):
    """The connection was lost while the server was committing: it may have committed, or not.

    Nothing is tried again, and no hooks of ``on_commit`` run. A transaction that noted its id
    (``SELECT pg_current_xact_id()``) can be checked by ``SELECT pg_xact_status(id)`` on another
    connection.

    https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
    """


class NotRun(OperationalError):
    """A statement of a gathered call was not run: another one in its message failed before.

    The error of the other one is in ``__cause__``. See `pgbackend.futures.gather`.
    """
