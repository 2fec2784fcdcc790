"""Whether an exposure names what is there, and the models that its paths lead to are exposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from ..protocol.names import AGGREGATES, FUNCTIONS
from .exposure import OPERATIONS, Exposure, relation
from .functions import STRANGE_AGGREGATES


def check_exposure(exposure: Exposure, exposed: Mapping[Any, Exposure]) -> None:
    """Raise ImproperlyConfigured for names that are not there or lead to what is not exposed.

    *exposed* are all exposures, by their models.
    """
    opts = exposure.model._meta
    for name in exposure.readable:
        field = relation(exposure.model, name)
        if field is None or not field.concrete or field.many_to_many or field.name != name:
            raise _wrong(exposure, "readable", name, "is no field with a column")
    for name in exposure.writable:
        field = relation(exposure.model, name)
        if field is None or field.name != name or not (field.concrete or field.is_relation):
            raise _wrong(exposure, "writable", name, "is no field")
        if getattr(field, "generated", False):
            raise _wrong(exposure, "writable", name, "is computed by the database")
        if field.is_relation:
            _exposed(exposed, exposure, "writable", name, field.related_model)
    for path in exposure.paths:
        _check_path(exposed, exposure, path)
    for kind in ("lookups", "transforms"):
        for path in getattr(exposure, kind):
            if path != "*" and path not in exposure.allowed:
                raise _wrong(exposure, kind, path, "is neither readable nor in paths")
    for path in exposure.json_keys:
        if path not in exposure.allowed:
            raise _wrong(exposure, "json_keys", path, "is neither readable nor in paths")
    if not isinstance(exposure.ordering, bool):
        for path in exposure.ordering:
            if path not in exposure.allowed:
                raise _wrong(exposure, "ordering", path, "is neither readable nor in paths")
    for kind, known in (
        ("aggregates", AGGREGATES - STRANGE_AGGREGATES),
        ("functions", FUNCTIONS),
        ("operations", frozenset(OPERATIONS)),
    ):
        for name in getattr(exposure, kind) - known:
            raise _wrong(exposure, kind, name, f"is none of {', '.join(sorted(known))}")
    manager = getattr(exposure.model, exposure.manager or opts.default_manager.name)
    for name in exposure.methods:
        if name.startswith("_") or not callable(getattr(manager, name, None)):
            raise _wrong(exposure, "methods", name, "is no method of the manager")
        if (exposure.rows or exposure.writable_rows) and not hasattr(manager.all(), name):
            raise _wrong(
                exposure,
                "methods",
                name,
                "is the manager's alone, where `rows` does not hold: make it the queryset's",
            )


def _check_path(exposed: Mapping[Any, Exposure], exposure: Exposure, path: str) -> None:
    model = exposure.model
    parts = path.split("__")
    for number, part in enumerate(parts):
        field = relation(model, part)
        if field is None:
            raise _wrong(exposure, "paths", path, f"has no {part!r}")
        if number == len(parts) - 1 and not field.is_relation:
            if number and field not in _exposed(exposed, exposure, "paths", path, model).columns:
                label = model._meta.label
                raise _wrong(exposure, "paths", path, f"ends in what {label} does not let be read")
            return
        if not field.is_relation or field.related_model is None:
            raise _wrong(exposure, "paths", path, f"goes on after {part!r}, which is no relation")
        if getattr(field, "is_hidden", None) and field.is_hidden():
            raise _wrong(exposure, "paths", path, f"goes over {part!r}, which is hidden")
        model = field.related_model
        _exposed(exposed, exposure, "paths", path, model)


def _exposed(
    exposed: Mapping[Any, Exposure], exposure: Exposure, kind: str, path: str, model: Any
) -> Exposure:
    try:
        return exposed[model]
    except KeyError:
        raise _wrong(
            exposure,
            kind,
            path,
            f"leads to {model._meta.label}, which is not exposed: expose it, if need be without"
            " fields and operations, so that its `rows` are known",
        ) from None


def _wrong(exposure: Exposure, kind: str, name: str, why: str) -> ImproperlyConfigured:
    label = exposure.model._meta.label
    return ImproperlyConfigured(f"expose({label}): {kind} has {name!r}, which {why}")
