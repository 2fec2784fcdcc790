"""The context of notifications: what the triggers of this request or task put into their payloads.

Triggers read it from a setting of their transaction; see `carried`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.exceptions import SynchronousOnlyOperation
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, InternalError, connections
from psycopg.errors import InFailedSqlTransaction

from .. import bridged
from ..extending import runs_elsewhere
from . import settings
from .carried import CONTEXT, SET, carried, carry, forget
from .errors import PayloadError


def set_notification_context(context: dict[str, Any], using: str | None = None) -> None:
    """Put *context*, a dictionary that JSON can say, into the payloads of triggers from now on.

    It holds for the request or task that sets it, on the alias *using*, until another is set; an
    empty one ends it. With ``PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT`` it holds for the transaction
    alone: then raise RuntimeError where none is open. In a transaction that can only be rolled back
    nothing is done. Raise SynchronousOnlyOperation in a coroutine whose statements run in a thread.
    """
    alias = using or DEFAULT_DB_ALIAS
    text = _json(context)
    _check_place(alias)
    if not settings.tx_bound_context():
        carry(alias, CONTEXT, text)
        return
    connection = connections[alias]
    if connection.in_atomic_block and connection.needs_rollback:
        return
    if not connection.in_atomic_block:
        raise RuntimeError(
            "With PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT = True the context belongs to a"
            " transaction, and none is open: call it in a block of transaction.atomic()"
        )
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {SET}", [CONTEXT, text])
    except InternalError as error:
        if not isinstance(error.__cause__, InFailedSqlTransaction):
            raise


aset_notification_context = bridged(set_notification_context)


@contextmanager
def notification_context(context: dict[str, Any], using: str | None = None) -> Iterator[None]:
    """Put *context* into the payloads of triggers while the block runs.

    It is as it was before when the block ends. Asynchronous code uses ``with``, too: nothing is
    sent to the server here. Raise SynchronousOnlyOperation in a coroutine whose statements run in
    a thread.
    """
    alias = using or DEFAULT_DB_ALIAS
    _check_place(alias)
    before = carried(alias, CONTEXT)
    carry(alias, CONTEXT, _json(context))
    try:
        yield
    finally:
        carry(alias, CONTEXT, before)


def clear_context(**kwargs: Any) -> None:
    """Forget the context: a receiver of request_started. WSGI servers use threads again."""
    forget(CONTEXT)


def _check_place(alias: str) -> None:
    # The triggers would see nothing of a context that is set on the connection of another thread.
    if runs_elsewhere(alias):
        raise SynchronousOnlyOperation(
            f"The statements of this coroutine on {alias!r} run in a thread, so its context has to"
            " be set there: await aset_notification_context(context), and with {} at the end"
        )


def _json(context: dict[str, Any]) -> str:
    """Return *context* as JSON that PostgreSQL's jsonb takes; "" for an empty one."""
    if not isinstance(context, dict):
        raise TypeError(f"The notification context is a dictionary, not {context!r:.100}")
    if not context:
        return ""
    text = json.dumps(context, cls=DjangoJSONEncoder)
    if re.search(r"(?<!\\)(?:\\\\)*\\u0000", text):
        raise PayloadError("The notification context has a NUL character, which jsonb refuses")
    return text
