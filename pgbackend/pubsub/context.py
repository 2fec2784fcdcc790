"""The context of notifications: what the triggers of this request or task put into their payloads.

Triggers read it from the setting ``pgpubsub.notification_context`` of their transaction, and from
no session: in a pool a session is somebody else's next. So the context is a variable of the request
or task, and each transaction that writes gets it by ``set_config(..., true)`` before its first
statement that may run a trigger. Such a statement outside of a transaction has one of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, InternalError, connections, transaction
from psycopg.errors import InFailedSqlTransaction

from .. import bridged, is_bridged
from . import settings
from .errors import PayloadError

SET = "SELECT set_config('pgpubsub.notification_context', %s, true)"

# The context of each alias, as JSON.
_contexts: ContextVar[dict[str, str] | None] = ContextVar("pgpubsub_contexts", default=None)

# The list of on_commit hooks of the transaction in which a wrapper's context was set, and that
# context. Django puts another list in its place at each commit, rollback, and rollback to a
# savepoint: those that undo the setting.
_set_in: WeakKeyDictionary[Any, tuple[list[Any], str]] = WeakKeyDictionary()

# Statements that may run a trigger, behind comments and in a WITH, too.
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", re.DOTALL)
_WRITES = re.compile(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY|CALL|DO|EXECUTE)\b", re.IGNORECASE)
_WITH = re.compile(r"WITH\b.*\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE | re.DOTALL)


def set_notification_context(context: dict[str, Any], using: str | None = None) -> None:
    """Put *context*, a dictionary that JSON can say, into the payloads of triggers from now on.

    It holds for the request or task that sets it, on the alias *using*, until another is set; an
    empty one ends it. With ``PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT`` it holds for the transaction
    alone: then raise RuntimeError where none is open. In a transaction that can only be rolled back
    nothing is done.
    """
    alias = using or DEFAULT_DB_ALIAS
    text = _json(context)
    if not settings.tx_bound_context():
        _carry_from_now_on(alias, text)
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
            cursor.execute(SET, [text])
    except InternalError as error:
        if not isinstance(error.__cause__, InFailedSqlTransaction):
            raise


aset_notification_context = bridged(set_notification_context)


@contextmanager
def notification_context(context: dict[str, Any], using: str | None = None) -> Iterator[None]:
    """Put *context* into the payloads of triggers while the block runs.

    It is as it was before when the block ends. Asynchronous code uses ``with``, too: nothing is
    sent to the server here.
    """
    alias = using or DEFAULT_DB_ALIAS
    before = (_contexts.get() or {}).get(alias, "")
    _carry_from_now_on(alias, _json(context))
    try:
        yield
    finally:
        _carry_from_now_on(alias, before)


def clear_context(**kwargs: Any) -> None:
    """Forget the context: a receiver of request_started. WSGI servers use threads again."""
    _contexts.set(None)


def _carry_from_now_on(alias: str, text: str) -> None:
    # Another dictionary: tasks that were started before have the same one.
    contexts = {**(_contexts.get() or {})}
    if text:
        contexts[alias] = text
    elif contexts.pop(alias, None) is not None:
        # A transaction that is open has it still.
        contexts[alias] = ""
    _contexts.set(contexts)
    wrappers = connections[alias].execute_wrappers
    if _carry not in wrappers and contexts.get(alias):
        wrappers.append(_carry)


def _carry(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Set the context before a statement that may run a trigger; an ``execute_wrapper``."""
    connection = context["connection"]
    text = (_contexts.get() or {}).get(connection.alias)
    if text is None or not _may_write(sql):
        return execute(sql, params, many, context)
    alias = connection.alias
    if connection.in_atomic_block:
        if not is_bridged():
            _set_if_other(connection, text)
            return execute(sql, params, many, context)
        # Tasks of one transaction take turns by statements; a block is a turn of its own.
        before = connection.needs_rollback
        try:
            with transaction.atomic(using=alias, savepoint=False):
                _set_if_other(connection, text)
                return execute(sql, params, many, context)
        except BaseException:
            # As after any statement that fails: it is for the application's own block to say.
            connection.needs_rollback = before
            raise
    if text and connection.get_autocommit():
        with transaction.atomic(using=alias):
            _set(connection, text)
            return execute(sql, params, many, context)
    if text:
        _set(connection, text)
    return execute(sql, params, many, context)


def _set_if_other(connection: Any, text: str) -> None:
    """Set the context in the transaction that is open, unless that has it already."""
    hooks = connection.run_on_commit
    set_in, set_to = _set_in.get(connection, (None, ""))
    if set_in is not hooks:
        set_to = ""
    if set_to != text:
        _set(connection, text)
        _set_in[connection] = (hooks, text)


def _set(connection: Any, text: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(SET, [text])


def _may_write(sql: Any) -> bool:
    """Whether *sql*, text or of psycopg.sql, may run a trigger."""
    if isinstance(sql, bytes):
        sql = sql.decode(errors="replace")
    elif not isinstance(sql, str):
        sql = sql.as_string(None)
    begin = _COMMENTS.match(sql)
    rest = sql[begin.end() if begin else 0 :]
    return bool(_WRITES.match(rest) or _WITH.match(rest))


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
