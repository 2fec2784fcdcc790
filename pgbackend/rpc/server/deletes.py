"""Delete rows, and what refers to them, as far as the principal may delete that, too."""

from __future__ import annotations

from typing import Any

from django.db.models import Q as DjangoQ
from django.db.models.deletion import Collector

from ..protocol import nodes
from ..protocol.errors import BadValue, NotExposed, PermissionDenied, TooManyAffected
from .registry import exposure_of
from .scope import Scope


def delete(scope: Scope, end: nodes.Op) -> tuple[int, dict[str, int]]:
    """Delete the rows of *scope*; return how many rows went, and how many of each model.

    Raise TooManyAffected and PermissionDenied before anything is deleted, where rows that refer to
    these are too many or may not be deleted.
    """
    if end.args or end.kwargs:
        raise BadValue("delete takes no arguments")
    query = scope.queryset.query
    if query.is_sliced or query.distinct or scope.kind != "model":
        raise BadValue("delete is not possible after a slice, distinct or values")
    most = scope.session.max_affected(scope.exposure)
    keys = list(scope.queryset.order_by().values_list("pk", flat=True)[: most + 1])
    if len(keys) > most:
        raise _too_many(most)
    # Annotations and joins would be in the way of the deletion.
    doomed = scope.exposure._all(scope.session, scope.alias).filter(DjangoQ(("pk__in", keys)))
    doomed = doomed.order_by().select_for_update(of=("self",))
    _look_at_others(scope, doomed, most)
    number, by_model = doomed.select_for_update(of=()).delete()
    if number > most:
        raise _too_many(most)
    return number, by_model


def _too_many(most: int) -> TooManyAffected:
    return TooManyAffected(f"more than {most} rows", {"max_affected": most})


def _look_at_others(scope: Scope, doomed: Any, most: int) -> None:
    """Raise unless all rows that would go with *doomed*, or be changed, are few and permitted."""
    collector = Collector(using=scope.alias, origin=doomed)
    collector.collect(doomed)
    number = 0
    for model, instances in collector.data.items():
        number += len(instances)
        _check(scope, model, "delete", [each.pk for each in instances])
    for queryset in collector.fast_deletes:
        keys = list(queryset.values_list("pk", flat=True)[: most + 1])
        number += len(keys)
        _check(scope, queryset.model, "delete", keys)
    for updates in collector.field_updates.values():
        for rows in updates:
            # Rows that forget what they referred to: SET_NULL says so, and they count.
            number += len(rows)
    if number > most:
        raise _too_many(most)


def _check(scope: Scope, model: Any, operation: str, keys: list[Any]) -> None:
    own = scope.exposure.model
    if not keys or model is own or model in own._meta.all_parents or model._meta.auto_created:
        return
    if own in model._meta.all_parents:
        # The rest of the same row.
        return
    try:
        exposure = exposure_of(model)
        exposure.check_operation(scope.session, operation)
    except NotExposed:
        raise PermissionDenied("rows that are not exposed refer to these") from None
    allowed = exposure.changeable(scope.session, scope.alias)
    found = allowed.order_by().filter(DjangoQ(("pk__in", keys))).values("pk").distinct().count()
    if found != len(set(keys)):
        raise PermissionDenied("rows that may not be deleted refer to these")
