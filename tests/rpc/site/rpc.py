"""What the service of the tests exposes."""

from typing import Any

from django.apps import apps

from pgbackend.rpc.server.expose import expose
from tests.rpc.site import models


def of_waiter(path: str) -> Any:
    """Return a row predicate: only rows of the waiter; "chef" sees all."""

    def rows(principal: Any, queryset: Any) -> Any:
        return queryset if principal == "chef" else queryset.filter(**{path: principal})

    return rows


READING = {
    "transforms": ["date", "year", "month"],
    "ordering": True,
    "aggregates": ["Count", "Sum", "Avg", "Min", "Max"],
    "functions": ["Lower", "Upper", "Length", "Coalesce", "Concat"],
}

# Triggers are in the extra "pubsub".
SUBSCRIBE = apps.is_installed("pgtrigger")

expose(models.Station, readable=["name"], paths=["dishes", "dishes__name"], **READING)
expose(models.Label, readable=["word"], paths=["dishes", "dishes__name"], ordering=True)


@expose(models.Dish, **READING)
class DishExposed:
    readable = ("name", "price", "station", "data", "listed", "created")
    writable = ("name", "price", "station", "labels", "data", "listed", "created")
    paths = (
        "station",
        "station__name",
        "labels",
        "labels__word",
        "orders",
        "orders__count",
        "orders__status",
        "orders__placed",
        "orders__waiter__login",
    )
    json_keys = ("data",)
    operations = ("read", "create", "update", "delete")
    methods = {  # noqa: RUF012
        **dict.fromkeys(
            ("cheap", "total_price", "inside", "menu", "refuse", "judge", "loaded", "fail"), True
        ),
        "rename": False,
    }
    explain = True
    subscribe = SUBSCRIBE


@expose(models.Waiter, **READING)
class WaiterExposed:
    readable = ("login",)
    paths = ("orders", "orders__count", "orders__dish__name", "badge", "badge__number")
    rows = of_waiter("login")


expose(models.Badge, readable=["number", "waiter"], paths=["waiter", "waiter__login"], **READING)


@expose(models.Order, **READING)
class OrderExposed:
    readable = ("dish", "waiter", "count", "status", "placed")
    writable = ("dish", "waiter", "count", "status")
    paths = (
        "dish",
        "dish__name",
        "dish__labels",
        "waiter",
        "waiter__login",
        "dish__station",
        "dish__station__name",
    )
    operations = ("read", "create", "update", "delete")
    max_affected = 5
    rows = of_waiter("waiter__login")
    subscribe = SUBSCRIBE


@expose(models.ServerModel, **READING)
class ServerModelExposed:
    readable = ("some_field", "other_field", "parent")
    writable = ("id", "some_field", "other_field", "parent", "friends", "children")
    paths = (
        "parent",
        "parent__some_field",
        "parent__other_field",
        "children",
        "children__some_field",
        "children__other_field",
        "friends",
        "friends__some_field",
        "friend_of",
    )
    operations = ("read", "create", "update", "delete")
    full_clean = False


expose(
    models.Child,
    readable=["some_field", "other_field", "age"],
    writable=["some_field", "other_field", "age"],
    operations=["read", "create", "update", "delete"],
    **READING,
)

KINDS = [each.name for each in models.Kinds._meta.concrete_fields]

expose(
    models.Kinds,
    readable=KINDS,
    writable=KINDS,
    operations=["read", "create", "update", "delete"],
    json_keys=["json"],
    full_clean=False,
    **READING,
)
