"""The nodes of a tree: querysets and expressions as plain data.

Nodes compare by what they hold, and know nothing of what they mean. Sequences in them are tuples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Op:
    """One call of a queryset's method, as it was recorded."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """A queryset of *model* ("app.Model"): its calls in order, and what ends them.

    The *end* of a tree within another one, of a subquery, is "rows". *fields* are those that the
    answer shall have; None: all that the service gives. To describe all models *model* is "".
    """

    model: str
    ops: tuple[Op, ...] = ()
    end: Op = Op("rows")
    fields: tuple[str, ...] | None = None


class Node:
    """What stands for a value that the service computes."""


@dataclass(frozen=True)
class Q(Node):
    """A condition: *children* are pairs (path, value), conditions, and expressions.

    *connector* is "and", "or" or "xor".
    """

    connector: str = "and"
    children: tuple[Any, ...] = ()
    negated: bool = False


@dataclass(frozen=True)
class F(Node):
    """The value of a field's path."""

    path: str


@dataclass(frozen=True)
class Operation(Node):
    """Arithmetic: *operator* is one of ``+ - * / % ^ & | # << >>``; ``#`` is a bitwise xor."""

    operator: str
    left: Any
    right: Any


@dataclass(frozen=True)
class Aggregate(Node):
    """An aggregate by its Django name, "Count" or "Sum"."""

    name: str
    arguments: tuple[Any, ...] = ()
    distinct: bool = False
    filter: Any = None
    default: Any = None


@dataclass(frozen=True)
class Function(Node):
    """A database function by its Django name, "Lower" or "Coalesce"."""

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class When:
    """One case: *then* is its value where *condition* holds."""

    condition: Any
    then: Any


@dataclass(frozen=True)
class Case(Node):
    """The value of the first case whose condition holds, or the default."""

    cases: tuple[When, ...] = ()
    default: Any = None


@dataclass(frozen=True)
class Value(Node):
    """A value where an expression stands."""

    value: Any


@dataclass(frozen=True)
class OrderBy(Node):
    """An expression to order by; *nulls* is None, "first" or "last"."""

    expression: Any
    descending: bool = False
    nulls: str | None = None


@dataclass(frozen=True)
class OuterRef(Node):
    """The value of a path of the queryset outside the subquery."""

    path: str


@dataclass(frozen=True)
class Exists(Node):
    """Whether the queryset has a row."""

    tree: Tree


@dataclass(frozen=True)
class Subquery(Node):
    """The queryset's one value, or its values after ``__in``."""

    tree: Tree


@dataclass(frozen=True)
class Delayed(Node):
    """A queryset that is passed as a value and run within another one."""

    tree: Tree


@dataclass(frozen=True)
class Ref(Node):
    """The result of an earlier tree of the message, or a part of it.

    *path* leads into it: a row's or item's index, a field's or key's name.
    """

    index: int
    path: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Object(Node):
    """A row by its primary key, where a model's instance is passed."""

    model: str
    pk: Any


@dataclass(frozen=True)
class Json:
    """A JSON document, sent as it is: what a JSONField holds."""

    value: Any


@dataclass(frozen=True)
class Range:
    """A range, or an empty one where *bounds* is "empty"."""

    lower: Any = None
    upper: Any = None
    bounds: str = "[)"


@dataclass(frozen=True)
class Shape:
    """What one row is made of.

    A row is a list: the values of *fields*, then a row or None for each of *related*, then a list
    of rows for each of *prefetched*. *model* is None where rows are no model's. Of a model *fields*
    are the names of its columns (``station_id``), then those of annotations; *pk* are the columns
    of its primary key, more than one if it is composite.
    """

    model: str | None = None
    fields: tuple[str, ...] = ()
    related: Mapping[str, Shape] = field(default_factory=dict)
    prefetched: tuple[Prefetched, ...] = ()
    pk: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prefetched:
    """Rows of a relation that were fetched along.

    They stand in the attribute *name*: a list of them with *to_attr*, else the relation's manager,
    or the row itself with *single*, which has at most one.
    """

    name: str
    shape: Shape
    to_attr: bool = False
    single: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows of a result; *kind* is "model", "dict", "tuple", "flat" or "named".

    With "instance" there is one row, of a model, which is the result itself.
    """

    kind: str
    shape: Shape
    rows: list[list[Any]] = field(default_factory=list)
