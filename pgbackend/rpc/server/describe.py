"""What a principal may do, as JSON Schema: for tools that write clients, and for `check`."""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.fields.ranges import RangeField
from django.db import models

from ..protocol import nodes
from ..protocol.errors import BadValue, NotExposed, PermissionDenied
from .exposure import OPERATIONS, Exposure, relation
from .registry import exposure_of, exposures
from .session import Session

# The types of values in JSON Schema, and their formats, by the class of the field.
_TYPES: tuple[tuple[type[Any], dict[str, str]], ...] = (
    (models.BooleanField, {"type": "boolean"}),
    (models.IntegerField, {"type": "integer"}),
    (models.FloatField, {"type": "number"}),
    (models.DecimalField, {"type": "string", "format": "decimal"}),
    (models.DateTimeField, {"type": "string", "format": "date-time"}),
    (models.DateField, {"type": "string", "format": "date"}),
    (models.TimeField, {"type": "string", "format": "time"}),
    (models.DurationField, {"type": "string", "format": "duration"}),
    (models.UUIDField, {"type": "string", "format": "uuid"}),
    (models.BinaryField, {"type": "string", "contentEncoding": "base64"}),
    (models.EmailField, {"type": "string", "format": "email"}),
    (models.URLField, {"type": "string", "format": "uri"}),
    (models.CharField, {"type": "string"}),
    (models.TextField, {"type": "string"}),
    (ArrayField, {"type": "array"}),
    (RangeField, {"type": "string", "format": "range"}),
)

# What a model class needs to have the same field.
_OPTIONS = ("max_length", "max_digits", "decimal_places", "null", "primary_key", "unique")


def describe(session: Session, tree: nodes.Tree) -> nodes.Json:
    """Return what the principal may do with the model of *tree*; without one, with each."""
    if tree.ops or tree.end.args or tree.end.kwargs:
        raise BadValue("describe takes no calls and no arguments")
    if tree.model:
        found = _schema(session, exposure_of(tree.model))
        if found is None:
            raise NotExposed(f"there is no model {tree.model} here")
        return nodes.Json(found)
    schemas = {each.model._meta.label: _schema(session, each) for each in exposures()}
    return nodes.Json({"models": {label: each for label, each in schemas.items() if each}})


def _schema(session: Session, exposure: Exposure) -> dict[str, Any] | None:
    """Return the schema of one model; None where the principal may do nothing with it."""
    operations = [each for each in OPERATIONS if _may(session, exposure, each)]
    methods = sorted(each for each in exposure.methods if _permits(session, exposure, each))
    # What cannot be read by itself may be read on the way from another model.
    reads = "read" in operations or (exposure.readable and _permits(session, exposure, "read"))
    if not (operations or methods or reads):
        return None
    opts = exposure.model._meta
    properties = {}
    if reads:
        properties = {each.attname: _field(exposure, each) for each in exposure.columns}
    for name in exposure.writable:
        field = relation(exposure.model, name)
        if field.concrete and not field.many_to_many and field.attname not in properties:
            properties[field.attname] = {**_field(exposure, field), "writeOnly": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": opts.label,
        "type": "object",
        "properties": properties,
        "x-operations": operations,
        "x-methods": methods,
        "x-relations": _relations(exposure),
        "x-paths": sorted(exposure.paths),
        "x-lookups": {path: sorted(each) for path, each in exposure.lookups.items()},
        "x-transforms": {path: sorted(each) for path, each in exposure.transforms.items()},
        "x-ordering": exposure.ordering
        if isinstance(exposure.ordering, bool)
        else sorted(exposure.ordering),
        "x-aggregates": sorted(exposure.aggregates),
        "x-functions": sorted(exposure.functions),
        "x-subscribe": exposure.subscribe,
        "x-max-rows": min(session.limits.max_rows, exposure.max_rows or session.limits.max_rows),
        "x-max-affected": session.max_affected(exposure),
    }


def _may(session: Session, exposure: Exposure, operation: str) -> bool:
    return operation in exposure.operations and _permits(session, exposure, operation)


def _permits(session: Session, exposure: Exposure, operation: str) -> bool:
    try:
        exposure.check_permission(session, operation)
    except PermissionDenied:
        return False
    return True


def _field(exposure: Exposure, field: Any) -> dict[str, Any]:
    target = field
    while target.is_relation:
        target = target.target_field
    found: dict[str, Any] = next(
        (dict(schema) for kind, schema in _TYPES if isinstance(target, kind)), {}
    )
    if found and field.null:
        found["type"] = [found["type"], "null"]
    if field.max_length is not None and found.get("type") in ("string", ["string", "null"]):
        found["maxLength"] = field.max_length
    if field.choices:
        found["enum"] = [value for value, _ in field.flatchoices]
        if field.null:
            found["enum"].append(None)
    if field.name not in exposure.writable:
        found["readOnly"] = True
    found["x-field"] = type(field).__name__
    options = {name: getattr(field, name) for name in _OPTIONS if getattr(field, name, None)}
    if field.is_relation:
        options["to"] = field.related_model._meta.label
    if isinstance(field, ArrayField):
        options["base_field"] = type(field.base_field).__name__
    found["x-options"] = options
    return found


def _relations(exposure: Exposure) -> dict[str, Any]:
    """Return the relations that may be named or written, forward ones and those to many."""
    found = {}
    for name in sorted({*exposure.paths, *exposure.writable, *exposure.readable}):
        field = relation(exposure.model, name) if "__" not in name else None
        if field is None or not field.is_relation:
            continue
        forward = field.field if field.auto_created else field
        found[field.name] = {
            "to": field.related_model._meta.label,
            "kind": type(field).__name__,
            "related_name": forward.remote_field.related_name,
            "related_query_name": forward.related_query_name(),
            "writable": field.name in exposure.writable,
        }
    return found
