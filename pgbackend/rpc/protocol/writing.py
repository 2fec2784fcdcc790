"""From values, nodes and trees to JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import nodes
from .errors import BadValue, TooDeep
from .json_text import dumped
from .limits import DEEPEST
from .names import is_model, is_name
from .rows import write_rows
from .scalars import ENCODERS, encode_float, encode_integer, text_of

# What makes a value that can be sent of one that cannot, or returns NotImplemented.
Default = Callable[[Any], Any]


class Writer:
    """Writes one value, or one tree, with all that is in it.

    *default* is called with what has no form of its own, a model's instance for example.
    """

    def __init__(self, default: Default | None = None) -> None:
        self._default = default
        self._depth = 0

    def value(self, value: Any) -> Any:
        """Return *value* as JSON; raise `BadValue` or `TooDeep`."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return text_of(value)
        if isinstance(value, int):
            return encode_integer(value)
        if isinstance(value, float):
            return encode_float(value)
        for kind in type(value).__mro__:
            if kind in ENCODERS:
                return ENCODERS[kind](value)
            if kind in _FORMS:
                levels, write = _FORMS[kind]
                self._deepen(levels)
                written = write(self, value)
                self._depth -= levels
                return written
        return self._other(value)

    def _deepen(self, levels: int) -> None:
        """Count *levels* of JSON; raise `TooDeep` where the recursion would go too far."""
        self._depth += levels
        if self._depth > DEEPEST:
            raise TooDeep(f"more than {DEEPEST} levels of JSON", {"max_depth": DEEPEST})

    def _other(self, value: Any) -> Any:
        if self._default is not None:
            made = self._default(value)
            if made is not NotImplemented:
                self._deepen(1)
                written = self.value(made)
                self._depth -= 1
                return written
        kind = type(value)
        raise BadValue(f"{kind.__module__}.{kind.__qualname__} cannot be sent")

    def values(self, values: Iterable[Any]) -> list[Any]:
        return [self.value(each) for each in values]

    def tree(self, tree: nodes.Tree) -> dict[str, Any]:
        """Return *tree* as JSON."""
        if not is_model(tree.model) and tree.model + tree.end.name != "describe":
            raise BadValue(f'a model must be named "app.Model", not {tree.model!r}')
        # Object, operations, operation, arguments.
        self._deepen(4)
        written = {
            "model": tree.model,
            "ops": [self._op(op) for op in tree.ops],
            "end": self._op(tree.end),
            "fields": None if tree.fields is None else [_named(each) for each in tree.fields],
        }
        self._depth -= 4
        return written

    def _op(self, op: nodes.Op) -> list[Any]:
        keywords = {_named(key): self.value(each) for key, each in op.kwargs.items()}
        return [_named(op.name), self.values(op.args), keywords]

    def _child(self, child: Any) -> Any:
        if isinstance(child, tuple):
            path, value = child
            return [_named(path), self.value(value)]
        if not isinstance(child, nodes.Node):
            raise BadValue(f"a condition cannot hold {child!r}")
        return self.value(child)

    def _dict(self, value: dict[Any, Any]) -> Any:
        return {"$dict": [[self.value(key), self.value(each)] for key, each in value.items()]}

    def _set(self, value: Iterable[Any]) -> Any:
        # In one order, whatever the hashes: equal values are written alike.
        return {"$set": sorted((self.value(each) for each in value), key=dumped)}

    def _q(self, node: nodes.Q) -> Any:
        children = [self._child(each) for each in node.children]
        return {"$q": [node.connector, children, node.negated]}

    def _aggregate(self, node: nodes.Aggregate) -> Any:
        options: dict[str, Any] = {}
        if node.distinct:
            options["distinct"] = True
        if node.filter is not None:
            options["filter"] = self.value(node.filter)
        if node.default is not None:
            options["default"] = self.value(node.default)
        return {"$agg": [node.name, self.values(node.arguments), options]}

    def _case(self, node: nodes.Case) -> Any:
        cases = [[self.value(each.condition), self.value(each.then)] for each in node.cases]
        return {"$case": [cases, self.value(node.default)]}

    def _json(self, value: Any, depth: int) -> Any:
        """Return the JSON document *value*; raise `BadValue` for what JSON has not."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return text_of(value)
        if isinstance(value, int):
            encode_integer(value)
            return int(value)
        if isinstance(value, float):
            if isinstance(encode_float(value), dict):
                raise BadValue(f"JSON has no {value}")
            return float(value)
        if depth >= DEEPEST:
            raise TooDeep(f"more than {DEEPEST} values inside each other")
        if isinstance(value, list | tuple):
            return [self._json(each, depth + 1) for each in value]
        if isinstance(value, Mapping):
            return {_key(key): self._json(each, depth + 1) for key, each in value.items()}
        raise BadValue(f"JSON has no {type(value).__qualname__}")


def _named(name: str) -> str:
    if not is_name(name):
        raise BadValue(f"{name!r} is no name: a letter, then letters, digits and underscores")
    return str.__str__(name)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise BadValue(f"the names in a JSON document are strings, not {type(key).__qualname__}")
    return text_of(key)


# By class; a subclass is written as the first one that it derives from. Each has the levels of JSON
# around the values in it.
_FORMS: dict[type, tuple[int, Callable[[Writer, Any], Any]]] = {
    list: (1, Writer.values),
    tuple: (2, lambda writer, value: {"$tuple": writer.values(value)}),
    dict: (3, Writer._dict),
    set: (2, Writer._set),
    frozenset: (2, Writer._set),
    nodes.Q: (3, Writer._q),
    nodes.F: (1, lambda _writer, node: {"$f": _named(node.path)}),
    nodes.Operation: (
        2,
        lambda writer, node: {
            "$op": [node.operator, writer.value(node.left), writer.value(node.right)]
        },
    ),
    nodes.Aggregate: (3, Writer._aggregate),
    nodes.Function: (
        3,
        lambda writer, node: {"$fn": [node.name, writer.values(node.arguments)]},
    ),
    nodes.Case: (4, Writer._case),
    nodes.Value: (1, lambda writer, node: {"$value": writer.value(node.value)}),
    nodes.OrderBy: (
        2,
        lambda writer, node: {
            "$order": [
                writer.value(node.expression),
                "desc" if node.descending else "asc",
                node.nulls,
            ]
        },
    ),
    nodes.OuterRef: (1, lambda _writer, node: {"$outer": _named(node.path)}),
    nodes.Exists: (1, lambda writer, node: {"$exists": writer.tree(node.tree)}),
    nodes.Subquery: (1, lambda writer, node: {"$subquery": writer.tree(node.tree)}),
    nodes.Delayed: (1, lambda writer, node: {"$delayed": writer.tree(node.tree)}),
    nodes.Ref: (2, lambda _writer, node: {"$ref": [node.index, *node.path]}),
    nodes.Object: (2, lambda writer, node: {"$obj": [node.model, writer.value(node.pk)]}),
    nodes.Json: (1, lambda writer, node: {"$json": writer._json(node.value, writer._depth)}),
    nodes.Range: (
        2,
        lambda writer, node: {
            "$range": [writer.value(node.lower), writer.value(node.upper), node.bounds]
        },
    ),
    nodes.Rows: (4, lambda writer, node: write_rows(node, writer.value)),
}
