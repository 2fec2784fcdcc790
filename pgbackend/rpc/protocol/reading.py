"""From JSON to values, nodes and trees: the form is checked, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import nodes
from .errors import (
    AggregateNotAllowed,
    Malformed,
    OperationNotAllowed,
    TooDeep,
    TooManyNodes,
    TransformNotAllowed,
)
from .forms import array_in, is_one_of, object_in, text_in
from .limits import DEEPEST, Limits
from .names import (
    AGGREGATES,
    BOUNDS,
    CONNECTORS,
    ENDS,
    FUNCTIONS,
    OPERATIONS,
    OPERATORS,
    is_name,
    model_name,
    name,
    shown,
)
from .rows import Shapes, read_rows
from .scalars import DECODERS, LARGEST, decode_scalar, is_wide

_TREE = {"model", "ops", "end", "fields"}


class Reader:
    """Reads the values and trees of one body.

    With *limits* nodes are counted. *index* is that of the tree being read: a reference leads to an
    earlier one.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._most = None if limits is None else limits.max_nodes
        self._nodes = 0
        self._depth = 0
        self.shapes = Shapes()
        self.index = 0

    def value(self, item: Any) -> Any:
        """Return the value that *item*, parsed JSON, stands for; raise `Malformed`."""
        if item is None or isinstance(item, bool | float):
            return item
        if isinstance(item, str):
            return text_in(item)
        if isinstance(item, int):
            if not -LARGEST <= item <= LARGEST:
                raise Malformed("an integer beyond 2**53 is written as $int")
            return item
        # What comes from `loaded` is never too deep; what a caller made may be.
        self._depth += 1
        if self._depth > DEEPEST:
            raise TooDeep(f"more than {DEEPEST} values inside each other")
        try:
            if isinstance(item, list):
                return [self.value(each) for each in item]
            return self._tagged(item)
        finally:
            self._depth -= 1

    def _tagged(self, item: Any) -> Any:
        if not isinstance(item, dict) or len(item) != 1:
            raise Malformed("an object has one name, its tag, beginning with $")
        [(tag, content)] = item.items()
        if tag in DECODERS:
            value = decode_scalar(tag, content)
            if is_wide(value):
                self._count()
            return value
        read = TAGS.get(tag)
        if read is None:
            raise Malformed(f"{shown(tag)} is no tag")
        return read(self, content)

    def _count(self) -> None:
        self._nodes += 1
        if self._most is not None and self._nodes > self._most:
            raise TooManyNodes(f"more than {self._most} nodes", {"max_nodes": self._most})

    def _values(self, items: Any, what: str) -> tuple[Any, ...]:
        return tuple(self.value(each) for each in array_in(items, what))

    def tree(self, item: Any) -> nodes.Tree:
        """Return the tree of *item*."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise TooDeep(f"more than {DEEPEST} values inside each other")
        try:
            return self._tree(item)
        finally:
            self._depth -= 1

    def _tree(self, item: Any) -> nodes.Tree:
        object_in(item, "a tree", _TREE)
        names = item["fields"]
        if names is not None:
            names = tuple(name(each, "a field") for each in array_in(names, "fields"))
        end = self._op(item["end"], ENDS)
        if item["model"] != "" or end.name != "describe":
            model_name(item["model"])
        ops = tuple(self._op(each, OPERATIONS) for each in array_in(item["ops"], "ops"))
        return nodes.Tree(item["model"], ops, end, names)

    def _op(self, item: Any, allowed: frozenset[str]) -> nodes.Op:
        self._count()
        called, args, kwargs = array_in(item, "an operation", 3)
        if name(called, "an operation") not in allowed:
            raise OperationNotAllowed(f"there is no operation {shown(called)}")
        if not isinstance(kwargs, dict):
            raise Malformed("an operation's named arguments are an object")
        read = self._values(args, "an operation's arguments")
        if not kwargs:
            return nodes.Op(called, read)
        return nodes.Op(
            called,
            read,
            {name(key, "an argument"): self.value(each) for key, each in kwargs.items()},
        )

    def _path(self, text: Any) -> str:
        self._count()
        return name(text, "a path")

    def _child(self, item: Any) -> Any:
        if isinstance(item, list):
            path, value = array_in(item, "a condition", 2)
            return self._path(path), self.value(value)
        child = self.value(item)
        if not isinstance(child, nodes.Node):
            raise Malformed(f"a condition cannot hold {shown(item)}")
        return child

    def _q(self, item: Any) -> nodes.Q:
        self._count()
        connector, children, negated = array_in(item, "$q", 3)
        if not is_one_of(connector, CONNECTORS) or not isinstance(negated, bool):
            raise Malformed("$q is [and, or or xor, [children], true or false]")
        children = tuple(self._child(each) for each in array_in(children, "$q's children"))
        return nodes.Q(connector, children, negated)

    def _operation(self, item: Any) -> nodes.Operation:
        self._count()
        operator, left, right = array_in(item, "$op", 3)
        if not is_one_of(operator, OPERATORS):
            raise Malformed(f"there is no operator {shown(operator)}")
        return nodes.Operation(operator, self.value(left), self.value(right))

    def _aggregate(self, item: Any) -> nodes.Aggregate:
        self._count()
        called, arguments, options = array_in(item, "$agg", 3)
        if name(called, "an aggregate") not in AGGREGATES:
            raise AggregateNotAllowed(f"there is no aggregate {shown(called)}")
        if not isinstance(options, dict) or not options.keys() <= {"distinct", "filter", "default"}:
            raise Malformed("an aggregate's options are distinct, filter and default")
        distinct = options.get("distinct", False)
        if not isinstance(distinct, bool):
            raise Malformed("distinct is true or false")
        condition = self.value(options.get("filter"))
        if condition is not None and not isinstance(condition, nodes.Node):
            raise Malformed("an aggregate's filter is a condition")
        return nodes.Aggregate(
            called,
            self._values(arguments, "an aggregate's arguments"),
            distinct,
            condition,
            self.value(options.get("default")),
        )

    def _function(self, item: Any) -> nodes.Function:
        self._count()
        called, arguments = array_in(item, "$fn", 2)
        if name(called, "a function") not in FUNCTIONS:
            raise TransformNotAllowed(f"there is no function {shown(called)}")
        return nodes.Function(called, self._values(arguments, "a function's arguments"))

    def _case(self, item: Any) -> nodes.Case:
        self._count()
        cases, default = array_in(item, "$case", 2)
        read = []
        for each in array_in(cases, "the cases"):
            self._count()
            condition, then = (self.value(part) for part in array_in(each, "a case", 2))
            if not isinstance(condition, nodes.Node):
                raise Malformed("a case has a condition")
            read.append(nodes.When(condition, then))
        return nodes.Case(tuple(read), self.value(default))

    def _order(self, item: Any) -> nodes.OrderBy:
        self._count()
        expression, direction, nulls = array_in(item, "$order", 3)
        if direction not in ("asc", "desc") or nulls not in (None, "first", "last"):
            raise Malformed("$order is [expression, asc or desc, null, first or last]")
        return nodes.OrderBy(self.value(expression), direction == "desc", nulls)

    def _reference(self, item: Any) -> nodes.Ref:
        self._count()
        parts = array_in(item, "$ref")
        for each in parts:
            if isinstance(each, bool) or not (
                is_name(each) or (isinstance(each, int) and 0 <= each <= LARGEST)
            ):
                raise Malformed("$ref is [index, name or index, ...]")
        if not parts or not isinstance(parts[0], int):
            raise Malformed("$ref is [index, name or index, ...]")
        if parts[0] >= self.index:
            raise Malformed("$ref leads to an earlier tree of the message")
        return nodes.Ref(parts[0], tuple(parts[1:]))

    def _instance(self, item: Any) -> nodes.Object:
        self._count()
        model, pk = array_in(item, "$obj", 2)
        return nodes.Object(model_name(model), self.value(pk))

    def _inner(self, item: Any) -> nodes.Tree:
        self._count()
        tree = self.tree(item)
        if tree.end != nodes.Op("rows"):
            raise Malformed('a tree inside another ends with ["rows", [], {}]')
        return tree

    def _dict(self, item: Any) -> dict[Any, Any]:
        pairs = [
            self._values(array_in(each, "a pair", 2), "a pair") for each in array_in(item, "$dict")
        ]
        try:
            found = dict(pairs)
        except TypeError:
            raise Malformed("a key of $dict that cannot be one") from None
        if len(found) != len(pairs):
            raise Malformed("$dict has a key twice")
        return found

    def _set(self, item: Any) -> set[Any]:
        values = self._values(item, "$set")
        try:
            found = set(values)
        except TypeError:
            raise Malformed("a value in $set that cannot be in one") from None
        if len(found) != len(values):
            raise Malformed("$set has a value twice")
        return found

    def _range(self, item: Any) -> nodes.Range:
        lower, upper, bounds = array_in(item, "$range", 3)
        if not is_one_of(bounds, BOUNDS):
            raise Malformed("a range's bounds are [] [) (] () or empty")
        if bounds == "empty" and (lower is not None or upper is not None):
            raise Malformed("an empty range has no bounds")
        return nodes.Range(self.value(lower), self.value(upper), bounds)

    def json(self, item: Any) -> Any:
        """Return the JSON document *item*, its strings looked at."""
        if isinstance(item, str):
            return text_in(item)
        if isinstance(item, int) and is_wide(item):
            self._count()
        if isinstance(item, list):
            return [self.json(each) for each in item]
        if isinstance(item, dict):
            return {text_in(key): self.json(each) for key, each in item.items()}
        return item


TAGS: dict[str, Callable[[Reader, Any], Any]] = {
    "$tuple": lambda reader, item: reader._values(item, "$tuple"),
    "$set": Reader._set,
    "$dict": Reader._dict,
    "$json": Reader.json,
    "$range": Reader._range,
    "$q": Reader._q,
    "$f": lambda reader, item: nodes.F(reader._path(item)),
    "$op": Reader._operation,
    "$agg": Reader._aggregate,
    "$fn": Reader._function,
    "$case": Reader._case,
    "$value": lambda reader, item: nodes.Value(reader.value(item)),
    "$order": Reader._order,
    "$outer": lambda reader, item: nodes.OuterRef(reader._path(item)),
    "$exists": lambda reader, item: nodes.Exists(reader._inner(item)),
    "$subquery": lambda reader, item: nodes.Subquery(reader._inner(item)),
    "$delayed": lambda reader, item: nodes.Delayed(reader._inner(item)),
    "$ref": Reader._reference,
    "$obj": Reader._instance,
    "$rows": lambda reader, item: read_rows(item, reader.value, reader.shapes),
}
