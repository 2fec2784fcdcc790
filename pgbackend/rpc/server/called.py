"""What a method that was called returns, as it is sent: rows as far as they may be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from django.db import models
from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, RemoteError, TooManyRows
from .columns import is_json_annotation
from .registry import exposure_of
from .relations import op_prefetch_related, op_select_related, prefetch_by
from .rows import fetch, sent
from .scope import Annotation, Scope


def returned(scope: Scope, found: Any) -> Any:
    """Return what a method on the queryset of *scope* gave as it is sent.

    Lists, tuples and dictionaries stay what they are; an instance in them that may not be seen is
    None, and left out of a list of instances alone. A set with instances is sent as a list.
    """
    if isinstance(found, models.Model):
        rows = _by_key(_everything(scope, type(found)), [(found.pk,)])
        return replace(rows, kind="instance") if rows.rows else None
    if isinstance(found, set | frozenset) and any(isinstance(each, models.Model) for each in found):
        # What travels has no set of rows.
        found = list(found)
    if isinstance(found, list | tuple):
        kinds = {type(each) for each in found}
        kind = kinds.pop() if len(kinds) == 1 else None
        if isinstance(found, list) and kind is not None and issubclass(kind, models.Model):
            return _by_key(_everything(scope, kind), [(each.pk,) for each in found])
        several = [returned(scope, each) for each in found]
        return several if isinstance(found, list) else tuple(several)
    if isinstance(found, dict):
        return {key: returned(scope, each) for key, each in found.items()}
    if isinstance(found, models.QuerySet):
        return _values(scope, found) if found._fields is not None else _rows(scope, found)
    return found


def _labels(scope: Scope) -> dict[str, str]:
    """Return the message's names by those that annotations have in the scope's queryset."""
    return {each.name: label for label, each in scope.annotations.items()}


def _values(scope: Scope, found: models.QuerySet[Any]) -> list[Any]:
    """Return the values that a method has chosen: it answers for them."""
    session = scope.session
    most = session.limits.max_rows - session.rows
    values: list[Any] = list(found[: most + 1])
    if len(values) > most:
        limit = session.limits.max_rows
        raise TooManyRows(f"more than {limit} rows", {"max_rows": limit})
    session.rows += len(values)
    labels = _labels(scope)
    if labels and values and isinstance(values[0], dict):
        return [{labels.get(key, key): each for key, each in row.items()} for row in values]
    return values


def _rows(scope: Scope, found: models.QuerySet[Any]) -> nodes.Rows:
    """Return the rows of *found*, with its annotations and with the related rows that it loads."""
    inside = _carried(scope, found)
    if not scope.session.is_restricted(inside.exposure, scope.alias):
        return fetch(inside)
    most = scope.session.max_rows(inside.exposure)
    names = [inside.annotations[each].name for each in inside.selected]
    keys = list(found.values_list("pk", *names)[: most + 1])
    visible = replace(
        inside, queryset=inside.exposure.visible(scope.session, scope.alias), selected=[]
    )
    is_json = [is_json_annotation(inside, each) for each in names]
    return _by_key(visible, keys, inside.selected, is_json)


def _everything(scope: Scope, model: type[models.Model]) -> Scope:
    exposure = exposure_of(model)
    visible = exposure.visible(scope.session, scope.alias)
    return Scope(scope.session, exposure, scope.alias, visible)


def _by_key(
    visible: Scope,
    found: Sequence[tuple[Any, ...]],
    labels: Sequence[str] = (),
    is_json: Sequence[bool] = (),
) -> nodes.Rows:
    """Return the rows of *visible* with the keys that *found* has, in its order, if they are there.

    The other values of *found* are those of annotations, by *labels*.
    """
    keys = {key for key, *_ in found}
    visible.queryset = visible.queryset.filter(DjangoQ(("pk__in", keys)))
    rows = fetch(visible)
    ends = len(rows.shape.fields)
    place = rows.shape.fields.index(visible.exposure.model._meta.pk.attname)
    by_key = {row[place]: row for row in rows.rows}
    chosen = []
    for key, *values in found:
        if key in by_key:
            row = by_key[key]
            chosen.append([*row[:ends], *map(sent, values, is_json), *row[ends:]])
    visible.session.count_rows(len(chosen) - len(by_key), visible.exposure)
    shape = replace(rows.shape, fields=(*rows.shape.fields, *labels))
    return replace(rows, shape=shape, rows=chosen)


def _carried(scope: Scope, found: models.QuerySet[Any]) -> Scope:
    """Return the scope of *found*: its annotations, and what its rows come with.

    Relations that are not exposed are left out, as columns are.
    """
    exposure = exposure_of(found.model)
    inside = Scope(scope.session, exposure, scope.alias, found)
    query = found.query
    labels = _labels(scope)
    for name in (*query.extra_select, *query.annotation_select):
        label = labels.get(name, name)
        inside.annotations[label] = Annotation(name, frozenset())
        inside.selected.append(label)
    if found.model is scope.exposure.model:
        # What the message asked for before the method, of which querysets know nothing.
        inside.prefetches = dict(scope.prefetches)
    if query.combinator:
        # Related rows would be other columns of each of its queries.
        related: list[str] = []
    else:
        related = scope.related if found.model is scope.exposure.model else []
        if isinstance(query.select_related, dict):
            related = [*related, *_paths(query.select_related)]
    for path in related:
        _allowed(op_select_related, inside, "select_related", path)
    for lookup in found._prefetch_related_lookups:
        _add_prefetch(inside, lookup)
    return inside


def _paths(selected: dict[str, Any], before: str = "") -> list[str]:
    """Return the paths of a query's `select_related`."""
    return [
        path
        for name, below in selected.items()
        for path in (f"{before}{name}", *_paths(below, f"{before}{name}__"))
    ]


def _allowed(take: Any, scope: Scope, name: str, path: str) -> None:
    try:
        take(scope, nodes.Op(name, (path,), {}))
    except RemoteError:
        # A step that was taken stays.
        return


def _add_prefetch(inside: Scope, lookup: Any) -> None:
    if isinstance(lookup, str):
        _allowed(op_prefetch_related, inside, "prefetch_related", lookup)
        return
    if lookup.queryset is None and lookup.to_attr is None:
        _allowed(op_prefetch_related, inside, "prefetch_related", lookup.prefetch_through)
        return
    try:
        made = prefetch_by(inside, lookup.prefetch_through, lookup.to_attr)
    except RemoteError:
        return
    if lookup.queryset is None:
        return
    chosen = lookup.queryset.using(inside.alias)
    if not isinstance(chosen, models.QuerySet) or chosen.query.is_sliced:
        raise BadValue(f"what a method prefetches as {made.name!r} are whole rows, and no slice")
    below = exposure_of(chosen.model)
    if inside.session.is_restricted(below, inside.alias):
        visible = below.visible(inside.session, inside.alias)
        chosen = chosen.filter(DjangoQ(("pk__in", visible.order_by().values("pk"))))
    made.scope = _carried(_everything(inside, chosen.model), chosen)
