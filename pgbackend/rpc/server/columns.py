"""The calls that make rows of single values: values, values_list, dates and datetimes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db.models import JSONField

from ..protocol import nodes
from ..protocol.errors import BadValue, FieldNotAllowed, OperationNotAllowed
from .expressions import expression, reference
from .paths import check_alias, resolve
from .scope import Annotation, Column, Scope

_DATE_KINDS = ("year", "month", "week", "day")
_TIME_KINDS = (*_DATE_KINDS, "hour", "minute", "second")


def column_of(scope: Scope, label: str, key: str) -> Column:
    """Return the column of an annotation."""
    return Column(label, key, is_json_annotation(scope, key))


def is_json_annotation(scope: Scope, key: str) -> bool:
    """Return whether the annotation *key* gives JSON documents."""
    found = scope.queryset.query.annotations.get(key)
    if found is None:
        # Of extra(), which only the service's own methods have.
        return False
    try:
        return isinstance(found.output_field, JSONField)
    except Exception:
        # Django raises FieldError and others for an expression that has no one type.
        return False


def op_values(scope: Scope, op: nodes.Op) -> None:
    _as_columns(scope, "dict", op.args, op.kwargs)


def op_values_list(scope: Scope, op: nodes.Op) -> None:
    if not op.kwargs.keys() <= {"flat", "named"}:
        raise BadValue("values_list takes flat and named")
    flat, named = op.kwargs.get("flat", False), op.kwargs.get("named", False)
    if not isinstance(flat, bool) or not isinstance(named, bool) or (flat and named):
        raise BadValue("flat and named are true or false, and not both true")
    if flat and len(op.args) != 1:
        raise BadValue("with flat there is one path or expression")
    _as_columns(scope, "flat" if flat else "named" if named else "tuple", op.args, {})


def _as_columns(scope: Scope, kind: str, args: Any, kwargs: Mapping[str, Any]) -> None:
    columns: list[Column] = []
    if not args and not kwargs:
        args = [
            *(each.attname for each in scope.exposure.columns),
            *(scope.selected or [each.label for each in scope.columns]),
        ]
        args = list(dict.fromkeys(args))
    if scope.is_combined and (kwargs or not args or scope.kind != "model"):
        raise OperationNotAllowed("after a union values takes names of fields")
    expressions: dict[str, Any] = {}
    named = [*((None, each) for each in args), *kwargs.items()]
    for alias, node in named:
        if alias is not None:
            check_alias(scope, alias)
        elif isinstance(node, nodes.F):
            node = node.path
        if alias is None and isinstance(node, str):
            columns.append(_path_column(scope, node, expressions))
            continue
        if not isinstance(node, nodes.Node):
            raise BadValue("values takes paths and expressions")
        scope.named = frozenset()
        name = scope.own_name()
        expressions[name] = expression(scope, node, guarded=True)
        label = alias or f"{getattr(node, 'name', type(node).__name__).lower()}{len(columns) + 1}"
        scope.annotations[label] = Annotation(name, scope.named)
        columns.append(Column(label, name))
    if scope.is_combined and expressions:
        raise OperationNotAllowed("after a union values takes names of fields")
    # As keywords of values() they would come after the other columns, whatever their places.
    if expressions:
        scope.queryset = scope.queryset.annotate(**expressions)
    scope.queryset = scope.queryset.values(*(each.key for each in columns))
    for each in columns:
        if each.key in expressions:
            each.is_json = is_json_annotation(scope, each.key)
    scope.kind, scope.columns, scope.selected = kind, columns, []


def _path_column(scope: Scope, text: str, expressions: dict[str, Any]) -> Column:
    path = resolve(scope, text)
    if scope.is_combined and (path.entered or path.transforms):
        # Each queryset of the union would need the same joins.
        raise OperationNotAllowed("after a union values takes names of fields")
    if path.field is None and not path.transforms:
        return column_of(scope, text, path.name)
    found = reference(scope, text)
    is_json = isinstance(path.field, JSONField)
    if path.transforms or not hasattr(found, "name"):
        # Django makes an alias in SQL of the keys of JSON that values() names: here it is ours.
        name = scope.own_name()
        expressions[name] = found
        return Column(text, name)
    return Column(text, found.name, is_json)


def op_dates(scope: Scope, op: nodes.Op) -> None:
    _as_dates(scope, op, _DATE_KINDS, "dates")


def op_datetimes(scope: Scope, op: nodes.Op) -> None:
    _as_dates(scope, op, _TIME_KINDS, "datetimes")


def _as_dates(scope: Scope, op: nodes.Op, kinds: tuple[str, ...], method: str) -> None:
    if op.kwargs or not 2 <= len(op.args) <= 4:
        raise BadValue(f"{op.name} takes two to four arguments")
    named, kind, order, zone = [*op.args, None, None][:4]
    order = order or "ASC"
    if kind not in kinds or order not in ("ASC", "DESC") or not isinstance(named, str):
        raise BadValue(f"{op.name} takes a field, one of {', '.join(kinds)}, and ASC or DESC")
    found = reference(scope, named)
    path = resolve(scope, named)
    if path.entered or path.transforms or path.field is None:
        raise FieldNotAllowed(f"{op.name} takes fields of the model itself, not {named!r}")
    options = {}
    if method == "datetimes":
        options["tzinfo"] = time_zone(zone)
    scope.queryset = getattr(scope.queryset, method)(found.name, kind, order, **options)
    scope.kind, scope.selected = "flat", []
    key = "datefield" if method == "dates" else "datetimefield"
    scope.columns = [Column(key, key)]


def time_zone(name: Any) -> Any:
    """Return the time zone of that *name*, or of an offset "+03:00"; None: the current one."""
    if name is None:
        return None
    try:
        if isinstance(name, str) and name[:1] in ("+", "-"):
            return datetime.strptime(name, "%z").tzinfo
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise BadValue("there is no time zone of that name") from None
