"""Writes of the service: fields, rows before and after, limits, batches, idempotency."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.errors import NotUpdated, ValidationError
from pgbackend.rpc.server.models import StoredAnswer
from tests.rpc.site.models import Dish, Hidden, Label, Order, Receipt, ServerModel, Station, Waiter
from tests.support.rpc_server import answer_of, ask, code, op, outcomes, sealed, tree, where

F = nodes.F


@pytest.fixture(autouse=True)
def rows() -> None:
    """Two waiters, two dishes, and orders of both waiters."""
    grill = Station.objects.create(name="grill")
    soup = Dish.objects.create(name="soup", price="5.00", station=grill)
    Dish.objects.create(name="fish", price="20.00")
    for login, counts in (("ada", (1, 2)), ("bob", (3, 4))):
        waiter = Waiter.objects.create(login=login)
        for count in counts:
            Order.objects.create(dish=soup, waiter=waiter, count=count)


def pk_of(model: Any, **where: Any) -> int:
    return int(model.objects.get(**where).pk)


def field(rows: nodes.Rows, name: str) -> Any:
    (row,) = rows.rows
    return row[rows.shape.fields.index(name)]


def counts(login: str) -> list[int]:
    found = Order.objects.filter(waiter__login=login).order_by("count")
    return list(found.values_list("count", flat=True))


def test_create() -> None:
    """A row is made of writable fields, and comes back as it is in the database."""
    station = nodes.Object("rpc_site.Station", pk_of(Station, name="grill"))
    found = ask(tree("Dish", end=op("create", name="salt", price=Decimal("0.5"), station=station)))
    assert field(found, "price") == Decimal("0.50")
    assert field(found, "id") == pk_of(Dish, name="salt")
    assert field(found, "station_id") == station.pk
    assert code(tree("Dish", end=op("create", name="x", recipe="mine"))) == "FieldNotAllowed"
    assert code(tree("Dish", end=op("create", name="x", id=7))) == "FieldNotAllowed"
    assert code(tree("Dish", end=op("create", name="soup"))) == "ValidationError"
    assert code(tree("ServerModel", end=op("create", parent=99))) == "ValidationError"
    assert code(tree("Hidden", end=op("create", word="x"))) == "NotExposed"
    assert code(tree("Station", end=op("create", name="x"))) == "OperationNotAllowed"


def test_validation() -> None:
    """full_clean runs with the model's own clean(), and says which field is wrong."""
    with pytest.raises(ValidationError) as raised:
        ask(tree("Dish", end=op("create", name="nothing", price=Decimal(-1))))
    assert set(raised.value.details["messages"]) == {"name", "price"}
    update = tree("Dish", where(name="fish"), end=op("update", price=Decimal(-1)))
    assert code(update) == "ValidationError"
    assert code(tree("ServerModel", end=op("create", some_field="x" * 50))) == "DataError"
    assert code(tree("ServerModel", end=op("create", other_field="x"))) == "BadValue"


def test_save() -> None:
    """save updates the row or inserts it, and insert only inserts."""
    soup = pk_of(Dish, name="soup")
    found = ask(tree("Dish", end=op("save", soup, {"name": "broth"})))
    assert (field(found, "id"), field(found, "name")) == (soup, "broth")
    raised = {"price": nodes.Operation("+", F("price"), 1)}
    assert field(ask(tree("Dish", end=op("save", soup, raised))), "price") == Decimal("6.00")
    found = ask(tree("Dish", end=op("save", None, {"name": "tea"})))
    assert field(found, "id") != soup
    with pytest.raises(NotUpdated):
        ask(tree("Dish", end=op("save", 10**6, {"name": "x"}, force_update=True)))
    kept = {"id": 77, "some_field": "kept"}
    assert field(ask(tree("ServerModel", end=op("save", 77, kept))), "id") == 77
    assert code(tree("ServerModel", end=op("insert", kept))) == "IntegrityError"


def test_update_and_delete() -> None:
    """Rows change by values and expressions; what refers to deleted ones goes with them."""
    raised = op("update", price=nodes.Operation("*", F("price"), 2))
    assert ask(tree("Dish", where(price__lt=10), end=raised)) == 1
    assert Dish.objects.get(name="soup").price == Decimal(10)
    hidden = op("update", name=F("recipe"))
    assert code(tree("Dish", end=hidden)) == "FieldNotAllowed"
    assert code(tree("Dish", end=op("update", recipe="x"))) == "FieldNotAllowed"
    number, by_model = ask(tree("Dish", where(name="soup"), end=op("delete")))
    assert (number, by_model) == (5, {"rpc_site.Dish": 1, "rpc_site.Order": 4})


def test_deletes_that_reach_too_far() -> None:
    """Rows that are not exposed, not seen, or protected keep a row from being deleted."""
    soup = tree("Dish", where(name="soup"), end=op("delete"))
    # Orders of another waiter would go, too.
    assert code(soup, principal="ada") == "PermissionDenied"
    Hidden.objects.create(word="x", dish=Dish.objects.get(name="fish"))
    fish = tree("Dish", where(name="fish"), end=op("delete"))
    assert code(fish) == "PermissionDenied"
    order = Order.objects.get(count=1)
    Receipt.objects.create(order=order, paid=5)
    assert code(tree("Order", where(count=1), end=op("delete"))) == "ProtectedError"
    assert (Dish.objects.count(), Order.objects.count()) == (2, 4)


def test_rows_of_others() -> None:
    """What a principal does not see it neither changes, deletes, nor names; nor gives it away."""
    ada: dict[str, Any] = {"principal": "ada"}
    assert ask(tree("Order", end=op("update", count=9)), **ada) == 2
    assert (counts("ada"), counts("bob")) == ([9, 9], [3, 4])
    bobs = Order.objects.get(count=3)
    assert ask(tree("Order", where(id=bobs.pk), end=op("delete")), **ada)[0] == 0
    # As for a row that is not there: it would be made, had it a key that may be set.
    assert code(tree("Order", end=op("save", bobs.pk, {"count": 1})), **ada) == "FieldNotAllowed"
    bob = pk_of(Waiter, login="bob")
    soup = pk_of(Dish, name="soup")
    # bob is not seen, so that no order can be given to him.
    given = op("create", dish=soup, waiter=bob, count=1)
    assert code(tree("Order", end=given), **ada) == "ValidationError"
    assert code(tree("Order", end=op("update", waiter=bob)), **ada) == "ValidationError"
    rows = [{"pk": bobs.pk, "count": 1}]
    assert ask(tree("Order", end=op("bulk_update", rows, ["count"])), **ada) == 0
    assert counts("bob") == [3, 4]


def test_rows_after_a_write() -> None:
    """A write that would move a row beyond the predicate is undone."""
    from pgbackend.rpc.server import registry
    from pgbackend.rpc.server.expose import expose

    known = registry.exposure_of(ServerModel)
    registry.unregister(ServerModel)
    try:
        expose(
            ServerModel,
            readable=["some_field"],
            writable=["some_field"],
            operations=["read", "create", "update"],
            rows=lambda principal, queryset: queryset.filter(some_field=principal),
        )
        ada: dict[str, Any] = {"principal": "ada"}
        ask(tree("ServerModel", end=op("create", some_field="ada")), **ada)
        for end in (
            op("create", some_field="bob"),
            op("update", some_field="bob"),
            op("bulk_create", [{"some_field": "bob"}]),
            op("save", ServerModel.objects.get().pk, {"some_field": "bob"}),
            op("get_or_create", some_field="ada", defaults={}),
        ):
            wanted = None if end.name == "get_or_create" else "PermissionDenied"
            assert code(tree("ServerModel", end=end), **ada) == wanted, end
        assert [each.some_field for each in ServerModel.objects.all()] == ["ada"]
    finally:
        registry.register(known, anew=True)


def test_many_affected() -> None:
    """As many rows as are allowed are changed; with one more none is."""
    soup, waiter = Dish.objects.get(name="soup"), Waiter.objects.get(login="ada")
    Order.objects.create(dish=soup, waiter=waiter, count=5)
    assert ask(tree("Order", end=op("update", status="done"))) == 5
    Order.objects.create(dish=soup, waiter=waiter, count=6)
    for end in (op("update", status="gone"), op("delete")):
        assert code(tree("Order", end=end)) == "TooManyAffected"
    new = {"dish": soup.pk, "waiter": waiter.pk}
    assert code(tree("Order", end=op("bulk_create", [new] * 6))) == "TooManyAffected"
    assert Order.objects.filter(status="done").count() == 5
    assert len(ask(tree("Order", end=op("bulk_create", [new] * 5))).rows) == 5


def test_get_or_create() -> None:
    """The row is found or made; update_or_create changes or makes it."""
    made = op("get_or_create", name="tea", defaults={"price": Decimal(2)})
    rows, is_new = ask(tree("Dish", end=made))
    assert (field(rows, "price"), is_new) == (Decimal(2), True)
    assert ask(tree("Dish", end=made))[1] is False
    changed = op("update_or_create", name="tea", defaults={"price": Decimal(3)})
    rows, is_new = ask(tree("Dish", end=changed))
    assert (field(rows, "price"), is_new) == (Decimal(3), False)
    rows, is_new = ask(tree("Dish", end=op("update_or_create", name="ale", create_defaults={})))
    assert is_new


def test_related() -> None:
    """Links are added, removed, set and cleared, on both sides, as far as their rows are seen."""
    soup = Dish.objects.get(name="soup")
    hot, cold = Label.objects.create(word="hot"), Label.objects.create(word="cold")
    words = lambda: sorted(each.word for each in soup.labels.all())  # noqa: E731
    ask(tree("Dish", end=op("related_add", soup.pk, "labels", [hot.pk])))
    assert words() == ["hot"]
    ask(tree("Dish", end=op("related_set", soup.pk, "labels", [cold.pk])))
    assert words() == ["cold"]
    assert code(tree("Dish", end=op("related_add", soup.pk, "labels", [99]))) == "ValidationError"
    ask(tree("Dish", end=op("related_clear", soup.pk, "labels")))
    assert words() == []
    assert code(tree("Dish", end=op("related_clear", soup.pk, "orders"))) == "FieldNotAllowed"
    parent, child = (ServerModel.objects.create(some_field=each) for each in "pc")
    ask(tree("ServerModel", end=op("related_add", parent.pk, "children", [child.pk])))
    assert parent.children.get() == child
    ask(tree("ServerModel", end=op("related_remove", parent.pk, "children", [child.pk])))
    assert not parent.children.exists()


def test_call() -> None:
    """Exposed methods are called, on the queryset as it was built; others are as if not there."""
    assert ask(tree("Dish", end=op("call", "total_price", "soup", factor=3))) == Decimal(15)
    found = ask(tree("Dish", end=op("call", "cheap", below=10)))
    assert [row[1] for row in found.rows] == ["soup"]
    found = ask(tree("Dish", end=op("call", "rename", "soup", "broth")))
    assert field(found, "name") == "broth"
    for name in ("burn", "delete", "_chain", "raw", "extra", "nothing"):
        assert code(tree("Dish", end=op("call", name))) == "MethodNotAllowed"
    (outcome,) = outcomes(tree("Dish", end=op("call", "fail")))
    assert outcome.error is not None
    assert (outcome.error.code, "hunter2" in str(outcome.error)) == ("ServerError", False)


def test_batches() -> None:
    """Trees name results of earlier ones; an atomic batch is done as a whole or not at all."""
    made = tree("Dish", end=op("create", name="tea"))
    waiter = nodes.Object("rpc_site.Waiter", pk_of(Waiter, login="ada"))
    dish = nodes.Ref(0, ("id",))
    ordered = tree("Order", end=op("create", dish=dish, waiter=waiter, count=7))
    listed = tree("Order", where(dish=dish), end=op("count"))
    assert outcomes(made, ordered, listed)[2].value == 1
    bad = tree("Dish", end=op("create", name="tea"))
    other = tree("Dish", end=op("create", name="ale"))
    codes = [each.error and each.error.code for each in outcomes(other, bad, listed, atomic=True)]
    assert codes == ["NotRun", "ValidationError", "NotRun"]
    assert not Dish.objects.filter(name="ale").exists()
    codes = [each.error and each.error.code for each in outcomes(bad, ordered, other)]
    assert codes == ["ValidationError", "NotRun", None]


def test_reads_after_one_that_fails() -> None:
    """A statement that the server refuses fails alone, and the reads around it are answered."""
    broken = tree("Dish", op("values_list", nodes.Operation("/", F("price"), 0), flat=True))
    good = tree("Dish", end=op("count"))
    found = outcomes(good, broken, good)
    assert [each.value for each in found] == [2, None, 2]
    assert found[1].error is not None
    assert found[1].error.code == "DataError"


def test_dry() -> None:
    """What is only tried is answered, and nothing of it is kept."""
    made = tree("Dish", end=op("create", name="tea"))
    count = tree("Dish", end=op("count"))
    assert outcomes(made, count, dry=True)[1].value == 3
    assert Dish.objects.count() == 2
    assert not StoredAnswer.objects.exists()


def test_idempotency() -> None:
    """A write that is sent again gives its first answer; another write under its key is refused."""
    made = tree("Dish", end=op("create", name="tea"))
    first = ask(made, idempotency="once")
    assert ask(made, idempotency="once") == first
    assert Dish.objects.filter(name="tea").count() == 1
    other = tree("Dish", end=op("create", name="ale"))
    assert code(other, idempotency="once") == "BadValue"
    # The key is one principal's.
    assert code(made, idempotency="once", principal="ada") == "ValidationError"
    # What failed was not done: sent again, it is run again.
    failing = tree("Dish", end=op("create", name="tea"))
    assert code(failing, idempotency="twice") == "ValidationError"
    Dish.objects.filter(name="tea").delete()
    assert code(failing, idempotency="twice") is None


def test_a_message_that_is_delivered_again() -> None:
    """A known nonce is refused, unless the broker says that it delivers the message again."""
    wire = sealed(tree("Dish", end=op("create", name="tea")), tree("Dish", end=op("count")))
    first = answer_of(wire)
    assert first.error is None
    again = answer_of(wire)
    assert again.error is not None
    assert again.error.code == "Replayed"
    redelivered = answer_of(wire, redelivered=True)
    assert [each.value for each in redelivered.outcomes] == [each.value for each in first.outcomes]
    assert Dish.objects.filter(name="tea").count() == 1


def test_permissions() -> None:
    """Django's permissions are asked for where the principal is a user."""
    from django.contrib.auth.models import Permission, User

    from pgbackend.rpc.server.expose import model_permissions

    user = User.objects.create(username="ada")
    assert not model_permissions(user, "read", Dish)
    assert not model_permissions(None, "read", Dish)
    user = User.objects.get()
    user.user_permissions.set(Permission.objects.filter(codename="view_dish"))
    user = User.objects.get()
    if Permission.objects.filter(codename="view_dish").exists():
        assert model_permissions(user, "read", Dish)
    assert not model_permissions(user, "update", Dish)
