"""What statements do to a session: which leave it as it was, and how it is reset after others.

A pooled connection carries nothing from one borrower to the next. A statement compiled from
Django's own expressions, fields and lookups is *clean*: it is marked as `CleanSQL`. Any other
makes the lease dirty, and its session is reset, in one message, before the next borrower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.db.models import Field
from django.db.models.aggregates import Aggregate
from django.db.models.expressions import Col, Combinable, CombinedExpression, Func, RawSQL
from django.db.models.functions import Cast
from django.db.models.sql.where import ExtraWhere

from .text import Effect, look_at

# Django's expressions that take SQL of the application's.
_OPEN = frozenset({Func, Aggregate, RawSQL, ExtraWhere})
_TEMPLATE = frozenset({"function", "template", "arg_joiner"})

# What makes an instance of a clean class say something else.
_OF_INSTANCES = _TEMPLATE | {"as_sql", "as_postgresql"}

# What Django puts between two operands; anything else is SQL of the application's.
_CONNECTORS = frozenset(
    value for name, value in vars(Combinable).items() if name.isupper() and isinstance(value, str)
)

# What a field's class says about the type of its column, and the numbers that go into that.
_OF_TYPES = ("cast_db_type", "db_parameters", "db_type", "db_type_suffix", "rel_db_type")
_NUMBERS = ("decimal_places", "max_digits", "max_length", "size")

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
        or has_sql_of_its_own(node)
    ):
        open_nodes += 1


def has_sql_of_its_own(node: Any) -> bool:
    """Return whether *node*, of a class of Django's, was given SQL: a template, a type, ..."""
    own = getattr(node, "__dict__", None)
    if own is None:
        return False
    return (
        (not _OF_INSTANCES.isdisjoint(own) and _differs(node, own))
        or (bool(extra := own.get("extra")) and not _TEMPLATE.isdisjoint(extra))
        or (isinstance(node, CombinedExpression) and node.connector not in _CONNECTORS)
        or (isinstance(node, Cast) and not is_clean_type(node.output_field))
    )


def _differs(node: Any, own: dict[str, Any]) -> bool:
    """Return whether attributes of *node* itself differ from its class's: Django copies some."""
    cls = type(node)
    return any(own[name] != getattr(cls, name, None) for name in _OF_INSTANCES & own.keys())


def is_clean_type(field: Any) -> bool:
    """Return whether the type of a field's column, as in a CAST, is Django's own SQL."""
    while field is not None:
        own, cls = field.__dict__, type(field)
        if not _is_clean_type(cls) and not all(
            _is_djangos(method) for name in _OF_TYPES if (method := getattr(cls, name, None))
        ):
            return False
        if not own.keys().isdisjoint(_OF_TYPES) or not all(
            value is None or type(value) is int for value in map(own.get, _NUMBERS)
        ):
            return False
        # Of an array.
        field = own.get("base_field")
    return True


def is_clean_column(column: Col) -> bool:
    """Return whether neither the field of *column* nor that of its values has SQL of its own."""
    field, output_field = column.target, column.output_field
    return is_clean_field(field) and (output_field is field or is_clean_field(output_field))


def is_clean_field(field: Any) -> bool:
    """Return whether a field puts no SQL of the application's into statements."""
    # The far end of a relation, which a comparison may have in a field's place, has none.
    select_format = getattr(field, "select_format", None)
    if (
        select_format is not None
        and getattr(select_format, "__func__", None) is not _SELECT_FORMAT
        and not _is_djangos(select_format)
    ):
        return False
    for name in _PLACEHOLDERS:
        if hasattr(field, name) and not _is_djangos(getattr(field, name)):
            return False
    # Comparisons cast to the type of an array; a quoted name is taken as it is.
    base, column = getattr(field, "base_field", None), getattr(field, "column", None)
    return (base is None or is_clean_type(base)) and not (column and '"' in column)


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


def changes_session(sql: str) -> bool:
    """Return whether *sql* makes something that lives in the session: a setting, a lock, ...

    Where that depends on parameters, it does.
    """
    effect = look_at(sql)
    return effect.lasts or effect.depends


# What DISCARD ALL does, but for its own rule: it must be alone in a message. Plans are kept: they
# show nothing, and each function in PL/pgSQL would be planned anew.
RESET = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ALL",
    "DEALLOCATE ALL",
    "UNLISTEN *",
    "SELECT pg_catalog.pg_advisory_unlock_all()",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)

# The settings of a session that are not those it started with. The server does not list the
# role, nor the application's own settings, whose names have a dot. Last, whether it has temporary
# tables, and whose session it is.
SNAPSHOT = (
    "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'"
    " UNION ALL SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS own (name)"
    " WHERE current_setting(name, true) IS NOT NULL"
    " UNION ALL SELECT 'session_authorization', session_user"
    " UNION ALL SELECT 'role', current_setting('role')"
    " UNION ALL SELECT 'temporary', (EXISTS (SELECT FROM pg_catalog.pg_class"
    " WHERE relnamespace = pg_catalog.pg_my_temp_schema()))::text"
    " UNION ALL SELECT 'pg_backend_pid()', pg_catalog.pg_backend_pid()::text"
)

_OWN_SETTING = re.compile(
    r"\bset\s+(?:session\s+)?([a-z_]\w*(?:\.\w+)+)|'([a-z_]\w*(?:\.\w+)+)'", re.IGNORECASE
)


def own_settings(made: Iterable[tuple[str, Effect]]) -> list[str]:
    """Return what may be names of the application's own settings in the text of statements."""
    found = [names for sql, _ in made for names in _OWN_SETTING.findall(sql)]
    return sorted({first or second for first, second in found})


# SET takes the value of any other as one text, as set_config() does, for half the time.
_LISTS_OF_NAMES = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)

# A setting made by one call and nothing else, as Django makes that of the time zone.
_SET_CONFIG = re.compile(
    r"\s*select\s+(?:pg_catalog\.)?set_config\(\s*'(\w+)'\s*,\s*'[^'\\]*'\s*,\s*false\s*\)\s*;?\s*",
    re.IGNORECASE,
)

_TEMPORARY = re.compile(
    r"""\btemp(?:orary)?\s+(?:recursive\s+)?(?:(?:table|view|sequence)\s+)?
        (?:if\s+not\s+exists\s+)?"?(\w+)
      | \bpg_temp"?\s*\.\s*"?(\w+)""",
    re.IGNORECASE | re.VERBOSE,
)


def to_be_made_again(made: Iterable[tuple[str, Effect]]) -> Iterator[str]:
    """Yield those of the statements executed on a new session that a reset undoes.

    They make something in it, or name a temporary table that one of them has made: its rows.
    """
    temporary: set[str] = set()
    for sql, effect in made:
        if effect.lasts:
            temporary.update(first or second for first, second in _TEMPORARY.findall(sql))
            yield sql
        elif not temporary.isdisjoint(re.findall(r"\w+", sql)):
            yield sql


def statements_after_reset(
    settings: Iterable[tuple[str, str]],
    made: Iterable[tuple[str, Effect]],
    *,
    user: str,
    quote: Callable[[str], str],
) -> list[str]:
    """Return the statements that make a session, after `RESET`, what it was configured to be.

    *settings* are (name, value) as of `SNAPSHOT`, *made* what was executed meanwhile and *user* who
    has logged in. Whose session it is and its role come last: the others may need more rights.
    """

    def setting(name: str, value: str) -> str:
        if name in _LISTS_OF_NAMES or '"' in name:
            return f"SELECT pg_catalog.set_config({quote(name)}, {quote(value)}, false)"
        quoted = ".".join(f'"{each}"' for each in name.split("."))
        return f"SET {quoted} TO {quote(value)}"

    *others, (_, owner), (_, role) = settings
    names = {name.lower() for name, _ in others}
    parts = [setting(name, value) for name, value in others]
    for sql in to_be_made_again(made):
        found = _SET_CONFIG.fullmatch(sql)
        if found is None or found[1].lower() not in names:
            parts.append(sql)
    if owner != user:
        parts.append(setting("session_authorization", owner))
    if role != "none":
        parts.append(setting("role", role))
    return parts
