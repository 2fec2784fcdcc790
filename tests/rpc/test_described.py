"""What a service exposes: the check that compares models with it, and the models made of it."""

import io
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connections, models
from django.test.utils import CaptureQueriesContext, isolate_apps

from pgbackend.rpc import RpcModel
from pgbackend.rpc.checks import _compare, check_services
from pgbackend.rpc.described import described, read
from pgbackend.rpc.server.registry import exposures
from pgbackend.rpc.written_models import module_of
from tests.rpc.site import models as site
from tests.support.rpc import alias


def test_checks(service: str) -> None:
    """The service is asked where the database is named, and only there; the models fit."""
    with CaptureQueriesContext(connections[service]) as sent:
        checks.run_checks()
        checks.run_checks(databases=["default"])
        assert len(sent) == 0
        found = checks.run_checks(databases=[service])
        assert len(sent) == 1
    wrong = [each for each in found if (each.id or "").startswith("pgbackend.rpc")]
    assert {each.id for each in wrong} <= {"pgbackend.rpc.W010"}


def test_models_that_do_not_fit(service: str) -> None:
    """A model that is not exposed, a field that is not there, one that is not taken."""
    exposed = described(service)
    with isolate_apps("tests.rpc.waiter"):

        class Hidden(RpcModel):
            class Rpc:
                app_label = "rpc_site"

        class Dish(RpcModel):
            recipe = models.TextField()
            price = models.IntegerField()

            class Rpc:
                app_label = "rpc_site"

        class Order(RpcModel):
            placed = models.DateTimeField()

            class Rpc:
                app_label = "rpc_site"

        class Kept(Order):
            class Meta:
                proxy = True

    def ids(model: Any) -> list[tuple[str, str]]:
        found = _compare(model, exposed.get(model.Rpc.label))
        return [(each.id.rpartition(".")[2], getattr(each.obj, "name", "")) for each in found]

    assert ids(Hidden) == [("E008", "")]
    assert ("E009", "recipe") in ids(Dish)
    assert ids(Order) == [("W010", "placed")]


def test_a_service_that_does_not_answer() -> None:
    """A service that refuses the client is a message of the check."""
    with alias("rpc", TRANSPORT="local", KEYS={"unknown": "x" * 32}) as name:
        (message,) = check_services(databases=[name])
        assert message.id == "pgbackend.rpc.E007"
        assert "UnknownKey" in message.msg
        with pytest.raises(CommandError, match="UnknownKey"):
            call_command("rpc_models", database=name)


def test_models_of_one_name() -> None:
    """Models of one name get that of their application before it, and refer to each other so."""
    number = {"x-field": "IntegerField", "x-options": {}}
    key = {"x-field": "ForeignKey", "x-options": {"to": "bar_2.Dish"}}
    schemas = {
        "kitchen.Dish": {"properties": {"number": number}},
        "bar_2.Dish": {"properties": {"number": number}},
        "bar_2.Order": {"properties": {"dish_id": key}},
    }
    exposed = {label: read(label, schema) for label, schema in schemas.items()}
    module = types.ModuleType("tests.rpc.waiter.written")
    with isolate_apps("tests.rpc.waiter"):
        exec(module_of(exposed, "rpc"), vars(module))
        assert module.Order._meta.get_field("dish").related_model is module.Bar2Dish
    kitchen, bar, order = module.KitchenDish.Rpc, module.Bar2Dish.Rpc, module.Order.Rpc
    assert (kitchen.app_label, kitchen.name) == ("kitchen", "Dish")
    assert (bar.app_label, bar.name) == ("bar_2", "Dish")
    assert (order.app_label, order.name) == ("bar_2", "Order")


def test_written_models(service: str, tmp_path: Path) -> None:
    """The models that are written can be imported and used; --check tells whether they changed."""
    file = tmp_path / "models.py"
    # Other tests expose models of the example project in this process.
    labels = [each.model._meta.label for each in exposures()]
    own = [label for label in labels if label.startswith("rpc_site.")]
    call_command("rpc_models", output=str(file), model=own)
    call_command("rpc_models", check=str(file), model=own)
    text = file.read_text()
    assert 'related_name="dishes"' in text
    station = site.Station.objects.create(name="grill")
    site.Dish.objects.create(name="soup", station=station)
    module = types.ModuleType("tests.rpc.waiter.written")
    sys.modules[module.__name__] = module
    try:
        with isolate_apps("tests.rpc.waiter"):
            exec(compile(text, str(file), "exec"), vars(module))
            dish = module.Dish.objects.select_related("station").get()
            assert (dish.name, dish.station.name) == ("soup", "grill")
            assert [each.name for each in dish.station.dishes.all()] == ["soup"]
            assert module.Order.Rpc.readonly == ("placed",)
            assert list(module.Dish.objects.get().labels.all()) == []
    finally:
        del sys.modules[module.__name__]
    file.write_text(text.replace('related_name="dishes"', 'related_name="meals"', 1))
    with pytest.raises(CommandError, match=r"-.*meals") as raised:
        call_command("rpc_models", check=str(file), model=own)
    assert raised.value.returncode == 1
    out = io.StringIO()
    call_command("rpc_models", model=["rpc_site.Station"], stdout=out)
    assert "class Station(RpcModel)" in out.getvalue()
    assert "class Dish" not in out.getvalue()
    with pytest.raises(CommandError, match="Hidden"):
        call_command("rpc_models", model=["rpc_site.Hidden"])
    with pytest.raises(CommandError, match="no alias"):
        call_command("rpc_models", database="default")
