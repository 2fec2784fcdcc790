"""What the service computes: fields, arithmetic, aggregates, functions, cases, subqueries.

The names and arguments are those of Django.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocol import nodes


class Combinable:
    """What arithmetic can be done with, and what can be ordered by."""

    def __add__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("+", self, other)

    def __radd__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("+", other, self)

    def __sub__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("-", self, other)

    def __rsub__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("-", other, self)

    def __mul__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("*", self, other)

    def __rmul__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("*", other, self)

    def __truediv__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("/", self, other)

    def __rtruediv__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("/", other, self)

    def __mod__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("%", self, other)

    def __rmod__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("%", other, self)

    def __pow__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("^", self, other)

    def __rpow__(self, other: Any) -> CombinedExpression:
        return CombinedExpression("^", other, self)

    def __neg__(self) -> CombinedExpression:
        return CombinedExpression("*", self, -1)

    def bitand(self, other: Any) -> CombinedExpression:
        return CombinedExpression("&", self, other)

    def bitor(self, other: Any) -> CombinedExpression:
        return CombinedExpression("|", self, other)

    def bitxor(self, other: Any) -> CombinedExpression:
        return CombinedExpression("#", self, other)

    def bitleftshift(self, other: Any) -> CombinedExpression:
        return CombinedExpression("<<", self, other)

    def bitrightshift(self, other: Any) -> CombinedExpression:
        return CombinedExpression(">>", self, other)

    def asc(self, *, nulls_first: bool = False, nulls_last: bool = False) -> nodes.OrderBy:
        return nodes.OrderBy(self, False, _nulls(nulls_first, nulls_last))

    def desc(self, *, nulls_first: bool = False, nulls_last: bool = False) -> nodes.OrderBy:
        return nodes.OrderBy(self, True, _nulls(nulls_first, nulls_last))


def _nulls(first: bool, last: bool) -> str | None:
    if first and last:
        raise ValueError("nulls_first and nulls_last exclude each other")
    return "first" if first else "last" if last else None


class F(Combinable, nodes.F):
    """The value of a field, or of a path through relations."""


class OuterRef(Combinable, nodes.OuterRef):
    """The value of a field of the queryset around a subquery."""


class CombinedExpression(Combinable, nodes.Operation):
    """Two operands and what is done with them."""


class Value(Combinable, nodes.Value):
    """A value where an expression stands."""


class Aggregate(Combinable, nodes.Aggregate):
    """An aggregate: `Count`, `Sum` and so on make one."""

    @property
    def default_alias(self) -> str:
        """Return the name of the result where none is given: "price__max".

        Raise TypeError for an aggregate of more than a field.
        """
        if len(self.arguments) == 1 and isinstance(self.arguments[0], nodes.F):
            return f"{self.arguments[0].path}__{self.name.lower()}"
        raise TypeError(f"{self.name} of an expression needs a name: aggregate(name={self.name}())")


class Func(Combinable, nodes.Function):
    """A function of the database: `Lower`, `Coalesce` and so on make one."""


class Case(Combinable, nodes.Case):
    """The value of the first case whose condition holds."""

    def __init__(self, *cases: nodes.When, default: Any = None) -> None:
        nodes.Case.__init__(self, cases, default)


class Exists(Combinable, nodes.Exists):
    """Whether a queryset has a row: as a condition, or as a value."""

    def __init__(self, queryset: Any) -> None:
        nodes.Exists.__init__(self, queryset.tree)


class Subquery(Combinable, nodes.Subquery):
    """The value of a queryset that has one row with one value."""

    def __init__(self, queryset: Any) -> None:
        nodes.Subquery.__init__(self, queryset.tree)


def expression(value: Any) -> Any:
    """Return *value* as an expression: a name is a field's."""
    if isinstance(value, nodes.Node):
        return value
    return F(value) if isinstance(value, str) else Value(value)


def _aggregate(name: str) -> Callable[..., Aggregate]:
    def make(
        *expressions: Any, distinct: bool = False, filter: Any = None, default: Any = None
    ) -> Aggregate:
        arguments = tuple("*" if each == "*" else expression(each) for each in expressions)
        return Aggregate(name, arguments, distinct, filter, default)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"Return Django's aggregate {name} of *expressions*."
    return make


def _function(name: str) -> Callable[..., Func]:
    def make(*expressions: Any) -> Func:
        return Func(name, tuple(expression(each) for each in expressions))

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"Return Django's function {name} of *expressions*."
    return make


Avg = _aggregate("Avg")
Count = _aggregate("Count")
Max = _aggregate("Max")
Min = _aggregate("Min")
StdDev = _aggregate("StdDev")
Sum = _aggregate("Sum")
Variance = _aggregate("Variance")


def function(name: str, *expressions: Any) -> Func:
    """Return the database function with Django's *name*, "Lower" or "Coalesce", of *expressions*.

    The service says which there are.
    """
    return _function(name)(*expressions)


def aggregate(
    name: str, *expressions: Any, distinct: bool = False, filter: Any = None, default: Any = None
) -> Aggregate:
    """Return the aggregate with Django's *name*, "ArrayAgg" for example, of *expressions*."""
    make = _aggregate(name)
    return make(*expressions, distinct=distinct, filter=filter, default=default)
