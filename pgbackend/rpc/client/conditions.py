"""Conditions: `Q` and `When`, with Django's arguments and operators."""

from __future__ import annotations

from typing import Any

from ..protocol import nodes


class Q(nodes.Q):
    """A condition: ``Q(price__lt=5) | ~Q(name="x")``.

    Positional arguments are conditions, and expressions that are true or false. All must hold, or
    what *_connector* says: "and", "or" or "xor".
    """

    def __init__(
        self, /, *args: Any, _connector: str = "and", _negated: bool = False, **lookups: Any
    ) -> None:
        # In the order of Django, so that equal conditions are equal.
        nodes.Q.__init__(self, _connector, (*args, *sorted(lookups.items())), _negated)

    def __bool__(self) -> bool:
        return bool(self.children)

    def _combined(self, other: Any, connector: str) -> Q:
        if not isinstance(other, nodes.Node):
            raise TypeError(f"a condition cannot be combined with {other!r}")
        if not self:
            return other if isinstance(other, Q) else Q(other)
        if isinstance(other, Q) and not other:
            return self
        children = (*self._joined(connector), *_joined(other, connector))
        return Q(*children, _connector=connector)

    def _joined(self, connector: str) -> tuple[Any, ...]:
        """Return what stands for this in a condition with *connector*: its children, or itself."""
        alone = len(self.children) == 1 and not isinstance(self.children[0], nodes.Node)
        if not self.negated and (alone or self.connector == connector):
            return self.children
        return (self,)

    def __and__(self, other: Any) -> Q:
        return self._combined(other, "and")

    def __or__(self, other: Any) -> Q:
        return self._combined(other, "or")

    def __xor__(self, other: Any) -> Q:
        return self._combined(other, "xor")

    def __rand__(self, other: Any) -> Q:
        return Q(other) & self

    def __ror__(self, other: Any) -> Q:
        return Q(other) | self

    def __rxor__(self, other: Any) -> Q:
        return Q(other) ^ self

    def __invert__(self) -> Q:
        return Q(*self.children, _connector=self.connector, _negated=not self.negated)


def _joined(other: Any, connector: str) -> tuple[Any, ...]:
    return other._joined(connector) if isinstance(other, Q) else (other,)


class When(nodes.When):
    """A case of `Case`: *then* is its value where *condition* and *lookups* hold."""

    def __init__(self, condition: Any = None, then: Any = None, **lookups: Any) -> None:
        if condition is None and not lookups:
            raise TypeError("When needs a condition")
        if lookups:
            condition = Q(*(() if condition is None else (condition,)), **lookups)
        nodes.When.__init__(self, condition, then)
