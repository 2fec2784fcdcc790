"""What compilers make of queries, for tests of what is compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.core.exceptions import EmptyResultSet


def forget() -> None:
    """Forget what was compiled for any model."""
    for model in apps.get_models():
        vars(model._meta).pop("_pgbackend_select", None)


def caught(as_sql: Callable[[], Any]) -> Any:
    """Return a statement and what its parameters are, or the class of the exception."""
    try:
        sql, params = as_sql()
    except EmptyResultSet as error:
        return type(error)
    return sql, repr(params)
