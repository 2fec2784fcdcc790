"""Each method of a client's queryset and model, beside that of the service's own queryset.

The cases are those of django_rpc_backend's tests, by idea, for each transport.
"""

import copy
import datetime
import pickle
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import FieldError, MultipleObjectsReturned, ObjectDoesNotExist
from django.db import DatabaseError, connections, models, transaction
from django.db.models import (
    Avg,
    Case,
    Count,
    Exists,
    F,
    Max,
    OuterRef,
    Prefetch,
    Q,
    Subquery,
    Sum,
    Value,
    When,
)
from django.db.models.functions import Coalesce, Concat, Length, Lower, Upper
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save
from django.test.utils import CaptureQueriesContext

from pgbackend.rpc import RpcQuerySet
from pgbackend.rpc.protocol.errors import BadValue, FieldNotAllowed
from tests.rpc.site import models as site
from tests.rpc.waiter import models as client

MOMENT = datetime.datetime(2025, 12, 31, 23, 30, 0, 7, datetime.UTC)


@pytest.fixture(autouse=True)
def _restaurant(service: str) -> None:
    """Two stations, three labels, six dishes, two waiters and their orders."""
    stations = [site.Station.objects.create(name=name) for name in ("grill", "cold")]
    labels = [site.Label.objects.create(word=word) for word in ("hot", "new", "old")]
    for number, name in enumerate(("soup", "Steak", "salad", "pie", "tea", "rice")):
        dish = site.Dish.objects.create(
            name=name,
            price=Decimal(number * 5),
            station=None if name == "tea" else stations[number % 2],
            data={"n": number, "words": [name]},
            listed=number != 3,
            created=MOMENT + datetime.timedelta(days=100 * number, hours=number),
        )
        dish.labels.set(labels[: number % 4])
    ada, bob = (site.Waiter.objects.create(login=login) for login in ("ada", "bob"))
    site.Badge.objects.create(waiter=ada, number=7)
    for number, dish in enumerate(site.Dish.objects.all()[:4]):
        for waiter in (ada, bob)[: 1 + number % 2]:
            site.Order.objects.create(dish=dish, waiter=waiter, count=number)
    parent = site.ServerModel.objects.create(some_field="123")
    child = site.ServerModel.objects.create(some_field="child", other_field=1, parent=parent)
    child.friends.add(parent)


# The models of a client, and those of the service.
PAIRS = {
    client.Dish: site.Dish,
    client.Tag: site.Label,
    client.Station: site.Station,
    client.Waiter: site.Waiter,
    client.Badge: site.Badge,
    client.Order: site.Order,
    client.ClientModel: site.ServerModel,
}


def plain(value: Any) -> Any:
    """Return an instance as its model and the fields that a client has; other values as they are.

    Types count: 1 is not True, and no str is a date.
    """
    if isinstance(value, models.Model):
        kind = type(value)
        declared = kind if kind in PAIRS else next(k for k, v in PAIRS.items() if v is kind)
        # What was deferred stays so.
        fields = {
            field.attname: plain(value.__dict__[field.attname])
            for field in declared._meta.concrete_fields
            if field.attname in value.__dict__
        }
        return PAIRS[declared], fields
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._fields, [plain(each) for each in value]
    if isinstance(value, list | tuple | models.QuerySet) or hasattr(value, "__next__"):
        return type(value) is tuple, [plain(each) for each in value]
    return type(value), value


def run(call: Callable[[Any], Any], where: Any) -> Any:
    """Return what *call* gives with the models of *where*, or the error's name."""
    try:
        return plain(call(where))
    except Exception as error:
        if isinstance(error, ObjectDoesNotExist | MultipleObjectsReturned):
            return type(error).__name__
        if isinstance(error, FieldError | DatabaseError):
            # Of the service's texts none is sent that names its columns.
            return FieldError
        return type(error), str(error)


class Client:
    """The client's models by the service's names."""

    Dish, Label, Station = client.Dish, client.Tag, client.Station
    Waiter, Badge, Order, ServerModel = (
        client.Waiter,
        client.Badge,
        client.Order,
        client.ClientModel,
    )


READS: dict[str, Callable[[Any], Any]] = {
    "filter": lambda m: m.Dish.objects.filter(name="soup"),
    "filter by lookups": lambda m: m.Dish.objects.filter(name__icontains="S", price__gte=5),
    "filter in": lambda m: m.Dish.objects.filter(pk__in=[1, 3, 99]),
    "filter in a set": lambda m: m.Dish.objects.filter(pk__in={1, 3}),
    "filter range": lambda m: m.Dish.objects.filter(price__range=(5, Decimal("10"))),
    "filter date": lambda m: m.Dish.objects.filter(created__year=2026),
    "filter null": lambda m: m.Dish.objects.filter(station=None),
    "filter across": lambda m: m.Dish.objects.filter(station__name="grill"),
    "filter to many": lambda m: m.Dish.objects.filter(labels__word="new").distinct(),
    "filter by instance": lambda m: m.Dish.objects.filter(station=m.Station.objects.first()),
    "filter json": lambda m: m.Dish.objects.filter(data__n=2),
    "exclude": lambda m: m.Dish.objects.exclude(name="soup"),
    "exclude to many": lambda m: m.Dish.objects.exclude(labels__word="new"),
    "or": lambda m: m.Dish.objects.filter(Q(name="soup") | ~Q(price__lt=20)),
    "xor": lambda m: m.Dish.objects.filter(Q(price__lt=20) ^ Q(listed=True)),
    "complex_filter": lambda m: m.Dish.objects.complex_filter({"name": "pie"}),
    "complex_filter q": lambda m: m.Dish.objects.complex_filter(Q(name="pie")),
    "f": lambda m: m.Dish.objects.filter(price__gt=F("pk") * 3 - 2),
    "annotate": lambda m: [
        (each, each.n) for each in m.Station.objects.annotate(n=Count("dishes")).order_by("name")
    ],
    "annotate values": lambda m: (
        m.Dish.objects.order_by("name")
        .annotate(twice=F("price") * 2, shout=Upper("name"))
        .values("twice", "shout")
    ),
    "alias": lambda m: m.Dish.objects.alias(n=Count("labels")).filter(n__gt=1).order_by("name"),
    "case": lambda m: m.Dish.objects.annotate(
        kind=Case(When(price__lt=10, then=Value("low")), default=Value("high"))
    ).values_list("name", "kind"),
    "coalesce": lambda m: m.Dish.objects.annotate(
        where=Coalesce("station__name", Value("none"))
    ).values_list("where", flat=True),
    "concat": lambda m: m.Dish.objects.annotate(
        both=Concat("name", Value("/"), "station__name")
    ).values_list("both", flat=True),
    "exists node": lambda m: m.Dish.objects.filter(
        Exists(m.Order.objects.filter(dish=OuterRef("pk"), count__gt=1))
    ),
    "not exists": lambda m: m.Dish.objects.filter(
        ~Exists(m.Order.objects.filter(dish=OuterRef("pk")))
    ),
    "subquery": lambda m: m.Dish.objects.annotate(
        last=Subquery(
            m.Order.objects.filter(dish=OuterRef("pk")).order_by("-pk").values("count")[:1]
        )
    ).values_list("name", "last"),
    "queryset in": lambda m: m.Dish.objects.filter(
        pk__in=m.Order.objects.filter(count=2).values("dish")
    ),
    "order_by": lambda m: m.Dish.objects.order_by("-price"),
    "order_by two": lambda m: m.Dish.objects.order_by("listed", "-name"),
    "order_by expression": lambda m: m.Dish.objects.order_by(Lower("name").desc()),
    "order_by nulls": lambda m: m.Dish.objects.order_by(F("station").asc(nulls_last=True), "pk"),
    "reverse": lambda m: m.Dish.objects.order_by("price").reverse(),
    "distinct": lambda m: m.Dish.objects.values("listed").order_by("listed").distinct(),
    "distinct fields": lambda m: m.Dish.objects.order_by("listed", "pk").distinct("listed"),
    "values": lambda m: m.Dish.objects.values("name", "created"),
    "values across": lambda m: m.Dish.objects.values("name", "station__name"),
    "values expressions": lambda m: m.Dish.objects.values("pk", low=Lower("name")),
    "values grouped": lambda m: (
        m.Dish.objects.values("listed")
        .annotate(n=Count("pk"), most=Max("price"))
        .order_by("listed")
    ),
    "values_list": lambda m: m.Dish.objects.values_list("pk", "name"),
    "values_list flat": lambda m: m.Dish.objects.values_list("price", flat=True),
    "values_list named": lambda m: m.Dish.objects.values_list("pk", "price", named=True),
    "values_list expression": lambda m: m.Dish.objects.values_list("pk", Length("name")),
    "dates": lambda m: m.Dish.objects.dates("created", "year"),
    "dates descending": lambda m: m.Dish.objects.dates("created", "month", order="DESC"),
    "datetimes": lambda m: m.Dish.objects.datetimes("created", "hour"),
    "datetimes of a zone": lambda m: m.Dish.objects.datetimes(
        "created", "day", tzinfo=ZoneInfo("Europe/Moscow")
    ),
    "none": lambda m: m.Dish.objects.none(),
    "all": lambda m: m.Dish.objects.all(),
    "select_related": lambda m: [
        (each, each.station) for each in m.Dish.objects.select_related("station")
    ],
    "select_related cleared": lambda m: [
        (each, "station" in each._state.fields_cache)
        for each in m.Dish.objects.select_related("station").select_related(None)
    ],
    "prefetch cleared": lambda m: [
        (each, hasattr(each, "_prefetched_objects_cache"))
        for each in m.Dish.objects.prefetch_related("labels").prefetch_related(None)
    ],
    "using": lambda m: m.Dish.objects.using(m.Dish.objects.db).filter(pk=1),
    "as_manager": lambda m: m.Dish._default_manager.get_queryset().filter(pk=1),
    "locked": lambda m: locked(m.Dish.objects.select_for_update().filter(pk__lt=3)),
    "select_related deep": lambda m: [
        (each.dish, each.dish.station, each.waiter)
        for each in m.Order.objects.select_related("dish__station", "waiter")
    ],
    "select_related backwards": lambda m: (
        m.Waiter.objects.select_related("badge").order_by("login")[0].badge
    ),
    "prefetch to many": lambda m: [
        list(each.labels.all())
        for each in m.Dish.objects.prefetch_related(
            Prefetch("labels", m.Label.objects.order_by("word"))
        )
    ],
    "prefetch backwards": lambda m: [
        (each, list(each.orders.all())) for each in m.Dish.objects.prefetch_related("orders")
    ],
    "prefetch forward": lambda m: [
        each.station for each in m.Dish.objects.prefetch_related("station")
    ],
    "prefetch deep": lambda m: [
        [[order.waiter for order in dish.orders.all()] for dish in each.dishes.all()]
        for each in m.Station.objects.order_by("name").prefetch_related("dishes__orders__waiter")
    ],
    "prefetch to_attr": lambda m: [
        each.many
        for each in m.Dish.objects.prefetch_related(
            Prefetch("orders", m.Order.objects.filter(count__gt=1), to_attr="many")
        )
    ],
    "prefetch sliced": lambda m: [
        list(each.orders.all()) for each in m.Dish.objects.prefetch_related("orders")[1:3]
    ],
    "defer": lambda m: m.Dish.objects.defer("data", "created"),
    "defer and reset": lambda m: m.Dish.objects.defer("data").defer(None),
    "defer twice": lambda m: m.Dish.objects.defer("data").defer("name"),
    "only": lambda m: m.Dish.objects.only("name"),
    "only twice": lambda m: m.Dish.objects.only("name", "price").only("price"),
    "only and defer": lambda m: m.Dish.objects.only("name", "price").defer("price"),
    "defer and only": lambda m: m.Dish.objects.defer("name").only("price"),
    "deferred loading": lambda m: m.Dish.objects.only("name").get(name="pie").price,
    "get": lambda m: m.Dish.objects.get(name="pie"),
    "get none": lambda m: m.Dish.objects.get(name="nothing"),
    "get many": lambda m: m.Dish.objects.get(price__gt=0),
    "get from values": lambda m: m.Dish.objects.values("name").get(pk=1),
    "count": lambda m: m.Dish.objects.filter(listed=True).count(),
    "count of a slice": lambda m: m.Dish.objects.all()[1:4].count(),
    "exists": lambda m: m.Dish.objects.filter(name="pie").exists(),
    "exists not": lambda m: m.Dish.objects.filter(name="no").exists(),
    "contains": lambda m: m.Dish.objects.all().contains(m.Dish.objects.get(name="pie")),
    "contains not": lambda m: m.Dish.objects.filter(pk=1).contains(m.Dish.objects.get(name="pie")),
    "first": lambda m: m.Dish.objects.order_by("-name").first(),
    "first unordered": lambda m: m.Station.objects.first(),
    "first of nothing": lambda m: m.Dish.objects.filter(pk=-1).first(),
    "last": lambda m: m.Dish.objects.order_by("name").last(),
    "last of nothing": lambda m: m.Dish.objects.filter(pk=-1).last(),
    "latest": lambda m: m.Dish.objects.latest("created"),
    "earliest": lambda m: m.Dish.objects.earliest("-price", "pk"),
    "latest of nothing": lambda m: m.Dish.objects.filter(pk=-1).latest("created"),
    "aggregate": lambda m: m.Dish.objects.aggregate(Sum("price"), n=Count("*"), mean=Avg("price")),
    "aggregate of nothing": lambda m: m.Dish.objects.none().aggregate(Sum("price")),
    "aggregate filtered": lambda m: m.Dish.objects.aggregate(
        n=Count("pk", filter=Q(listed=True)), m=Sum("price", filter=Q(pk=-1), default=3)
    ),
    "in_bulk": lambda m: m.Dish.objects.in_bulk([1, 3, 99]),
    "in_bulk of all": lambda m: m.Dish.objects.in_bulk(),
    "in_bulk by field": lambda m: m.Dish.objects.in_bulk(["pie"], field_name="name"),
    "in_bulk by another": lambda m: m.Dish.objects.in_bulk([1], field_name="price"),
    "iterator": lambda m: m.Dish.objects.filter(listed=True).iterator(),
    "item": lambda m: m.Dish.objects.all()[2],
    "item outside": lambda m: m.Dish.objects.all()[99],
    "slice": lambda m: m.Dish.objects.all()[1:4],
    "slice of a slice": lambda m: m.Dish.objects.all()[1:5][1:3],
    "slice with a step": lambda m: m.Dish.objects.all()[1:6:2],
    "step": lambda m: m.Dish.objects.all()[::2],
    "negative": lambda m: m.Dish.objects.all()[-1],
    "filter of a slice": lambda m: m.Dish.objects.all()[:2].filter(pk=1),
    "len": lambda m: len(m.Dish.objects.all()),
    "bool": lambda m: bool(m.Dish.objects.filter(pk=-1)),
    "in": lambda m: m.Dish.objects.get(pk=1) in m.Dish.objects.filter(listed=True),
    "and of querysets": lambda m: (
        m.Dish.objects.filter(price__gt=3) & m.Dish.objects.filter(listed=True)
    ),
    "or of querysets": lambda m: m.Dish.objects.filter(name="pie") | m.Dish.objects.filter(pk=1),
    "xor of querysets": lambda m: (
        m.Dish.objects.filter(price__gt=3) ^ m.Dish.objects.filter(listed=True)
    ),
    "union": lambda m: (
        m.Dish.objects.filter(pk=1).union(m.Dish.objects.filter(name="pie")).order_by("name")
    ),
    "union of values": lambda m: (
        m.Dish.objects.order_by()
        .values_list("name", flat=True)
        .union(m.Label.objects.values_list("word", flat=True), all=True)
        .order_by("name")
    ),
    "intersection": lambda m: m.Dish.objects.filter(price__gt=3).intersection(
        m.Dish.objects.filter(name="pie")
    ),
    "difference": lambda m: (
        m.Dish.objects.all().difference(m.Dish.objects.filter(listed=True)).order_by("pk")
    ),
    "filter after union": lambda m: m.Dish.objects.all().union(m.Dish.objects.all()).filter(pk=1),
    "foreign key": lambda m: m.Dish.objects.get(name="pie").station,
    "foreign key of none": lambda m: m.Dish.objects.get(name="tea").station,
    "backwards": lambda m: m.Station.objects.get(name="grill").dishes.order_by("name"),
    "backwards filtered": lambda m: m.Station.objects.get(name="grill").dishes.filter(listed=True),
    "backwards knows": lambda m: m.Station.objects.get(name="grill").dishes.first().station,
    "one to one": lambda m: m.Waiter.objects.get(login="ada").badge,
    "one to one forward": lambda m: m.Badge.objects.get().waiter,
    "one to one missing": lambda m: m.Waiter.objects.get(login="bob").badge,
    "many to many": lambda m: m.Dish.objects.get(name="pie").labels.order_by("word"),
    "many to many backwards": lambda m: m.Label.objects.get(word="new").dishes.order_by("name"),
    "many to many filtered": lambda m: m.Dish.objects.get(name="pie").labels.filter(word="new"),
    "many to many count": lambda m: m.Dish.objects.get(name="pie").labels.count(),
    "own children": lambda m: m.ServerModel.objects.get(some_field="123").children.all(),
    "own friends": lambda m: m.ServerModel.objects.get(some_field="child").friends.all(),
    "by instance in a list": lambda m: m.Dish.objects.filter(
        station__in=list(m.Station.objects.filter(name="cold"))
    ),
    "refresh": lambda m: refreshed(m.Dish.objects.get(name="pie")),
    "pickled": lambda m: pickle.loads(pickle.dumps(m.Dish.objects.filter(listed=True))),
    "pickled query": lambda m: again(m.Dish.objects.filter(listed=True)),
    "copied": lambda m: copy.deepcopy(m.Dish.objects.filter(listed=True)),
    "repr": lambda m: repr(m.Dish.objects.order_by("name")[:2]).partition("[")[2],
    # Django's default aliases have two underscores, as paths have.
    "annotate default alias": lambda m: [
        (each, each.dishes__count)
        for each in m.Station.objects.annotate(Count("dishes")).order_by("name")
    ],
    "filter by a default alias": lambda m: m.Station.objects.annotate(Count("dishes")).filter(
        dishes__count__gt=2
    ),
    "order by a default alias": lambda m: m.Dish.objects.annotate(Count("labels")).order_by(
        "-labels__count", "pk"
    ),
    "default alias of a path": lambda m: (
        m.Dish.objects.annotate(Count("orders"))
        .filter(orders__count=2)
        .values_list("name", "orders__count")
    ),
    "default alias grouped": lambda m: (
        m.Dish.objects.values("listed").annotate(Sum("price")).order_by("price__sum")
    ),
    "default alias in an expression": lambda m: (
        m.Dish.objects.annotate(Count("labels"))
        .annotate(more=F("labels__count") + 1)
        .values_list("more", "labels__count")
    ),
    "default alias aggregated": lambda m: m.Dish.objects.annotate(Count("labels")).aggregate(
        Sum("labels__count"), Max("price")
    ),
    "alias with two underscores": lambda m: m.Dish.objects.annotate(a__b=F("price")).filter(
        a__b__gt=10
    ),
    "aggregates that differ in underscores": lambda m: m.Dish.objects.aggregate(
        Sum("price"), price_sum=Count("pk")
    ),
    "annotation like a field": lambda m: m.Dish.objects.annotate(name=F("price")),
    "key of a key": lambda m: m.Dish.objects.filter(station__id=1).filter(station__pk=1),
    "key of a key in": lambda m: m.Dish.objects.exclude(station__pk__in=[1]),
    "key of a key in values": lambda m: m.Dish.objects.values(
        "station", "station_id", "station__id", "station__pk"
    ),
    "key of a key in values_list": lambda m: m.Dish.objects.values_list("station__pk", flat=True),
    "key of a key in order_by": lambda m: m.Dish.objects.order_by("-station__id", "station__pk"),
    "key of a key deep": lambda m: m.Order.objects.filter(dish__station__pk=1).values(
        "dish__station__id", "dish__pk"
    ),
    "key of a key in f": lambda m: m.Dish.objects.filter(pk__gt=F("station__id")),
    "key of many": lambda m: m.Dish.objects.filter(labels__id=1).filter(labels__pk__gt=0),
    "key of many in values": lambda m: m.Dish.objects.values("labels__pk", "labels__id").order_by(
        "pk", "labels__pk"
    ),
    "key of many backwards": lambda m: m.Station.objects.filter(dishes__pk=2, dishes__id=2),
    "key of many counted": lambda m: m.Dish.objects.annotate(n=Count("labels__pk")).values("n"),
    "null key of a key": lambda m: m.Dish.objects.filter(
        station__id=None, station__pk__isnull=True
    ),
    "defer then only": lambda m: m.Dish.objects.defer("name").only("name"),
    "defer then only another": lambda m: m.Dish.objects.defer("name", "data").only("name", "price"),
    "defer, only, defer": lambda m: m.Dish.objects.defer("name").only("name").defer("price"),
    "defer, only, only": lambda m: m.Dish.objects.defer("name").only("name").only("price"),
    "only, defer all": lambda m: m.Dish.objects.only("name").defer("name"),
    "only, defer more": lambda m: m.Dish.objects.only("name").defer("name", "price"),
    "only the key": lambda m: m.Dish.objects.only("pk"),
    "only of related": lambda m: [
        (each, each.station)
        for each in m.Dish.objects.select_related("station").only("name", "station__name")
    ],
    "only of related alone": lambda m: [
        (each, each.station)
        for each in m.Dish.objects.select_related("station").only("station__name")
    ],
    "only without the related": lambda m: m.Dish.objects.select_related("station").only("name"),
    "defer of related": lambda m: [
        (each, each.station)
        for each in m.Dish.objects.select_related("station").defer("station__name", "data")
    ],
    "defer the related": lambda m: m.Dish.objects.select_related("station").defer("station"),
    "only of attname": lambda m: m.Dish.objects.only("station_id", "name"),
    # What is below an aggregate, a count and an exists.
    "distinct aggregate": lambda m: (
        m.Dish.objects.filter(labels__word__in=["hot", "new"])
        .distinct()
        .aggregate(n=Count("pk"), total=Sum("price"))
    ),
    "distinct aggregate of many": lambda m: m.Dish.objects.distinct().aggregate(n=Count("labels")),
    "distinct annotated aggregate": lambda m: (
        m.Dish.objects.annotate(w=F("labels__word"))
        .distinct()
        .aggregate(n=Count("w"), total=Sum("price"))
    ),
    "distinct values aggregate": lambda m: (
        m.Dish.objects.values("listed").distinct().aggregate(n=Count("listed"))
    ),
    "distinct values aggregate of another": lambda m: (
        m.Dish.objects.values("listed").distinct().aggregate(n=Sum("price"))
    ),
    "distinct count": lambda m: (
        m.Dish.objects.filter(labels__word__in=["hot", "new"]).distinct().count()
    ),
    "distinct values count": lambda m: m.Dish.objects.values("station").distinct().count(),
    "distinct values_list count": lambda m: (
        m.Dish.objects.values_list("station", "listed").distinct().count()
    ),
    "distinct fields count": lambda m: (
        m.Dish.objects.order_by("station").distinct("station").count()
    ),
    "distinct fields exists": lambda m: m.Dish.objects.distinct("station").exists(),
    "distinct only count": lambda m: m.Dish.objects.only("listed").distinct().count(),
    "distinct then values": lambda m: m.Dish.objects.distinct().values("listed").order_by("listed"),
    "distinct then values count": lambda m: m.Dish.objects.distinct().values("listed").count(),
    "distinct then annotate": lambda m: (
        m.Dish.objects.distinct()
        .annotate(w=F("labels__word"))
        .values_list("listed", "w")
        .order_by("listed", "w")
    ),
    "distinct sliced aggregate": lambda m: m.Dish.objects.distinct()[:3].aggregate(Sum("price")),
    "sliced aggregate": lambda m: m.Dish.objects.order_by("-price")[:3].aggregate(Sum("price")),
    "sliced values aggregate": lambda m: (
        m.Dish.objects.order_by("-price").values("listed")[:3].aggregate(n=Count("listed"))
    ),
    "grouped aggregate": lambda m: (
        m.Dish.objects.values("listed").annotate(n=Count("pk")).aggregate(Sum("n"), Max("n"))
    ),
    "grouped count": lambda m: m.Dish.objects.values("listed").annotate(n=Count("pk")).count(),
    "annotated count": lambda m: m.Dish.objects.annotate(n=Count("labels")).count(),
    "annotated aggregate": lambda m: m.Dish.objects.annotate(n=Count("labels")).aggregate(
        Sum("n"), mean=Avg("price")
    ),
    "union count": lambda m: m.Dish.objects.filter(listed=True).union(m.Dish.objects.all()).count(),
    "union exists": lambda m: (
        m.Dish.objects.filter(pk=1).union(m.Dish.objects.filter(pk=2)).exists()
    ),
    "union all count": lambda m: m.Dish.objects.all().union(m.Dish.objects.all(), all=True).count(),
    "union of values count": lambda m: (
        m.Dish.objects.values("listed").union(m.Dish.objects.values("listed")).count()
    ),
    "union aggregate": lambda m: (
        m.Dish.objects.all().union(m.Dish.objects.all()).aggregate(Sum("price"))
    ),
    "union first": lambda m: m.Dish.objects.filter(pk=1).union(m.Dish.objects.filter(pk=2)).first(),
    "union get": lambda m: m.Dish.objects.filter(pk=1).union(m.Dish.objects.filter(pk=1)).get(),
    "union sliced": lambda m: (
        m.Dish.objects.all().union(m.Dish.objects.filter(pk=2)).order_by("-name")[1:3]
    ),
    "union of only": lambda m: m.Dish.objects.only("name").union(m.Dish.objects.only("name")),
    "union of annotated": lambda m: [
        (each, each.a)
        for each in m.Dish.objects.annotate(a=Value(1))
        .filter(pk=1)
        .union(m.Dish.objects.annotate(a=Value(2)).filter(pk=1))
        .order_by("a")
    ],
    "union of annotated values": lambda m: (
        m.Dish.objects.annotate(a=Value(1))
        .values_list("name", "a")
        .union(m.Dish.objects.annotate(a=Value(2)).values_list("name", "a"))
        .order_by("name", "a")
    ),
    "union then values": lambda m: (
        m.Dish.objects.filter(pk=1).union(m.Dish.objects.filter(pk=2)).order_by("pk").values("name")
    ),
    "union contains": lambda m: m.Dish.objects.all()[:2].contains(m.Dish.objects.get(name="pie")),
    "reversed union": lambda m: (
        m.Dish.objects.all().union(m.Dish.objects.all()).order_by("pk").reverse()
    ),
    "last of a union": lambda m: m.Dish.objects.all().union(m.Dish.objects.all()).last(),
    "latest of a union": lambda m: m.Dish.objects.all().union(m.Dish.objects.all()).latest("price"),
    "intersection count": lambda m: (
        m.Dish.objects.all().intersection(m.Dish.objects.filter(listed=True)).count()
    ),
    "difference of values": lambda m: (
        m.Dish.objects.order_by()
        .values_list("listed")
        .difference(m.Dish.objects.order_by().filter(listed=True).values_list("listed"))
    ),
    "union of a union": lambda m: (
        m.Dish.objects.filter(pk=1)
        .union(m.Dish.objects.filter(pk=2))
        .union(m.Dish.objects.filter(pk=3))
        .order_by("pk")
    ),
    "combined with distinct": lambda m: (
        m.Dish.objects.filter(labels__word="hot").distinct()
        | m.Dish.objects.filter(labels__word="new").distinct()
    ),
    "values then order": lambda m: m.Dish.objects.values("listed").distinct().order_by("price"),
    "values twice": lambda m: m.Dish.objects.values("name").values("price"),
    "values then annotate then values": lambda m: (
        m.Dish.objects.values("station__name")
        .annotate(n=Count("pk"))
        .values_list("n", "station__name")
        .order_by("n")
    ),
    "annotate then values grouped": lambda m: (
        m.Dish.objects.annotate(up=Upper("station__name"))
        .values("up")
        .annotate(n=Count("pk"), m=Max("price"))
        .order_by("n", "m")
    ),
    "filter grouped": lambda m: (
        m.Dish.objects.values("listed").annotate(n=Count("pk")).filter(n__gt=1)
    ),
    "exists grouped": lambda m: (
        m.Dish.objects.values("listed").annotate(n=Count("pk")).filter(n__gt=99).exists()
    ),
    "first of values": lambda m: m.Dish.objects.order_by("-price").values("name").first(),
    "last of values_list": lambda m: m.Dish.objects.values_list("name", flat=True).last(),
    "first of grouped by order": lambda m: (
        m.Dish.objects.values("listed").annotate(n=Count("pk")).order_by("n").first()
    ),
    "last of a distinct": lambda m: (
        m.Dish.objects.distinct("listed").order_by("listed", "pk").last()
    ),
    "in_bulk of distinct": lambda m: m.Dish.objects.distinct().in_bulk([1]),
    "slice of none": lambda m: m.Dish.objects.all()[3:3],
    "slice past the end": lambda m: m.Dish.objects.all()[5:99],
    "slice count past the end": lambda m: m.Dish.objects.all()[5:99].count(),
    "slice exists": lambda m: m.Dish.objects.all()[99:].exists(),
    "slice first": lambda m: m.Dish.objects.all()[2:4].first(),
    "slice get": lambda m: m.Dish.objects.all()[2:3].get(),
    "reverse unordered": lambda m: m.Station.objects.reverse().order_by("name"),
    "ordering by a relation": lambda m: m.Order.objects.order_by("dish", "-pk"),
    "random order of many": lambda m: m.Dish.objects.order_by("labels__word", "pk"),
    "dates of nothing": lambda m: m.Dish.objects.filter(pk=-1).dates("created", "day"),
    "dates count": lambda m: m.Dish.objects.dates("created", "year").count(),
    "subquery of an aggregate": lambda m: m.Dish.objects.annotate(
        n=Subquery(
            m.Order.objects.filter(dish=OuterRef("pk"))
            .order_by()
            .values("dish")
            .annotate(s=Sum("count"))
            .values("s")
        )
    ).values_list("name", "n"),
    "exclude annotated": lambda m: m.Dish.objects.annotate(n=Count("labels")).exclude(n=0),
    "filter twice to many": lambda m: (
        m.Dish.objects.filter(labels__word="hot").filter(labels__word="new").distinct()
    ),
    "aggregate of a distinct expression": lambda m: m.Dish.objects.aggregate(
        n=Count("station", distinct=True), s=Sum(F("price") * 2)
    ),
    "aggregate of case": lambda m: m.Dish.objects.aggregate(
        n=Sum(Case(When(listed=True, then=Value(1)), default=Value(0)))
    ),
    "aggregate without names": lambda m: m.Dish.objects.aggregate(),
    "aggregate of an aggregate": lambda m: m.Dish.objects.aggregate(n=Sum(Count("pk"))),
    "annotate a taken alias": lambda m: m.Dish.objects.annotate(a=Value(1), b=F("a") + 1).values(
        "b"
    ),
    "annotate again": lambda m: (
        m.Dish.objects.annotate(a=Value(1)).annotate(a=Value(2)).values_list("a", flat=True)
    ),
    "alias then annotate": lambda m: (
        m.Dish.objects.alias(a=Count("labels")).annotate(b=F("a")).values("b")
    ),
    "alias then values": lambda m: m.Dish.objects.alias(a=Value(1)).values("a"),
    "order by hidden alias": lambda m: (
        m.Dish.objects.alias(a=Lower("name")).order_by("a").distinct()
    ),
    "next by date": lambda m: m.Dish.objects.order_by("created")[0].name,
}


def locked(queryset: Any) -> list[Any]:
    """Return rows that are locked while they are read."""
    with transaction.atomic():
        return list(queryset)


def refreshed(dish: Any) -> Any:
    dish.name, dish.price = "changed", 9
    dish.refresh_from_db(fields=["name"])
    found = dish.name, dish.price
    dish.refresh_from_db()
    return (*found, dish)


def again(queryset: Any) -> Any:
    """Return a queryset with a query that was pickled."""
    other = queryset.model.objects.all()
    other.query = pickle.loads(pickle.dumps(queryset.query))
    return other


def test_reads() -> None:
    """Each read of a client gives what the service's own queryset gives."""
    wrong = {}
    for name, call in READS.items():
        ours, theirs = run(call, Client), run(call, site)
        if ours != theirs:
            wrong[name] = ours, theirs
    assert wrong == {}


def test_first_of_groups_without_an_order() -> None:
    """An order by the key, which `first` adds, would make other groups: an error, as in Django."""
    groups = client.Dish.objects.order_by().values("listed").annotate(n=Count("pk"))
    for called in (groups.first, groups.last):
        with pytest.raises(BadValue):
            called()
    by_key = client.Dish.objects.order_by().values("pk").annotate(n=Count("labels"))
    assert by_key.first() == {"pk": 1, "n": 0}


def test_nothing_is_sent_before() -> None:
    """Building a queryset, and slicing it, sends nothing."""
    with CaptureQueriesContext(connections["rpc"]) as sent:
        found = client.Dish.objects.filter(pk=1).order_by("name")[1:3].select_related("station")
        assert isinstance(found, RpcQuerySet)
        assert len(sent) == 0
        list(found)
        list(found)
        assert [each["sql"] for each in sent] == [
            "rpc_site.Dish.filter().order_by().slice().select_related().rows()"
        ]


async def test_asynchronous_reads() -> None:
    """Each asynchronous twin gives the same, and `async for` and `aiterator` do."""
    dishes = client.Dish.objects.order_by("pk")
    pie = await dishes.aget(name="pie")
    assert pie.name == "pie"
    assert (await dishes.afirst()).name == "soup"
    assert (await dishes.alast()).name == "rice"
    assert (await dishes.alatest("created")).name == "rice"
    assert (await dishes.aearliest("created")).name == "soup"
    assert await dishes.acount() == 6
    assert await dishes.aexists()
    assert await dishes.acontains(pie)
    assert await dishes.aaggregate(n=Count("pk")) == {"n": 6}
    assert list(await dishes.ain_bulk([1])) == [1]
    names = [each.name async for each in dishes]
    assert names == [each.name async for each in dishes.aiterator(chunk_size=2)]
    assert names[:2] == ["soup", "Steak"]
    with pytest.raises(client.Dish.DoesNotExist):
        await dishes.aget(name="nothing")
    assert [each.word async for each in pie.labels.order_by("word")] == ["hot", "new", "old"]


class Signals:
    """The signals of saves and deletions, as they come."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, str]] = []

    def note(self, name: str) -> Callable[..., None]:
        def receive(sender: Any, **_details: Any) -> None:
            self.seen.append((sender, name))

        return receive


@pytest.fixture
def signals() -> Iterator[Signals]:
    """The signals of the client's dishes and of the service's."""
    kept = Signals()
    kinds = {
        "pre_save": pre_save,
        "post_save": post_save,
        "pre_delete": pre_delete,
        "post_delete": post_delete,
    }
    receivers = [(signal, kept.note(name)) for name, signal in kinds.items()]
    for signal, receive in receivers:
        signal.connect(receive, sender=client.Dish)
        signal.connect(receive, sender=site.Dish)
    yield kept
    for signal, receive in receivers:
        signal.disconnect(receive, sender=client.Dish)
        signal.disconnect(receive, sender=site.Dish)


def in_service(dish: Any) -> Any:
    return site.Dish.objects.get(pk=dish.pk)


def test_create(signals: Signals) -> None:
    """A created row is there, with all its values, and signals come from both sides."""
    made = client.Dish.objects.create(name="2017-01-01", price="3.50", data={"$dt": [None]})
    assert plain(made) == plain(in_service(made))
    assert made.data == {"$dt": [None]}
    # A local service runs in this process.
    assert signals.seen[0] == (client.Dish, "pre_save")
    assert signals.seen[-1] == (client.Dish, "post_save")


def test_get_or_create() -> None:
    """An object is found, or made of lookups and defaults, whose callables are called."""
    found, created = client.Dish.objects.get_or_create(name="pie", defaults={"price": 1})
    assert (created, plain(found)) == (False, plain(in_service(found)))
    made, created = client.Dish.objects.get_or_create(
        name__iexact="Cake", defaults={"name": lambda: "Cake", "price": 2, "data": {"a": 1}}
    )
    assert (created, made.data, plain(made)) == (True, {"a": 1}, plain(in_service(made)))


def test_update_or_create() -> None:
    """An object is updated by defaults, or made, of *create_defaults* where they are given."""
    found, created = client.Dish.objects.update_or_create(name="pie", defaults={"price": 99})
    assert (created, found.price, in_service(found).price) == (False, 99, 99)
    options = {"defaults": {"price": 1}, "create_defaults": {"price": 2}}
    made, created = client.Dish.objects.update_or_create(name="Cake", **options)
    assert (created, in_service(made).price) == (True, 2)


def test_bulk_create(signals: Signals) -> None:
    """Rows are made in order, with their keys, and no signals are sent."""
    made = [client.Dish(name=f"new {number}", price=number) for number in range(3)]
    assert client.Dish.objects.bulk_create(made, batch_size=1) == made
    assert [each.pk for each in made] == sorted(each.pk for each in made)
    assert [plain(each) for each in made] == [plain(in_service(each)) for each in made]
    assert signals.seen == []


def test_bulk_create_conflicts() -> None:
    """Rows that are there already are left, or updated."""
    kind, theirs = client.ClientModel, site.ServerModel.objects.get(some_field="child")
    kind.objects.bulk_create([kind(pk=theirs.pk, some_field="left")], ignore_conflicts=True)
    theirs.refresh_from_db()
    assert theirs.some_field == "child"
    options = {"update_fields": ["some_field"], "unique_fields": ["id"]}
    changed = [kind(pk=theirs.pk, some_field="changed")]
    kind.objects.bulk_create(changed, update_conflicts=True, **options)
    theirs.refresh_from_db()
    assert (theirs.some_field, theirs.other_field) == ("changed", 1)
    with pytest.raises(ValueError, match="exclusive"):
        kind.objects.bulk_create(changed, ignore_conflicts=True, update_conflicts=True)


def test_bulk_update() -> None:
    """Values of each instance are written."""
    dishes = list(client.Dish.objects.all())
    for number, each in enumerate(dishes):
        each.price, each.station = number, None
    assert client.Dish.objects.bulk_update(dishes, ["price", "station"]) == 6
    assert [each.price for each in site.Dish.objects.all()] == list(range(6))
    assert not site.Dish.objects.exclude(station=None).exists()
    with pytest.raises(ValueError, match="primary key"):
        client.Dish.objects.bulk_update(dishes, ["id"])


def test_update(signals: Signals) -> None:
    """Rows are updated, by expressions too, and no signals are sent."""
    assert client.Dish.objects.filter(name="pie").update(price=F("price") + 1, listed=True) == 1
    assert site.Dish.objects.get(name="pie").price == 16
    station = client.Station.objects.get(name="cold")
    assert client.Dish.objects.filter(name="pie").update(station=station) == 1
    assert site.Dish.objects.get(name="pie").station_id == station.pk
    assert signals.seen == []
    with pytest.raises(TypeError):
        client.Dish.objects.all()[:1].update(price=1)


def test_delete() -> None:
    """Rows are deleted with what depends on them."""
    expected = site.Dish.objects.get(name="Steak").orders.count()
    total, by_model = client.Dish.objects.filter(name="Steak").delete()
    assert by_model["rpc_site.Order"] == expected
    assert total == sum(by_model.values())
    assert not site.Dish.objects.filter(name="Steak").exists()


def test_model_save(signals: Signals) -> None:
    """`save` inserts, then updates; *update_fields* and the forces are Django's."""
    made = client.Dish(name="Cake", station=client.Station.objects.get(name="grill"))
    made.save()
    assert plain(made) == plain(in_service(made))
    made.price, made.name = 7, "Tart"
    made.save(update_fields=["price"])
    assert (in_service(made).price, in_service(made).name) == (7, "Cake")
    made.save()
    assert in_service(made).name == "Tart"
    assert {name for kind, name in signals.seen if kind is client.Dish} == {
        "pre_save",
        "post_save",
    }
    lost = client.Dish(pk=10_000, name="lost")
    with pytest.raises(DatabaseError):
        lost.save(force_update=True)
    with pytest.raises(DatabaseError):
        lost.save(update_fields=["price"])
    assert not site.Dish.objects.filter(name="lost").exists()


def test_save_of_a_deferred_instance() -> None:
    """Only what was loaded is sent."""
    dish = client.Dish.objects.only("name").get(name="pie")
    site.Dish.objects.filter(name="pie").update(price=77)
    dish.name = "pies"
    dish.save()
    assert (in_service(dish).name, in_service(dish).price) == ("pies", 77)


def test_model_delete(signals: Signals) -> None:
    """`delete` deletes the row and forgets its key."""
    dish = client.Dish.objects.get(name="tea")
    assert dish.delete() == (1, {"rpc_site.Dish": 1})
    assert dish.pk is None
    assert not site.Dish.objects.filter(name="tea").exists()
    assert (client.Dish, "pre_delete") in signals.seen
    assert (client.Dish, "post_delete") in signals.seen


def test_foreign_keys_written() -> None:
    """A related manager makes and moves rows."""
    station = client.Station.objects.get(name="grill")
    made = station.dishes.create(name="Cake", price=1)
    assert in_service(made).station_id == station.pk
    tea = client.Dish.objects.get(name="tea")
    station.dishes.add(tea)
    assert in_service(tea).station_id == station.pk
    station.dishes.remove(tea)
    assert in_service(tea).station_id is None
    station.dishes.set([tea])
    assert [each.name for each in site.Dish.objects.filter(station=station.pk)] == ["tea"]
    station.dishes.clear()
    assert not site.Dish.objects.filter(station=station.pk).exists()
    with pytest.raises(ValueError, match="unsaved"):
        client.Dish.objects.create(name="lost", station=client.Station(name="new"))


def words(dish: Any) -> list[str]:
    return sorted(in_service(dish).labels.values_list("word", flat=True))


def test_many_to_many_written() -> None:
    """A many-to-many manager adds, removes, sets and clears, by instance and by key."""
    dish = client.Dish.objects.get(name="tea")
    hot, new, old = client.Tag.objects.order_by("word")
    dish.labels.add(hot, new.pk, hot)
    assert words(dish) == ["hot", "new"]
    dish.labels.remove(hot)
    assert words(dish) == ["new"]
    dish.labels.set([hot, old])
    assert words(dish) == ["hot", "old"]
    assert [each.word for each in dish.labels.order_by("word")] == ["hot", "old"]
    dish.labels.clear()
    assert words(dish) == []
    with pytest.raises(TypeError, match="instance expected"):
        dish.labels.add(dish)


def test_prefetch_related_objects() -> None:
    """Django's function prefetches for instances that are there already."""
    dishes = list(client.Dish.objects.all())
    models.prefetch_related_objects(dishes, "station", "labels", "orders")
    with CaptureQueriesContext(connections["rpc"]) as sent:
        for each in dishes:
            theirs = in_service(each)
            assert sorted(tag.word for tag in each.labels.all()) == words(each)
            assert len(each.orders.all()) == theirs.orders.count()
            assert (each.station and each.station.name) == (theirs.station and theirs.station.name)
    assert len(sent) == 0


def test_a_field_that_the_service_has_not() -> None:
    """A declared field that the service does not give is an error by its code."""
    with pytest.raises(FieldNotAllowed):
        client.Dish.objects.filter(recipe="secret").count()
    with pytest.raises(FieldNotAllowed):
        list(client.Dish.objects.values("recipe"))


def test_kinds_of_fields() -> None:
    """A value of each kind of field comes as it is, goes back, and arrives as it was."""
    site.Kinds.objects.create()
    (theirs,) = site.Kinds.objects.all()
    (ours,) = client.Kinds.objects.all()
    for field in client.Kinds._meta.concrete_fields:
        mine, other = getattr(ours, field.attname), getattr(theirs, field.attname)
        assert (type(mine), mine) == (type(other), other), field.name
    ours.pk = None
    ours._state.adding = True
    ours.save()
    copied = site.Kinds.objects.get(pk=ours.pk)
    for field in client.Kinds._meta.concrete_fields:
        if not field.primary_key:
            assert getattr(copied, field.attname) == getattr(theirs, field.attname), field.name
    for field in client.Kinds._meta.concrete_fields:
        name = field.attname
        if name not in ("infinite", "json", "array"):
            assert client.Kinds.objects.filter(**{name: getattr(ours, name)}).exists(), name
