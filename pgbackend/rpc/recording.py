"""From Django's expressions and values to the nodes that travel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import FieldError
from django.db import models
from django.db.models import expressions
from django.db.models.fields.files import FieldFile
from django.db.models.fields.tuple_lookups import TupleIn
from django.db.models.functions import Extract
from django.db.models.functions.datetime import TruncBase
from django.utils.functional import Promise

from .options import options_of
from .protocol import nodes
from .protocol.errors import BadValue
from .record import RecordedQuery
from .results import Delayed, Reference, RpcFuture

# Django's own connectors.
_CONNECTORS = {models.Q.AND: "and", models.Q.OR: "or", models.Q.XOR: "xor"}

# Arithmetic as the message writes it.
_OPERATORS = {
    expressions.Combinable.MOD: "%",
    expressions.Combinable.BITAND: "&",
    expressions.Combinable.BITOR: "|",
    expressions.Combinable.BITXOR: "#",
    expressions.Combinable.BITLEFTSHIFT: "<<",
    expressions.Combinable.BITRIGHTSHIFT: ">>",
}


def condition(args: Iterable[Any], kwargs: Mapping[str, Any], model: Any) -> nodes.Q:
    """Return the condition of ``filter(*args, **kwargs)``; raise as Django does."""
    found = models.Q(*args, **kwargs)
    return _q(found, model)


def expression(value: Any) -> Any:
    """Return the node of an expression; a name is that field's value, a constant is a constant."""
    if isinstance(value, str):
        return nodes.F(str(value))
    made = recorded(value)
    return made if isinstance(made, nodes.Node | Reference) else nodes.Value(made)


def recorded(value: Any) -> Any:
    """Return *value*, or the node that stands for it in a message.

    Raise `BadValue` for what cannot be sent. Values without a node are returned as they are: the
    protocol knows them, or refuses them.
    """
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, models.Model):
        return instance(value)
    if isinstance(value, models.QuerySet):
        return queryset(value)
    if isinstance(value, models.Q):
        return _q(value, None)
    if isinstance(value, RpcFuture):
        return Reference(value, ())
    if isinstance(value, Delayed):
        return nodes.Delayed(value.queryset.query.tree())
    if hasattr(value, "resolve_expression"):
        return _expression(value)
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, FieldFile):
        return value.name or ""
    if isinstance(value, dict):
        return {recorded(key): recorded(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(recorded(each) for each in value)
    if isinstance(value, set | frozenset):
        return {recorded(each) for each in value}
    if all(hasattr(value, name) for name in ("lower", "upper", "isempty", "lower_inc")):
        # psycopg's ranges, without importing it: a client may have none.
        bounds = f"{'[' if value.lower_inc else '('}{']' if value.upper_inc else ')'}"
        return nodes.Range(value.lower, value.upper, "empty" if value.isempty else bounds)
    if hasattr(value, "__iter__") and not hasattr(value, "exploded"):
        # Lists, views of dictionaries and generators, but no IP addresses.
        return [recorded(each) for each in value]
    return value


def instance(value: models.Model) -> nodes.Object:
    """Return the node for a row; raise ValueError for one that is unsaved or of no service."""
    options = options_of(type(value))
    if options is None:
        raise ValueError(
            f"{value!r} is an instance of {type(value).__qualname__}, which is no RpcModel: a"
            " service does not know its rows; pass the value of a field"
        )
    if value.pk is None:
        raise ValueError(f"{value!r} is unsaved: a service does not know it; save it before")
    return nodes.Object(options.label, recorded(value.pk))


def queryset(value: models.QuerySet[Any]) -> nodes.Delayed:
    """Return the node for a queryset as a value; raise ValueError for one of another database."""
    if not isinstance(value.query, RecordedQuery):
        raise ValueError(
            "Subqueries aren't allowed across different databases. Force the inner query to be"
            " evaluated using `list(inner_query)`."
        )
    return nodes.Delayed(value.query.tree())


def _q(value: models.Q, model: Any) -> nodes.Q:
    children = tuple(_child(each, model) for each in value.children)
    return nodes.Q(_CONNECTORS[value.connector], children, value.negated)


def _child(child: Any, model: Any) -> Any:
    if isinstance(child, tuple):
        path, value = child
        if model is not None and path in ("pk", model._meta.pk.name):
            # As Django does when the filter is made: forms count on its ValueError.
            _check_key(model, value)
        return path, recorded(value)
    if isinstance(child, models.Q):
        return _q(child, model)
    if isinstance(child, TupleIn) and len(child.lhs.targets) == 1:
        # How Django prefetches over a foreign key.
        (target,) = child.lhs.targets
        return f"{target.name}__in", [recorded(value) for (value,) in child.rhs]
    return expression(child)


def _check_key(model: Any, value: Any) -> None:
    if value is not None and not hasattr(value, "resolve_expression"):
        if isinstance(value, models.Model):
            value = value.pk
        if not isinstance(value, RpcFuture | Reference | Delayed | models.QuerySet):
            model._meta.pk.get_prep_value(value)


def _expression(value: Any) -> Any:
    match value:
        case Reference():
            return value
        case models.OuterRef():
            return nodes.OuterRef(value.name)
        case models.F():
            return nodes.F(value.name)
        case models.Value():
            return nodes.Value(recorded(value.value))
        case expressions.NegatedExpression():
            # A wrapper, too: before those that mean nothing.
            return nodes.Q("and", (expression(value.expression),), True)
        case models.ExpressionWrapper():
            return expression(value.expression)
        case expressions.CombinedExpression():
            operator = _OPERATORS.get(value.connector, value.connector)
            return nodes.Operation(operator, expression(value.lhs), expression(value.rhs))
        case models.Exists():
            return nodes.Exists(_tree(value.query))
        case models.Subquery():
            return nodes.Subquery(_tree(value.query))
        case expressions.OrderBy():
            nulls = "first" if value.nulls_first else "last" if value.nulls_last else None
            return nodes.OrderBy(expression(value.expression), value.descending, nulls)
        case models.Case():
            cases = tuple(
                nodes.When(recorded(each.condition), expression(each.result))
                for each in value.cases
            )
            return nodes.Case(cases, expression(value.default))
        case models.Aggregate():
            return _aggregate(value)
        case models.Func():
            return _function(value)
    raise BadValue(f"{type(value).__qualname__} cannot be sent: no message has a node for it")


def _tree(query: Any) -> nodes.Tree:
    if not isinstance(query, RecordedQuery):
        raise ValueError("Subqueries aren't allowed across different databases.")
    return query.tree()


def _aggregate(value: Any) -> nodes.Aggregate:
    if getattr(value, "order_by", None):
        raise BadValue(f"{type(value).__qualname__}(order_by=...) cannot be sent")
    names = [type(each).__name__ for each in value.source_expressions]
    arguments = tuple(
        "*" if name == "Star" else expression(each)
        for name, each in zip(names, value.source_expressions, strict=True)
    )
    # Django 6.0 and later wrap the condition.
    condition = getattr(value.filter, "condition", value.filter)
    return nodes.Aggregate(
        type(value).__name__,
        arguments,
        value.distinct,
        None if condition is None else recorded(condition),
        None if value.default is None else expression(value.default),
    )


def _function(value: Any) -> nodes.Function:
    name = type(value).__name__
    if isinstance(value, TruncBase | Extract):
        # Trunc("placed", "year") is TruncYear("placed").
        kind = getattr(value, "kind", None) or value.lookup_name
        words = "".join(word.title() for word in kind.split("_"))
        if name in ("Trunc", "Extract"):
            name += words
        if getattr(value, "tzinfo", None) is not None:
            raise BadValue(f"{name}(tzinfo=...) cannot be sent: the service's own zone counts")
    if name in ("Concat", "ConcatPair"):
        return nodes.Function("Concat", tuple(map(expression, _of_pairs(value))))
    return nodes.Function(name, tuple(expression(each) for each in value.source_expressions))


def _of_pairs(value: Any) -> list[Any]:
    """Return the arguments of Concat, which Django makes pairs of pairs of."""
    if type(value).__name__ not in ("Concat", "ConcatPair"):
        return [value]
    return [each for part in value.source_expressions for each in _of_pairs(part)]


def ordering(item: Any) -> Any:
    """Return what is sent of a name or an expression to order by."""
    if isinstance(item, str):
        return str(item)
    if not hasattr(item, "resolve_expression"):
        raise FieldError(f"Using an unknown type in order_by(): {item!r}")
    return expression(item)
