"""Models of each kind of relation, of each kind of field, and a manager with methods."""

import datetime
import uuid
from decimal import Decimal
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField, DateRangeField, IntegerRangeField
from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.backends.postgresql.psycopg_any import DateRange, NumericRange
from django.utils.translation import gettext_lazy


class Station(models.Model):
    name = models.CharField(max_length=50, unique=True)
    # Never exposed.
    safe_code = models.CharField(max_length=20, default="0000")

    def __str__(self) -> str:
        return self.name


class Label(models.Model):
    word = models.CharField(max_length=30, unique=True)

    def __str__(self) -> str:
        return self.word


def wrongs() -> dict[str, ValidationError]:
    """Return a ValidationError of each kind."""
    few = ValidationError("%(n)d of %(of)s are 100 %% right", "few", {"n": 3, "of": "all"})
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC)
    params = {"price": Decimal("1.50"), "at": moment, "which": ("a", [1, None], {"x"})}
    dear = ValidationError("%(price)s, %(at)s: too dear", "dear", params)
    return {
        "one": few,
        "coded": ValidationError("Closed.", code="closed"),
        "list of one": ValidationError([few]),
        "list": ValidationError([few, "Closed.", dear]),
        "nested": ValidationError(["a", [ValidationError("b", 5), ValidationError([dear])]]),
        "fields": ValidationError({"name": few, "price": [dear, "100 %"], "__all__": "all of it"}),
        "fields in a list": ValidationError([ValidationError({"name": few}), "more"]),
        "translated": ValidationError(gettext_lazy("Enter a whole number."), "invalid"),
        "no fields": ValidationError({}),
    }


class DishQuerySet(models.QuerySet["Dish"]):
    def cheap(self, below: int = 10) -> "DishQuerySet":
        """Return the dishes that cost less than *below*."""
        return self.filter(price__lt=below)

    def total_price(self, *names: str, factor: int = 1) -> Decimal:
        """Return the sum of the prices of the named dishes, *factor* times."""
        found = self.filter(name__in=names) if names else self
        return (found.aggregate(total=models.Sum("price"))["total"] or Decimal()) * factor

    def rename(self, old: str, new: str) -> "Dish":
        """Rename a dish, and return it."""
        dish = self.get(name=old)
        dish.name = new
        dish.save()
        return dish

    def inside(self, name: str) -> dict[str, Any]:
        """Return instances wherever a result may have them."""
        dish = self.get(name=name)
        return {
            "pair": (dish, 2),
            "twice": [dish, dish],
            "mixed": [dish, None],
            "orders": dish.orders.all(),
            "first": dish.orders.first(),
            "none": [],
        }

    def menu(self, kind: str) -> Any:
        """Return all of the dishes, in a result of some *kind*."""
        match kind:
            case "values":
                return self.values("name")
            case "list":
                return list(self)
            case "set":
                return set(self)
            case "words":
                return {each.name for each in self}
            case "mixed":
                return frozenset({*self.filter(name="soup"), 1})
            case "dict":
                return {each.name: each for each in self}
        return self.all()

    def loaded(self, kind: str) -> Any:
        """Return the dishes with something beside their columns."""
        asked = Order.objects.filter(count__gt=1).annotate(twice=models.F("count") * 2)
        match kind:
            case "annotated":
                return self.annotate(
                    n=models.Count("orders"), doc=models.F("data"), orders__n=models.F("pk")
                ).alias(unseen=models.Value(1))
            case "extra":
                more = {"one": "1", "up": "upper(rpc_site_dish.name)"}
                return self.extra(select=more).order_by("pk")
            case "joined":
                return self.annotate(word=models.F("labels__word")).order_by("-word", "pk")
            case "sliced":
                return self.annotate(n=models.Count("orders"))[1:]
            case "union":
                low = self.filter(price__lt=5).annotate(n=models.Value(1))
                return low.union(self.filter(price__gte=5).annotate(n=models.Value(2)))
            case "distinct":
                return self.annotate(n=models.Count("orders")).distinct()
            case "selected":
                return self.select_related("station")
            case "orders":
                return Order.objects.select_related("dish__station").annotate(
                    twice=models.F("count") * 2
                )
            case "prefetched":
                return self.prefetch_related("labels", models.Prefetch("orders__waiter"))
            case "chosen":
                return self.prefetch_related(models.Prefetch("orders", asked))
            case "named":
                return self.prefetch_related(models.Prefetch("orders", asked, "big"))
            case "inner":
                dishes = Dish.objects.prefetch_related(models.Prefetch("orders", asked, "big"))
                return self.prefetch_related(models.Prefetch("labels__dishes", dishes))
            case "hidden":
                return self.prefetch_related("hidden")
            case "hidden rows":
                return self.prefetch_related(models.Prefetch("hidden", to_attr="more"))
            case "slice":
                few = Order.objects.all()[:1]
                return self.prefetch_related(models.Prefetch("orders", few))
        return self

    def refuse(self, *texts: str) -> None:
        """Raise a ValidationError that is of no field."""
        raise ValidationError(texts[0] if len(texts) == 1 else list(texts))

    def judge(self, kind: str) -> None:
        """Raise a ValidationError of some *kind*."""
        raise wrongs()[kind]

    def fail(self) -> None:
        """Raise an error with a secret in its text."""
        raise RuntimeError("the password is hunter2")

    def burn(self) -> int:
        """Delete all dishes: never exposed."""
        return self.delete()[0]


class Dish(models.Model):
    name = models.CharField(max_length=50, unique=True)
    price = models.DecimalField(
        max_digits=8, decimal_places=2, validators=[MinValueValidator(0)], default=Decimal("1.00")
    )
    station = models.ForeignKey(
        Station, models.SET_NULL, related_name="dishes", null=True, blank=True
    )
    labels = models.ManyToManyField(Label, related_name="dishes")
    data = models.JSONField(default=dict, blank=True)
    listed = models.BooleanField(default=True)
    created = models.DateTimeField(null=True, blank=True)
    # Never exposed.
    recipe = models.TextField(default="secret")

    objects = DishQuerySet.as_manager()

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.name == "nothing":
            raise ValidationError({"name": "A dish is something."})


class Waiter(models.Model):
    login = models.CharField(max_length=30, unique=True)
    # Never exposed.
    password = models.CharField(max_length=100, default="hunter2")

    def __str__(self) -> str:
        return self.login


class Badge(models.Model):
    """One for each waiter."""

    waiter = models.OneToOneField(Waiter, models.CASCADE, related_name="badge")
    number = models.IntegerField()


class Order(models.Model):
    """Seen by its waiter alone."""

    dish = models.ForeignKey(Dish, models.CASCADE, related_name="orders")
    waiter = models.ForeignKey(Waiter, models.CASCADE, related_name="orders")
    count = models.PositiveIntegerField(default=1)
    status = models.CharField(max_length=10, default="placed")
    placed = models.DateTimeField(default=datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC))

    class Meta:
        ordering: ClassVar[list[str]] = ["pk"]


class Receipt(models.Model):
    """Protects its order."""

    order = models.ForeignKey(Order, models.PROTECT, related_name="receipts")
    paid = models.DecimalField(max_digits=8, decimal_places=2)


class Hidden(models.Model):
    """Never exposed."""

    word = models.CharField(max_length=30)
    dish = models.ForeignKey(Dish, models.CASCADE, related_name="hidden", null=True)


class ServerModel(models.Model):
    """Two plain fields, a self-relation and a many-to-many one."""

    some_field = models.CharField(max_length=32, default="")
    other_field = models.IntegerField(null=True, blank=True)
    parent = models.ForeignKey("self", models.CASCADE, related_name="children", null=True)
    friends = models.ManyToManyField("self", symmetrical=False, related_name="friend_of")


class Child(ServerModel):
    """A model with a parent table."""

    age = models.IntegerField(default=0)


class Colour(models.TextChoices):
    RED = "r"
    BLUE = "b"


def some_json() -> Any:
    return {"a": [1.5, None, "x"], "$dt": {"$f": "no tag"}}


def some_array() -> Any:
    return [[datetime.date.min]]


class Kinds(models.Model):
    """A column of each kind."""

    integer = models.BigIntegerField(default=-(2**60))
    small = models.SmallIntegerField(default=-1)
    positive = models.PositiveIntegerField(default=1)
    boolean = models.BooleanField(default=True)
    maybe = models.BooleanField(null=True)
    text = models.TextField(default='it\'s "quoted" \\ \u2603 2017-01-01')
    choice = models.CharField(max_length=1, choices=Colour.choices, default=Colour.RED.value)
    slug = models.SlugField(default="a-slug")
    email = models.EmailField(default="a@example.org")
    url = models.URLField(default="https://example.org/")
    real = models.FloatField(default=0.1)
    infinite = models.FloatField(default=float("inf"))
    exact = models.DecimalField(max_digits=30, decimal_places=10, default=Decimal("1.10"))
    binary = models.BinaryField(default=b"\x00\xff", editable=True)
    day = models.DateField(default=datetime.date(2026, 1, 2))
    time = models.TimeField(default=datetime.time(1, 2, 3, 4))
    moment = models.DateTimeField(
        default=datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    )
    span = models.DurationField(default=datetime.timedelta(days=-3, microseconds=5))
    uuid = models.UUIDField(default=uuid.UUID(int=5))
    address = models.GenericIPAddressField(default="::1")
    json = models.JSONField(default=some_json)
    array = ArrayField(ArrayField(models.DateField()), default=some_array)
    numbers = IntegerRangeField(default=NumericRange(1, 5))
    days = DateRangeField(default=DateRange(datetime.date(2026, 1, 1), None))
    nothing = models.TextField(null=True)
