"""Whether statements are compiled by Django's own code, and by nobody else's.

What is compiled once is right for as long as it would be compiled the same again, and that does
not depend on the query alone: operations may quote names by a context variable, an
``as_postgresql`` may be added to a lookup, a method of the compiler be replaced. Nothing of that
can be known from outside. So what was kept is used only where all that has a hand in it is as
Django made it, and that is looked at each time: few names, since each costs a look in memory.
"""

from __future__ import annotations

from operator import attrgetter, call, itemgetter
from types import FunctionType
from typing import Any

from django.db.backends.postgresql.compiler import SQLCompiler as PostgresSQLCompiler
from django.db.backends.postgresql.features import DatabaseFeatures
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models import lookups
from django.db.models.expressions import BaseExpression, Col, OrderBy
from django.db.models.sql import Query
from django.db.models.sql.compiler import SQLCompiler, SQLUpdateCompiler
from django.db.models.sql.datastructures import BaseTable
from django.db.models.sql.where import WhereNode

# Django compiles each node that has it by this method.
AS_VENDOR = "as_postgresql"


def is_djangos(value: Any) -> bool:
    """Return whether *value*, if it is a function in whatever wrapping, is Django's or ours."""
    for name in ("__func__", "fget", "func", "__wrapped__"):
        value = getattr(value, name, value)
    if not isinstance(value, FunctionType):
        return True
    return str(value.__globals__["__name__"]).startswith(("django.", f"{__package__}."))


def _made_by_django(*functions: Any) -> tuple[Any, ...] | None:
    """Return *functions* if all are Django's or ours, else None."""
    return functions if all(map(is_djangos, functions)) else None


# Of each class, what compiles statements that may be kept. Not every version has all of them.
_COMPILING: list[tuple[type, str]] = [
    (
        SQLCompiler,
        "_order_by_pairs _setup_joins as_sql compile find_ordering_name get_converters"
        " get_default_columns get_distinct get_extra_select get_from_clause get_group_by"
        " get_order_by get_select pre_sql_setup quote_name quote_name_unless_alias setup_query",
    ),
    (PostgresSQLCompiler, "quote_name_unless_alias"),
    (SQLUpdateCompiler, "as_sql pre_sql_setup"),
    (Query, "count_active_tables extra_select get_initial_alias get_meta join setup_joins"),
    (Col, "as_sql get_db_converters"),
    (BaseExpression, "resolve_expression select_format"),
    (WhereNode, "as_sql split_having_qualify"),
    (BaseTable, "as_sql"),
    # What lookups inherit; their own is looked at in `kept`.
    (lookups.Lookup, "process_lhs rhs_is_direct_value"),
    (lookups.BuiltinLookup, "as_sql get_rhs_op process_lhs"),
    (lookups.Exact, "as_sql"),
]

# Looked up in what the classes themselves hold: faster than their attributes.
_looks = []
_held = []
for _cls, _names in _COMPILING:
    if _found := [name for name in _names.split() if name in vars(_cls)]:
        _looks.append(itemgetter(*_found))
        _held.append(vars(_cls))
_compiling = list(map(call, _looks, _held))
_AS_MADE = (
    _made_by_django(
        *(
            vars(cls)[name]
            for cls, names in _COMPILING
            for name in names.split()
            if name in vars(cls)
        )
    )
    and _compiling
)

# What operations say about these statements; about parts that few have, in tuples of their own.
_OF_OPERATIONS = ("get_db_converters", "lookup_cast", "quote_name", "field_cast_sql")  # last: 5.2
_OF_SLICES = ("_get_limit_offset_params", "limit_offset_sql", "no_limit_value")
_OF_LOCKS = ("for_update_sql", "check_expression_support")
_names_of_operations = frozenset({*_OF_OPERATIONS, *_OF_SLICES, *_OF_LOCKS})

_operations = attrgetter(*(each for each in _OF_OPERATIONS if hasattr(DatabaseOperations, each)))
_slices = attrgetter(*_OF_SLICES)
_locks = attrgetter(*_OF_LOCKS)
_features = attrgetter(
    "for_update_after_from",
    "has_select_for_no_key_update",
    "has_select_for_update",
    "has_select_for_update_nowait",
    "has_select_for_update_skip_locked",
    "supports_select_for_update_with_limit",
)
_orders = attrgetter("as_sql", "resolve_expression")

_OPERATIONS = _made_by_django(*_operations(DatabaseOperations))
_SLICES = _made_by_django(*_slices(DatabaseOperations))
_LOCKS = _made_by_django(*_locks(DatabaseOperations))
_FEATURES = _features(DatabaseFeatures)
_ORDERS = _made_by_django(*_orders(OrderBy))

# The classes of compilers that may keep statements: the backend's own, which add themselves.
compilers: set[type] = set()


def compiles_alone(compiler: Any) -> bool:
    """Return whether nobody but Django has a hand in what *compiler* makes of plain columns.

    The fields and the query's own conditions are not asked here.
    """
    connection, query = compiler.connection, compiler.query
    operations = connection.ops
    cls = type(operations)
    return (
        type(compiler) in compilers
        and list(map(call, _looks, _held)) == _AS_MADE
        and AS_VENDOR not in BaseTable.__dict__
        and connection.vendor == "postgresql"
        and _operations(cls) == _OPERATIONS
        and _names_of_operations.isdisjoint(operations.__dict__)
        and ((not query.low_mark and query.high_mark is None) or _slices(cls) == _SLICES)
        and (
            not query.select_for_update
            or (_locks(cls) == _LOCKS and _features(connection.features) == _FEATURES)
        )
    )


def orders_alone() -> bool:
    """Return whether nobody but Django has a hand in ORDER BY; what it inherits, columns do."""
    return _orders(OrderBy) == _ORDERS and AS_VENDOR not in OrderBy.__dict__
