"""What the database and Django give, in forms that travel."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.psycopg_any import DateRange, DateTimeTZRange, NumericRange
from django.db.models import Model
from django.utils.functional import Promise

from ..protocol.nodes import Object
from ..protocol.nodes import Range as SentRange

# With psycopg 3 all of Django's names are one class.
_RANGES = (NumericRange, DateRange, DateTimeTZRange)


def sendable(value: Any) -> Any:
    """Return *value*, which has no form of its own, as what has one; or NotImplemented."""
    if isinstance(value, _RANGES):
        if value.isempty:
            return SentRange(None, None, "empty")
        return SentRange(value.lower, value.upper, value.bounds)
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, Model):
        return Object(value._meta.label, value.pk)
    return NotImplemented
