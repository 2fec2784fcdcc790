"""Instances that are written: what is sent of them, and what they take over from the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import FieldDoesNotExist
from django.db import models
from django.db.models.expressions import DatabaseDefault
from django.db.models.utils import resolve_callables

from . import recording, rows
from .protocol import nodes
from .results import RpcFuture
from .router import service_alias


def new(queryset: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return an unsaved instance of the queryset's model."""
    relations = queryset.model._meta.related_objects
    wrong = [each.name for each in relations if each.one_to_one and each.name in kwargs]
    if wrong:
        raise ValueError(f"The following fields do not exist in this model: {', '.join(wrong)}")
    return queryset.model(**kwargs)


def sent_value(field: Any, value: Any) -> Any:
    """Return the value of *field* as it is sent; raise ValueError and TypeError as Django does."""
    if hasattr(value, "resolve_expression"):
        return recording.recorded(value)
    if isinstance(field, models.JSONField):
        if value is None:
            return None
        if field.encoder is not None:
            value = json.loads(json.dumps(value, cls=field.encoder))
        return nodes.Json(value)
    return recording.recorded(field.get_prep_value(value))


def values(instance: Any, *, add: bool, raw: bool = False, names: Any = None) -> dict[str, Any]:
    """Return what is sent of *instance*: values by the names of columns' attributes.

    *names* limits the fields. Fields of ``Rpc.readonly``, generated ones, and those whose value the
    database gives, are left out.
    """
    found: dict[str, Any] = {}
    for field in instance._meta.concrete_fields:
        if names is not None and field.name not in names and field.attname not in names:
            continue
        if _is_left_out(instance, field):
            continue
        if field.primary_key and (not add or instance.pk is None):
            continue
        value = getattr(instance, field.attname) if raw else field.pre_save(instance, add)
        if isinstance(value, DatabaseDefault):
            continue
        if value is None and not add and getattr(field, "auto_now_add", False):
            # The service sets it if it has to insert.
            continue
        found[field.attname] = sent_value(field, value)
    return found


def _is_left_out(instance: Any, field: Any) -> bool:
    readonly = instance.Rpc.readonly
    return (
        field.generated
        or field.name in readonly
        or field.attname in readonly
        # A deferred field is not loaded just to be sent.
        or (field.attname not in instance.__dict__)
    )


def write(
    instance: Any,
    using: str,
    *,
    raw: bool = False,
    force_insert: bool = False,
    force_update: bool = False,
    update_fields: Iterable[str] | None = None,
) -> RpcFuture[Any]:
    """Return the future of the row that the service has after `save`."""
    meta = instance._meta
    if instance.pk is None:
        setattr(instance, meta.pk.attname, meta.pk.get_pk_value_on_save(instance))
    if instance.pk is None and (force_update or update_fields):
        raise ValueError("Cannot force an update in save() with no primary key.")
    # As Django does: a new instance whose key has a default is inserted.
    has_default = meta.pk.has_default() or meta.pk.has_db_default()
    is_new = instance._state.adding and has_default and not (raw or force_update)
    if force_insert or instance.pk is None or is_new:
        end = nodes.Op("insert", (values(instance, add=True, raw=raw),))
    else:
        names = None if update_fields is None else sorted(_attnames(meta, update_fields))
        sent = values(instance, add=False, raw=raw, names=names)
        options = {"update_fields": names, "force_update": bool(force_update)}
        end = nodes.Op("save", (recording.recorded(instance.pk), sent), options)
    tree = nodes.Tree(instance.Rpc.label, (), end, instance.Rpc.fields)
    made: RpcFuture[Any] = service_alias(using, type(instance)).future(
        tree, convert=lambda found: found, model=type(instance)
    )
    return made


def _attnames(meta: Any, names: Iterable[str]) -> set[str]:
    return {meta.get_field(name).attname for name in names}


def take_over(instance: Any, using: str, found: nodes.Rows, names: Any = None) -> None:
    """Give *instance* the values of the row that the service has now; of the fields *names*."""
    instance._state.db = using
    instance._state.adding = False
    rows.update(instance, found, names)


def insert(queryset: Any, instance: Any) -> RpcFuture[Any]:
    """Return the future of *instance*, inserted. No signals are sent, and `save` is not called."""
    instance._prepare_related_fields_for_save(operation_name="create")
    queryset._for_write = True
    using = queryset.db
    made = write(instance, using, force_insert=True)

    def convert(found: nodes.Rows) -> Any:
        take_over(instance, using, found)
        return instance

    made.convert = convert
    return made


def given(queryset: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by names of fields as they are sent."""
    found: dict[str, Any] = {}
    for name, value in named.items():
        try:
            field = queryset.model._meta.get_field(name)
        except FieldDoesNotExist:
            # A path, or a field that the service alone knows.
            field = None
        if isinstance(field, models.JSONField):
            found[name] = sent_value(field, value)
        else:
            found[name] = recording.recorded(value)
    return found


def get_or_create(queryset: Any, lookups: Mapping[str, Any], defaults: Any) -> RpcFuture[Any]:
    """Return the future of (instance, created); callable defaults are called in any case."""
    sent = given(queryset, dict(resolve_callables(defaults or {})))
    return _got(queryset, "get_or_create", lookups, {"defaults": sent})


def update_or_create(
    queryset: Any, lookups: Mapping[str, Any], defaults: Any, create_defaults: Any
) -> RpcFuture[Any]:
    """Return the future of (instance, created); callable defaults are called in any case."""
    options: dict[str, Any] = {
        "defaults": given(queryset, dict(resolve_callables(defaults or {}))),
        "create_defaults": None,
    }
    if create_defaults is not None:
        options["create_defaults"] = given(queryset, dict(resolve_callables(create_defaults)))
    return _got(queryset, "update_or_create", lookups, options)


def _got(
    queryset: Any, name: str, lookups: Mapping[str, Any], options: dict[str, Any]
) -> RpcFuture[Any]:
    queryset._for_write = True

    def convert(found: Any) -> tuple[Any, bool]:
        one, created = found
        return rows.made(one, queryset)[0], created

    made: RpcFuture[Any] = queryset._end(name, **given(queryset, lookups), **options)(
        convert, fields=True
    )
    return made


def bulk_create(
    queryset: Any,
    objs: Iterable[Any],
    batch_size: int | None = None,
    ignore_conflicts: bool = False,
    update_conflicts: bool = False,
    update_fields: Iterable[str] | None = None,
    unique_fields: Iterable[str] | None = None,
) -> RpcFuture[list[Any]]:
    """Return the future of the instances, which have their keys then unless *ignore_conflicts*.

    All are sent in one message, whatever *batch_size*.
    """
    if batch_size is not None and batch_size <= 0:
        raise ValueError("Batch size must be a positive integer.")
    if ignore_conflicts and update_conflicts:
        raise ValueError("ignore_conflicts and update_conflicts are mutually exclusive.")
    if update_conflicts and not update_fields:
        raise ValueError(
            "Fields that will be updated when a row insertion fails on conflicts must be provided."
        )
    if update_conflicts and not unique_fields:
        raise ValueError("Unique fields that can trigger the upsert must be provided.")
    made = list(objs)
    if not made:
        return queryset._known(made)
    queryset._for_write = True
    using = queryset.db
    for each in made:
        if each.pk is None:
            each.pk = each._meta.pk.get_pk_value_on_save(each)
        each._prepare_related_fields_for_save(operation_name="bulk_create")

    def convert(found: Any) -> list[Any]:
        for number, each in enumerate(made):
            each._state.adding, each._state.db = False, using
            if not ignore_conflicts:
                row = nodes.Rows(found.kind, found.shape, [found.rows[number]])
                rows.update(each, row)
        return made

    return queryset._end(
        "bulk_create",
        [values(each, add=True) for each in made],
        ignore_conflicts=ignore_conflicts,
        update_conflicts=update_conflicts,
        update_fields=None if update_fields is None else list(update_fields),
        unique_fields=None if unique_fields is None else list(unique_fields),
    )(convert, fields=True)


def bulk_update(
    queryset: Any, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None
) -> RpcFuture[int]:
    """Return the future of the number of rows; all are sent in one message."""
    if batch_size is not None and batch_size <= 0:
        raise ValueError("Batch size must be a positive integer.")
    names = list(fields)
    if not names:
        raise ValueError("Field names must be given to bulk_update().")
    made = list(objs)
    if any(each.pk is None for each in made):
        raise ValueError("All bulk_update() objects must have a primary key set.")
    found = [queryset.model._meta.get_field(name) for name in names]
    if any(not each.concrete or each.many_to_many for each in found):
        raise ValueError("bulk_update() can only be used with concrete fields.")
    if any(each.primary_key for each in found):
        raise ValueError("bulk_update() cannot be used with primary key fields.")
    if not made:
        return queryset._known(0)
    queryset._for_write = True
    for each in made:
        each._prepare_related_fields_for_save(operation_name="bulk_update", fields=found)
    sent = [
        {
            "pk": recording.recorded(each.pk),
            **{field.attname: sent_value(field, getattr(each, field.attname)) for field in found},
        }
        for each in made
    ]
    return queryset._end("bulk_update", sent, [field.attname for field in found])()


def check_unique(queryset: Any, name: str) -> None:
    """Raise ValueError as Django's `in_bulk` does for a field that is declared and not unique."""
    if name == "pk":
        return
    meta = queryset.model._meta
    constrained = [each.fields for each in meta.total_unique_constraints]
    if (
        not meta.get_field(name).unique
        and (name,) not in constrained
        and queryset.query.distinct_fields != (name,)
    ):
        raise ValueError(f"in_bulk()'s field_name must be a unique field but {name!r} isn't.")
