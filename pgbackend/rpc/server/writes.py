"""The ends of a tree that write: fields and rows are checked before, and rows once more after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import (
    BadValue,
    FieldNotAllowed,
    MultipleObjectsReturned,
    NotUpdated,
    OperationNotAllowed,
    PermissionDenied,
)
from .deletes import delete
from .expressions import condition, expression
from .operations import conditions_of, scope_on
from .registry import exposure_of
from .related import RELATED
from .rows import rows_of
from .scope import Scope
from .session import Session
from .written import Written


def write(session: Session, tree: nodes.Tree, alias: str) -> Any:
    """Return what the end of *tree* gives, after it has written; raise a RemoteError."""
    exposure = exposure_of(tree.model)
    operations, run = WRITES[tree.end.name]
    for operation in operations:
        exposure.check_operation(session, operation)
    changeable = exposure.changeable(session, alias)
    scope = scope_on(session, tree, alias, changeable)
    if scope.kind != "model" and tree.end.name != "delete":
        raise BadValue(f"{tree.end.name} is not possible after values")
    return run(scope, tree.end)


def _answered(scope: Scope, instance: Any) -> nodes.Rows:
    """Return the row of *instance* as it is now; its key alone where it may not be read."""
    exposure, session = scope.exposure, scope.session
    if "read" in exposure.operations:
        visible = exposure.visible(session, scope.alias)
        return rows_of(scope, visible.filter(DjangoQ(("pk", instance.pk))))
    key = exposure.model._meta.pk.attname
    shape = nodes.Shape(exposure.model._meta.label, (key,), pk=(key,))
    return nodes.Rows("model", shape, [[instance.pk]])


def check_after(scope: Scope, keys: Iterable[Any]) -> None:
    """Raise PermissionDenied if rows with *keys* are now some that the principal may not change."""
    exposure = scope.exposure
    if exposure.rows is None and exposure.writable_rows is None:
        return
    wanted = set(keys)
    left = exposure.changeable(scope.session, scope.alias).filter(DjangoQ(("pk__in", list(wanted))))
    if left.order_by().values("pk").distinct().count() != len(wanted):
        raise PermissionDenied("the rows would be beyond what may be changed")


def check_number(scope: Scope, number: int) -> None:
    """Raise TooManyAffected for more rows than a write may change."""
    Written(scope).check_number(number)


# Rows by themselves


def _create(scope: Scope, end: nodes.Op) -> nodes.Rows:
    if end.args:
        raise BadValue("create takes named values")
    return _answered(scope, _inserted(scope, end.kwargs))


def _insert(scope: Scope, end: nodes.Op) -> nodes.Rows:
    return _answered(scope, _inserted(scope, _mapping(end, 0)))


def _inserted(scope: Scope, named: Mapping[str, Any]) -> Any:
    """Return a new row with the values of *named*."""
    written = Written(scope)
    instance = written.new(named)
    written.clean(instance)
    instance.save(force_insert=True, using=scope.alias)
    check_after(scope, [instance.pk])
    return instance


def _save(scope: Scope, end: nodes.Op) -> nodes.Rows:
    named = _mapping(end, 1, {"update_fields", "force_update"})
    key = Written(scope).key(end.args[0])
    only = end.kwargs.get("update_fields")
    if only is not None:
        if not isinstance(only, list | tuple) or not all(isinstance(each, str) for each in only):
            raise BadValue("update_fields are names")
        named = {name: each for name, each in named.items() if name in only}
    instance = None
    if key is not None:
        instance = _locked(scope.queryset.filter(DjangoQ(("pk", key)))).first()
    if instance is not None:
        _changed(scope, instance, named)
    elif only is not None or end.kwargs.get("force_update", False):
        raise NotUpdated("there is no such row to update")
    else:
        scope.exposure.check_operation(scope.session, "create")
        own = scope.exposure.model._meta.pk
        if key is not None and own.attname not in named and own.name not in named:
            named = {own.name: key, **named}
        instance = _inserted(scope, named)
    return _answered(scope, instance)


def _changed(scope: Scope, instance: Any, named: Mapping[str, Any]) -> None:
    """Give *instance* the values of *named*, and save these."""
    written = Written(scope)
    own = scope.exposure.model._meta.pk
    named = {
        name: each
        for name, each in named.items()
        if name not in (own.name, own.attname, "pk") or written.key(each) != instance.pk
    }
    fields = written.set(instance, named)
    if any(each.primary_key for each in fields):
        raise FieldNotAllowed("a primary key does not change")
    written.clean(instance, fields)
    if fields:
        instance.save(update_fields=[each.name for each in fields], using=scope.alias)
    check_after(scope, [instance.pk])


def _locked(queryset: Any) -> Any:
    return queryset.order_by().select_for_update(of=("self",))


def _get_or_create(scope: Scope, end: nodes.Op) -> tuple[nodes.Rows, bool]:
    looked, defaults, _ = _lookups(end)
    found = _find(scope, looked, lock=False)
    if found is None:
        instance, is_new = _created_or_found(scope, looked, defaults)
        return _answered(scope, instance), is_new
    return _answered(scope, found), False


def _update_or_create(scope: Scope, end: nodes.Op) -> tuple[nodes.Rows, bool]:
    looked, defaults, create = _lookups(end)
    found, is_new = _find(scope, looked, lock=True), False
    if found is None:
        values = defaults if create is None else create
        found, is_new = _created_or_found(scope, looked, values)
    if not is_new:
        _changed(scope, found, defaults)
    return _answered(scope, found), is_new


def _lookups(end: nodes.Op) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    looked = dict(end.kwargs)
    defaults = looked.pop("defaults", None) or {}
    create = looked.pop("create_defaults", None)
    if end.args or not isinstance(defaults, dict) or not isinstance(create, dict | None):
        raise BadValue(f"{end.name} takes named values, defaults and create_defaults")
    return looked, defaults, create


def _find(scope: Scope, looked: Mapping[str, Any], *, lock: bool) -> Any:
    built = condition(scope, conditions_of(nodes.Op("filter", (), looked)))
    queryset = scope.queryset.filter(built)
    found = list((_locked(queryset) if lock else queryset.order_by())[:2])
    if len(found) > 1:
        raise MultipleObjectsReturned("more than one row matches")
    return found[0] if found else None


def _created_or_found(
    scope: Scope, looked: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[Any, bool]:
    """Return a new row; or the one that another transaction has made meanwhile."""
    named = {name: each for name, each in looked.items() if "__" not in name}
    try:
        with transaction.atomic(scope.alias):
            return _inserted(scope, {**named, **defaults}), True
    except IntegrityError:
        found = _find(scope, looked, lock=True)
        if found is None:
            raise
        return found, False


# Many rows


def _update(scope: Scope, end: nodes.Op) -> int:
    if end.args or not end.kwargs:
        raise BadValue("update takes named values")
    written = Written(scope)
    named: dict[str, Any] = {}
    for name, raw in end.kwargs.items():
        field = written.field(name)
        if field.primary_key:
            raise FieldNotAllowed("a primary key does not change")
        if isinstance(raw, nodes.Node) and not isinstance(
            raw, nodes.Ref | nodes.Object | nodes.Value
        ):
            if field.is_relation:
                raise BadValue(f"{name} takes a key, no expression")
            named[field.name] = expression(scope, raw)
        else:
            named[field.name] = written.cleaned(field, written.value(field, raw))
    keys = _keys_to_change(scope)
    changed = int(scope.queryset.update(**named))
    written.check_number(changed)
    check_after(scope, keys)
    return changed


def _keys_to_change(scope: Scope) -> list[Any]:
    """Return the keys of the rows, locked where they have to be looked at again."""
    queryset = scope.queryset
    most = scope.session.max_affected(scope.exposure)
    restricted = scope.exposure.rows is not None or scope.exposure.writable_rows is not None
    if restricted and not (queryset.query.is_sliced or queryset.query.distinct):
        keys = scope.exposure._all(scope.session, scope.alias).filter(
            DjangoQ(("pk__in", queryset.order_by().values("pk")))
        )
        found = list(_locked(keys).values_list("pk", flat=True)[: most + 1])
        # Exactly those that were locked: others may have come meanwhile.
        scope.queryset = queryset.filter(DjangoQ(("pk__in", found)))
    elif queryset.query.is_sliced:
        found = list(queryset.values_list("pk", flat=True))
    else:
        found = list(queryset.order_by().values_list("pk", flat=True)[: most + 1])
    check_number(scope, len(set(found)))
    return found


def _bulk_create(scope: Scope, end: nodes.Op) -> nodes.Rows:
    options = dict(end.kwargs)
    known = {"ignore_conflicts", "update_conflicts", "update_fields", "unique_fields"}
    if len(end.args) != 1 or not isinstance(end.args[0], list | tuple) or options.keys() - known:
        raise BadValue(f"bulk_create takes rows, and {', '.join(sorted(known))}")
    rows = list(end.args[0])
    written = Written(scope)
    written.check_number(len(rows))
    conflicts = options.get("ignore_conflicts") or options.get("update_conflicts")
    if conflicts:
        _check_conflicts(scope, written, options)
    instances = []
    for each in rows:
        if not isinstance(each, dict):
            raise BadValue("bulk_create takes rows as $dict")
        instances.append(written.new(each))
        if not conflicts:
            written.clean(instances[-1])
    scope.exposure._all(scope.session, scope.alias).bulk_create(instances, **options)
    if not conflicts:
        check_after(scope, [each.pk for each in instances])
    return written.sent(instances)


def _check_conflicts(scope: Scope, written: Written, options: dict[str, Any]) -> None:
    """Raise OperationNotAllowed where rows that may not be changed could be what is met."""
    exposure = scope.exposure
    if exposure.rows is not None or exposure.writable_rows is not None or exposure.full_clean:
        raise OperationNotAllowed(
            "conflicts are for models whose rows are all changeable and not validated"
        )
    for name in ("update_fields", "unique_fields"):
        for each in options.get(name) or ():
            written.field(each)
    if options.get("update_conflicts"):
        exposure.check_operation(scope.session, "update")


def _bulk_update(scope: Scope, end: nodes.Op) -> int:
    if len(end.args) != 2 or end.kwargs:
        raise BadValue("bulk_update takes rows and names")
    rows, names = end.args
    written = Written(scope)
    if not isinstance(rows, list | tuple) or not isinstance(names, list | tuple):
        raise BadValue("bulk_update takes rows and names")
    written.check_number(len(rows))
    fields = [written.field(each) for each in names]
    if not fields or any(each.primary_key for each in fields):
        raise BadValue("bulk_update takes names of fields, not of the key")
    by_key: dict[Any, Any] = {}
    for each in rows:
        if not isinstance(each, dict) or "pk" not in each:
            raise BadValue('bulk_update takes rows as $dict, with "pk"')
        by_key[written.key(each["pk"])] = each
    queryset = scope.queryset.filter(DjangoQ(("pk__in", list(by_key))))
    instances = list(_locked(queryset))
    for instance in instances:
        each = by_key[instance.pk]
        if missing := [name for name in names if name not in each]:
            raise BadValue(f"a row has no value for {missing[0]!r}")
        written.set(instance, {name: each[name] for name in names})
        written.clean(instance, fields)
    changed = scope.exposure._all(scope.session, scope.alias).bulk_update(
        instances, [each.name for each in fields]
    )
    check_after(scope, [each.pk for each in instances])
    return int(changed)


def _mapping(end: nodes.Op, place: int, options: Iterable[str] = ()) -> dict[str, Any]:
    if len(end.args) != place + 1 or end.kwargs.keys() - set(options):
        raise BadValue(f"{end.name} takes {place + 1} arguments")
    found = end.args[place]
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found):
        raise BadValue(f"{end.name} takes values as $dict")
    return found


# The operations that have to be exposed, and what is run.
WRITES: Mapping[str, tuple[tuple[str, ...], Callable[[Scope, nodes.Op], Any]]] = {
    "create": (("create",), _create),
    "insert": (("create",), _insert),
    "save": (("update",), _save),
    "update": (("update",), _update),
    "delete": (("delete",), delete),
    "get_or_create": (("read", "create"), _get_or_create),
    "update_or_create": (("create", "update"), _update_or_create),
    "bulk_create": (("create",), _bulk_create),
    "bulk_update": (("update",), _bulk_update),
    **{name: (("update",), run) for name, run in RELATED.items()},
}
