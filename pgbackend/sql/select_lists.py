"""The select list of a model's own columns, compiled once.

Django compiles the select list anew for each query, column by column: with many fields that is most
of the cost of a query. The list depends on the model alone if a query selects exactly the model's
columns from its own table, and if only Django's code takes part: see `originals`; this module
checks the fields.

The list is kept in the model's own ``_meta``, with the statements compiled for the model, so that
no reference from elsewhere keeps a model alive.
"""

from __future__ import annotations

from operator import attrgetter, call, is_
from typing import Any

from django.db.models import Field, ForeignKey
from django.db.models.expressions import Col

from ..session import clean
from .originals import AS_VENDOR, is_djangos

# The attribute of a model's ``_meta`` that holds its `SelectList`.
_ATTRIBUTE = "_pgbackend_select"

# The methods whose converters depend on the field alone. Others may return converters bound to the
# connection that asks first.
_CONVERTERS = (Field.get_db_converters, ForeignKey.get_db_converters)

# The methods by which a field, or its class, affects its column and the values in it.
_NAMES = frozenset({"from_db_value", "get_col", "get_db_converters", "select_format"})
_FROM_DB_VALUE = frozenset({"from_db_value"})

_column = attrgetter("column")


class SelectList:
    """The compiled columns of a model, and the converters of their values."""

    __slots__ = (
        "_columns",
        "_converters",
        "_dicts",
        "_fields",
        "_getters",
        "_names",
        "_range",
        "_select",
        "_sizes",
        "_watched_names",
        "_watched_values",
        "is_plain",
        "numbers",
        "orders",
        "statements",
        "table",
    )

    def __init__(self, opts: Any, select: list[Any]) -> None:
        self.table = opts.db_table
        # Django makes this list anew when a field is added.
        self._fields = fields = opts.concrete_fields
        self._names = list(map(_column, fields))
        self._select = select
        self._range = list(range(len(select)))
        self._columns = [column for column, _, _ in select]
        self._converters: dict[Any, Any] | None = None
        # The fields to watch: the value of a foreign key also depends on the key that it refers to.
        asked = {id(each): each for each in fields}
        asked |= {
            id(column.output_field): column.output_field
            for column in self._columns
            if type(column) is Col
        }
        self._watch(list(asked.values()))
        # Whether the list can be used. If not, this object records that while it `is_current`.
        self.is_plain = not opts.parents and all(map(_is_plain, select, fields))
        # `numbers`: by the id of a field, its position and the field of its values. `orders`: the
        # names that a kept statement may order by.
        self.numbers: dict[int, tuple[int, Any]] = {}
        self.orders: set[str] = set()
        # The kept statements by their structure; see `statement_cache`.
        self.statements: dict[Any, tuple[str, str, type, bool]] = {}
        if self.is_plain:
            self._index(opts)

    def _index(self, opts: Any) -> None:
        for number, (field, column) in enumerate(zip(self._fields, self._columns, strict=True)):
            self.numbers[id(field)] = (number, column.output_field)
            names = [field.attname]
            if not field.is_relation:
                # Leave out a relation's name: ordering by it means the other model's current
                # ordering.
                names += [field.name, "pk"] if field is opts.pk else [field.name]
            self.orders.update(name for each in names for name in (each, f"-{each}"))

    def is_current(self, opts: Any) -> bool:
        """Return whether the model and the relevant methods of its fields are unchanged."""
        return (
            self._fields is opts.concrete_fields
            and self.table == opts.db_table
            and list(map(_column, self._fields)) == self._names
            and (list(map(len, self._dicts)) == self._sizes or self._has_grown())
            and list(map(call, self._getters, self._watched_names)) == self._watched_values
            and not hasattr(self._columns[0], AS_VENDOR)
        )

    def _watch(self, fields: list[Any]) -> None:
        """Remember the methods of *fields* and classes that matter, and how much both hold."""
        classes = dict.fromkeys(cls for each in fields for cls in type(each).__mro__[:-1])
        self._dicts = [*map(vars, fields), *map(vars, classes)]
        self._sizes = list(map(len, self._dicts))
        places = self._places()
        self._getters = [held.get for held, _ in places]
        self._watched_names = [name for _, name in places]
        self._watched_values = list(map(call, self._getters, self._watched_names))

    def _places(self) -> list[tuple[Any, str]]:
        return [(held, name) for held in self._dicts for name in sorted(_NAMES & held.keys())]

    def _has_grown(self) -> bool:
        """Return whether fields or classes only gained attributes that do not matter, as caches."""
        if not self.is_plain or [name for _, name in self._places()] != self._watched_names:
            return False
        self._sizes = list(map(len, self._dicts))
        return True

    def for_compiler(self, model: Any) -> tuple[list[Any], dict[str, Any], dict[str, int]]:
        """Return what the compiler's ``get_select()`` returns."""
        select = self._select.copy()
        return select, {"model": model, "select_fields": self._range.copy()}, {}

    def compiled(self, column: Any) -> tuple[int, Any] | None:
        """Return the position and the SQL of a column of the table, or None if it is another."""
        number, output_field = self.numbers.get(id(column.target), (-1, None))
        if number < 0 or not (
            column.output_field is output_field or column.output_field is column.target
        ):
            return None
        return number, self._select[number][1]

    def converters(self, compiler: Any, expressions: list[Any]) -> dict[Any, Any] | None:
        """Return the converters of *expressions*, or None if they are not this list's columns."""
        columns = self._columns
        if len(expressions) != len(columns) or not all(map(is_, expressions, columns)):
            return None
        if self._converters is None:
            self._converters = compiler.converters_of(expressions)
        return self._converters


def selects_all_columns(query: Any) -> bool:
    """Return whether *query* selects exactly its model's columns, from one table."""
    return (
        query.default_cols
        and query.selected is None
        and not query.select_related
        and not query.annotations
        and not query.extra
        and not query.deferred_loading[0]
        and not query.external_aliases
        and is_of_one_table(query)
    )


def is_of_one_table(query: Any) -> bool:
    """Return whether *query* uses no table but its model's.

    To filter by a foreign key leaves an alias of the other table, with no references to it.
    """
    aliases = query.alias_map
    if not aliases:
        return True
    table = query.get_meta().db_table
    if len(aliases) == 1:
        return table in aliases
    counts = query.alias_refcount
    return next(iter(aliases)) == table and not any(
        counts[alias] for alias in aliases if alias != table
    )


def kept_select_list(model: Any) -> SelectList | None:
    """Return the kept select list of *model* if it may be used, or None."""
    opts = model._meta
    select: SelectList | None = opts.__dict__.get(_ATTRIBUTE)
    return select if select is not None and select.is_plain and select.is_current(opts) else None


def keep_select_list(model: Any, select: list[Any]) -> SelectList | None:
    """Keep a select list; return None if one of the fields has SQL of its own."""
    opts = model._meta
    kept: SelectList | None = opts.__dict__.get(_ATTRIBUTE)
    if hasattr(Col, AS_VENDOR):
        # Columns of all models are compiled by somebody else, perhaps not for long.
        return None
    if kept is None or not kept.is_current(opts):
        kept = SelectList(opts, select)
        setattr(opts, _ATTRIBUTE, kept)
    return kept if kept.is_plain else None


def _is_plain(selected: Any, field: Any) -> bool:
    column, _, alias = selected
    return (
        type(column) is Col
        and column.target is field
        and alias is None
        and not hasattr(column, AS_VENDOR)
        and all(map(_uses_djangos_sql, (field, column.output_field)))
    )


def _uses_djangos_sql(field: Any) -> bool:
    """Return whether *field* uses Django's own methods for its column, `from_db_value` aside."""
    cls = type(field)
    return (
        clean.is_clean_field(field)
        and cls.get_db_converters in _CONVERTERS
        and is_djangos(cls.get_col)
        and (_NAMES - _FROM_DB_VALUE).isdisjoint(vars(field))
    )
