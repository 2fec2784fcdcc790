"""Simple statements, compiled once.

If a query selects columns of its own table, all or some, or aggregates of them, and filters by
nothing but the values of columns, the statement depends on the query's structure alone; the values
are its parameters. The same holds for an UPDATE that sets columns of its table to values. The
statement is kept with the model's select list.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.models import lookups
from django.db.models.expressions import Col
from django.db.models.fields import related_lookups
from django.db.models.sql import Query, UpdateQuery
from django.db.models.sql.where import WhereNode

from ..session import clean
from .originals import (
    AS_VENDOR,
    is_compiled_by_django,
    is_djangos,
    is_in_compiled_by_django,
    is_order_compiled_by_django,
    is_update_compiled_by_django,
)
from .query_attributes import UNKNOWN
from .select_lists import SelectList, is_of_one_table, kept_select_list, selects_all_columns
from .selections import Selection, selection_of

# How many statements of a model are kept. An offset, for example, is part of a statement.
_KEPT = 500

# Do not cache wider filters: code that builds them in a loop makes a new structure each time.
_WIDEST = 20

# Lookups of one parameter whose SQL does not depend on its value.
_LOOKUPS = frozenset(
    {
        lookups.Exact,
        lookups.GreaterThan,
        lookups.GreaterThanOrEqual,
        lookups.LessThan,
        lookups.LessThanOrEqual,
        lookups.IntegerFieldExact,
        lookups.IntegerGreaterThan,
        lookups.IntegerGreaterThanOrEqual,
        lookups.IntegerLessThan,
        lookups.IntegerLessThanOrEqual,
        lookups.IExact,
        lookups.Contains,
        lookups.IContains,
        lookups.StartsWith,
        lookups.IStartsWith,
        lookups.EndsWith,
        lookups.IEndsWith,
        related_lookups.RelatedExact,
    }
)

_OF_TEXTS = frozenset(
    {lookups.IExact, *(cls for cls in _LOOKUPS if issubclass(cls, lookups.PatternLookup))}
)

# Lookups of a list of values, whose SQL depends on nothing but how many they are.
_IN_LISTS = frozenset({lookups.In, related_lookups.RelatedIn})

# Lookups whose SQL depends on their value.
_NULL_LOOKUPS = frozenset({lookups.IsNull, related_lookups.RelatedIsNull})

# The attributes of lookups that affect SQL, as Django made them; for the inherited ones see
# `originals`.
_of_lookups = attrgetter("as_sql", "get_rhs_op", "process_lhs", "lookup_name")
_AS_MADE = {
    cls: made
    for cls in _LOOKUPS | _IN_LISTS | _NULL_LOOKUPS
    if all(map(is_djangos, made := _of_lookups(cls)))
}
_AS_SQL = WhereNode.as_sql
_OPERATORS = dict(DatabaseWrapper.operators)

_NO_COLUMN = (None, None)


class CacheEntry(NamedTuple):
    """Where a statement is kept: in its select list, by its structure."""

    select: SelectList
    # What is selected if it is not all columns. Its parameters come first.
    selection: Selection | None
    structure: tuple[Any, ...]
    # The new values of columns, as in `UpdateQuery.values`. Their parameters come first.
    values: list[Any]
    # The lookups with a parameter, in the order of the parameters.
    lookups: list[Any]

    def find(self, compiler: Any) -> tuple[str, Any] | None:
        """Return the statement and its parameters if it is kept and *compiler* may use it."""
        kept = self.select.statements.get(self.structure)
        if kept is None:
            return None
        if compiler.query.select_for_update and compiler.connection.get_autocommit():
            # Django refuses select_for_update() in autocommit mode, so leave the error to it.
            return None
        sql, rest, kind, nulls = kept
        found = self._parameters(compiler, nulls)
        if found is None:
            return None
        parameters, listed = found
        if listed:
            sql = clean.CleanSQL(f"{sql}{listed}{rest}")
            sql.parses = True
        query = compiler.query
        if not query.alias_map:
            # Leave the query as compiling would: the table's alias exists, with no references.
            query.alias_refcount[query.get_initial_alias()] = 0
        return sql, kind(parameters)

    def keep(self, compiler: Any, sql: str, params: Any) -> None:
        """Keep a statement that *compiler* made if `find` can reproduce its parameters."""
        if type(sql) is not clean.CleanSQL or not is_of_one_table(compiler.query):
            return
        # Django before 6.1 sets a column to NULL without a parameter; try both ways.
        for nulls in (True, False):
            found = self._parameters(compiler, nulls)
            if found is None:
                return
            parameters, listed = found
            if list(map(type, parameters)) == list(map(type, params)):
                sql.parses = True
                text: str = sql
                rest = ""
                if listed:
                    # The statement is the same for lists of other lengths.
                    text, *parts = sql.split(listed)
                    if len(parts) != 1:
                        return
                    rest = parts[0]
                statements = self.select.statements
                if len(statements) >= _KEPT:
                    statements.clear()
                statements[self.structure] = (text, rest, type(params), nulls)
                return

    def set_select(self, compiler: Any) -> None:
        """Set what Django's `as_sql` sets in *compiler* on the way."""
        model = compiler.query.model
        if self.selection is None:
            compiler._kept_select = self.select
            found: Any = self.select.for_compiler(model)
        else:
            found = self.selection.for_compiler(model)
        compiler.select, compiler.klass_info, compiler.annotation_col_map = found
        compiler.col_count = len(compiler.select)
        compiler.has_extra_select = False

    def _parameters(self, compiler: Any, nulls: bool) -> tuple[list[Any], str] | None:
        """Return the parameters, and the placeholders of the list of values if there is one.

        Include the parameters of *values* that are NULL if *nulls*.
        """
        connection = compiler.connection
        parameters: list[Any] = []
        if self.selection is not None:
            parameters += self.selection.parameters
        listed = ""
        for field, _, value in self.values:
            parameter = field.get_db_prep_save(value, connection=connection)
            # Such a value is compiled into the statement itself.
            if hasattr(parameter, "as_sql") or (parameter is None) != (value is None):
                return None
            if nulls or parameter is not None:
                parameters.append(parameter)
        try:
            for lookup in self.lookups:
                sql, params = lookup.process_rhs(compiler, connection)
                if sql != "%s":
                    # In parentheses is a list, of which there may be one.
                    if listed or sql != f"({', '.join(['%s'] * len(params))})":
                        return None
                    listed = f"IN {sql}"
                parameters += params
        except (EmptyResultSet, FullResultSet):
            # The type of the column cannot hold the number: Django makes another statement, or
            # none.
            return None
        return parameters, listed


def entry_for(compiler: Any) -> CacheEntry | None:
    """Return where the statement of *compiler* is kept, or None if it cannot be."""
    query = compiler.query
    if (
        UNKNOWN
        or type(query) is not Query
        # ``Q.check()`` has a query without a model.
        or query.model is None
        or not query.alias_cols
        or query.distinct
        or query.combinator
        or query.group_by is not None
        or query.explain_info
        or query.extra_tables
        or query.extra_order_by
        or query.select_for_update_of
        or not is_compiled_by_django(compiler)
        or (select := kept_select_list(query.model)) is None
    ):
        return None
    selection = None
    if not selects_all_columns(query) and (selection := selection_of(compiler, select)) is None:
        return None
    order = query.order_by
    if not order and query.default_ordering:
        order = query.get_meta().ordering or ()
    if order and selection is not None and not selection.is_of_columns:
        return None
    orders = select.orders
    for each in order:
        if type(each) is not str or each not in orders:
            return None
    if order and not is_order_compiled_by_django():
        return None
    found: list[Any] = []
    where = _structure(query.where, select, compiler.connection, found)
    if where is None:
        return None
    structure = (
        where,
        selection and selection.structure,
        tuple(order),
        query.standard_ordering,
        query.low_mark,
        query.high_mark,
        query.select_for_update
        and (
            query.select_for_update_nowait,
            query.select_for_update_skip_locked,
            query.select_for_no_key_update,
        ),
    )
    return CacheEntry(select, selection, structure, [], found)


def entry_for_update(compiler: Any) -> CacheEntry | None:
    """Return where the UPDATE of *compiler* is kept, or None if it cannot be."""
    query = compiler.query
    if (
        UNKNOWN
        or type(query) is not UpdateQuery
        or not query.values
        or query.related_updates
        # Django 6.1 can return fields from an UPDATE.
        or getattr(compiler, "returning_fields", None)
        or not is_compiled_by_django(compiler)
        or not is_update_compiled_by_django()
        or (select := kept_select_list(query.model)) is None
        or not query.alias_map
        or not is_of_one_table(query)
    ):
        return None
    columns = []
    for field, _, value in query.values:
        if (
            hasattr(value, "resolve_expression")
            or hasattr(value, "prepare_database_save")
            or hasattr(field, "get_placeholder")
            or hasattr(field, "get_placeholder_sql")
        ):
            return None
        columns.append((field.column, value is None))
    found: list[Any] = []
    where = _structure(query.where, select, compiler.connection, found)
    if where is None:
        return None
    structure = (where, tuple(columns))
    return CacheEntry(select, None, structure, query.values, found)


def _structure(
    where: Any, select: SelectList, connection: Any, found: list[Any]
) -> tuple[Any, ...] | None:
    """Return the structure of *where*; add the lookups that have parameters to *found*.

    Return None if *where* has anything but lookups of the table's own columns.
    """
    if (
        len(where.children) + len(found) > _WIDEST
        or type(where) is not WhereNode
        or getattr(where.as_sql, "__func__", None) is not _AS_SQL
        or hasattr(where, AS_VENDOR)
    ):
        return None
    operators = connection.operators
    parts = [where.connector, where.negated]
    for child in where.children:
        cls = type(child)
        if cls is WhereNode:
            parts.append(_structure(child, select, connection, found))
            if parts[-1] is None:
                return None
            continue
        rhs: Any = getattr(child, "rhs", None)
        lhs: Any = getattr(child, "lhs", None)
        if type(lhs) is not Col or lhs.alias != select.table or child.bilateral_transforms:
            return None
        target, field = lhs.target, lhs.output_field
        number, output_field = select.numbers.get(id(target), _NO_COLUMN)
        if (
            number is None
            # The column of a foreign key is compared as the key's, or as that of what it refers to.
            or not (field is output_field or field is target)
            or (made := _AS_MADE.get(cls)) is None
            or _of_lookups(cls) != made
            or operators.get(made[-1]) != _OPERATORS.get(made[-1])
            or getattr(child.as_sql, "__func__", None) is not made[0]
            or hasattr(child, AS_VENDOR)
        ):
            return None
        if (cls in _LOOKUPS and type(rhs) is not bool and not hasattr(rhs, "as_sql")) or (
            cls in _IN_LISTS and type(rhs) is list and is_in_compiled_by_django(connection)
        ):
            found.append(child)
        elif cls in _NULL_LOOKUPS and type(rhs) is bool:
            parts.append(rhs)
        else:
            return None
        parts += (cls, number, field is output_field)
        if cls in _OF_TEXTS:
            # Django casts the column of these lookups, according to the field's internal type.
            parts.append(lhs.output_field.get_internal_type())
    return tuple(parts)
