"""Settings of the database that a request or task has, and each transaction of it that writes.

A session's setting would be that of the connection's next borrower. So the value is a variable of
the request or task, and ``set_config(..., true)`` sets it in a transaction before the first
statement that may run a trigger. Such a statement outside of a transaction has one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, finalize, ref

from django.db import connections, transaction

from .. import is_bridged

CONTEXT = "pgpubsub.notification_context"
# "on": plain notifications go through rows, whatever their length; for tests.
BY_ROW = "pgpubsub.by_row"

SET = "set_config(%s, %s, true)"

# The values by alias and setting, with what holds their `Setter` on each connection that they were
# set on: threads have copies of a context. An empty value was taken back, in a transaction that may
# have it still.
_values: ContextVar[dict[str, tuple[dict[str, str], tuple[Hold, ...]]] | None] = ContextVar(
    "pgpubsub_values", default=None
)

# Of a wrapper, the transaction in which settings were set, by its list of on_commit hooks, and what
# they are there. Django puts another list in its place at each commit, rollback, and rollback to a
# savepoint: those that undo the settings.
_set_in: WeakKeyDictionary[Any, tuple[list[Any], dict[str, str], Hold]] = WeakKeyDictionary()

# Statements that may run a trigger, behind comments and in a WITH, too.
_COMMENTS = re.compile(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", re.DOTALL)
_WRITES = re.compile(r"(?:INSERT|UPDATE|DELETE|MERGE|COPY|CALL|DO|EXECUTE)\b", re.IGNORECASE)
_WITH = re.compile(r"WITH\b.*\b(?:INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE | re.DOTALL)


def carried(alias: str, setting: str) -> str:
    """Return the value of *setting* that this request or task has on *alias*; "": none."""
    return _of(alias).get(setting, "")


def carry(alias: str, setting: str, value: str) -> None:
    """Set *setting* to *value* in the transactions of this request or task on *alias*."""
    connection = connections[alias]
    values = dict(_values.get() or {})
    # Other dictionaries: tasks that were started before have these.
    of_alias, holds = values.pop(alias, ({}, ()))
    of_alias = {**of_alias}
    if value or (setting in of_alias and connection.in_atomic_block):
        of_alias[setting] = value
    else:
        of_alias.pop(setting, None)
    if of_alias:
        if not any(each.is_on(connection) for each in holds):
            holds = (*holds, Hold(connection))
        values[alias] = of_alias, holds
    _values.set(values)


def forget(setting: str) -> None:
    """Forget *setting* on all aliases, where no transaction is open."""
    for alias, (of_alias, holds) in (_values.get() or {}).items():
        rest = {name: value for name, value in of_alias.items() if name != setting}
        others = {name: each for name, each in (_values.get() or {}).items() if name != alias}
        _values.set({**others, alias: (rest, holds)} if rest else others)


def _of(alias: str) -> dict[str, str]:
    return (_values.get() or {}).get(alias, ({}, ()))[0]


class Hold:
    """Keeps a `Setter` on a connection, for as long as some context has values for it.

    The contexts of requests and tasks end without a word. So it is the end of this object, which
    only they have, that takes the function off: statements go their short way again.
    """

    def __init__(self, connection: Any) -> None:
        setter = Setter()
        wrappers = connection.execute_wrappers
        # Not the last: Django's execute_wrapper() removes that at the end of its block.
        wrappers.insert(0, setter)
        self._connection = ref(connection)
        finalize(self, _remove, wrappers, setter).atexit = False

    def is_on(self, connection: Any) -> bool:
        """Return whether the function is on *connection*."""
        return self._connection() is connection


def _remove(wrappers: Any, setter: Setter) -> None:
    with suppress(ValueError):
        wrappers.remove(setter)


class Setter:
    """Sets what is to be set before a statement that may run a trigger; an ``execute_wrapper``."""

    def __call__(
        self,
        execute: Callable[..., Any],
        sql: Any,
        params: Any,
        many: bool,
        context: dict[str, Any],
    ) -> Any:
        """Execute the statement after that."""
        connection = context["connection"]
        alias = connection.alias
        values = _of(alias)
        if not connection.in_atomic_block:
            _set_in.pop(connection, None)
        if not (values or connection in _set_in) or not _may_write(sql):
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
                # As after any statement that fails: it is for the application's block to say.
                connection.needs_rollback = before
                raise
        there = {setting: value for setting, value in values.items() if value}
        if not connection.get_autocommit():
            _set(connection, there)
            return execute(sql, params, many, context)
        if not there:
            return execute(sql, params, many, context)
        with transaction.atomic(using=alias):
            _set_what_differs(connection, there)
            return execute(sql, params, many, context)


def _set_what_differs(connection: Any, values: dict[str, str]) -> None:
    """Set *values* in the transaction that is open, but for those that it has already.

    Settings that another task of the transaction has set are taken back.
    """
    hooks = connection.run_on_commit
    record = _set_in.pop(connection, None)
    if record is None:
        has: dict[str, str | None] = {}
    elif record[0] is hooks:
        has = {**record[1]}
    else:
        # Of another transaction, before this one or beside it: what this one has is not known.
        has = dict.fromkeys((CONTEXT, BY_ROW), None)
    wanted = {**dict.fromkeys(has, ""), **values}
    _set(connection, {name: value for name, value in wanted.items() if has.get(name, "") != value})
    there = {name: value for name, value in wanted.items() if value}
    if there:
        # While the transaction has them, somebody has to look at the statements of other tasks.
        _set_in[connection] = hooks, there, Hold(connection) if record is None else record[2]


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
