"""From the calls of a tree to a queryset of what the principal may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..protocol import nodes
from ..protocol.errors import (
    BadValue,
    FieldNotAllowed,
    OperationNotAllowed,
    OrderingNotAllowed,
    TooDeep,
)
from .columns import column_of, op_dates, op_datetimes, op_values, op_values_list
from .expressions import condition, expression, ordering, reference
from .paths import check_alias, resolve
from .registry import exposure_of
from .relations import op_prefetch_related, op_select_related
from .scope import Annotation, Scope
from .session import Session

# Subqueries inside each other.
DEEPEST = 8

# What may follow a union.
_AFTER_COMBINED = frozenset(
    {
        *("all", "none", "order_by", "reverse", "slice", "union", "intersection", "difference"),
        *("values", "values_list"),
    }
)


def open_scope(session: Session, tree: nodes.Tree, alias: str, outer: Scope | None = None) -> Scope:
    """Return the scope of *tree* with its calls made; raise a RemoteError."""
    exposure = exposure_of(tree.model)
    exposure.check_operation(session, "read")
    return scope_on(session, tree, alias, exposure.visible(session, alias), outer)


def scope_on(
    session: Session, tree: nodes.Tree, alias: str, queryset: Any, outer: Scope | None = None
) -> Scope:
    """Return the scope of *tree* on *queryset*, of rows that the principal may see or change."""
    depth, around = 0, outer
    while around is not None:
        depth, around = depth + 1, around.outer
    if depth > DEEPEST:
        raise TooDeep(f"more than {DEEPEST} subqueries inside each other", {"max_depth": DEEPEST})
    exposure = exposure_of(tree.model)
    session.named_models.add(exposure.model)
    scope = Scope(session, exposure, alias, queryset, outer, fields=tree.fields)
    for op in tree.ops:
        if scope.is_combined and op.name not in _AFTER_COMBINED:
            raise OperationNotAllowed(f"{op.name} is not possible after a union")
        _OPERATIONS[op.name](scope, op)
    return scope


def _no_arguments(op: nodes.Op) -> None:
    if op.args or op.kwargs:
        raise BadValue(f"{op.name} takes no arguments")


def _positional(op: nodes.Op, fewest: int = 0, most: int | None = None) -> tuple[Any, ...]:
    if op.kwargs:
        raise BadValue(f"{op.name} takes no named arguments")
    if len(op.args) < fewest or (most is not None and len(op.args) > most):
        raise BadValue(f"{op.name} does not take {len(op.args)} arguments")
    return op.args


def _all(scope: Scope, op: nodes.Op) -> None:
    _no_arguments(op)


def _none(scope: Scope, op: nodes.Op) -> None:
    _no_arguments(op)
    scope.queryset = scope.queryset.none()


def _filter(scope: Scope, op: nodes.Op) -> None:
    built = condition(scope, conditions_of(op))
    scope.queryset = scope.queryset.filter(built)


def _exclude(scope: Scope, op: nodes.Op) -> None:
    asked = conditions_of(op)
    if asked.connector == "and" and not asked.negated:
        negated = nodes.Q("and", asked.children, True)
    else:
        negated = nodes.Q("and", (asked,), True)
    built = condition(scope, negated)
    scope.queryset = scope.queryset.filter(built)


def conditions_of(op: nodes.Op) -> nodes.Q:
    """Return the arguments of a filter as one condition; its named ones are paths, too."""
    for each in op.args:
        if not isinstance(each, nodes.Node):
            raise BadValue(f"{op.name} takes conditions")
    if len(op.args) == 1 and isinstance(op.args[0], nodes.Q) and not op.kwargs:
        return op.args[0]
    return nodes.Q("and", (*op.args, *op.kwargs.items()))


def _annotate(scope: Scope, op: nodes.Op) -> None:
    for alias, node in _named(op):
        annotation = add_annotation(scope, alias, node)
        _unselect(scope, alias)
        if scope.kind == "model":
            scope.selected.append(alias)
        else:
            scope.columns.append(column_of(scope, alias, annotation.name))


def _alias(scope: Scope, op: nodes.Op) -> None:
    for alias, node in _named(op):
        add_annotation(scope, alias, node, select=False)
        _unselect(scope, alias)


def _unselect(scope: Scope, alias: str) -> None:
    """Forget the annotation that had the name before."""
    scope.selected = [each for each in scope.selected if each != alias]
    scope.columns = [each for each in scope.columns if each.label != alias]


def _named(op: nodes.Op) -> list[tuple[str, Any]]:
    if op.args:
        raise BadValue(f"{op.name} takes named expressions alone")
    return list(op.kwargs.items())


def add_annotation(scope: Scope, alias: str, node: Any, *, select: bool = True) -> Annotation:
    """Annotate the queryset with what *node* stands for, under a name of our own."""
    check_alias(scope, alias)
    scope.named = frozenset()
    # It may be named in what fails.
    built = expression(scope, node, guarded=True)
    name = scope.annotation_name(alias)
    if select:
        scope.queryset = scope.queryset.annotate(**{name: built})
    else:
        scope.queryset = scope.queryset.alias(**{name: built})
    annotation = Annotation(name, scope.named)
    scope.annotations[alias] = annotation
    return annotation


def _order_by(scope: Scope, op: nodes.Op) -> None:
    built = [ordering(scope, each) for each in _positional(op)]
    scope.queryset = scope.queryset.order_by(*built)


def _reverse(scope: Scope, op: nodes.Op) -> None:
    _no_arguments(op)
    scope.queryset = scope.queryset.reverse()


def _distinct(scope: Scope, op: nodes.Op) -> None:
    names = []
    for each in _positional(op):
        if not isinstance(each, str):
            raise BadValue("distinct takes paths")
        found = reference(scope, each, order=True)
        if not hasattr(found, "name"):
            raise OrderingNotAllowed(f"distinct takes no {each!r} here")
        names.append(found.name)
    _without_hidden(scope)
    scope.queryset = scope.queryset.distinct(*names)


def _without_hidden(scope: Scope) -> None:
    """Keep what is not exposed out of the statement, where its rows are compared as a whole."""
    if scope.kind == "model" and not scope.is_combined:
        columns = (each.attname for each in scope.exposure.columns)
        scope.queryset = scope.queryset.only(*columns)


def _slice(scope: Scope, op: nodes.Op) -> None:
    start, stop = _positional(op, 2, 2)
    for each in (start, stop):
        if each is not None and (
            isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < 2**62
        ):
            raise BadValue("slice takes numbers from 0, or null")
    scope.queryset = scope.queryset[start:stop]


def _only(scope: Scope, op: nodes.Op) -> None:
    names = frozenset(_field_names(scope, op))
    # Django's own rules: what was deferred stays so, once.
    scope.loading = names - scope.loading if scope.defers else names
    scope.defers = False


def _defer(scope: Scope, op: nodes.Op) -> None:
    if op.args == (None,):
        scope.loading, scope.defers = frozenset(), True
        return
    names = frozenset(_field_names(scope, op))
    if scope.defers:
        scope.loading |= names
    elif left := scope.loading - names:
        scope.loading = left
    else:
        scope.loading, scope.defers = names - scope.loading, True


def _field_names(scope: Scope, op: nodes.Op) -> list[str]:
    """Return the paths of only() and defer(), by the fields' names."""
    if scope.kind != "model":
        raise BadValue(f"{op.name} is not possible after values")
    found = []
    for each in _positional(op):
        if not isinstance(each, str):
            raise BadValue(f"{op.name} takes names")
        path = resolve(scope, each)
        if path.transforms or path.field is None:
            raise FieldNotAllowed(f"{op.name} takes fields, not {each!r}")
        found.append(path.name)
    return found


def _select_for_update(scope: Scope, op: nodes.Op) -> None:
    scope.exposure.check_operation(scope.session, "update")
    options = dict(op.kwargs)
    if op.args or not options.keys() <= {"nowait", "skip_locked", "of", "no_key"}:
        raise BadValue("select_for_update takes nowait, skip_locked and no_key")
    # The table itself, no joined ones: those may be read, not locked.
    options.pop("of", None)
    for each in options.values():
        if not isinstance(each, bool):
            raise BadValue("select_for_update takes true and false")
    scope.queryset = scope.queryset.select_for_update(of=("self",), **options)


def _combined(scope: Scope, op: nodes.Op) -> None:
    all_rows = op.kwargs.get("all", False)
    if not op.kwargs.keys() <= {"all"} or not isinstance(all_rows, bool):
        raise BadValue(f"{op.name} takes all, true or false")
    others = [_other(scope, each) for each in op.args]
    for other in others:
        if (scope.kind == "model") != (other.kind == "model") or (
            scope.kind == "model" and other.exposure is not scope.exposure
        ):
            # Django would select the columns of the first model from the other one.
            raise OperationNotAllowed(f"{op.name} is of one model, or of values on both sides")
        if scope.kind != "model" and len(scope.columns) != len(other.columns):
            raise BadValue(f"{op.name} takes as many columns on both sides")
    for each in (scope, *others):
        _without_hidden(each)
    options = {"all": all_rows} if op.name == "union" else {}
    combine = getattr(scope.queryset, op.name)
    scope.queryset = combine(*(other.queryset for other in others), **options)
    scope.is_combined = True


def _merged(scope: Scope, op: nodes.Op) -> None:
    (node,) = _positional(op, 1, 1)
    other = _other(scope, node)
    if other.exposure is not scope.exposure or scope.kind != other.kind or other.is_combined:
        raise BadValue(f"{op.name} is of two querysets of one model")
    if scope.joined or other.joined:
        # Django merges joins without their conditions: rows would come more or less often.
        raise OperationNotAllowed(f"{op.name} is not possible over rows of which some are hidden")
    queryset: Any = scope.queryset
    if op.name == "and":
        scope.queryset = queryset & other.queryset
    elif op.name == "or":
        scope.queryset = queryset | other.queryset
    else:
        scope.queryset = queryset ^ other.queryset


def _other(scope: Scope, node: Any) -> Scope:
    if not isinstance(node, nodes.Delayed):
        raise BadValue("a queryset is expected")
    return open_scope(scope.session, node.tree, scope.alias)


_OPERATIONS: Mapping[str, Callable[[Scope, nodes.Op], None]] = {
    "all": _all,
    "none": _none,
    "filter": _filter,
    "exclude": _exclude,
    "annotate": _annotate,
    "alias": _alias,
    "order_by": _order_by,
    "reverse": _reverse,
    "distinct": _distinct,
    "slice": _slice,
    "values": op_values,
    "values_list": op_values_list,
    "dates": op_dates,
    "datetimes": op_datetimes,
    "only": _only,
    "defer": _defer,
    "select_related": op_select_related,
    "prefetch_related": op_prefetch_related,
    "select_for_update": _select_for_update,
    "union": _combined,
    "intersection": _combined,
    "difference": _combined,
    "and": _merged,
    "or": _merged,
    "xor": _merged,
}
