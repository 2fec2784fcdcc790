"""Settings of the database that a request or task has, and each transaction of it that writes.

A session's setting would be that of the connection's next borrower. So the value is a variable of
the request or task, and ``set_config(..., true)`` sets it in a transaction before the first
statement that may run a trigger. Such a statement outside of a transaction has one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections, transaction

from .. import is_bridged

CONTEXT = "pgpubsub.notification_context"
# "on": plain notifications go through rows, whatever their length; for tests.
BY_ROW = "pgpubsub.by_row"

SET = "set_config(%s, %s, true)"

# The values by alias and setting. An empty one was taken back; a transaction may have it still.
_values: ContextVar[dict[str, dict[str, str]] | None] = ContextVar("pgpubsub_values", default=None)

# The list of on_commit hooks of the transaction in which a wrapper's settings were set, and their
# values. Django puts another list in its place at each commit, rollback, and rollback to a
# savepoint: those that undo the settings.
_set_in: WeakKeyDictionary[Any, tuple[list[Any], dict[str, str]]] = WeakKeyDictionary()

# Statements that may run a trigger, behind comments and in a WITH, too.
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", re.DOTALL)
_WRITES = re.compile(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY|CALL|DO|EXECUTE)\b", re.IGNORECASE)
_WITH = re.compile(r"WITH\b.*\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE | re.DOTALL)


def carried(alias: str, setting: str) -> str:
    """Return the value of *setting* that this request or task has on *alias*; "": none."""
    return (_values.get() or {}).get(alias, {}).get(setting, "")


def carry(alias: str, setting: str, value: str) -> None:
    """Set *setting* to *value* in the transactions of this request or task on *alias*."""
    values = _values.get() or {}
    of_alias = values.get(alias, {})
    if value == "" and setting not in of_alias:
        return
    # Other dictionaries: tasks that were started before have these.
    _values.set({**values, alias: {**of_alias, setting: value}})
    wrappers = connections[alias].execute_wrappers
    if value and _set_before not in wrappers:
        wrappers.append(_set_before)


def forget(setting: str) -> None:
    """Forget *setting* on all aliases, where no transaction is open."""
    values = _values.get()
    if values:
        rest = {
            alias: {name: value for name, value in of_alias.items() if name != setting}
            for alias, of_alias in values.items()
        }
        _values.set({alias: of_alias for alias, of_alias in rest.items() if of_alias})


def _set_before(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Set what is to be set before a statement that may run a trigger; an ``execute_wrapper``."""
    connection = context["connection"]
    alias = connection.alias
    values = (_values.get() or {}).get(alias)
    if not values or not _may_write(sql):
        return execute(sql, params, many, context)
    if connection.in_atomic_block:
        if not is_bridged():
            _set_what_differs(connection, values)
            return execute(sql, params, many, context)
        # Tasks of one transaction take turns by statements; a block is a turn of its own.
        before = connection.needs_rollback
        try:
            with transaction.atomic(using=alias, savepoint=False):
                _set_what_differs(connection, values)
                return execute(sql, params, many, context)
        except BaseException:
            # As after any statement that fails: it is for the application's own block to say.
            connection.needs_rollback = before
            raise
    there = {setting: value for setting, value in values.items() if value}
    if there and connection.get_autocommit():
        with transaction.atomic(using=alias):
            _set(connection, there)
            return execute(sql, params, many, context)
    _set(connection, there)
    return execute(sql, params, many, context)


def _set_what_differs(connection: Any, values: dict[str, str]) -> None:
    """Set *values* in the transaction that is open, but for those that it has already."""
    hooks = connection.run_on_commit
    set_in, has = _set_in.get(connection, (None, {}))
    if set_in is not hooks:
        has = {}
    _set(connection, {name: value for name, value in values.items() if has.get(name, "") != value})
    _set_in[connection] = (hooks, values)


def _set(connection: Any, values: dict[str, str]) -> None:
    if values:
        calls = ", ".join([SET] * len(values))
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {calls}", [each for pair in values.items() for each in pair])


def _may_write(sql: Any) -> bool:
    """Whether *sql*, text or of psycopg.sql, may run a trigger."""
    if isinstance(sql, bytes):
        sql = sql.decode(errors="replace")
    elif not isinstance(sql, str):
        sql = sql.as_string(None)
    begin = _COMMENTS.match(sql)
    rest = sql[begin.end() if begin else 0 :]
    return bool(_WRITES.match(rest) or _WITH.match(rest))
