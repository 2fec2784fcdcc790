"""Whether only Django's own code compiles a statement.

A kept statement is right as long as compiling it again would give the same result. That depends on
more than the query: operations may quote names by a context variable, an ``as_postgresql`` may be
added to a lookup, a method of the compiler may be replaced. Such code cannot be inspected. So a
kept statement is used only where all that takes part in compiling is as Django made it. This is
checked each time, by few names, since each one costs a look-up.
"""

from __future__ import annotations

from operator import attrgetter, itemgetter
from types import FunctionType
from typing import Any

from django.db.backends.postgresql.compiler import SQLCompiler as PostgresSQLCompiler
from django.db.backends.postgresql.features import DatabaseFeatures
from django.db.backends.postgresql.operations import DatabaseOperations
from django.db.models import lookups
from django.db.models.expressions import BaseExpression, Col, OrderBy
from django.db.models.sql.compiler import PositionRef, SQLCompiler, SQLUpdateCompiler
from django.db.models.sql.datastructures import BaseTable
from django.db.models.sql.where import WhereNode

# Django compiles each node that has this method by it.
AS_VENDOR = "as_postgresql"


def is_djangos(value: Any) -> bool:
    """Return whether *value*, if it is a function however wrapped, is Django's or ours."""
    for name in ("__func__", "fget", "func", "__wrapped__"):
        value = getattr(value, name, value)
    if not isinstance(value, FunctionType):
        return True
    return str(value.__globals__["__name__"]).startswith(("django.", "pgbackend."))


def _made_by_django(values: Any) -> Any:
    """Return *values*, one or a tuple, if all are Django's or ours; else a value equal to none."""
    return values if all(map(is_djangos, values if type(values) is tuple else (values,))) else ()


def _present(cls: type, *names: str) -> list[str]:
    """Return which of *names* the class *cls* has in this version of Django."""
    return [name for name in names if hasattr(cls, name)]


# The dictionaries of the classes: looking a method up there costs half of an attribute access. Only
# the methods that make SQL of kept parts are compared, not those that they call among themselves.
_base_expression = vars(BaseExpression)
_built_in = vars(lookups.BuiltinLookup)
_column = vars(Col)
_compiler = vars(SQLCompiler)
_compiler_of_postgresql = vars(PostgresSQLCompiler)
_condition = vars(WhereNode)
_exact = vars(lookups.Exact)
_in = vars(lookups.In)
_lookup = vars(lookups.Lookup)
_order = vars(OrderBy)
_position = vars(PositionRef)
_table = vars(BaseTable)
_update = vars(SQLUpdateCompiler)

_of_compiler = itemgetter(
    *_present(
        SQLCompiler,
        "as_sql",
        "compile",
        "get_converters",
        "get_from_clause",
        "get_order_by",
        "get_select",
        "pre_sql_setup",
        "quote_name",
        "quote_name_unless_alias",
    )
)
# Django before 6.1 has this method in the PostgreSQL compiler, too.
_QUOTE = "quote_name_unless_alias"

_COMPILER = _made_by_django(_of_compiler(_compiler))
_COMPILER_OF_POSTGRESQL = _made_by_django(_compiler_of_postgresql.get(_QUOTE))
_BUILT_IN = _made_by_django(_built_in["as_sql"])
_BUILT_IN_LHS = _made_by_django(_built_in["process_lhs"])
_COLUMN_SQL = _made_by_django(_column["as_sql"])
_COLUMN_CONVERTERS = _made_by_django(_column["get_db_converters"])
_SELECT_FORMAT = _made_by_django(_base_expression["select_format"])
_CONDITION = _made_by_django(_condition["as_sql"])
_TABLE = _made_by_django(_table["as_sql"])
_EXACT = _made_by_django(_exact["as_sql"])
_IN = _made_by_django(_in["as_sql"])
_LOOKUP = _made_by_django(_lookup["process_lhs"])
_UPDATE = _made_by_django(_update["as_sql"])
_UPDATE_SETUP = _made_by_django(_update["pre_sql_setup"])
_ORDER = _made_by_django(_order["as_sql"])
_POSITION = _made_by_django(_position["as_sql"])
_ORDER_NAME = _made_by_django(_compiler["find_ordering_name"])

# Methods of operations used for all statements, for those with limits, and for those that lock
# rows.
_of_operations = attrgetter(
    *_present(
        DatabaseOperations,
        "check_expression_support",
        "field_cast_sql",
        "get_db_converters",
        "lookup_cast",
    )
)
_of_lists = attrgetter("max_in_list_size")
_of_limits = attrgetter("_get_limit_offset_params", "limit_offset_sql", "no_limit_value")
_of_locks = attrgetter("for_update_sql")
_of_features = attrgetter(
    "for_update_after_from",
    "has_select_for_no_key_update",
    "has_select_for_update",
    "has_select_for_update_nowait",
    "has_select_for_update_skip_locked",
    "supports_select_for_update_with_limit",
)
_OPERATIONS = _made_by_django(_of_operations(DatabaseOperations))
_QUOTE_NAME = _made_by_django(DatabaseOperations.quote_name)
_LISTS = _made_by_django(_of_lists(DatabaseOperations))
_LIMITS = _made_by_django(_of_limits(DatabaseOperations))
_LOCKS = _made_by_django(_of_locks(DatabaseOperations))
_FEATURES = _of_features(DatabaseFeatures)

# Names that an instance of operations must not have among its own attributes.
_NAMES = frozenset(
    {
        *("_get_limit_offset_params", "check_expression_support", "field_cast_sql"),
        *("for_update_sql", "get_db_converters", "limit_offset_sql", "lookup_cast"),
        *("max_in_list_size", "no_limit_value", "quote_name"),
    }
)

# The classes of compilers that may keep statements: the backend's own, which add themselves.
compilers: set[type] = set()


def is_compiled_by_django(compiler: Any) -> bool:
    """Return whether only Django's code takes part when *compiler* compiles plain columns.

    The fields and the query's own conditions are checked elsewhere.
    """
    connection, query = compiler.connection, compiler.query
    operations = connection.ops
    cls = type(operations)
    return (
        cls.quote_name is _QUOTE_NAME
        and _of_operations(cls) == _OPERATIONS
        and _NAMES.isdisjoint(operations.__dict__)
        and connection.vendor == "postgresql"
        and type(compiler) in compilers
        and _of_compiler(_compiler) == _COMPILER
        and _compiler_of_postgresql.get(_QUOTE) is _COMPILER_OF_POSTGRESQL
        and _column["as_sql"] is _COLUMN_SQL
        and _column["get_db_converters"] is _COLUMN_CONVERTERS
        and _base_expression["select_format"] is _SELECT_FORMAT
        and _condition["as_sql"] is _CONDITION
        and _table["as_sql"] is _TABLE
        and AS_VENDOR not in _table
        and _exact["as_sql"] is _EXACT
        and _lookup["process_lhs"] is _LOOKUP
        and _built_in["as_sql"] is _BUILT_IN
        and _built_in["process_lhs"] is _BUILT_IN_LHS
        and ((query.high_mark is None and not query.low_mark) or _of_limits(cls) == _LIMITS)
        and (
            not query.select_for_update
            or (_of_locks(cls) == _LOCKS and _of_features(connection.features) == _FEATURES)
        )
    )


def is_update_compiled_by_django() -> bool:
    """Return whether only Django's code takes part in UPDATE, beside `is_compiled_by_django`."""
    return _update["as_sql"] is _UPDATE and _update["pre_sql_setup"] is _UPDATE_SETUP


def is_in_compiled_by_django(connection: Any) -> bool:
    """Return whether only Django's code compiles IN lists beside `is_compiled_by_django`."""
    return _in["as_sql"] is _IN and _of_lists(type(connection.ops)) == _LISTS


def is_order_compiled_by_django() -> bool:
    """Return whether only Django's code takes part in ORDER BY beside `is_compiled_by_django`."""
    return (
        _order["as_sql"] is _ORDER
        and AS_VENDOR not in _order
        and _position["as_sql"] is _POSITION
        and AS_VENDOR not in _position
        and _compiler["find_ordering_name"] is _ORDER_NAME
    )
