"""Rows as Python has them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ..protocol.errors import Malformed
from ..protocol.nodes import Rows, Shape


class Row:
    """A row of a model: its fields, related rows and prefetched rows are attributes.

    ``pk`` is its primary key, a tuple if that is composite. Passed as a value a row stands for the
    service's own. Rows are equal if model and primary key are.
    """

    def __init__(self, shape: Shape, values: list[Any]) -> None:
        ends = len(shape.fields)
        self.__dict__.update(zip(shape.fields, values, strict=False))
        self._model = shape.model
        self._pk = shape.pk
        for (name, below), row in zip(shape.related.items(), values[ends:], strict=False):
            self.__dict__[name] = None if row is None else Row(below, row)
        ends += len(shape.related)
        for fetched, rows in zip(shape.prefetched, values[ends:], strict=True):
            found = [Row(fetched.shape, row) for row in rows]
            self.__dict__[fetched.name] = next(iter(found), None) if fetched.single else found

    @property
    def pk(self) -> Any:
        values = tuple(self.__dict__[name] for name in self._pk)
        if not values:
            raise AttributeError(f"{self._model} was answered without its primary key")
        return values[0] if len(values) == 1 else values

    def __repr__(self) -> str:
        return f"<{self._model}: {self.pk!r}>" if self._pk else f"<{self._model}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row) or not self._pk:
            return self is other
        return (self._model, self.pk) == (other._model, other.pk if other._pk else None)

    def __hash__(self) -> int:
        return hash((self._model, self.pk if self._pk else id(self)))


@lru_cache(maxsize=256)
def _named(fields: tuple[str, ...]) -> Callable[..., Any]:
    return namedtuple("Row", fields, rename=True)


def rows_of(value: Any) -> list[Any]:
    """Return the rows of *value*, an answer's `Rows`, as its kind says."""
    if not isinstance(value, Rows):
        raise Malformed("rows were asked for, and something else was answered")
    shape = value.shape
    match value.kind:
        case "model" | "instance":
            return [Row(shape, row) for row in value.rows]
        case "dict":
            return [dict(zip(shape.fields, row, strict=True)) for row in value.rows]
        case "tuple":
            return [tuple(row) for row in value.rows]
        case "named":
            return [_named(shape.fields)(*row) for row in value.rows]
        case _:
            return [row[0] for row in value.rows]


def row_of(value: Any) -> Any:
    """Return the one row of *value*, or None where there is none."""
    return None if value is None else rows_of(value)[0]


def plain(value: Any) -> Any:
    """Return *value* as it is, rows in it as Python has them."""
    match value:
        case Rows(kind="instance"):
            return rows_of(value)[0]
        case Rows():
            return rows_of(value)
        case list():
            return [plain(each) for each in value]
        case tuple():
            return tuple(plain(each) for each in value)
        case dict():
            return {key: plain(each) for key, each in value.items()}
    return value


def pair_of(value: Any) -> tuple[Any, bool]:
    """Return the row and whether it was created."""
    row, created = value
    return row_of(row), created


def by_key(value: Any) -> dict[Any, Any]:
    """Return the rows of `in_bulk` by their keys."""
    return {key: row_of(row) for key, row in value.items()}
