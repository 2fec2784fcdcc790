"""The plain client's rows: their columns, their locks, their times, and many made at once."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from pgbackend.rpc.client import Client, F, Row
from pgbackend.rpc.protocol.errors import (
    BadValue,
    FieldError,
    FieldNotAllowed,
    IntegrityError,
    NotRun,
    OperationNotAllowed,
    RemoteError,
    TooManyAffected,
    TransformNotAllowed,
    ValidationError,
)
from pgbackend.rpc.server.settings import service
from pgbackend.rpc.transports.local import LocalTransport
from tests.rpc.site.models import Dish, Order, ServerModel, Station, Waiter

MOSCOW, NEW_YORK = ZoneInfo("Europe/Moscow"), ZoneInfo("America/New_York")


@pytest.fixture(autouse=True)
def rows() -> None:
    grill, cold = (Station.objects.create(name=name) for name in ("grill", "cold"))
    Dish.objects.create(name="soup", price="5.00", station=grill, data={"a": 1})
    Dish.objects.create(name="fish", price="20.00", station=cold)
    waiter = Waiter.objects.create(login="ada")
    Order.objects.create(dish=Dish.objects.get(name="soup"), waiter=waiter)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client(LocalTransport(), service().keys, principal="chef", timeout=60)
    yield made
    made.close()


@pytest.fixture
def dishes(client: Client) -> Any:
    return client.model("rpc_site.Dish")


def columns(row: Any) -> set[str]:
    """Return the columns that a row has, of the client's or of the service's own."""
    if isinstance(row, Row):
        return {name for name in row.__dict__ if name[0] != "_" and name != "station"}
    loaded = {each.attname for each in row._meta.concrete_fields} - row.get_deferred_fields()
    # The service never sends it.
    return set(loaded) - {"recipe", "safe_code"}


COLUMNS: dict[str, Callable[[Any], Any]] = {
    "only": lambda q: q.only("name"),
    "only pk": lambda q: q.only("pk"),
    "only, the last one counts": lambda q: q.only("name").only("price"),
    "only after defer": lambda q: q.defer("price").only("name", "price"),
    "defer": lambda q: q.defer("data", "created"),
    "defer twice": lambda q: q.defer("data").defer("created"),
    "defer after only": lambda q: q.only("name", "price").defer("name"),
    "defer the key": lambda q: q.defer("id", "name"),
    "defer nothing any more": lambda q: q.defer("data").defer(None),
    "a foreign key": lambda q: q.only("station"),
    "of a related row": lambda q: q.select_related("station").only("name", "station__name"),
    "of a related row, deferred": lambda q: q.select_related("station").defer("station__name"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns(dishes: Any, case: str) -> None:
    """only() and defer() leave the columns that Django's leave, of related rows, too."""
    ours = COLUMNS[case](dishes.order_by("pk")).result()
    theirs = list(COLUMNS[case](Dish.objects.order_by("pk")))
    assert [each.pk for each in ours] == [each.pk for each in theirs]
    assert list(map(columns, ours)) == list(map(columns, theirs))
    if "station" in theirs[0]._state.fields_cache:
        assert [columns(each.station) for each in ours] == [
            columns(each.station) for each in theirs
        ]
    for row, own in zip(ours, theirs, strict=True):
        assert {name: getattr(row, name) for name in columns(row)} == {
            name: getattr(own, name) for name in columns(row)
        }


def test_a_column_that_was_left_out(dishes: Any) -> None:
    """A row has no attribute for it: nothing is fetched behind the caller's back."""
    row = dishes.only("name").first().result()
    with pytest.raises(AttributeError, match="price"):
        row.price  # noqa: B018
    # One row by its key is read with those of its like: the columns are its own.
    one, other = (dishes.only(name).get(pk=row.pk) for name in ("name", "price"))
    dishes.client.gather(one, other).result()
    assert (columns(one.result()), columns(other.result())) == ({"id", "name"}, {"id", "price"})


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (lambda q: q.only("recipe"), FieldNotAllowed),
        (lambda q: q.defer("recipe"), FieldNotAllowed),
        (lambda q: q.only("name__lower"), TransformNotAllowed),
        (lambda q: q.only(None), BadValue),
        (lambda q: q.values("name").only("name"), BadValue),
        (lambda q: q.select_related("station").only("name"), FieldError),
    ],
)
def test_refused_columns(dishes: Any, asked: Any, error: type[Exception]) -> None:
    """What is not exposed cannot be named there either; what Django refuses is refused."""
    with pytest.raises(error):
        asked(dishes).result()


def test_locks(client: Client, dishes: Any) -> None:
    """Rows are locked in an atomic message, as its options say; the table itself alone."""
    soup = dishes.filter(name="soup")
    for options, words in (
        ({}, "FOR UPDATE OF"),
        ({"nowait": True}, "NOWAIT"),
        ({"skip_locked": True}, "SKIP LOCKED"),
        ({"no_key": True}, "FOR NO KEY UPDATE OF"),
        ({"of": ("self", "station")}, 'FOR UPDATE OF "rpc_site_dish"'),
    ):
        with CaptureQueriesContext(connection) as captured:
            locked, number = client.gather(
                soup.select_related("station").select_for_update(**options).get(),
                soup.update(price=F("price") + 1),
                atomic=True,
            ).result()
        assert (locked.name, number) == ("soup", 1)
        (sql,) = (each["sql"] for each in captured if " FOR " in each["sql"])
        assert words in sql
        assert 'OF "rpc_site_station"' not in sql
        assert ', "rpc_site_station"' not in sql.partition(" FOR ")[2]
    assert Dish.objects.get(name="soup").price == 10


def test_locks_by_key(client: Client, dishes: Any) -> None:
    """Each of several reads by key locks its row."""
    keys = [each.pk for each in dishes.order_by("pk").result()]
    with CaptureQueriesContext(connection) as captured:
        reads = [dishes.select_for_update().get(pk=key) for key in keys]
        found = client.gather(*reads).result()
    assert [each.pk for each in found] == keys
    assert sum(" FOR UPDATE" in each["sql"] for each in captured) == len(keys)


def test_refused_locks(client: Client, dishes: Any) -> None:
    """A lock is for who may update; two ways not to wait exclude each other."""
    with pytest.raises(ValueError, match="exclude"):
        dishes.select_for_update(nowait=True, skip_locked=True)
    with pytest.raises(OperationNotAllowed):
        client.model("rpc_site.Station").select_for_update().result()
    with pytest.raises(RemoteError):
        dishes.values("listed").distinct().select_for_update().result()


# One moment in three zones, one that a zone has twice, and the ends of what the column takes.
TIMES = [
    datetime.datetime(2026, 3, 29, 1, 30, tzinfo=datetime.UTC),
    datetime.datetime(2026, 3, 29, 4, 30, tzinfo=MOSCOW),
    datetime.datetime(2026, 3, 28, 21, 30, tzinfo=NEW_YORK),
    datetime.datetime(2026, 11, 1, 1, 30, tzinfo=NEW_YORK),
    datetime.datetime(2026, 11, 1, 1, 30, tzinfo=NEW_YORK, fold=1),
    datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(minutes=-90))),
    datetime.datetime(1900, 1, 1, 0, 0, 0, 1, tzinfo=MOSCOW),
    datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.UTC),
]


@pytest.mark.parametrize("moment", TIMES, ids=str)
def test_zoned_times(dishes: Any, moment: datetime.datetime) -> None:
    """A time with a zone is that moment, written, compared and read; it comes back in UTC."""
    soup = dishes.filter(name="soup")
    assert soup.update(created=moment).result() == 1
    assert Dish.objects.get(name="soup").created == moment.astimezone(datetime.UTC)
    for condition in ({"created": moment}, {"created__gte": moment}, {"created__in": [moment]}):
        assert [each.name for each in dishes.filter(**condition)] == ["soup"]
    assert not dishes.filter(created__lt=moment).exists().result()
    read = soup.get().result().created
    assert read == moment.astimezone(datetime.UTC)
    assert read.utcoffset() == datetime.timedelta(0)
    made = dishes.values_list("created", flat=True).get(name="soup").result()
    assert (made, made.utcoffset()) == (read, datetime.timedelta(0))


def test_times_without_a_zone(dishes: Any) -> None:
    """A time without a zone is one of the service's own zone."""
    dishes.filter(name="soup").update(created=datetime.datetime(2026, 7, 1, 12)).result()
    zone = ZoneInfo(settings.TIME_ZONE)
    assert Dish.objects.get(name="soup").created == datetime.datetime(2026, 7, 1, 12, tzinfo=zone)


ZONES: list[Any] = [
    MOSCOW,
    NEW_YORK,
    datetime.UTC,
    ZoneInfo("UTC"),
    datetime.timezone(datetime.timedelta(hours=-3, minutes=-30)),
]


@pytest.mark.parametrize("zone", ZONES, ids=str)
@pytest.mark.parametrize("kind", ["day", "hour"])
def test_datetimes_of_a_zone(dishes: Any, zone: datetime.tzinfo, kind: str) -> None:
    """datetimes() counts the days of a zone that is given as Python has it, or by its name."""
    Dish.objects.filter(name="soup").update(created=TIMES[0])
    Dish.objects.filter(name="fish").update(created=TIMES[3])
    theirs = list(Dish.objects.datetimes("created", kind, tzinfo=zone))
    ours = dishes.datetimes("created", kind, tzinfo=zone).result()
    assert [each.isoformat() for each in ours] == [each.isoformat() for each in theirs]
    if isinstance(zone, ZoneInfo):
        assert dishes.datetimes("created", kind, tzinfo=zone.key).result() == ours


def test_datetimes_of_no_zone(dishes: Any) -> None:
    with pytest.raises(BadValue):
        dishes.datetimes("created", "day", tzinfo="Nowhere/Else").result()


def test_many_rows(dishes: Any) -> None:
    """Rows are made in one call, whatever batch_size; they come back in order with their keys."""
    grill = Station.objects.get(name="grill").pk
    new = [{"name": f"dish {n}", "price": n, "station": grill} for n in range(25)]
    made = dishes.bulk_create(new, batch_size=10).result()
    assert [each.name for each in made] == [each["name"] for each in new]
    own = Dish.objects.filter(name__startswith="dish ")
    assert {each.pk: each.price for each in made} == dict(own.values_list("pk", "price"))
    changed = [{"pk": each.pk, "price": each.price * 2} for each in made]
    assert dishes.bulk_update(changed, ["price"], batch_size=7).result() == 25
    assert sorted(own.values_list("price", flat=True)) == [2 * n for n in range(25)]
    assert dishes.bulk_create([]).result() == []


def test_several_lots(client: Client, dishes: Any) -> None:
    """Several lots in one message are all made where it is atomic, or none; else each by itself."""
    grill = Station.objects.get(name="grill").pk

    def lots(*names: str) -> list[Any]:
        return [dishes.bulk_create([{"name": each, "station": grill}]) for each in names]

    found = client.gather(*lots("a", "soup", "b"), atomic=True, return_exceptions=True).result()
    assert [type(each) for each in found] == [NotRun, ValidationError, NotRun]
    assert not Dish.objects.filter(name__in=["a", "b"]).exists()
    found = client.gather(*lots("a", "soup", "b"), return_exceptions=True).result()
    assert [type(each) for each in found] == [list, ValidationError, list]
    assert Dish.objects.filter(name__in=["a", "b"]).count() == 2
    a, b = client.gather(*lots("c", "d"), atomic=True).result()
    assert [each.name for each in a + b] == ["c", "d"]


def test_too_many_rows(client: Client) -> None:
    """What is above the limit of a write is refused as a whole."""
    orders = client.model("rpc_site.Order")
    dish, waiter = Dish.objects.get(name="soup").pk, Waiter.objects.get().pk
    new = [{"dish": dish, "waiter": waiter}] * 6
    with pytest.raises(TooManyAffected):
        orders.bulk_create(new).result()
    assert Order.objects.count() == 1
    assert len(orders.bulk_create(new[:5]).result()) == 5


def test_conflicts(client: Client) -> None:
    """Conflicts are ignored or update rows, where the service lets them."""
    models_ = client.model("rpc_site.ServerModel")
    first = ServerModel.objects.create(some_field="x", other_field=1)
    new = [{"id": first.pk, "some_field": "y"}, {"id": first.pk + 1, "some_field": "z"}]
    models_.bulk_create(new, ignore_conflicts=True).result()
    fields = list(ServerModel.objects.order_by("pk").values_list("some_field", flat=True))
    assert fields == ["x", "z"]
    models_.bulk_create(
        new, update_conflicts=True, unique_fields=["id"], update_fields=["some_field"]
    ).result()
    fields = list(ServerModel.objects.order_by("pk").values_list("some_field", flat=True))
    assert fields == ["y", "z"]
    with pytest.raises(IntegrityError):
        models_.bulk_create(new).result()
    with pytest.raises(OperationNotAllowed):
        client.model("rpc_site.Dish").bulk_create(
            [{"name": "soup"}], ignore_conflicts=True
        ).result()


@pytest.mark.parametrize("size", [0, -1])
def test_wrong_batches(dishes: Any, size: int) -> None:
    with pytest.raises(ValueError, match="batch"):
        dishes.bulk_create([{"name": "a"}], batch_size=size)
    with pytest.raises(ValueError, match="batch"):
        dishes.bulk_update([{"pk": 1, "name": "a"}], ["name"], batch_size=size)
