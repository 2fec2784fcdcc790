"""Rows of a result as JSON: their shape once, then each row as a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import BadValue, Malformed, TooDeep
from .forms import array_in, is_one_of, object_in, text_in
from .limits import DEEPEST
from .names import KINDS, model_name, name, shown
from .nodes import Prefetched, Rows, Shape

# What writes, or reads, one value.
Each = Callable[[Any], Any]

_SHAPE = {"model", "pk", "fields", "related", "prefetched"}
_RELATED = {"name", *_SHAPE}
_ROWS = {"kind", "rows", *_SHAPE}
_PREFETCHED = {"name", "to_attr", "single", *_SHAPE}


def write_rows(node: Rows, value: Each) -> dict[str, Any]:
    """Return *node* as JSON, each value written by *value*."""
    if node.kind == "instance" and len(node.rows) != 1:
        raise BadValue(f"an instance is one row, not {len(node.rows)}")
    shape = _write_shape(node.shape, 0)
    rows = [_write_row(node.shape, each, value) for each in node.rows]
    return {"$rows": {"kind": node.kind, **shape, "rows": rows}}


def _write_shape(shape: Shape, depth: int) -> dict[str, Any]:
    if depth > DEEPEST:
        raise TooDeep(f"more than {DEEPEST} shapes inside each other")
    return {
        "model": shape.model,
        "pk": list(shape.pk),
        "fields": list(shape.fields),
        # An array: the names of an object have no order everywhere.
        "related": [
            {"name": name, **_write_shape(each, depth + 1)} for name, each in shape.related.items()
        ],
        "prefetched": [
            {
                "name": each.name,
                "to_attr": each.to_attr,
                "single": each.single,
                **_write_shape(each.shape, depth + 1),
            }
            for each in shape.prefetched
        ],
    }


def _write_row(shape: Shape, row: list[Any], value: Each) -> list[Any]:
    ends = len(shape.fields)
    if len(row) != ends + len(shape.related) + len(shape.prefetched):
        raise BadValue(f"a row of {len(row)} values is not of its shape")
    written = [value(each) for each in row[:ends]]
    for at, below in enumerate(shape.related.values(), ends):
        written.append(None if row[at] is None else _write_row(below, row[at], value))
    for fetched, rows in zip(shape.prefetched, row[len(written) :], strict=True):
        written.append([_write_row(fetched.shape, each, value) for each in rows])
    return written


class Shapes:
    """Reads the shapes of rows; keeps the last one, as the next result often has the same."""

    def __init__(self) -> None:
        self._head: tuple[Any, ...] = ()
        self._shape = Shape()

    def read(self, item: dict[str, Any]) -> Shape:
        """Return the shape of *item*; raise `Malformed`."""
        head = (item["model"], item["pk"], item["fields"], item["related"], item["prefetched"])
        if head != self._head:
            self._shape = _read_shape(item, 0)
            # What is alike is equal there: without prefetched rows there are but lists of strings.
            is_flat = not (self._shape.related or self._shape.prefetched)
            self._head = head if is_flat else ()
        return self._shape


def read_rows(item: Any, value: Each, shapes: Shapes) -> Rows:
    """Return the rows of *item*, parsed JSON, each value read by *value*; raise `Malformed`."""
    object_in(item, "$rows", _ROWS)
    if not is_one_of(item["kind"], KINDS):
        raise Malformed(f"there are no rows of kind {shown(item['kind'])}")
    shape = shapes.read(item)
    rows = [_read_row(shape, each, value) for each in array_in(item["rows"], "rows")]
    if item["kind"] == "instance" and len(rows) != 1:
        raise Malformed(f"an instance is one row, not {len(rows)}")
    return Rows(item["kind"], shape, rows)


def _read_shape(item: dict[str, Any], depth: int) -> Shape:
    if depth > DEEPEST:
        raise TooDeep(f"more than {DEEPEST} shapes inside each other")
    related = {}
    for each in array_in(item["related"], "related"):
        object_in(each, "a related shape", _RELATED)
        related[name(each["name"], "a relation")] = _read_shape(each, depth + 1)
    if len(related) != len(item["related"]):
        raise Malformed("a shape has a relation twice")
    return Shape(
        None if item["model"] is None else model_name(item["model"]),
        # The names of columns of values() may be any: those of annotations and of lookups.
        tuple(text_in(each) for each in array_in(item["fields"], "fields")),
        related,
        tuple(_prefetched(each, depth + 1) for each in array_in(item["prefetched"], "prefetched")),
        tuple(name(each, "a column of pk") for each in array_in(item["pk"], "pk")),
    )


def _prefetched(item: Any, depth: int) -> Prefetched:
    object_in(item, "prefetched", _PREFETCHED)
    to_attr, single = item["to_attr"], item["single"]
    if not isinstance(to_attr, bool) or not isinstance(single, bool):
        raise Malformed("to_attr and single are true or false")
    shape = _read_shape(item, depth)
    return Prefetched(name(item["name"], "prefetched"), shape, to_attr, single)


def _read_row(shape: Shape, item: Any, value: Each) -> list[Any]:
    ends = len(shape.fields)
    row = array_in(item, "a row", ends + len(shape.related) + len(shape.prefetched))
    read = [value(each) for each in row[:ends]]
    for at, below in enumerate(shape.related.values(), ends):
        read.append(None if row[at] is None else _read_row(below, row[at], value))
    for fetched, rows in zip(shape.prefetched, row[len(read) :], strict=True):
        below = fetched.shape
        read.append([_read_row(below, each, value) for each in array_in(rows, "prefetched rows")])
    return read
