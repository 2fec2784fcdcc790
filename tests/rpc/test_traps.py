"""Wrong answers that django_rpc_backend gave, each as it has to be."""

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from tests.rpc.site import models as site
from tests.rpc.waiter.models import ClientModel, Dish


@pytest.fixture(autouse=True)
def _rows(service: str) -> None:
    for number in range(6):
        site.ServerModel.objects.create(some_field="2017-01-01", other_field=number)


def test_in_bulk_gives_what_was_asked_for() -> None:
    """`in_bulk([1])` gives one row, not all."""
    first = site.ServerModel.objects.first()
    assert first is not None
    assert {*ClientModel.objects.in_bulk([first.pk])} == {first.pk}


def test_first_of_nothing_is_none() -> None:
    """`first()` of no row is None, no blank object."""
    assert ClientModel.objects.filter(pk=-1).first() is None
    assert ClientModel.objects.filter(pk=-1).last() is None
    with pytest.raises(ClientModel.DoesNotExist):
        ClientModel.objects.filter(pk=-1).latest("pk")


def test_steps_are_steps() -> None:
    """`[::2]` gives every second row."""
    rows = ClientModel.objects.order_by("other_field")
    assert [each.other_field for each in rows[::2]] == [0, 2, 4]
    assert [each.other_field for each in rows[1:5:3]] == [1, 4]


def test_the_way_back_is_by_the_foreign_key() -> None:
    """A reverse foreign key filters by the key that refers to the row, not by its own."""
    parent = site.ServerModel.objects.create(some_field="parent")
    children = {
        site.ServerModel.objects.create(parent=parent, other_field=number).pk for number in (7, 8)
    }
    found = ClientModel.objects.get(pk=parent.pk).children.all()
    assert {each.pk for each in found} == children
    assert found[0].parent.pk == parent.pk


def test_many_to_many() -> None:
    """There is a many-to-many relation, both ways, with its changes."""
    one, two = site.ServerModel.objects.all()[:2]
    mine = ClientModel.objects.get(pk=one.pk)
    mine.friends.add(two.pk)
    assert [each.pk for each in one.friends.all()] == [two.pk]
    assert [each.pk for each in ClientModel.objects.get(pk=two.pk).friend_of.all()] == [one.pk]


def test_text_is_no_date() -> None:
    """A string that looks like a date stays a string, and so does one that looks like code."""
    assert {*ClientModel.objects.values_list("some_field", flat=True)} == {"2017-01-01"}
    words = '{"py/object": "os.system", "py/reduce": ["id"]}'
    made = ClientModel.objects.create(some_field=words[:32])
    assert ClientModel.objects.get(pk=made.pk).some_field == words[:32]
    assert ClientModel.objects.filter(some_field="2017-01-01").count() == 6


def test_milliseconds_that_are_zero() -> None:
    """A moment without microseconds is that moment, as one with microseconds."""
    dish = site.Dish.objects.create(name="soup", created="2026-01-02T03:04:05+00:00")
    dish.refresh_from_db()
    found = Dish.objects.get(pk=dish.pk)
    assert found.created == dish.created
    found.save()
    dish.refresh_from_db()
    assert found.created == dish.created
    assert Dish.objects.filter(created=dish.created).exists()


def test_related_objects_are_cached() -> None:
    """A related object is asked for once."""
    parent = site.ServerModel.objects.create(some_field="parent")
    child = site.ServerModel.objects.create(parent=parent)
    mine = ClientModel.objects.get(pk=child.pk)
    with CaptureQueriesContext(connections["rpc"]) as sent:
        assert mine.parent.some_field == mine.parent.some_field == "parent"
    assert len(sent) == 1
