"""Every public method of this Django's QuerySet: recorded, an end, refused, or Django's own."""

import inspect

import pytest
from django.db import NotSupportedError
from django.db.models import QuerySet

from pgbackend.rpc import RpcQuerySet
from tests.rpc.waiter.models import Dish

# What is sent with the queryset.
RECORDED = {
    "alias",
    "annotate",
    "complex_filter",
    "dates",
    "datetimes",
    "defer",
    "difference",
    "distinct",
    "exclude",
    "filter",
    "intersection",
    "none",
    "only",
    "order_by",
    "prefetch_related",
    "reverse",
    "select_for_update",
    "select_related",
    "union",
    "values",
    "values_list",
}
# What sends it.
ENDS = {
    "aggregate",
    "bulk_create",
    "bulk_update",
    "contains",
    "count",
    "create",
    "delete",
    "earliest",
    "exists",
    "explain",
    "first",
    "get",
    "get_or_create",
    "in_bulk",
    "iterator",
    "last",
    "latest",
    "update",
    "update_or_create",
}
REFUSED = {"extra", "raw"}
# What Django's own code does, as nothing of it is about a database.
OWN = {"all", "as_manager", "db", "fetch_mode", "ordered", "query", "totally_ordered", "using"}
# How a queryset becomes a part of another one, which is the query's.
PARTS = {"resolve_expression"}

PUBLIC = sorted(name for name in dir(QuerySet) if not name.startswith("_"))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_method_is_accounted_for(name: str) -> None:
    """A method of a new Django has to be put into one of the kinds, with its asynchronous twin."""
    kinds = [
        name in RECORDED,
        name in ENDS or (name.startswith("a") and name[1:] in ENDS and hasattr(QuerySet, name[1:])),
        name in REFUSED,
        name in OWN,
        name in PARTS,
    ]
    assert kinds.count(True) == 1
    ours = getattr(RpcQuerySet, name)
    if name in OWN | PARTS | {"complex_filter"}:
        return
    built_on = {"alias", "annotate", "exclude", "filter", "union", "intersection", "difference"}
    if name not in built_on:
        assert ours is not getattr(QuerySet, name), f"{name} is still Django's, which makes SQL"
    # What it takes is what Django's takes.
    if callable(ours) and name not in REFUSED:
        django = inspect.signature(getattr(QuerySet, name)).parameters
        mine = inspect.signature(ours).parameters
        if not any(each.kind is each.VAR_POSITIONAL for each in mine.values()):
            assert [*django] == [*mine] or name in {"aearliest", "alatest"}


@pytest.mark.parametrize("name", sorted(ENDS - {"iterator"}))
def test_ends_have_asynchronous_twins(name: str) -> None:
    """An end has the twin that Django's has, and managers have both as Django's have."""
    assert inspect.iscoroutinefunction(getattr(RpcQuerySet, f"a{name}"))
    for each in (name, f"a{name}"):
        assert hasattr(Dish.objects, each) == (name != "delete")
        alters = getattr(getattr(QuerySet, each), "alters_data", False)
        assert getattr(getattr(RpcQuerySet, each), "alters_data", False) == alters


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(nowhere: str, name: str) -> None:
    """SQL is refused where it is asked for, with what to do instead."""
    with pytest.raises(NotSupportedError, match=r"objects\.call"):
        getattr(Dish.objects.all(), name)("SELECT 1")


def test_private_doors_to_sql(nowhere: str) -> None:
    """What would make SQL past the methods raises, too."""
    from tests.models import Book

    with pytest.raises(NotSupportedError, match="takes no SQL"):
        Dish.objects.all().query.get_compiler("rpc")
    with pytest.raises(NotSupportedError, match="of a service"):
        list(Book.objects.filter(pk__in=Dish.objects.values("pk")))
    with pytest.raises(ValueError, match="different databases"):
        Dish.objects.filter(pk__in=Book.objects.values("pk"))
