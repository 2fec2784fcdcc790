"""What a query selects that is not all columns of its model: some of them, a count, a mere 1.

``values()`` and ``values_list()`` select columns, ``exists()`` a value, and ``count()`` and
``aggregate()`` aggregates. A statement that is kept depends on which columns these are, and on the
SQL of the others, which are few: they are compiled each time, so whatever takes part in that does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import Avg, Count, Max, Min, Sum
from django.db.models.expressions import Col, Value

from .originals import AS_VENDOR
from .select_lists import SelectList, is_of_one_table

_EXPRESSIONS = frozenset({Avg, Count, Max, Min, Sum, Value})


class Selection(NamedTuple):
    """What a query selects from its model's own table."""

    # What a statement depends on.
    structure: tuple[Any, ...]
    parameters: list[Any]
    # As Django's ``get_select()`` returns it: expressions, their SQL and their aliases.
    select: list[Any]
    is_of_columns: bool

    def for_compiler(self, model: Any) -> tuple[list[Any], dict[str, Any] | None, dict[str, int]]:
        """Return what the compiler's ``get_select()`` returns."""
        select = self.select
        klass_info = None
        if self.is_of_columns:
            klass_info = {"model": model, "select_fields": list(range(len(select)))}
        return select, klass_info, {each[2]: at for at, each in enumerate(select) if each[2]}


def selection_of(compiler: Any, select: SelectList) -> Selection | None:
    """Return what the query of *compiler* selects, or None if it is more than that."""
    query = compiler.query
    if (
        query.default_cols
        or query.select_related
        or query.extra
        or query.external_aliases
        or not is_of_one_table(query)
    ):
        return None
    if query.select:
        return None if query.annotations else _columns(query, select)
    if query.selected is not None or len(query.annotations) != len(query.annotation_select):
        return None
    return _expressions(compiler, query.annotations)


def _columns(query: Any, select: SelectList) -> Selection | None:
    columns = query.select
    selected = query.selected
    if selected is None:
        places = [(None, at) for at in range(len(columns))]
    elif all(type(at) is int for at in selected.values()):
        places = list(selected.items())
    else:
        return None
    found, structure = [], []
    for alias, at in places:
        column = columns[at]
        if (
            type(column) is not Col
            or column.alias != select.table
            or hasattr(column, AS_VENDOR)
            or (compiled := select.compiled(column)) is None
        ):
            return None
        number, sql = compiled
        structure += [alias, number]
        found.append((column, sql, alias))
    return Selection(("columns", *structure), [], found, True)


def _expressions(compiler: Any, expressions: dict[str, Any]) -> Selection | None:
    found, structure, parameters = [], [], []
    for alias, each in expressions.items():
        if type(each) not in _EXPRESSIONS:
            return None
        try:
            sql, params = each.select_format(compiler, *compiler.compile(each))
        except (EmptyResultSet, FullResultSet):
            return None
        structure += [alias, sql]
        parameters += params
        found.append((each, (sql, params), alias))
    return Selection(("expressions", *structure), parameters, found, False)
