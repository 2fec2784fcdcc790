"""Which alias a model of a service has."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .options import options_of


def database_of(model: Any) -> str | None:
    """Return the alias of the service that has *model*; None for other models."""
    options = options_of(model)
    if options is not None:
        return options.database
    # Django makes a model for the rows between two models of a service.
    # The cache's table has a model that has no such attribute.
    owner = getattr(model._meta, "auto_created", False)
    return None if owner in (False, True) else database_of(owner)


def service_alias(alias: str, model: Any) -> Any:
    """Return the connection of *alias*; raise ImproperlyConfigured if that is none of a service."""
    connection = connections[alias]
    if connection.vendor != "rpc":
        raise ImproperlyConfigured(
            f"{model._meta.label} is a model of a service, and was about to be looked for in the"
            f" database {alias!r}: put 'pgbackend.rpc.RpcRouter' first into DATABASE_ROUTERS, or"
            f" name the service by using({database_of(model)!r})"
        )
    return connection


class RpcRouter:
    """Routes each `RpcModel` to the service of its ``class Rpc``, and keeps migrations off them."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return database_of(model)

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return database_of(model)

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        first, second = database_of(type(obj1)), database_of(type(obj2))
        if first is None and second is None:
            return None
        return first == second

    def allow_migrate(
        self, db: str, app_label: str, model_name: str | None = None, **hints: Any
    ) -> bool | None:
        if connections.settings.get(db, {}).get("ENGINE") == "pgbackend.rpc":
            return False
        model = hints.get("model")
        if model is None and model_name is not None:
            try:
                model = apps.get_model(app_label, model_name)
            except LookupError:
                return None
        return False if model is not None and database_of(model) is not None else None
