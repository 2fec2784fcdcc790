"""The ends of a tree that read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, DoesNotExist, MultipleObjectsReturned, OperationNotAllowed
from .exposure import Exposure
from .expressions import expression, ordering, value
from .paths import check_name, resolve
from .rows import fetch
from .scope import Annotation, Scope

# Options of explain() and what they may be: Django puts their names into the statement.
_EXPLAIN: Mapping[str, tuple[Any, ...]] = {
    "format": (None, "text", "json", "yaml", "xml", "TEXT", "JSON", "YAML", "XML"),
    **dict.fromkeys(
        ("analyze", "buffers", "costs", "settings", "timing", "verbose"), (True, False)
    ),
}


def read(scope: Scope, end: nodes.Op) -> Any:
    """Return what *end* gives of the scope's rows."""
    return READS[end.name](scope, end)


def _rows(scope: Scope, end: nodes.Op) -> Any:
    _arguments(end, 0)
    return fetch(scope)


def _get(scope: Scope, end: nodes.Op) -> Any:
    _arguments(end, 0)
    return _one(scope)


def _one(scope: Scope) -> nodes.Rows:
    query = scope.queryset.query
    if not query.is_sliced:
        # With distinct(*paths) the order says which rows are left.
        if not query.combinator and not query.distinct_fields:
            scope.queryset = scope.queryset.order_by()
        scope.queryset = scope.queryset[:2]
    return one(scope.exposure, fetch(scope))


def one(exposure: Exposure, found: nodes.Rows) -> nodes.Rows:
    """Return *found*, which is one row; raise DoesNotExist or MultipleObjectsReturned."""
    label = exposure.model._meta.object_name
    if not found.rows:
        raise DoesNotExist(f"{label} matching query does not exist.")
    if len(found.rows) > 1:
        raise MultipleObjectsReturned(f"get() returned more than one {label}")
    return found


def _first(scope: Scope, end: nodes.Op) -> Any:
    _arguments(end, 0)
    if not scope.queryset.ordered:
        _order_by_key(scope, "pk")
    scope.queryset = scope.queryset[:1]
    return _or_none(scope)


def _order_by_key(scope: Scope, path: str) -> None:
    """Order rows that have no order; raise BadValue where that would change what they are."""
    query = scope.queryset.query
    if isinstance(query.group_by, tuple):
        own = scope.exposure.model._meta.pk
        if not any(each.output_field is own for each in query.group_by):
            raise BadValue("grouped rows have a first and a last one by an order alone")
    scope.queryset = scope.queryset.order_by(path)


def _last(scope: Scope, end: nodes.Op) -> Any:
    _arguments(end, 0)
    if scope.queryset.query.is_sliced:
        raise BadValue("last is not possible after a slice")
    if scope.queryset.ordered:
        scope.queryset = scope.queryset.reverse()
    else:
        _order_by_key(scope, "-pk")
    scope.queryset = scope.queryset[:1]
    return _or_none(scope)


def _or_none(scope: Scope) -> Any:
    found = fetch(scope)
    return found if found.rows else None


def _latest(scope: Scope, end: nodes.Op) -> Any:
    return _by_order(scope, end, reverse=True)


def _earliest(scope: Scope, end: nodes.Op) -> Any:
    return _by_order(scope, end, reverse=False)


def _by_order(scope: Scope, end: nodes.Op, *, reverse: bool) -> Any:
    paths: Any = end.args
    if end.kwargs:
        raise BadValue(f"{end.name} takes paths")
    if scope.queryset.query.is_sliced:
        raise BadValue(f"{end.name} is not possible after a slice")
    if not paths:
        paths = scope.exposure.model._meta.get_latest_by
        paths = (paths,) if isinstance(paths, str) else paths
        if not paths:
            raise BadValue(f"{end.name} takes paths, as the model has no get_latest_by")
    scope.queryset = scope.queryset.order_by(*(ordering(scope, each) for each in paths))
    if reverse:
        scope.queryset = scope.queryset.reverse()
    scope.queryset = scope.queryset[:1]
    return _one(scope)


def _count(scope: Scope, end: nodes.Op) -> int:
    _arguments(end, 0)
    scope.commit_next()
    return int(scope.queryset.count())


def _exists(scope: Scope, end: nodes.Op) -> bool:
    _arguments(end, 0)
    scope.commit_next()
    return bool(scope.queryset.exists())


def _contains(scope: Scope, end: nodes.Op) -> bool:
    (raw,) = _arguments(end, 1)
    if scope.kind != "model":
        raise BadValue("contains is not possible after values")
    query = scope.queryset.query
    if query.is_sliced or query.combinator:
        raise BadValue("contains is not possible after a slice or a union")
    key = value(scope, raw, scope.exposure.model._meta.pk)
    found = scope.queryset.filter(DjangoQ(("pk", key)))
    scope.commit_next()
    return bool(found.exists())


def _aggregate(scope: Scope, end: nodes.Op) -> dict[str, Any]:
    if end.args:
        raise BadValue("aggregate takes named expressions alone")
    built: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for alias, node in end.kwargs.items():
        check_name(alias)
        scope.named = frozenset()
        name = scope.own_name()
        built[name] = expression(scope, node)
        labels[name] = alias
        # Those that follow may name it.
        scope.annotations[alias] = Annotation(name, scope.named)
    scope.commit_next()
    found = scope.queryset.aggregate(**built)
    return {labels[name]: each for name, each in found.items()}


def _in_bulk(scope: Scope, end: nodes.Op) -> dict[Any, nodes.Rows]:
    named = end.kwargs.get("field_name", "pk")
    if len(end.args) > 1 or not end.kwargs.keys() <= {"field_name"} or not isinstance(named, str):
        raise BadValue("in_bulk takes keys, and field_name")
    if scope.kind != "model" or scope.queryset.query.is_sliced:
        raise BadValue("in_bulk is not possible after values or a slice")
    path = resolve(scope, named)
    opts = scope.exposure.model._meta
    alone = any(each.fields == (path.name,) for each in opts.total_unique_constraints)
    if path.entered or path.field is None or not (path.field.unique or alone):
        raise BadValue(f"in_bulk takes a unique field, not {named!r}")
    keys = end.args[0] if end.args else None
    if keys is not None:
        if not isinstance(keys, list | tuple | set):
            raise BadValue("in_bulk takes several keys")
        found = value(scope, keys, path.field)
        scope.queryset = scope.queryset.filter(DjangoQ((f"{path.name}__in", found)))
    rows = fetch(scope)
    if path.field.attname not in rows.shape.fields:
        raise BadValue(f"{named!r} has to be among the fields that are asked for")
    place = rows.shape.fields.index(path.field.attname)
    return {row[place]: nodes.Rows("model", rows.shape, [row]) for row in rows.rows}


def _changes(scope: Scope, end: nodes.Op) -> Any:
    raise BadValue("a message that waits for changes asks for nothing else")


def _explain(scope: Scope, end: nodes.Op) -> str:
    if not scope.exposure.explain:
        raise OperationNotAllowed(f"{scope.exposure.model._meta.label} is not exposed for explain")
    options = dict(end.kwargs)
    if end.args or not options.keys() <= _EXPLAIN.keys():
        raise BadValue(f"explain takes {', '.join(sorted(_EXPLAIN))}")
    for name, each in options.items():
        if not any(each is allowed or each == allowed for allowed in _EXPLAIN[name]) or (
            name != "format" and not isinstance(each, bool)
        ):
            raise BadValue(f"explain takes no such {name}")
    if scope.kind == "model":
        # The columns that would be selected.
        scope.queryset = scope.queryset.values(*(each.attname for each in scope.exposure.columns))
    return str(scope.queryset.explain(**options))


def _arguments(end: nodes.Op, number: int) -> tuple[Any, ...]:
    if end.kwargs or len(end.args) != number:
        raise BadValue(f"{end.name} takes {number or 'no'} arguments")
    return end.args


READS: Mapping[str, Callable[[Scope, nodes.Op], Any]] = {
    "rows": _rows,
    "get": _get,
    "first": _first,
    "last": _last,
    "latest": _latest,
    "earliest": _earliest,
    "count": _count,
    "exists": _exists,
    "contains": _contains,
    "aggregate": _aggregate,
    "in_bulk": _in_bulk,
    "explain": _explain,
    "changes": _changes,
}
