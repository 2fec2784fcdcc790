"""From the rows of an answer to instances, dictionaries, tuples and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import models
from django.db.models.base import DEFERRED
from django.db.models.utils import create_namedtuple_class
from django.utils import timezone

from .protocol import nodes


def made(
    found: nodes.Rows, queryset: Any, attributes: Mapping[str, str] | None = None
) -> list[Any]:
    """Return what iterating over *queryset* gives: instances, or what `values` asked for.

    *attributes* are those that prefetched rows are in, by the names of their relations; None: those
    that the queryset names.
    """
    if found.kind in ("model", "instance"):
        attributes = queryset.query.attributes if attributes is None else attributes
        maker = _maker(queryset.model, found.shape, queryset.db, attributes)
        return _with_known(queryset, [maker.instance(row) for row in found.rows])
    names = found.shape.fields
    rows = [[plain(each) for each in row] for row in found.rows]
    match found.kind:
        case "flat":
            return [row[0] for row in rows]
        case "tuple":
            return [tuple(row) for row in rows]
        case "named":
            kind = create_namedtuple_class(*names)
            return [kind._make(row) for row in rows]
    return [dict(zip(names, row, strict=True)) for row in rows]


def plain(value: Any) -> Any:
    """Return a value of an answer as the ORM gives it; a row of a model as its fields."""
    match value:
        case nodes.Range():
            return _range(value)
        case list():
            return [plain(each) for each in value]
        case tuple():
            return tuple(plain(each) for each in value)
        case dict():
            return {plain(key): plain(each) for key, each in value.items()}
    if not settings.USE_TZ and hasattr(value, "utcoffset") and hasattr(value, "date"):
        return timezone.make_naive(value, timezone.get_default_timezone())
    return value


def dictionaries(found: nodes.Rows) -> list[dict[str, Any]]:
    """Return rows of a model that no client model is for, each as a dictionary of its fields."""
    return [_dictionary(found.shape, row) for row in found.rows]


def _dictionary(shape: nodes.Shape, row: list[Any]) -> dict[str, Any]:
    ends = len(shape.fields)
    made = dict(zip(shape.fields, map(plain, row[:ends]), strict=True))
    for (name, below), other in zip(shape.related.items(), row[ends:], strict=False):
        made[name] = None if other is None else _dictionary(below, other)
    ends += len(shape.related)
    for fetched, others in zip(shape.prefetched, row[ends:], strict=True):
        found = [_dictionary(fetched.shape, each) for each in others]
        made[fetched.name] = next(iter(found), None) if fetched.single else found
    return made


def _range(value: nodes.Range) -> Any:
    # Not imported above: a client may have no psycopg.
    from django.db.backends.postgresql.psycopg_any import NumericRange

    if value.bounds == "empty":
        return NumericRange(empty=True)
    return NumericRange(value.lower, value.upper, value.bounds)


def _converter(field: Any) -> Callable[[Any], Any]:
    """Return what makes the value of *field* of one of an answer."""
    if isinstance(field, models.JSONField):
        if field.decoder is None:
            return plain
        return lambda value: json.loads(json.dumps(plain(value)), cls=field.decoder)
    if hasattr(field, "from_db_value"):
        # A field of its own form in the database: the answer has its form in Python.
        return lambda value: field.to_python(plain(value))
    return plain


def _with_known(queryset: Any, found: list[Any]) -> list[Any]:
    """Set the instances whose related managers made *queryset*, as Django does."""
    for field, known in queryset._known_related_objects.items():
        for each in found:
            if not field.is_cached(each):
                other = known.get(getattr(each, field.attname))
                if other is not None:
                    setattr(each, field.name, other)
    return found


class Maker:
    """Makes instances of one model of rows of one shape."""

    def __init__(
        self, model: Any, shape: nodes.Shape, database: str, attributes: Mapping[str, str]
    ) -> None:
        self.model = model
        self.database = database
        positions = {name: position for position, name in enumerate(shape.fields)}
        self._names: list[str] = []
        self._columns: list[tuple[int, Callable[[Any], Any]]] = []
        for field in model._meta.concrete_fields:
            position = positions.pop(field.attname, positions.pop(field.name, None))
            if position is not None:
                self._names.append(field.attname)
                self._columns.append((position, _converter(field)))
        # What is left is annotated, or of a field that the client has not declared.
        self._extras = list(positions.items())
        ends = len(shape.fields)
        self._related = [
            (ends + number, *self._relation(name, below, attributes))
            for number, (name, below) in enumerate(shape.related.items())
        ]
        ends += len(shape.related)
        self._prefetched = [
            (
                ends + number,
                each,
                *self._relation(attributes.get(each.name, each.name), each.shape, attributes),
            )
            for number, each in enumerate(shape.prefetched)
        ]

    def _relation(
        self, name: str, below: nodes.Shape, attributes: Mapping[str, str]
    ) -> tuple[Any, Maker]:
        field = relation(self.model, name)
        return field, Maker(field.related_model, below, self.database, attributes)

    def instance(self, row: list[Any]) -> Any:
        """Return the instance of one row, with what was selected and prefetched with it."""
        values = [convert(row[position]) for position, convert in self._columns]
        made = self.model.from_db(self.database, self._names, values)
        for name, position in self._extras:
            setattr(made, name, plain(row[position]))
        for position, field, maker in self._related:
            other = None if row[position] is None else maker.instance(row[position])
            field.set_cached_value(made, other)
            if other is not None and (field.one_to_one or getattr(field, "unique", False)):
                field.remote_field.set_cached_value(other, made)
        for position, fetched, field, maker in self._prefetched:
            found = [maker.instance(each) for each in row[position]]
            self._prefetch(made, fetched, field, found)
        return made

    def _prefetch(self, made: Any, fetched: nodes.Prefetched, field: Any, found: list[Any]) -> None:
        if field.one_to_many or field.one_to_one:
            for each in found:
                if not field.remote_field.is_cached(each):
                    field.remote_field.set_cached_value(each, made)
        one = found[0] if found else None
        if fetched.to_attr:
            setattr(made, fetched.name, one if fetched.single else found)
        elif fetched.single:
            field.set_cached_value(made, one)
        else:
            manager = getattr(made, fetched.name)
            kept = manager.get_queryset()
            kept._result_cache = found
            kept._prefetch_done = True
            if not hasattr(made, "_prefetched_objects_cache"):
                made._prefetched_objects_cache = {}
            made._prefetched_objects_cache[_cache_name(field)] = kept


def _maker(model: Any, shape: nodes.Shape, database: str, attributes: Mapping[str, str]) -> Maker:
    if shape.related or shape.prefetched:
        return Maker(model, shape, database, attributes)
    return _flat_maker(model, shape.fields, database)


@lru_cache(maxsize=256)
def _flat_maker(model: Any, fields: tuple[str, ...], database: str) -> Maker:
    """Return what makes instances of rows of *fields*: results of one row often have the same."""
    return Maker(model, nodes.Shape(fields=fields), database, {})


def relation(model: Any, name: str) -> Any:
    """Return the relation of *model* that is called *name* in paths or on instances."""
    try:
        found = model._meta.get_field(name)
    except FieldDoesNotExist:
        ways = model._meta.related_objects
        found = next((each for each in ways if each.get_accessor_name() == name), None)
    if found is None or not found.is_relation:
        raise FieldError(
            f"{model.__qualname__} has no relation {name!r}: declare the field on the client's"
            " models to select or prefetch it"
        )
    return found


def _cache_name(field: Any) -> str:
    if field.many_to_many:
        forward = not field.auto_created
        return str(field.name if forward else field.field.related_query_name())
    return str(field.get_accessor_name())


def update(instance: Any, found: nodes.Rows, names: Any = None) -> None:
    """Set the fields of *instance*, or those of *names*, to those of the one row of *found*."""
    maker = Maker(type(instance), found.shape, instance._state.db, {})
    fresh = maker.instance(found.rows[0])
    for field in type(instance)._meta.concrete_fields:
        if names is not None and field.name not in names and field.attname not in names:
            continue
        value = fresh.__dict__.get(field.attname, DEFERRED)
        if value is not DEFERRED:
            if field.is_relation and field.is_cached(instance):
                other = field.get_cached_value(instance)
                if other is not None and getattr(other, field.target_field.attname) != value:
                    field.delete_cached_value(instance)
            instance.__dict__[field.attname] = value
