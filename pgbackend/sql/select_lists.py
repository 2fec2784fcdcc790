"""The select list of a model's own columns, compiled once.

Django compiles it anew for each query, column by column: with many fields that is most of what a
query costs. It depends on the model alone where a query selects all of its columns, and nothing
else, from its own table, and where nobody else has a hand in it: see `originals`, for fields here.

It stands on the model's own ``_meta``, with what else was compiled for the model, so that nothing
keeps a model alive.
"""

from __future__ import annotations

from operator import attrgetter, call, is_
from typing import Any

from django.db.models import Field, ForeignKey
from django.db.models.expressions import Col

from ..session import clean
from .originals import AS_VENDOR, is_djangos

# The attribute of a model's ``_meta`` that holds its `Select`.
_PLACE = "_pgbackend_select"

# These depend on the field alone; others' may be bound to the connection that asks first.
_CONVERTERS = (Field.get_db_converters, ForeignKey.get_db_converters)

# What a field says about its column and the values in it, by its class or of its own.
_NAMES = frozenset({"from_db_value", "get_col", "get_db_converters", "select_format"})
_FROM_DB_VALUE = frozenset({"from_db_value"})

_column = attrgetter("column")


class Select:
    """The compiled columns of a model, and the converters of their values."""

    __slots__ = (
        "_columns",
        "_converters",
        "_fields",
        "_gets",
        "_held",
        "_names",
        "_names_said",
        "_range",
        "_said",
        "_select",
        "_sizes",
        "is_plain",
        "numbers",
        "orders",
        "statements",
        "table",
    )

    def __init__(self, opts: Any, select: list[Any]) -> None:
        self.table = opts.db_table
        # Made anew when a field is added.
        self._fields = fields = opts.concrete_fields
        self._names = list(map(_column, fields))
        self._select = select
        self._range = list(range(len(select)))
        self._columns = [column for column, _, _ in select]
        self._converters: dict[Any, Any] | None = None
        # The fields that are asked: for a foreign key's value also the key that it refers to.
        asked = {id(each): each for each in fields}
        asked |= {
            id(column.output_field): column.output_field
            for column in self._columns
            if type(column) is Col
        }
        self._watch(list(asked.values()))
        # Whether it can be used: if not, this object says so for as long as it `holds`.
        self.is_plain = not opts.parents and all(map(_is_plain, select, fields))
        # By the id of a field, its number and the field of its values;
        # what may be ordered by.
        self.numbers: dict[int, tuple[int, Any]] = {}
        self.orders: set[str] = set()
        # Statements by their structure; see `statement_cache`.
        self.statements: dict[Any, tuple[str, type, bool]] = {}
        if self.is_plain:
            self._index(opts)

    def _index(self, opts: Any) -> None:
        for number, (field, column) in enumerate(zip(self._fields, self._columns, strict=True)):
            self.numbers[id(field)] = (number, column.output_field)
            names = [field.attname]
            if not field.is_relation:
                # To order by a relation's name is to order as its model does now.
                names += [field.name, "pk"] if field is opts.pk else [field.name]
            self.orders.update(name for each in names for name in (each, f"-{each}"))

    def holds(self, opts: Any) -> bool:
        """Return whether neither the model nor what its fields say has changed since."""
        return (
            self._fields is opts.concrete_fields
            and self.table == opts.db_table
            and list(map(_column, self._fields)) == self._names
            and (list(map(len, self._held)) == self._sizes or self._has_grown())
            and list(map(call, self._gets, self._names_said)) == self._said
            and not hasattr(self._columns[0], AS_VENDOR)
        )

    def _watch(self, fields: list[Any]) -> None:
        """Remember what *fields* and their classes say, and how much they hold beside it."""
        classes = dict.fromkeys(cls for each in fields for cls in type(each).__mro__[:-1])
        self._held = [*map(vars, fields), *map(vars, classes)]
        self._sizes = list(map(len, self._held))
        places = self._places()
        self._gets = [held.get for held, _ in places]
        self._names_said = [name for _, name in places]
        self._said = list(map(call, self._gets, self._names_said))

    def _places(self) -> list[tuple[Any, str]]:
        return [(held, name) for held in self._held for name in sorted(_NAMES & held.keys())]

    def _has_grown(self) -> bool:
        """Return whether fields or classes hold other things now, as caches, but say no more."""
        if not self.is_plain or [name for _, name in self._places()] != self._names_said:
            return False
        self._sizes = list(map(len, self._held))
        return True

    def as_of_compiler(self, model: Any) -> tuple[list[Any], dict[str, Any], dict[str, int]]:
        """Return what the compiler's ``get_select()`` does."""
        select = self._select.copy()
        return select, {"model": model, "select_fields": self._range.copy()}, {}

    def converters(self, compiler: Any, expressions: list[Any]) -> dict[Any, Any] | None:
        """Return the converters of these *expressions*; None if they are not these columns."""
        columns = self._columns
        if len(expressions) != len(columns) or not all(map(is_, expressions, columns)):
            return None
        if self._converters is None:
            self._converters = compiler.converters_of(expressions)
        return self._converters


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


def known(model: Any) -> Select | None:
    """Return the select list of *model*, if it was kept and may be used."""
    opts = model._meta
    select: Select | None = opts.__dict__.get(_PLACE)
    return select if select is not None and select.is_plain and select.holds(opts) else None


def keep(model: Any, select: list[Any]) -> Select | None:
    """Keep a select list if no field has a hand in it; return None if one has."""
    opts = model._meta
    kept: Select | None = opts.__dict__.get(_PLACE)
    if kept is None or not kept.holds(opts):
        kept = Select(opts, select)
        setattr(opts, _PLACE, kept)
    return kept if kept.is_plain else None


def _is_plain(selected: Any, field: Any) -> bool:
    column, _, alias = selected
    return (
        type(column) is Col
        and column.target is field
        and alias is None
        and not hasattr(column, AS_VENDOR)
        and all(map(_says_nothing, (field, column.output_field)))
    )


def _says_nothing(field: Any) -> bool:
    """Return whether what *field* says about its column is Django's; `from_db_value` aside."""
    cls = type(field)
    return (
        clean.is_clean_field(field)
        and cls.get_db_converters in _CONVERTERS
        and is_djangos(cls.get_col)
        and (_NAMES - _FROM_DB_VALUE).isdisjoint(vars(field))
    )
