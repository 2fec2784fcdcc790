"""Which statements leave their session as it was.

A pooled connection carries no state from one borrower to the next. A statement compiled from
Django's own expressions, fields and lookups is *clean*, and marked as `CleanSQL`. After any other
statement, the session is reset before the next borrower uses it; see `snapshot`.
"""

from __future__ import annotations

from typing import Any

from django.db.models import Field
from django.db.models.aggregates import Aggregate
from django.db.models.expressions import Col, Combinable, CombinedExpression, Func, RawSQL
from django.db.models.functions import Cast
from django.db.models.sql.where import ExtraWhere

from .text import effect_of

# Django's expressions that take SQL from the application, which may do anything.
_UNCLEAN = frozenset({Func, Aggregate, RawSQL, ExtraWhere})
_TEMPLATE = frozenset({"function", "template", "arg_joiner"})

# Attributes that change the SQL of an instance of a clean class.
_OF_INSTANCES = _TEMPLATE | {"as_sql", "as_postgresql"}

# The operators that Django puts between two operands; any other is SQL of the application.
_CONNECTORS = frozenset(
    value for name, value in vars(Combinable).items() if name.isupper() and isinstance(value, str)
)

# The methods of a field's class that decide its column's type, and the numbers in that type.
_OF_TYPES = ("cast_db_type", "db_parameters", "db_type", "db_type_suffix", "rel_db_type")
_NUMBERS = ("decimal_places", "max_digits", "max_length", "size")

# Methods, in addition to ``select_format``, by which a field puts SQL into statements; the last one
# from Django 6.1 on.
_PLACEHOLDERS = ("get_placeholder", "get_placeholder_sql")
_SELECT_FORMAT = Field.select_format

# How many nodes that may do anything were compiled. A change of the number tells that there was
# such a node meanwhile; a node of another thread at worst makes a clean statement count as dirty.
unclean_nodes = 0

# Classes of Django only: remembering others would keep them alive.
_clean_types: set[type] = set()


class CleanSQL(str):
    """A statement that leaves its session as it was."""

    # Whether the server can surely parse it: `sql.statement_cache` keeps it, so its form is known.
    parses = False


def count_unclean(node: Any) -> None:
    """Count *node*, which is being compiled, in `unclean_nodes` if it may do anything."""
    global unclean_nodes
    if (
        not _is_clean_type(type(node))
        or (type(node) is Col and not is_clean_column(node))
        or has_sql_of_its_own(node)
    ):
        unclean_nodes += 1


def has_sql_of_its_own(node: Any) -> bool:
    """Return whether *node*, of a class of Django, was given SQL: a template, a type, ..."""
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
    """Return whether *node* has attributes that differ from its class's: Django copies some."""
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
        # The base field of an array counts, too.
        field = own.get("base_field")
    return True


def is_clean_column(column: Col) -> bool:
    """Return whether neither the field of *column* nor that of its values adds SQL."""
    field, output_field = column.target, column.output_field
    return is_clean_field(field) and (output_field is field or is_clean_field(output_field))


def is_clean_field(field: Any) -> bool:
    """Return whether a field puts no SQL of the application into statements."""
    # A comparison may have a relation's far end in place of a field; it has no ``select_format``.
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
    # Comparisons cast to the type of an array. Django does not quote a column name that has quotes
    # already.
    base, column = getattr(field, "base_field", None), getattr(field, "column", None)
    return (base is None or is_clean_type(base)) and not (column and '"' in column)


def is_clean_query(query: Any) -> bool:
    """Return whether the query's class is Django's, which compiles nothing but its nodes."""
    return _is_clean_type(type(query))


def _is_clean_type(cls: type) -> bool:
    if cls in _clean_types:
        return True
    if cls in _UNCLEAN or not _is_djangos(cls):
        return False
    _clean_types.add(cls)
    return True


def _is_djangos(thing: Any) -> bool:
    return str(thing.__module__).startswith("django.")


def changes_session(sql: str) -> bool:
    """Return whether *sql* makes something that lives in the session: a setting, a lock, ...

    Return True if that depends on parameters.
    """
    effect = effect_of(sql)
    return effect.lasts or effect.depends
