"""Checks of models of services, of an alias's settings, and of both against the service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .described import Described, described
from .protocol.errors import RemoteError
from .queryset import RpcQuerySet
from .router import database_of
from .service import service_of


def register() -> None:
    """Have `check_services` asked by ``manage.py check --database rpc`` and ``migrate``."""
    checks.register(check_services, checks.Tags.database)


def check_model(model: Any) -> list[Any]:
    """Return what is wrong with a model of a service by itself; nothing is sent."""
    if model._meta.abstract or model._meta.swapped:
        return []
    found = [*_check_app(model), *_check_relations(model)]
    manager = model._meta.default_manager
    if not isinstance(manager.get_queryset(), RpcQuerySet):
        found.append(
            checks.Error(
                f"The default manager of {model.__qualname__} makes no RpcQuerySet.",
                hint="Derive it: models.Manager.from_queryset(a subclass of RpcQuerySet).",
                obj=model,
                id="pgbackend.rpc.E004",
            )
        )
    return found


def _check_app(model: Any) -> list[Any]:
    found: list[Any] = []
    if not apps.is_installed("pgbackend.rpc"):
        found.append(
            checks.Error(
                f"{model.__qualname__} is a model of a service, and the application"
                " 'pgbackend.rpc' is not installed: makemigrations would make migrations of it.",
                hint="Add 'pgbackend.rpc' to INSTALLED_APPS.",
                obj=model,
                id="pgbackend.rpc.E001",
            )
        )
    alias = model.Rpc.database
    engine = connections.settings.get(alias, {}).get("ENGINE")
    if engine != "pgbackend.rpc":
        found.append(
            checks.Error(
                f"class Rpc of {model.__qualname__} names the database {alias!r}, whose ENGINE is"
                f" {engine!r}.",
                hint="Name an alias of DATABASES with ENGINE 'pgbackend.rpc'.",
                obj=model,
                id="pgbackend.rpc.E002",
            )
        )
    return found


def _check_relations(model: Any) -> list[Any]:
    found = []
    for field in (*model._meta.local_fields, *model._meta.local_many_to_many):
        other = field.related_model
        if other is None or isinstance(other, str) or database_of(other) == database_of(model):
            continue
        found.append(
            checks.Error(
                f"{field} leads from a model of the service {database_of(model)!r} to one of"
                f" {database_of(other) or 'a database of this project'!r}.",
                hint="Declare the field that has the value, an IntegerField for example.",
                obj=field,
                id="pgbackend.rpc.E003",
            )
        )
    return found


def check_settings(connection: Any) -> list[Any]:
    """Return what is wrong with the alias's settings; nothing is sent."""
    try:
        service_of(connection.alias, connection.settings_dict)
    except (ImproperlyConfigured, ImportError, TypeError, ValueError) as error:
        return [checks.Error(str(error), id="pgbackend.rpc.E005")]
    if connection.settings_dict.get("ATOMIC_REQUESTS"):
        return [
            checks.Error(
                f"DATABASES[{connection.alias!r}]['ATOMIC_REQUESTS'] is of no use: a service has no"
                " transactions of a request.",
                hint="Remove it; gather(..., atomic=True) sends calls as one transaction.",
                id="pgbackend.rpc.E006",
            )
        ]
    return []


def check_services(databases: Iterable[str] | None = None, **_options: Any) -> list[Any]:
    """Compare the models of the services in *databases* with what those expose."""
    found: list[Any] = []
    for alias in databases or ():
        connection = connections[alias]
        if connection.vendor != "rpc":
            continue
        try:
            exposed = described(alias)
        except RemoteError as error:
            found.append(
                checks.Error(
                    f"The service {alias!r} has not said what it exposes: {error}",
                    hint="Start it, or look at TRANSPORT, KEYS and PRINCIPAL.",
                    id="pgbackend.rpc.E007",
                )
            )
            continue
        for model in apps.get_models():
            if database_of(model) == alias:
                found += _compare(model, exposed.get(model.Rpc.label))
    return found


def _compare(model: Any, exposed: Described | None) -> list[Any]:
    if exposed is None:
        return [
            checks.Error(
                f"The service does not expose {model.Rpc.label} to this principal.",
                obj=model,
                id="pgbackend.rpc.E008",
            )
        ]
    found: list[Any] = []
    fetched = set(model.Rpc.fields)
    for field in model._meta.concrete_fields:
        names = {field.name, field.attname}
        if field.attname in fetched and not names & exposed.readable:
            found.append(
                checks.Error(
                    f"The service gives no field {field.name!r} of {model.Rpc.label}.",
                    hint="Remove the field, or leave it out of Rpc.fields.",
                    obj=field,
                    id="pgbackend.rpc.E009",
                )
            )
        kept = names & set(model.Rpc.readonly) or field.primary_key or field.generated
        if exposed.writable and not kept and not names & exposed.writable:
            found.append(
                checks.Warning(
                    f"The service takes no value of {field.name!r} of {model.Rpc.label}: save()"
                    " would be refused.",
                    hint="Name the field in Rpc.readonly.",
                    obj=field,
                    id="pgbackend.rpc.W010",
                )
            )
    return found
