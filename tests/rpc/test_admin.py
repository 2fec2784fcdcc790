"""Django's admin and forms on models of a service."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from decimal import Decimal
from html.parser import HTMLParser
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django import forms
from django.apps import apps
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import NotSupportedError, connection, connections
from django.test import AsyncClient, Client, override_settings

from pgbackend import bridged
from tests.rpc.site import models as served
from tests.rpc.waiter.models import Dish, Station
from tests.support.rpc import alias

APPS = ["django.contrib.admin", "django.contrib.messages"]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]


@pytest.fixture(scope="module")
def installed() -> Iterator[None]:
    """The admin is installed, and has its table."""
    with override_settings(
        INSTALLED_APPS=[*settings.INSTALLED_APPS, *APPS],
        MIGRATION_MODULES={**settings.MIGRATION_MODULES, "admin": None},
        MIDDLEWARE=MIDDLEWARE,
        TEMPLATES=TEMPLATES,
        ROOT_URLCONF="tests.rpc.panel",
        STATIC_URL="static/",
        ALLOWED_HOSTS=["testserver"],
    ):
        call_command("migrate", run_syncdb=True, verbosity=0)
        yield
        with connection.schema_editor() as editor:
            for model in apps.get_app_config("admin").get_models():
                editor.delete_model(model)
        connection.close()


@pytest.fixture
def panel(installed: None) -> Iterator[None]:
    """The admin by a client of the service, whose answers take the way of messages."""
    with alias(TRANSPORT="local"):
        grill = served.Station.objects.create(name="grill")
        served.Station.objects.create(name="bar")
        for number, name in enumerate(("soup", "fish", "tea", "cake")):
            served.Dish.objects.create(name=name, price=number + 1, station=grill)
        served.Label.objects.create(word="hot")
        served.Waiter.objects.create(login="ada")
        User.objects.create_superuser("admin", password="admin")
        yield


@pytest.fixture
def client(panel: None) -> Client:
    made = Client()
    made.force_login(User.objects.get(username="admin"))
    return made


DISHES = "/panel/rpc_waiter/dish/"


def fields(text: str) -> dict[str, Any]:
    """Return what a browser would send of the page's form."""
    found: dict[str, Any] = {}
    parser = Form(found)
    parser.feed(text)
    return found


class Form(HTMLParser):
    """Collects what the controls of the content have."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__()
        self.found = found
        self.select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        name = values.get("name") or ""
        kind = values.get("type")
        if tag == "select":
            self.select = name
        elif tag == "option" and "selected" in values and values.get("value"):
            self.found.setdefault(self.select, []).append(values["value"])
        elif tag == "textarea" and name:
            self.found[name] = "{}"
        elif tag == "input" and name and kind not in ("submit", "button"):
            checked = kind != "checkbox" or "checked" in values
            self.found |= {name: values.get("value") or ""} if checked else {}


# What the list shows for a query of its address.
LISTED: list[tuple[str, list[str]]] = [
    ("", ["soup", "fish", "tea"]),
    ("?p=2", ["cake"]),
    ("?q=so", ["soup"]),
    ("?q=gril", ["soup", "fish", "tea"]),
    ("?o=-1", ["tea", "soup", "fish"]),
    ("?o=-2", ["cake", "tea", "fish"]),
    ("?listed__exact=0", []),
    ("?station__id__exact={bar}", []),
    ("?station__id__exact={grill}", ["soup", "fish", "tea"]),
    ("?created__year=2026", ["soup"]),
]


def test_list(client: Client) -> None:
    """The list is searched, filtered, ordered and paged by the service."""
    moment = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    served.Dish.objects.filter(name="soup").update(created=moment)
    keys = {each.name: each.pk for each in served.Station.objects.all()}
    for query, names in LISTED:
        page = client.get(DISHES + query.format(**keys)).content.decode()
        links = re.findall(r'field-name"><a href="[^"]*">(\w+)<', page)
        assert links == names, query


def test_list_is_edited(client: Client) -> None:
    """Fields of several rows are changed in the list."""
    data = fields(client.get(DISHES).content.decode())
    data = {name: value for name, value in data.items() if name.startswith("form-")}
    data |= {"form-1-price": "7.50", "_save": "Save"}
    answer = client.post(DISHES, data)
    assert answer.status_code == 302, answer.content.decode()
    found = dict(served.Dish.objects.values_list("name", "price"))
    assert found == {"soup": 1, "fish": Decimal("7.50"), "tea": 3, "cake": 4}


def test_add(client: Client) -> None:
    """A dish is added, with its labels and an order; the log has it."""
    data = fields(client.get(f"{DISHES}add/").content.decode())
    label, waiter = served.Label.objects.get(), served.Waiter.objects.get()
    station = served.Station.objects.get(name="bar")
    data |= {"name": "pie", "price": "9.00", "station": station.pk, "labels": [label.pk]}
    data |= {"orders-0-waiter": waiter.pk, "orders-0-count": 2}
    answer = client.post(f"{DISHES}add/", data)
    assert answer.status_code == 302, answer.content.decode()
    dish = served.Dish.objects.get(name="pie")
    assert (dish.price, dish.station, dish.recipe) == (9, station, "secret")
    assert [*dish.labels.all()] == [label]
    assert dish.orders.get().count == 2
    logged = apps.get_model("admin.LogEntry").objects.get()
    assert (logged.object_id, logged.object_repr) == (str(dish.pk), "pie")


def test_change(client: Client) -> None:
    """A dish is changed, and so are its labels."""
    dish = served.Dish.objects.get(name="soup")
    page = client.get(f"{DISHES}{dish.pk}/change/").content.decode()
    data = fields(page)
    assert (data["name"], data["price"]) == ("soup", "1.00")
    assert data["station"] == [str(dish.station_id)]
    data |= {"name": "broth", "station": "", "labels": [served.Label.objects.get().pk]}
    assert client.post(f"{DISHES}{dish.pk}/change/", data).status_code == 302
    dish.refresh_from_db()
    assert (dish.name, dish.station, dish.labels.count()) == ("broth", None, 1)
    assert client.get(f"{DISHES}{dish.pk}/history/").status_code == 200


def test_what_is_wrong_is_said(client: Client) -> None:
    """The form says what it finds itself, by asking the service: a name that is taken."""
    data = fields(client.get(f"{DISHES}add/").content.decode())
    answer = client.post(f"{DISHES}add/", {**data, "name": "soup", "price": "-1"})
    assert answer.status_code == 200
    page = answer.content.decode()
    assert "Dish with this Name already exists." in page
    assert "greater than or equal to 0" in page
    assert client.post(f"{DISHES}99999/change/", data).status_code == 302
    assert served.Dish.objects.count() == 4


def test_delete(client: Client) -> None:
    """The page of a deletion shows what goes with the dish; the service deletes it."""
    dish = served.Dish.objects.get(name="soup")
    dish.labels.add(served.Label.objects.get())
    order = served.Order.objects.create(dish=dish, waiter=served.Waiter.objects.get())
    page = client.get(f"{DISHES}{dish.pk}/delete/").content.decode()
    assert f"/panel/rpc_waiter/order/{order.pk}/change/" in page
    assert client.post(f"{DISHES}{dish.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not served.Dish.objects.filter(name="soup").exists()
    assert not served.Order.objects.exists()


def test_delete_several(client: Client) -> None:
    """The action of the list deletes those that are chosen, also where models were made since."""
    apps.clear_cache()
    chosen = [*served.Dish.objects.filter(name__in=["tea", "cake"]).values_list("pk", flat=True)]
    data = {"action": "delete_selected", "_selected_action": chosen}
    assert b"Are you sure" in client.post(DISHES, data).content
    assert client.post(DISHES, {**data, "post": "yes"}).status_code == 302
    assert sorted(served.Dish.objects.values_list("name", flat=True)) == ["fish", "soup"]


def test_autocomplete(client: Client) -> None:
    """The field of the station asks the service for those that match."""
    query = "term=gr&app_label=rpc_waiter&model_name=dish&field_name=station"
    found = client.get(f"/panel/autocomplete/?{query}").json()
    assert [each["text"] for each in found["results"]] == ["grill"]


@pytest.mark.parametrize("on_loop", [True, pytest.param(False, marks=pytest.mark.load)])
async def test_async_client(panel: None, on_loop: bool) -> None:
    """The same pages under ASGI, whose views are synchronous: on the loop, or in threads."""
    with override_settings(PGBACKEND_SYNC_ON_LOOP=on_loop):
        await work_in_the_panel()
    await sync_to_async(connections.close_all)()


async def work_in_the_panel() -> None:
    client = AsyncClient()
    await client.aforce_login(await User.objects.aget(username="admin"))
    page = await client.get(DISHES)
    assert page.content.decode().count('field-name"><a') == 3
    data = fields((await client.get(f"{DISHES}add/")).content.decode())
    answer = await client.post(f"{DISHES}add/", {**data, "name": "pie", "price": "9.00"})
    assert answer.status_code == 302, answer.content.decode()
    dish = await served.Dish.objects.aget(name="pie")
    assert (await client.post(f"{DISHES}{dish.pk}/delete/", {"post": "yes"})).status_code == 302
    assert not await served.Dish.objects.filter(name="pie").aexists()


# Forms by themselves


class DishForm(forms.ModelForm):
    class Meta:
        model = Dish
        fields = ("name", "price", "station", "labels")


def test_model_form(panel: None) -> None:
    """A ModelForm asks for its choices, checks what is unique, and saves."""
    grill, label = served.Station.objects.get(name="grill"), served.Label.objects.get()
    data = {"name": "pie", "price": "9.00", "station": grill.pk, "labels": [label.pk]}
    form = DishForm(data)
    assert "grill" in str(form["station"])
    assert form.is_valid(), form.errors
    dish = form.save()
    assert served.Dish.objects.get(pk=dish.pk).labels.get() == label
    taken = DishForm({**data, "name": "soup"})
    assert taken.errors.as_data()["name"][0].code == "unique"
    wrong = DishForm({**data, "station": 99999, "labels": [99999]})
    codes = {name: found[0].code for name, found in wrong.errors.as_data().items()}
    assert codes["station"] == codes["labels"] == "invalid_choice"
    # Its own name is no other's.
    again = DishForm({**data, "price": "8.00"}, instance=dish)
    assert again.is_valid(), again.errors
    again.save()
    assert served.Dish.objects.get(pk=dish.pk).price == 8


async def test_model_form_on_the_loop(panel: None) -> None:
    """The same in bridged code, without a thread."""
    grill = await served.Station.objects.aget(name="grill")
    data = {"name": "pie", "price": "9.00", "station": grill.pk}

    @bridged
    def save() -> Any:
        form = DishForm(data)
        assert form.is_valid(), form.errors
        return form.save()

    dish = await save()
    assert (await served.Dish.objects.aget(pk=dish.pk)).station_id == grill.pk


def test_model_choice_field(panel: None) -> None:
    """A field takes a row of the service, by its key or another field."""
    field = forms.ModelChoiceField(Station.objects.order_by("name"))
    assert [label for value, label in field.choices if value] == ["bar", "grill"]
    grill = served.Station.objects.get(name="grill")
    assert field.clean(grill.pk).name == "grill"
    with pytest.raises(forms.ValidationError):
        field.clean(99999)
    by_name = forms.ModelChoiceField(Station.objects.all(), to_field_name="name")
    assert by_name.clean("bar").name == "bar"
    many = forms.ModelMultipleChoiceField(Station.objects.all())
    assert [each.name for each in many.clean([grill.pk])] == ["grill"]


def test_formset(panel: None) -> None:
    """A formset of models saves the rows that have changed."""
    made = forms.modelformset_factory(Station, fields=["name"], extra=1)
    rows = Station.objects.order_by("name")
    first = made(queryset=rows)
    data = {"form-TOTAL_FORMS": 3, "form-INITIAL_FORMS": 2}
    for number, form in enumerate(first.forms[:2]):
        data |= {f"form-{number}-id": form.instance.pk, f"form-{number}-name": form.instance.name}
    data |= {"form-0-name": "bar", "form-2-name": ""}
    sent = made(data, queryset=rows)
    assert sent.is_valid(), sent.errors
    assert sent.save() == []


def test_rows_between(panel: None) -> None:
    """The rows between two models are the service's: the error says what to use instead."""
    with pytest.raises(NotSupportedError, match="use the querysets of an RpcModel"):
        Dish.labels.through.objects.count()
    made = forms.inlineformset_factory(Dish, Dish.labels.through, fields=["tag"], extra=0)
    with pytest.raises(NotSupportedError, match="takes no SQL"):
        str(made(instance=Dish.objects.first()))
