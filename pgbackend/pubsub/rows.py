"""Rows of a table as its triggers send them, made into instances of the model."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import DEFAULT_DB_ALIAS, models
from django.utils import timezone

from .errors import PayloadError


def row_from_columns(
    channel: str, using: str | None, data: dict[str, Any], state: str
) -> models.Model | None:
    """Return the row *state*, "old" or "new", of the payload *data*; None: there is none.

    *channel* is the name for errors, *using* the alias that the row is from.
    Columns that the model no longer has are left out, and fields that were added since the row was
    written have their defaults. Raise PayloadError where the payload does not fit.
    """
    try:
        model = apps.get_model(data["app"], data["model"])
        columns = data[state]
    except KeyError as error:
        raise PayloadError(f"The payload of {channel} has no {error}") from error
    except LookupError as error:
        raise PayloadError(f"The payload of {channel} is of another table: {error}") from error
    if columns is None:
        return None
    values: dict[str, Any] = {}
    for field in model._meta.concrete_fields:
        if field.column in columns:
            try:
                values[field.attname] = _python(field, columns[field.column])
            except (ValidationError, ValueError, TypeError) as error:
                raise PayloadError(
                    f"The payload of {channel}: {state}.{field.column} does not fit"
                    f" {model._meta.label}.{field.name}: {error}"
                ) from error
    _fill_parents(model, values)
    for key in model._meta.pk_fields:
        if key.attname not in values:
            raise PayloadError(
                f"The payload of {channel} has no column {key.column!r}, the primary key of"
                f" {model._meta.label}"
            )
    fields = model._meta.concrete_fields
    return model.from_db(
        using or DEFAULT_DB_ALIAS,
        [field.attname for field in fields],
        [values[f.attname] if f.attname in values else f.get_default() for f in fields],
    )


def _fill_parents(model: Any, values: dict[str, Any]) -> None:
    """Give the keys of parents, whose tables the trigger does not see, the value of the link."""
    for parent, link in model._meta.parents.items():
        if link is not None and link.attname in values:
            values.setdefault(parent._meta.pk.attname, values[link.attname])
            _fill_parents(parent, values)


def _python(field: Any, value: Any) -> Any:
    """Return the Python value of *value*, in the form that PostgreSQL's to_jsonb() gives it."""
    if value is None:
        return None
    if isinstance(field, models.GeneratedField):
        field = field.output_field
    if field.is_relation:
        return _python(field.target_field, value)
    if isinstance(field, models.BinaryField):
        return bytes.fromhex(value.removeprefix("\\x"))
    if isinstance(field, models.JSONField):
        return json.loads(json.dumps(value, default=_number), cls=field.decoder)
    base = getattr(field, "base_field", None)
    if base is not None and isinstance(value, list):
        return [_python(base, item) for item in value]
    if getattr(field, "range_type", None) is not None:
        return _range(field, value)
    if isinstance(field, models.FloatField):
        return float(value)
    return _as_loaded(field.to_python(value))


def _as_loaded(value: Any) -> Any:
    """Return *value*; a time without its zone where the ORM loads such ones."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None and not settings.USE_TZ:
        return timezone.make_naive(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _range(field: Any, value: str) -> Any:
    """Return the range that *value* is the text of, by psycopg's own loader."""
    import psycopg
    from django.db import connection
    from psycopg.adapt import Transformer

    info = psycopg.adapters.types[field.db_type(connection)]
    loader = Transformer().get_loader(info.oid, psycopg.pq.Format.TEXT)
    found = loader.load(value.encode())
    if found.isempty:
        return found
    return type(found)(_as_loaded(found.lower), _as_loaded(found.upper), found.bounds)
