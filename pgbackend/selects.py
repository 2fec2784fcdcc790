"""The select list of a model's own columns, and simple statements with it, compiled once.

Django compiles a select list anew for each query, column by column: with many fields that is most
of what a query costs. It depends on the model alone where a query selects all of its columns, and
nothing else, from its own table. Where such a query is filtered by the columns' own values only,
the whole statement depends on its structure; the values are parameters.
"""

from __future__ import annotations

from operator import is_
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import lookups
from django.db.models.expressions import Col
from django.db.models.fields import related_lookups
from django.db.models.sql import Query
from django.db.models.sql.where import WhereNode

from . import session

# How many statements of a model are kept: an offset, for one, is part of a statement.
_KEPT = 500

# Those with more lookups are not: where a loop makes them, each has a structure of its own.
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

# The value of these is in the SQL.
_NULL_LOOKUPS = frozenset({lookups.IsNull, related_lookups.RelatedIsNull})


class Select:
    """The compiled columns of a model, and the converters of their values."""

    __slots__ = ("_columns", "_converters", "_fields", "_select", "_table", "statements")

    def __init__(self, opts: Any, select: list[Any]) -> None:
        self._table = opts.db_table
        # Made anew when a field is added.
        self._fields = opts.concrete_fields
        self._select = select
        self._columns = [column for column, _, _ in select]
        self._converters: dict[Any, Any] | None = None
        self.statements: dict[Any, tuple[str, type]] = {}

    def is_of(self, opts: Any) -> bool:
        """Return whether the model has not changed since."""
        return self._fields is opts.concrete_fields and self._table == opts.db_table

    def as_of_compiler(self, model: Any) -> tuple[list[Any], dict[str, Any], dict[str, int]]:
        """Return what the compiler's ``get_select()`` does."""
        select = self._select.copy()
        return select, {"model": model, "select_fields": list(range(len(select)))}, {}

    def converters(self, compiler: Any, expressions: list[Any]) -> dict[Any, Any] | None:
        """Return the converters of these *expressions*; None if they are not these columns."""
        columns = self._columns
        if len(expressions) != len(columns) or not all(map(is_, expressions, columns)):
            return None
        if self._converters is None:
            self._converters = compiler.converters_of(expressions)
        return self._converters


class Place(NamedTuple):
    """Where a statement is kept: its select list's statements, by its structure."""

    select: Select
    structure: tuple[Any, ...]
    # Those with a parameter, in the order of the parameters.
    lookups: list[Any]

    def find(self, compiler: Any) -> tuple[str, Any] | None:
        """Return the statement and its parameters, if it is kept and *compiler* may use it."""
        kept = self.select.statements.get(self.structure)
        if kept is None:
            return None
        if compiler.query.select_for_update and compiler.connection.get_autocommit():
            # Django refuses that.
            return None
        parameters = self._parameters(compiler)
        if parameters is None:
            return None
        query = compiler.query
        if not query.alias_map:
            # As compiling leaves it: the table is known, and nobody refers to it.
            query.alias_refcount[query.get_initial_alias()] = 0
        return kept[0], kept[1](parameters)

    def keep(self, compiler: Any, sql: str, params: Any) -> None:
        """Keep a statement that *compiler* has made, if it is what `find` can make again."""
        parameters = self._parameters(compiler)
        if (
            type(sql) is not session.CleanSQL
            or len(compiler.query.alias_map) != 1
            or parameters is None
            or list(map(type, parameters)) != list(map(type, params))
        ):
            return
        statements = self.select.statements
        if len(statements) >= _KEPT:
            statements.clear()
        statements[self.structure] = (sql, type(params))

    def _parameters(self, compiler: Any) -> list[Any] | None:
        parameters: list[Any] = []
        try:
            for lookup in self.lookups:
                sql, params = lookup.process_rhs(compiler, compiler.connection)
                if sql != "%s":
                    return None
                parameters += params
        except (EmptyResultSet, FullResultSet):
            # A number that no column of its type can hold: another statement, or none.
            return None
        return parameters


def place(compiler: Any) -> Place | None:
    """Return where the statement of *compiler* is kept; None if it is none that can be."""
    query = compiler.query
    if (
        type(query) is not Query
        or not selects_all(query)
        or query.distinct
        or query.combinator
        or query.group_by is not None
        or query.explain_info
        or query.extra_tables
        or query.extra_order_by
        or query.select_for_update_of
        or (select := known(query.model)) is None
    ):
        return None
    order = query.order_by
    if not order and query.default_ordering:
        order = query.get_meta().ordering or ()
    for each in order:
        if type(each) is not str:
            return None
    found: list[Any] = []
    where = _structure(query.where, query.get_meta().db_table, found)
    if where is None:
        return None
    structure = (
        type(compiler.connection.ops),
        where,
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
    return Place(select, structure, found)


def _structure(where: Any, table: str, found: list[Any]) -> tuple[Any, ...] | None:
    """Return all of *where* but its parameters; the lookups that have them are added to *found*.

    None if there is anything but lookups of the table's own columns.
    """
    if len(where.children) + len(found) > _WIDEST:
        return None
    parts = [where.connector, where.negated]
    for child in where.children:
        cls = type(child)
        if cls is WhereNode:
            parts.append(_structure(child, table, found))
            if parts[-1] is None:
                return None
            continue
        rhs: Any = getattr(child, "rhs", None)
        lhs: Any = getattr(child, "lhs", None)
        if type(lhs) is not Col or lhs.alias != table or child.bilateral_transforms:
            return None
        target = lhs.target
        if lhs.output_field is not target and not target.is_relation:
            return None
        if cls in _LOOKUPS and type(rhs) is not bool and not hasattr(rhs, "as_sql"):
            found.append(child)
        elif cls in _NULL_LOOKUPS and type(rhs) is bool:
            parts.append(rhs)
        else:
            return None
        parts += (cls, target.column)
    return tuple(parts)


_selects: WeakKeyDictionary[Any, Select] = WeakKeyDictionary()


def selects_all(query: Any) -> bool:
    """Return whether *query* selects its model's columns and nothing else, from one table."""
    return (
        query.default_cols
        and query.selected is None
        and not query.select_related
        and not query.annotations
        and not query.extra
        and not query.deferred_loading[0]
        and not query.external_aliases
        and (not (aliases := query.alias_map) or tuple(aliases) == (query.get_meta().db_table,))
    )


def _is_plain(selected: Any, field: Any) -> bool:
    column, _, alias = selected
    return (
        type(column) is Col
        and column.target is field
        and alias is None
        and session.is_clean_field(field)
        and session.is_djangos(type(field).get_db_converters)
    )


def known(model: Any) -> Select | None:
    """Return the select list of *model*, if it was kept."""
    select = _selects.get(model)
    return select if select is not None and select.is_of(model._meta) else None


def keep(model: Any, select: list[Any]) -> Select | None:
    """Keep a select list if no field has a hand in it; return None if one has."""
    opts = model._meta
    if opts.parents or not all(map(_is_plain, select, opts.concrete_fields)):
        return None
    kept = _selects[model] = Select(opts, select)
    return kept
