"""Fetch the rows of a scope: the columns that may be read, those of relations, and prefetches.

Models are never instantiated: what is not exposed is not selected either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.db.models import Case, JSONField, Value, When
from django.db.models import Q as DjangoQ

from ..protocol.errors import FieldError, FieldNotAllowed
from ..protocol.nodes import Json, Prefetched, Rows, Shape
from .columns import is_json_annotation
from .exposure import Exposure, relation
from .registry import exposure_of
from .scope import Prefetch, Scope


def fetch(scope: Scope) -> Rows:
    """Return the rows of *scope*; raise TooManyRows for more than are allowed."""
    if scope.kind != "model":
        return _fetch_values(scope)
    shape, rows = _Models(scope, ()).fetch(scope.queryset)
    return Rows("model", shape, [row for row, _ in rows])


def fetch_by_key(scope: Scope, keys: set[Any]) -> tuple[Shape, dict[Any, list[list[Any]]]] | None:
    """Return the shape of the scope's rows, and those of each of *keys*, primary keys.

    The rows are not counted: the caller counts those of each answer. None where there are more rows
    than keys.
    """
    models = _Models(scope, [scope.exposure.model._meta.pk.attname])
    chosen = scope.queryset.order_by().filter(DjangoQ(("pk__in", list(keys))))
    shape, rows = models.fetch(chosen, lambda queryset: list(queryset[: len(keys) + 1]))
    if len(rows) > len(keys):
        return None
    found: dict[Any, list[list[Any]]] = {}
    for row, (key,) in rows:
        found.setdefault(key, []).append(row)
    return shape, found


def _fetch_values(scope: Scope) -> Rows:
    columns = scope.columns[:1] if scope.kind == "flat" else scope.columns
    rows = []
    for found in _limited(scope, scope.queryset):
        # dates() gives single values.
        values = [found.get(each.key) if isinstance(found, dict) else found for each in columns]
        rows.append(
            [sent(value, each.is_json) for value, each in zip(values, columns, strict=True)]
        )
    return Rows(scope.kind, Shape(None, tuple(each.label for each in columns)), rows)


def _limited(scope: Scope, queryset: Any, exposure: Exposure | None = None) -> list[Any]:
    """Return what *queryset* gives, and never fetch more than one row above the limit."""
    exposure = exposure or scope.exposure
    most = scope.session.max_rows(exposure)
    chosen = queryset[: most + 1]
    scope.commit_next()
    found = list(chosen)
    scope.session.count_rows(len(found), exposure)
    return found


def sent(value: Any, is_json: bool) -> Any:
    return Json(value) if is_json and value is not None else value


def sent_value(field: Any, value: Any) -> Any:
    """Return the *value* of *field* as it is sent."""
    return sent(value, isinstance(field, JSONField))


@dataclass
class _Part:
    """The columns of one model among those that are selected: of the rows themselves or related."""

    exposure: Exposure
    fields: list[Any]
    # The places of the columns, and of what says whether the row may be seen.
    places: list[int] = field(default_factory=list)
    key: int = -1
    seen: int | None = None
    related: dict[str, _Part] = field(default_factory=dict)

    def row(self, values: Sequence[Any]) -> list[Any] | None:
        """Return the row among *values*; None if there is none, or it may not be seen."""
        if values[self.key] is None or (self.seen is not None and not values[self.seen]):
            return None
        return [
            *(
                sent(values[place], isinstance(each, JSONField))
                for place, each in zip(self.places, self.fields, strict=True)
            ),
            *(each.row(values) for each in self.related.values()),
        ]

    def shape(self, more: Iterable[str] = (), prefetched: Iterable[Prefetched] = ()) -> Shape:
        return Shape(
            self.exposure.model._meta.label,
            (*(each.attname for each in self.fields), *more),
            {name: each.shape() for name, each in self.related.items()},
            tuple(prefetched),
            (self.exposure.model._meta.pk.attname,),
        )


class _Models:
    """Fetches whole rows; *extra* are columns that the caller needs beside those that are sent."""

    def __init__(self, scope: Scope, extra: Sequence[str]) -> None:
        self.scope = scope
        self.keys: list[Any] = []
        self._places: dict[str, int] = {}
        self.part = self._part(scope.exposure, "", _top_fields(scope))
        self.annotations = [scope.annotations[each].name for each in scope.selected]
        self.extra = [self._place(each) for each in extra]

    def _place(self, key: str) -> int:
        if key not in self._places:
            self._places[key] = len(self.keys)
            self.keys.append(key)
        return self._places[key]

    def _part(self, exposure: Exposure, path: str, fields: list[Any]) -> _Part:
        before = f"{path}__" if path else ""
        part = _Part(exposure, fields)
        part.key = self._place(before + exposure.model._meta.pk.attname)
        part.places = [self._place(before + each.attname) for each in fields]
        for each in self.scope.related:
            name = each.removeprefix(before)
            if each.startswith(before) and "__" not in name:
                field = relation(exposure.model, name)
                below = exposure_of(field.related_model)
                if field.concrete and field not in _chosen(self.scope, [field], before):
                    raise FieldError(f"{each!r} cannot be both deferred and selected")
                part.related[name] = self._part(
                    below, each, _related_fields(self.scope, below, each)
                )
                if self.scope.session.is_restricted(below, self.scope.alias):
                    part.related[name].seen = self._seen(below, each)
        return part

    def _seen(self, exposure: Exposure, path: str) -> int:
        """Select whether the related row at *path* may be seen."""
        visible = exposure.visible(self.scope.session, self.scope.alias)
        guard = DjangoQ((f"{path}__pk__in", visible.order_by().values("pk")))
        self.keys.append(Case(When(guard, then=Value(True)), default=Value(False)))
        return len(self.keys) - 1

    def fetch(
        self, queryset: Any, limited: Callable[[Any], list[Any]] | None = None
    ) -> tuple[Shape, list[tuple[list[Any], list[Any]]]]:
        """Return the shape, and each row with the values of the extra columns.

        *limited* returns the rows of a queryset; None: as many as the limits allow.
        """
        scope = self.scope
        limited = limited or partial(_limited, scope)
        annotated = [
            (self._place(each), is_json_annotation(scope, each)) for each in self.annotations
        ]
        prefetched = [_Fetching(scope, each) for each in scope.prefetches.values()]
        owned = [self._place(each.owner) for each in prefetched]
        found = limited(queryset.values_list(*self.keys))
        rows = []
        for values in found:
            row = self.part.row(values)
            assert row is not None
            ends = len(self.part.fields)
            row[ends:ends] = [sent(values[place], is_json) for place, is_json in annotated]
            rows.append((row, [values[each] for each in self.extra]))
        fetched = []
        for each, place in zip(prefetched, owned, strict=True):
            shape, below = each.fetch({values[place] for values in found})
            fetched.append(shape)
            for (row, _), values in zip(rows, found, strict=True):
                row.append(below.get(values[place], []))
        return self.part.shape(scope.selected, fetched), rows


def _top_fields(scope: Scope) -> list[Any]:
    """Return the columns of the model itself that are sent."""
    columns = list(scope.exposure.columns)
    if scope.fields is not None:
        known = {name for each in columns for name in (each.name, each.attname, "pk")}
        for name in scope.fields:
            if name not in known and name not in scope.annotations:
                raise FieldNotAllowed(
                    f"{scope.exposure.model._meta.label} has no field {name!r} here"
                )
        columns = [
            each
            for each in columns
            if each.primary_key or {each.name, each.attname} & set(scope.fields)
        ]
    return _chosen(scope, columns, "")


def _related_fields(scope: Scope, exposure: Exposure, path: str) -> list[Any]:
    return _chosen(scope, list(exposure.columns), f"{path}__")


def _chosen(scope: Scope, columns: list[Any], before: str) -> list[Any]:
    """Return those of *columns* that only() and defer() leave, as Django understands them.

    A path into a related row loads the relation's own column, too; where only() names nothing of
    a row, all of it is loaded.
    """
    named = {each.removeprefix(before) for each in scope.loading if each.startswith(before)}
    entered = {each.partition("__")[0] for each in named if "__" in each}
    if scope.defers:
        deferred = named - entered
        return [each for each in columns if each.primary_key or each.name not in deferred]
    own = named | entered
    return [each for each in columns if not own or each.primary_key or each.name in own]


class _Fetching:
    """One relation whose rows are fetched beside others; *owner* is the column that these have."""

    def __init__(self, scope: Scope, prefetch: Prefetch) -> None:
        self.prefetch = prefetch
        found = prefetch.relation
        self.exposure = exposure_of(found.related_model)
        self.session, self.alias = scope.session, scope.alias
        self.around = scope
        self.is_single = bool(found.many_to_one or found.one_to_one)
        if found.many_to_many:
            self.owner = scope.exposure.model._meta.pk.attname
            self.column = self.exposure.model._meta.pk.attname
        elif found.concrete:
            self.owner, self.column = found.attname, found.target_field.attname
        else:
            self.owner, self.column = found.field.target_field.attname, found.field.attname

    def fetch(self, owners: set[Any]) -> tuple[Prefetched, dict[Any, list[list[Any]]]]:
        """Return the shape of the rows, and the rows of each of *owners*."""
        owners.discard(None)
        scope = self.prefetch.scope or self._everything()
        scope.prefetches = {**scope.prefetches, **self.prefetch.inner}
        models = _Models(scope, [self.column])
        below: dict[Any, list[list[Any]]] = {}
        if self.prefetch.relation.many_to_many:
            links = self._links(owners)
            wanted = {target for _, target in links}
            shape, rows = models.fetch(scope.queryset.filter(DjangoQ(("pk__in", list(wanted)))))
            linked: dict[Any, list[Any]] = {}
            for owner, target in links:
                linked.setdefault(target, []).append(owner)
            for row, (key,) in rows:
                for owner in linked[key]:
                    below.setdefault(owner, []).append(row)
        else:
            condition = DjangoQ((f"{self.column}__in", list(owners)))
            shape, rows = models.fetch(scope.queryset.filter(condition))
            for row, (key,) in rows:
                below.setdefault(key, []).append(row)
        return Prefetched(self.prefetch.name, shape, self.prefetch.to_attr, self.is_single), below

    def _everything(self) -> Scope:
        visible = self.exposure.visible(self.session, self.alias)
        return Scope(self.session, self.exposure, self.alias, visible)

    def _links(self, owners: set[Any]) -> list[tuple[Any, Any]]:
        """Return the pairs of keys that the table between the models has, of rows to be seen."""
        found = self.prefetch.relation
        field = found.field if found.auto_created else found
        owner, target = field.m2m_field_name(), field.m2m_reverse_field_name()
        if found.auto_created:
            owner, target = target, owner
        through = field.remote_field.through
        visible = self.exposure.visible(self.session, self.alias)
        links = through._meta.default_manager.using(self.alias).filter(
            DjangoQ((f"{owner}__in", list(owners))),
            DjangoQ((f"{target}__in", visible.order_by().values("pk"))),
        )
        # Each link becomes a row of the answer.
        return _limited(
            self.around,
            links.values_list(*(through._meta.get_field(each).attname for each in (owner, target))),
            self.exposure,
        )


def rows_of(scope: Scope, queryset: Any) -> Rows:
    """Return the rows of *queryset*, of the scope's model, as they are sent."""
    plain = Scope(scope.session, scope.exposure, scope.alias, queryset, fields=scope.fields)
    return fetch(plain)
