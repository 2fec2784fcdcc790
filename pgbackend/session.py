"""What statements do to a session: which leave it as it was, and how it is reset after others.

A pooled connection carries nothing from one borrower to the next. A statement compiled from
Django's own expressions, fields and lookups is *clean*: it is marked as `CleanSQL`. Any other
makes the lease dirty, and its session is reset, in one message, before the next borrower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from django.db.models import Field
from django.db.models.aggregates import Aggregate
from django.db.models.expressions import Col, Func, RawSQL
from django.db.models.sql.where import ExtraWhere

# Django's expressions that take SQL of the application's.
_OPEN = frozenset({Func, Aggregate, RawSQL, ExtraWhere})
_TEMPLATE = frozenset({"function", "template", "arg_joiner"})

# What a field may put into statements of its own beside ``select_format``. (The last: 6.1.)
_PLACEHOLDERS = ("get_placeholder", "get_placeholder_sql")
_SELECT_FORMAT = Field.select_format

# How many nodes were compiled that may do anything. It only tells whether there was one
# meanwhile: those of other threads make a clean statement count as dirty at worst.
open_nodes = 0

# Classes of Django's; to remember others would keep them alive.
_clean_types: set[type] = set()


class CleanSQL(str):
    """A statement that leaves its session as it was."""

    __slots__ = ()


def note(node: Any) -> None:
    """Count *node*, which is being compiled, in `open_nodes` if it may do anything."""
    global open_nodes
    if (
        not _is_clean_type(type(node))
        or (type(node) is Col and not is_clean_column(node))
        or (isinstance(node, Func) and not _TEMPLATE.isdisjoint(node.extra))
    ):
        open_nodes += 1


def is_clean_column(column: Col) -> bool:
    """Return whether neither the field of *column* nor that of its values has SQL of its own."""
    field, output_field = column.target, column.output_field
    return is_clean_field(field) and (output_field is field or is_clean_field(output_field))


def is_clean_field(field: Any) -> bool:
    """Return whether a field puts no SQL of the application's into statements."""
    if getattr(field.select_format, "__func__", None) is not _SELECT_FORMAT and not _is_djangos(
        field.select_format
    ):
        return False
    for name in _PLACEHOLDERS:
        if hasattr(field, name) and not _is_djangos(getattr(field, name)):
            return False
    return True


def is_clean_query(query: Any) -> bool:
    """Return whether a query's class is Django's, which compiles nothing but its nodes."""
    return _is_clean_type(type(query))


def _is_clean_type(cls: type) -> bool:
    if cls in _clean_types:
        return True
    if cls in _OPEN or not _is_djangos(cls):
        return False
    _clean_types.add(cls)
    return True


def _is_djangos(thing: Any) -> bool:
    return str(thing.__module__).startswith("django.")


# What outlives its statement in the session, and is lost when the session is reset.
_SESSION_SQL = re.compile(
    r"""
    ^\s*(?: SET \s+ (?! (?:LOCAL|TRANSACTION|CONSTRAINTS) \b )
          | LISTEN \b
          | PREPARE \s+ (?! TRANSACTION \b)
          | DECLARE \b .* \b WITH \s+ HOLD \b
          | CREATE \s+ (?:(?:GLOBAL|LOCAL)\s+)? TEMP )
    | \b SELECT \b .* \b INTO \s+ (?:(?:GLOBAL|LOCAL)\s+)? TEMP
    | \b pg_(?:try_)?advisory_lock(?:_shared)? \s* \(
    | \b set_config \s* \( .* , \s* (?: false | 'f(?:alse)?' | 'off' | '0' | 'no?' ) \s* \)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def changes_session(sql: str) -> bool:
    """Return whether *sql* makes something that lives in the session: a setting, a lock, ..."""
    return _SESSION_SQL.search(sql) is not None


# What DISCARD ALL does, but for its own rule: it must be alone in a message.
_RESET = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
    " SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES"
)

# The settings of a session that are not those it started with. The server does not list the
# role, nor the application's own settings, whose names have a dot. Last, whose session it is.
SNAPSHOT = (
    "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'"
    " UNION ALL SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS own (name)"
    " WHERE current_setting(name, true) IS NOT NULL"
    " UNION ALL SELECT 'role', current_setting('role')"
    " UNION ALL SELECT 'pg_backend_pid()', pg_catalog.pg_backend_pid()::text"
)

_OWN_SETTING = re.compile(
    r"\bset\s+(?:session\s+)?([a-z_]\w*(?:\.\w+)+)|'([a-z_]\w*(?:\.\w+)+)'", re.IGNORECASE
)


def own_settings(statements: Iterable[tuple[str, Any]]) -> list[str]:
    """Return what may be names of the application's own settings in statements and parameters."""
    names = []
    for sql, params in statements:
        names += [first or second for first, second in _OWN_SETTING.findall(sql)]
        values = params.values() if isinstance(params, dict) else params or ()
        names += [each for each in values if isinstance(each, str) and _is_name(each)]
    return sorted(set(names))


def _is_name(value: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*(?:\.\w+)+", value) is not None


def reset_message(settings: Iterable[tuple[str, str]], quote: Callable[[str], str]) -> str:
    """Return the message that resets a session to *settings*, (name, value) as of `SNAPSHOT`."""
    message = _RESET
    for name, value in settings:
        if (name, value) != ("role", "none"):
            message += f"; SELECT pg_catalog.set_config({quote(name)}, {quote(value)}, false)"
    return message
