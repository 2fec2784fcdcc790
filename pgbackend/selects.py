"""The select list of a model's own columns, compiled once.

Django compiles it anew for each query, column by column: with many fields that is most of what a
query costs. It depends on the model alone where a query selects all of its columns, and nothing
else, from its own table.
"""

from __future__ import annotations

from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

from django.db.models import Field, ForeignKey
from django.db.models.expressions import Col

from . import session

# These depend on the field alone; others' may be bound to the connection that asks first.
_CONVERTERS = (Field.get_db_converters, ForeignKey.get_db_converters)


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
        self.statements: dict[Any, tuple[str, type, bool]] = {}

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
        and type(field).get_db_converters in _CONVERTERS
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
