"""The client's models: each has some of the fields of the service's, some have another name."""

import datetime
from decimal import Decimal
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField, DateRangeField, IntegerRangeField
from django.core.validators import MinValueValidator
from django.db import models

from pgbackend.rpc import RpcModel


class Station(RpcModel):
    name = models.CharField(max_length=50, unique=True)

    class Rpc:
        app_label = "rpc_site"

    def __str__(self) -> str:
        return self.name


class Tag(RpcModel):
    """The service's Label, by another name."""

    word = models.CharField(max_length=30, unique=True)

    class Rpc:
        app_label = "rpc_site"
        name = "Label"

    def __str__(self) -> str:
        return self.word


class Dish(RpcModel):
    name = models.CharField(max_length=50, unique=True)
    price = models.DecimalField(
        max_digits=8, decimal_places=2, validators=[MinValueValidator(0)], default=Decimal("1.00")
    )
    station = models.ForeignKey(
        Station, models.SET_NULL, related_name="dishes", null=True, blank=True
    )
    labels = models.ManyToManyField(Tag, related_name="dishes", blank=True)
    data = models.JSONField(default=dict, blank=True)
    listed = models.BooleanField(default=True)
    created = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]

    class Rpc:
        app_label = "rpc_site"

    def __str__(self) -> str:
        return self.name


class Waiter(RpcModel):
    login = models.CharField(max_length=30, unique=True)

    class Rpc:
        app_label = "rpc_site"

    def __str__(self) -> str:
        return self.login


class Badge(RpcModel):
    waiter = models.OneToOneField(Waiter, models.CASCADE, related_name="badge")
    number = models.IntegerField()

    class Rpc:
        app_label = "rpc_site"


class Order(RpcModel):
    dish = models.ForeignKey(Dish, models.CASCADE, related_name="orders")
    waiter = models.ForeignKey(Waiter, models.CASCADE, related_name="orders")
    count = models.PositiveIntegerField(default=1)
    status = models.CharField(max_length=10, default="placed")
    placed = models.DateTimeField(default=datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC))

    class Rpc:
        app_label = "rpc_site"
        readonly = ("placed",)


class ClientModel(RpcModel):
    """The one of the interface's examples: only some fields are declared."""

    some_field = models.CharField(max_length=32, default="")
    other_field = models.IntegerField(null=True, blank=True)
    parent = models.ForeignKey("self", models.CASCADE, related_name="children", null=True)
    friends = models.ManyToManyField("self", symmetrical=False, related_name="friend_of")

    class Rpc:
        app_label = "rpc_site"
        name = "ServerModel"
        database = "rpc"
        fields = None


def some_json() -> Any:
    return {"a": [1.5, None, "x"], "$dt": {"$f": "no tag"}}


class Kinds(RpcModel):
    """A column of each kind."""

    integer = models.BigIntegerField(default=0)
    small = models.SmallIntegerField(default=0)
    positive = models.PositiveIntegerField(default=1)
    boolean = models.BooleanField(default=True)
    maybe = models.BooleanField(null=True)
    text = models.TextField(default="")
    choice = models.CharField(max_length=1, default="r")
    slug = models.SlugField(default="a-slug")
    email = models.EmailField(default="a@example.org")
    url = models.URLField(default="https://example.org/")
    real = models.FloatField(default=0.1)
    infinite = models.FloatField(default=float("inf"))
    exact = models.DecimalField(max_digits=30, decimal_places=10, default=Decimal("1.10"))
    binary = models.BinaryField(default=b"")
    day = models.DateField(default=datetime.date(2026, 1, 2))
    time = models.TimeField(default=datetime.time(1, 2, 3, 4))
    moment = models.DateTimeField(null=True)
    span = models.DurationField(default=datetime.timedelta())
    uuid = models.UUIDField(null=True)
    address = models.GenericIPAddressField(default="::1")
    json = models.JSONField(default=some_json)
    array = ArrayField(ArrayField(models.DateField()), default=list)
    numbers = IntegerRangeField(null=True)
    days = DateRangeField(null=True)
    nothing = models.TextField(null=True)

    class Rpc:
        app_label = "rpc_site"
