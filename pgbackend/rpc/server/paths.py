"""Paths of messages: each is looked up in the allow-list before the ORM sees any part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from django.db.models import FilteredRelation, JSONField
from django.db.models import Q as DjangoQ

from ..protocol.errors import (
    BadValue,
    FieldNotAllowed,
    LookupNotAllowed,
    OrderingNotAllowed,
    TransformNotAllowed,
)
from .exposure import Exposure, relation
from .registry import exposure_of
from .scope import Scope

# Names that messages give to annotations and columns. Django would make them aliases in SQL; here
# they only stand in answers, and the queryset has names of our own for them.
_ALIAS = re.compile(r"[A-Za-z](?:_{0,2}[A-Za-z0-9]+)*", re.ASCII)
LONGEST_ALIAS = 63

# What may be asked of a relation itself. A lookup of another name might be a field behind it.
_OF_RELATIONS = frozenset({"exact", "in", "isnull", "lt", "lte", "gt", "gte"})


@dataclass(frozen=True)
class Entered:
    """A relation on a path's way whose rows are read. *prefix* is the path up to it."""

    prefix: str
    exposure: Exposure
    many: bool


@dataclass(frozen=True)
class Path:
    """An allowed path: *name*, by the names of fields, then *transforms* and *lookup*.

    *field* is the one at its end; None for an annotation.
    """

    name: str
    field: Any
    transforms: tuple[str, ...] = ()
    lookup: str = "exact"
    entered: tuple[Entered, ...] = ()

    @property
    def is_json(self) -> bool:
        """Return whether a condition on it compares JSON documents, where None is a value."""
        return isinstance(self.field, JSONField) or bool(self.transforms)


@dataclass(frozen=True)
class Placed:
    """A path as the queryset has to name it. *guards* have to hold for its value to be seen."""

    name: str
    guards: tuple[DjangoQ, ...] = ()
    # What holds already, where it goes over rows that are joined under a condition.
    joins: tuple[DjangoQ, ...] = ()

    @property
    def is_filtered(self) -> bool:
        return bool(self.joins)


def check_alias(scope: Scope, alias: str) -> str:
    """Return *alias* if a message may name an annotation so; raise BadValue.

    Django's default aliases, "orders__count", may be those of paths: afterwards the annotation is
    meant. After values() only the columns that these name are in the way.
    """
    check_name(alias)
    if scope.kind != "model":
        if alias not in scope.annotations and any(alias == each.label for each in scope.columns):
            raise BadValue(f"the name {alias!r} is that of a column")
    elif "__" not in alias and (
        alias in scope.exposure.allowed or alias in scope.exposure.prefixes
    ):
        raise BadValue(f"the name {alias!r} is that of a field")
    return alias


def check_name(alias: str) -> str:
    """Return *alias* if a message may name a value of the answer so; raise BadValue."""
    if len(alias) > LONGEST_ALIAS or not _ALIAS.fullmatch(alias):
        raise BadValue("a name is up to 63 ASCII letters, digits and one or two underscores")
    return alias


def resolve(scope: Scope, text: str, *, lookup: bool = False, order: bool = False) -> Path:
    """Return the path that *text* names; with *lookup* its last part may be one.

    Raise FieldNotAllowed, LookupNotAllowed, TransformNotAllowed; with *order* OrderingNotAllowed.
    """
    parts = text.split("__")
    entered: tuple[Entered, ...] = ()
    # As Django does: the shortest alias that the path begins with.
    starts = ("__".join(parts[:end]) for end in range(1, len(parts) + 1))
    if alias := next((each for each in starts if each in scope.annotations), None):
        annotation = scope.annotations[alias]
        name, field, rest = annotation.name, None, parts[alias.count("__") + 1 :]
        ordered = annotation.paths
    else:
        name, field, rest, entered = _walk(scope.exposure, parts, text)
        ordered = frozenset({name})
    for each in entered:
        scope.session.check_entered(each.exposure)
    scope.named |= ordered
    if order:
        for path in sorted(ordered):
            if not scope.exposure.may_order_by(path):
                raise OrderingNotAllowed(
                    f"{scope.exposure.model._meta.label} takes no order by {text!r}"
                )
    found, transforms = _lookup_of(scope, name, field, rest, lookup)
    return Path(name, field, transforms, found, entered)


def _walk(
    exposure: Exposure, parts: list[str], text: str
) -> tuple[str, Any, list[str], tuple[Entered, ...]]:
    """Return the allowed path that *parts* begin with, its field, the rest, and what is entered."""
    model: Any = exposure.model
    name = ""
    field: Any = None
    steps: list[tuple[str, Any]] = []
    used = 0
    for part in parts:
        if model is None:
            break
        step = relation(model, part)
        if step is None:
            break
        if steps and _is_own_column(steps[-1][1], step):
            # "station__id" is the column "station_id", which is the field "station"; and
            # "labels__pk" is what "labels" is compared by.
            used += 1
            model = None
            continue
        # Readable columns are listed by their names, and "pk" by the name of its field.
        candidate = f"{name}__{step.name}" if name else step.name
        if candidate not in exposure.allowed and candidate not in exposure.prefixes:
            break
        name, field = candidate, step
        steps.append((name, step))
        used += 1
        model = step.related_model if step.is_relation else None
    if not name or name not in exposure.allowed:
        raise FieldNotAllowed(f"{exposure.model._meta.label} has no field {text!r} here")
    last = len(steps) - 1
    entered = tuple(
        Entered(
            prefix, exposure_of(step.related_model), bool(step.many_to_many or step.one_to_many)
        )
        for number, (prefix, step) in enumerate(steps)
        if step.is_relation and (number < last or not _has_column(step))
    )
    return name, field, parts[used:], entered


def _has_column(field: Any) -> bool:
    """Return whether *field* is a foreign key, whose value is in its own model's row."""
    return bool(field.concrete and not field.many_to_many)


def _is_own_column(key: Any, step: Any) -> bool:
    """Return whether *step*, of the model that *key* leads to, is the value of *key* itself."""
    is_key = getattr(step, "primary_key", False)
    return bool(is_key and key.is_relation and key.target_field is step)


def _lookup_of(
    scope: Scope, name: str, field: Any, rest: list[str], lookup: bool
) -> tuple[str, tuple[str, ...]]:
    """Return the lookup and the transforms that *rest* names, if they are allowed for *name*."""
    exposure = scope.exposure
    # What was annotated is no path of its own: what holds for all of them holds for it.
    key = "*" if field is None else name
    lookups, allowed = exposure.lookups_of(key), exposure.transforms_of(key)
    any_key = exposure.takes_any_key(name) and isinstance(field, JSONField)
    found, transforms = "exact", rest
    if lookup and rest and rest[-1] in lookups:
        found, transforms = rest[-1], rest[:-1]
    elif lookup and "exact" not in lookups:
        _refuse(rest[-1] if rest else "exact", name, lookup)
    if field is not None and field.is_relation:
        # The ORM takes the name of a field behind the relation for that field, before a lookup.
        if transforms:
            _refuse(transforms[-1], name, lookup and len(transforms) == 1)
        if rest and (found not in _OF_RELATIONS or relation(field.related_model, rest[0])):
            _refuse(found, name, True)
    for each in transforms:
        if not (each in allowed or (any_key and each)):
            _refuse(each, name, lookup and each is transforms[-1] and len(transforms) == len(rest))
    return found, tuple(transforms)


def _refuse(part: str, name: str, is_lookup: bool) -> NoReturn:
    if is_lookup:
        raise LookupNotAllowed(f"{name!r} takes no {part!r} here")
    raise TransformNotAllowed(f"{name!r} has no {part!r} here")


def place(scope: Scope, path: Path, *, condition: bool) -> Placed:
    """Return how the scope's queryset has to name *path*, so that no hidden row is read.

    Rows of a relation to many, of which the principal may see some, are joined under that
    condition, once for the whole queryset. The one row of a relation to one is looked at by a
    guard. In a *condition* guards stand beside it; elsewhere they make its value NULL.
    """
    if not path.entered:
        return Placed(path.name)
    # The path so far as messages name it, and as the queryset does.
    named, placed = "", ""
    guards: list[DjangoQ] = []
    joins: list[DjangoQ] = []
    for each in path.entered:
        step = each.prefix.removeprefix(f"{named}__") if named else each.prefix
        named = each.prefix
        placed = f"{placed}__{step}" if placed else step
        if each.many and guards and not condition:
            # The rows behind a hidden one would be counted.
            raise FieldNotAllowed(f"{path.name!r} is for conditions alone")
        if not scope.session.is_restricted(each.exposure, scope.alias):
            continue
        if each.many:
            placed = scope.filtered(placed, partial(_filtered_relation, scope, each, placed))
            joins.append(guard(scope, each.exposure, f"{placed}__"))
        else:
            guards.append(guard(scope, each.exposure, f"{placed}__"))
    rest = path.name[len(named) :]
    return Placed(placed + rest, tuple(guards), tuple(joins))


def guard(scope: Scope, exposure: Exposure, before: str) -> DjangoQ:
    """Return the condition that the row, to which the path *before* leads, may be seen."""
    visible = exposure.visible(scope.session, scope.alias)
    return DjangoQ((f"{before}pk__in", visible.order_by().values("pk")))


def _filtered_relation(scope: Scope, entered: Entered, placed: str) -> FilteredRelation:
    """Return the relation at *placed*, of which only what the principal may see is joined."""
    visible = entered.exposure.visible(scope.session, scope.alias)
    # Django takes no queryset here, since that might have an OuterRef; ours has none.
    rows = visible.order_by().values("pk").query
    return FilteredRelation(placed, condition=DjangoQ((f"{placed}__pk__in", rows)))
