"""Conditions, expressions and values of messages as Django's own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from functools import partial
from typing import Any

from django.conf import settings
from django.db.backends.postgresql.psycopg_any import DateRange, DateTimeTZRange, NumericRange
from django.db.models import Case, Exists, F, OuterRef, Subquery, Value, When
from django.db.models import Q as DjangoQ
from django.db.models.expressions import CombinedExpression, OrderBy
from django.utils import timezone

from ..protocol import nodes
from ..protocol.errors import (
    AggregateNotAllowed,
    BadValue,
    FieldNotAllowed,
    OperationNotAllowed,
    TransformNotAllowed,
)
from .functions import AGGREGATE_CLASSES, FUNCTION_CLASSES, OPERATORS
from .paths import Path, Placed, guard, place, resolve
from .scope import Scope

_CONNECTORS = {"and": DjangoQ.AND, "or": DjangoQ.OR, "xor": DjangoQ.XOR}

# Characters of a value for `in`, which Django would take one by one.
_TEXTS = (str, bytes)


# Conditions


def condition(scope: Scope, node: Any, *, inside: bool = False) -> DjangoQ:
    """Return the condition *node* for filter(); *inside* an expression it is one for When().

    Raise a RemoteError for what is not allowed, and BadValue for what is none.
    """
    if not isinstance(node, nodes.Q):
        return DjangoQ(expression(scope, node))
    return _Conditions(scope, inside).q(node)


class _Conditions:
    def __init__(self, scope: Scope, inside: bool) -> None:
        self.scope = scope
        self.inside = inside
        # Negations around what is being made.
        self.negations = 0

    def q(self, node: nodes.Q) -> DjangoQ:
        self.negations += node.negated
        children = [self._child(each, node.connector) for each in node.children]
        built = DjangoQ(*children, _connector=_CONNECTORS[node.connector])
        self.negations -= node.negated
        return ~built if node.negated else built

    def _child(self, child: Any, connector: str) -> Any:
        """Return a child as Q has it: a path and a value, another Q, or an expression.

        A path in a Q of its own would not be the same: Django chooses joins by the nesting.
        """
        if isinstance(child, nodes.Q):
            return self.q(child)
        if not isinstance(child, tuple):
            return expression(self.scope, child)
        found = self._leaf(*child)
        if connector == "xor" and isinstance(found, DjangoQ):
            # Inside "xor" a Q makes inner joins, which lose the rows that have no related one.
            return Case(When(found, then=Value(True)), default=Value(False))
        return found

    def _leaf(self, text: str, raw: Any) -> DjangoQ | tuple[str, Any]:
        path = resolve(self.scope, text, lookup=True)
        named, self.scope.names_outer = self.scope.names_outer, False
        content = value(self.scope, raw, path.field)
        _check_operand(path.lookup, content)
        placed = place(self.scope, path, condition=not self.inside)
        found = self._placed(path, placed, content)
        if placed.is_filtered and self.negations and not self.inside:
            found = self._as_subquery(found)
        self.scope.names_outer |= named
        return found

    def _placed(self, path: Path, placed: Placed, content: Any) -> DjangoQ | tuple[str, Any]:
        lookup = path.lookup
        if placed.guards and lookup == "exact" and content is None and not path.is_json:
            lookup, content = "isnull", True
        name = "__".join([placed.name, *path.transforms])
        if placed.guards and lookup == "isnull" and content is True:
            # A row that may not be seen is as none.
            return ~DjangoQ((f"{name}__isnull", False), *placed.guards)
        # Never a keyword: they might be arguments of Q's own.
        leaf = (f"{name}__{lookup}", content)
        return DjangoQ(leaf, *placed.guards) if placed.guards else leaf

    def _as_subquery(self, leaf: DjangoQ | tuple[str, Any]) -> DjangoQ:
        """Return *leaf* as a condition on the rows' keys.

        Django makes a subquery of each condition on rows to many in what is negated, too, but not
        of one on rows that are joined under a condition.
        """
        scope = self.scope
        query = scope.queryset.query
        if query.group_by is not None or query.is_sliced or scope.names_outer:
            raise OperationNotAllowed("this negation is not possible over such rows here")
        rows = scope.queryset.order_by().filter(DjangoQ(leaf))
        return DjangoQ(("pk__in", rows.values("pk")))


def _check_operand(lookup: str, content: Any) -> None:
    """Raise BadValue for an operand that the ORM would take for another than is meant."""
    if hasattr(content, "resolve_expression"):
        return
    if lookup == "isnull" and not isinstance(content, bool):
        raise BadValue("isnull takes true or false")
    if lookup in ("in", "range") and not isinstance(content, list | tuple | set | frozenset):
        raise BadValue(f"{lookup} takes several values")
    if lookup == "range" and len(content) != 2:
        raise BadValue("range takes two values")


# Values


def value(scope: Scope, raw: Any, field: Any = None) -> Any:
    """Return what *raw* stands for beside *field*: a Python value, or an expression."""
    if isinstance(raw, nodes.Ref):
        return value(scope, scope.session.referred(raw), field)
    if isinstance(raw, nodes.Value):
        return value(scope, raw.value, field)
    if isinstance(raw, nodes.Object):
        return _key_of(scope, raw, field)
    if isinstance(raw, nodes.Delayed):
        return _rows_of(inner(scope, raw.tree), field)
    if isinstance(raw, nodes.Node):
        return expression(scope, raw)
    if isinstance(raw, nodes.Range):
        return _range(scope, raw, field)
    if isinstance(raw, nodes.Rows):
        raise BadValue("rows are no value")
    if isinstance(raw, nodes.Json):
        return raw.value
    if isinstance(raw, list | tuple):
        return type(raw)([value(scope, each, field) for each in raw])
    if isinstance(raw, set | frozenset):
        return type(raw)(value(scope, each, field) for each in raw)
    if isinstance(raw, Mapping):
        return {key: value(scope, each) for key, each in raw.items()}
    if isinstance(raw, datetime) and settings.USE_TZ and timezone.is_naive(raw):
        return timezone.make_aware(raw)
    return raw


def _key_of(scope: Scope, named: nodes.Object, field: Any) -> Any:
    """Return the key of a row that stands where an instance does."""
    model = getattr(field, "related_model", None) or scope.exposure.model
    labels = {each._meta.label_lower for each in (model, *model._meta.all_parents)}
    if named.model.lower() not in labels:
        raise BadValue(f"a row of {model._meta.label} is expected, not of {named.model}")
    return value(scope, named.pk)


def _rows_of(found: Scope, field: Any) -> Any:
    """Return the queryset of *found* as a value beside *field*: of whole rows, what refers to them.

    Raise BadValue for rows of another model, as Django does. Left to itself, it would select all
    columns for lookups that are no `in`.
    """
    if found.kind != "model":
        return found.queryset
    column = "pk"
    if field is not None and field.is_relation:
        opts, wanted = found.exposure.model._meta, field.related_model._meta
        if not (
            opts.concrete_model is wanted.concrete_model
            or wanted.concrete_model in opts.all_parents
            or opts.concrete_model in wanted.all_parents
        ):
            raise BadValue(f"rows of {wanted.label} are expected, not of {opts.label}")
        if not field.target_field.primary_key:
            column = field.target_field.name
    if found.is_combined:
        return found.queryset
    return found.queryset.values(column)


def _range(scope: Scope, raw: nodes.Range, field: Any) -> Any:
    kind = getattr(field, "range_type", None)
    lower, upper = value(scope, raw.lower), value(scope, raw.upper)
    if kind is None:
        known = lower if lower is not None else upper
        if isinstance(known, datetime):
            kind = DateTimeTZRange
        else:
            kind = DateRange if isinstance(known, date) else NumericRange
    if raw.bounds == "empty":
        return kind(empty=True)
    return kind(lower, upper, raw.bounds)


# Expressions


def expression(scope: Scope, node: Any, *, order: bool = False, guarded: bool = False) -> Any:
    """Return the expression that *node* stands for; what is no node is a value.

    With *order* the paths in it have to be allowed for ordering. *guarded*: its value goes into
    what may fail, see `reference`. Raise a RemoteError.
    """
    part = partial(expression, scope, order=order, guarded=guarded)
    if isinstance(node, nodes.F):
        return reference(scope, node.path, order=order, guarded=guarded)
    if isinstance(node, nodes.Operation):
        left, right = (
            expression(scope, each, order=order, guarded=True) for each in (node.left, node.right)
        )
        return CombinedExpression(left, OPERATORS[node.operator], right)
    if isinstance(node, nodes.Aggregate):
        return _aggregate(scope, node, order)
    if isinstance(node, nodes.Function):
        if node.name not in scope.exposure.functions:
            raise TransformNotAllowed(f"the function {node.name} is not exposed")
        arguments = [expression(scope, each, order=order, guarded=True) for each in node.arguments]
        return FUNCTION_CLASSES[node.name](*arguments)
    if isinstance(node, nodes.Case):
        cases = [
            When(
                condition(scope, each.condition, inside=True),
                then=part(each.then),
            )
            for each in node.cases
        ]
        return Case(*cases, default=part(node.default))
    if isinstance(node, nodes.Q):
        return condition(scope, node, inside=True)
    if isinstance(node, nodes.OuterRef):
        return _outer(scope, node.path, guarded)
    if isinstance(node, nodes.Exists):
        return Exists(inner(scope, node.tree).queryset)
    if isinstance(node, nodes.Subquery | nodes.Delayed):
        return Subquery(_one_column(inner(scope, node.tree)))
    if isinstance(node, nodes.OrderBy):
        raise BadValue("an order stands in order_by alone")
    content = value(scope, node)
    return content if hasattr(content, "resolve_expression") else Value(content)


def reference(scope: Scope, text: str, *, order: bool = False, guarded: bool = False) -> Any:
    """Return the expression for the value of the path *text*; NULL where it may not be seen.

    PostgreSQL may evaluate a condition before the one that leaves the row out. What may fail for
    one value and not for another, a division, would tell of hidden rows by its error: *guarded*,
    their values are NULL.
    """
    path = resolve(scope, text, order=order)
    placed = place(scope, path, condition=False)
    name = F("__".join([placed.name, *path.transforms]))
    guards = placed.guards
    if guarded:
        guards = (*guards, *placed.joins)
        if scope.session.is_restricted(scope.exposure, scope.alias):
            guards = (guard(scope, scope.exposure, ""), *guards)
    if not guards:
        return name
    return Case(When(DjangoQ(*guards), then=name), default=Value(None))


def ordering(scope: Scope, node: Any) -> OrderBy:
    """Return what an argument of order_by() stands for: a path, with "-" before it, or a node."""
    if isinstance(node, str):
        path = node.removeprefix("-")
        # As an expression: by its name Django would order a relation as its own model is.
        return OrderBy(reference(scope, path, order=True), descending=path != node)
    if isinstance(node, nodes.OrderBy):
        nulls = {"nulls_first": node.nulls == "first" or None} | {
            "nulls_last": node.nulls == "last" or None
        }
        return OrderBy(
            expression(scope, node.expression, order=True), descending=node.descending, **nulls
        )
    if not isinstance(node, nodes.Node):
        raise BadValue("an order is a path or an expression")
    return OrderBy(expression(scope, node, order=True))


def _aggregate(scope: Scope, node: nodes.Aggregate, order: bool) -> Any:
    kind = AGGREGATE_CLASSES.get(node.name)
    if kind is None or node.name not in scope.exposure.aggregates:
        raise AggregateNotAllowed(f"the aggregate {node.name} is not exposed")
    options: dict[str, Any] = {}
    if node.distinct:
        options["distinct"] = True
    if node.filter is not None:
        options["filter"] = condition(scope, node.filter, inside=True)
    if node.default is not None:
        options["default"] = expression(scope, node.default)
    if node.name == "Count" and node.arguments in (("*",), (nodes.Value("*"),)):
        return kind("*", **options)
    return kind(*(expression(scope, each, order=order) for each in node.arguments), **options)


def _outer(scope: Scope, text: str, guarded: bool) -> OuterRef:
    if scope.outer is None:
        raise BadValue("there is no queryset around this one")
    path = resolve(scope.outer, text)
    placed = place(scope.outer, path, condition=False)
    is_restricted = placed.joins or scope.session.is_restricted(scope.outer.exposure, scope.alias)
    if placed.guards or (guarded and is_restricted):
        raise FieldNotAllowed(f"{text!r} cannot be named in a subquery")
    scope.names_outer = True
    return OuterRef("__".join([placed.name, *path.transforms]))


def inner(scope: Scope, tree: nodes.Tree) -> Scope:
    """Return the scope of a subquery inside *scope*."""
    found: Scope = scope.session.open_scope(scope.session, tree, scope.alias, scope)
    return found


def _one_column(scope: Scope) -> Any:
    if scope.kind == "model":
        return scope.queryset.values("pk")
    if len(scope.columns) != 1:
        raise BadValue("a subquery has one column")
    return scope.queryset
