"""The tutorial of models of services, a project and its client, and the how-to pages around it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import Permission, User
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from pgbackend import bridged
from pgbackend.rpc import RpcModel
from pgbackend.rpc.server import registry
from pgbackend.rpc.server.expose import expose
from pgbackend.rpc.server.settings import service
from pgbackend.rpc.service import Service
from tests.pages.examples import ROOT, blocks_of, example
from tests.pages.mysite import MySite
from tests.support.fix_uvicorn import need_pgtrigger
from tests.support.kitchen import make_dish, make_order
from tests.support.rpc import alias
from tests.support.rpc_server import ask, code, op, tree, where
from tests.support.server import Server

FIRST = "docs/tutorial/first-project.md"
APPS = example(FIRST, "INSTALLED_APPS")
DATABASES = example(FIRST, "DATABASES")

PAGE = "docs/tutorial/rpc.md"
SERVICE_SETTINGS = example(PAGE, "PGBACKEND_RPC")
SERVICE_MODELS = example(PAGE, "class OrderQuerySet")
EXPOSED = example(PAGE, "import expose")
CLIENT_SETTINGS = example(PAGE, 'DATABASES["rpc"]')
CLIENT_MODELS = example(PAGE, "class Dish(RpcModel)")
VIEWS = example(PAGE, "def overview")
URLS = example(PAGE, "urlpatterns")
SHELL = [each.text for each in blocks_of(ROOT / PAGE, "pycon")]

EXPOSE = "docs/howto/rpc-expose.md"
FIELDS = example(EXPOSE, 'readable=["name", "course", "price"]')
PATHS = example(EXPOSE, "operations=[]")
ROWS = example(EXPOSE, "def own_orders")
METHODS = example(EXPOSE, '"detailed": True')
USERS = example(EXPOSE, 'user_of"')
USER_OF = example(EXPOSE, "def user_of")
PERMISSIONS = example(EXPOSE, "permission=model_permissions")
LIMITS = example(EXPOSE, "max_affected")
TESTS = example(EXPOSE, "class ExposedTests")

REST = "docs/howto/rpc-rest.md"
BEFORE = example(REST, "httpx.get")
AFTER = example(REST, "customer__name=customer")
HTTP_ALIAS = example(REST, '"TRANSPORT": "http"')
TWO_DATABASES = example(REST, "def orders_of_visits")

# Several commands in one process, which saves the start of the others.
MANAGE = """
import json, sys
from django.core.management import execute_from_command_line
for command in json.loads(sys.argv[1]):
    execute_from_command_line(["manage.py", *command])
"""

# The page's dialogues, which doctest compares.
DIALOGUES = """
import doctest, json, sys
import django
django.setup()
from django.db import connections
from pgbackend.rpc.service import forget
source = "\\n".join(json.loads(sys.argv[1]))
test = doctest.DocTestParser().get_doctest(source, {}, "page", None, 0)
runner = doctest.DocTestRunner()
runner.run(test)
forget()
print(runner.summarize())
"""


# The tutorial


@pytest.fixture
def shop(
    server: Server, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MySite]:
    """The service of the tutorial: the first project with what the page adds."""
    need_pgtrigger()
    monkeypatch.setenv("RPC_KEY", "a secret of the tests, 32 bytes or more")
    site = MySite(server, "rpc_shop", tmp_path_factory.mktemp("shop"))
    package, folder = site.folder / "mysite", site.folder / "shop"
    try:
        (site.folder / "second").mkdir()
        run(
            site,
            ["startproject", "mysite", str(site.folder)],
            ["startproject", "till", str(site.folder / "second")],
            settings="",
        )
        (folder / "migrations").mkdir(parents=True)
        for each in (folder, folder / "migrations"):
            (each / "__init__.py").touch()
        settings = [
            (package / "settings.py").read_text(),
            APPS.text,
            site.with_places(DATABASES),
            SERVICE_SETTINGS.text,
        ]
        (package / "settings.py").write_text("\n".join(settings))
        SERVICE_MODELS.write(folder / "models.py")
        EXPOSED.write(folder / "rpc.py")
        run(site, ["makemigrations", "shop"], ["migrate", "--verbosity=0"], ["check"])
        # As the first page has left them.
        site.all("INSERT INTO shop_dish (name, stock) VALUES ('Soup', 4), ('Bread', 9)")
        site.all("INSERT INTO shop_order (dish_id, quantity) VALUES (1, 1)")
        yield site
    finally:
        site.close()


def run(site: MySite, *commands: list[str], settings: str = "mysite.settings") -> str:
    """Run commands of the pages and return what they print."""
    return site.run("-c", MANAGE, json.dumps(commands), DJANGO_SETTINGS_MODULE=settings)


def make_till(site: MySite) -> str:
    """Make the second project in the same folder; return its settings' module."""
    shutil.move(site.folder / "second" / "till", site.folder / "till")
    package, counter = site.folder / "till", site.folder / "counter"
    counter.mkdir()
    (counter / "__init__.py").touch()
    settings = CLIENT_SETTINGS.text.replace(
        "postgresql://mydatabaseuser:mypassword@127.0.0.1:5432/mydatabase", site.dsn
    )
    assert settings != CLIENT_SETTINGS.text
    path = package / "settings.py"
    path.write_text(f"{path.read_text()}\n{settings}")
    CLIENT_MODELS.write(counter / "models.py")
    VIEWS.write(counter / "views.py")
    URLS.write(package / "urls.py")
    return "till.settings"


@pytest.mark.process
def test_tutorial(shop: MySite) -> None:
    """The dialogues of the page, its check and its view, by two projects and a listener."""
    settings = make_till(shop)
    listener = shop.start("-m", "django", "listen")
    said = run(
        shop,
        ["check", "--database", "rpc"],
        ["makemigrations", "--check", "--dry-run"],
        ["rpc_models"],
        settings=settings,
    )
    assert "System check identified no issues (0 silenced).\nNo changes detected\n" in said
    assert "class Order(RpcModel)" in said
    output = shop.run("-c", DIALOGUES, json.dumps(SHELL), DJANGO_SETTINGS_MODULE=settings)
    assert output == "TestResults(failed=0, attempted=8)\n", output
    served = ("-m", "uvicorn", "till.asgi:application", "--port=0")
    till = shop.serve(*served, DJANGO_SETTINGS_MODULE=settings)
    (shown,) = [
        line
        for block in blocks_of(ROOT / PAGE, "console")
        for line in block.text.splitlines()
        if line.startswith("{")
    ]
    assert httpx.get(till.url).json() == json.loads(shown)
    till.terminate()
    assert till.trouble() == [], till.output
    assert listener.terminate() == 0
    # The shop's terminal has a line for each message.
    assert "for till: shop.Dish rows: ok" in listener.output
    assert "for till: shop.Order call: ValidationError" in listener.output


# Exposing


@pytest.fixture
def unexposed(kitchen: None) -> Iterator[None]:
    """No model of the kitchen is exposed; afterwards those are that were before."""
    kept = dict(registry._exposures)
    for model in list(registry._exposures):
        if model._meta.app_label == "kitchen":
            registry.unregister(model)
    yield
    for model in list(registry._exposures):
        registry.unregister(model)
    for each in kept.values():
        registry.register(each, anew=True)


async def asked(*args: Any, **options: Any) -> Any:
    return await bridged(ask)(*args, **options)


async def coded(*args: Any, **options: Any) -> Any:
    return await bridged(code)(*args, **options)


async def test_fields(unexposed: None) -> None:
    """Fields that are named can be read, and no others be asked about."""
    FIELDS.run()
    await make_dish("Soup", stock=3)
    found = await asked(tree("kitchen.Dish", op("order_by", "price")))
    assert found.shape.fields == ("id", "name", "course", "price")
    assert await coded(tree("kitchen.Dish", where(stock__lt=5))) == "FieldNotAllowed"


async def test_paths(unexposed: None) -> None:
    """Customers are read on the way from an order, and not by themselves."""
    PATHS.run()
    await make_order("Ada")
    orders = tree("kitchen.Order", where(customer__name="Ada"), op("select_related", "customer"))
    found = await asked(orders)
    assert len(found.rows) == 1
    assert "Ada" in found.rows[0][-1]
    assert await coded(tree("kitchen.Customer")) == "OperationNotAllowed"
    assert await coded(tree("kitchen.Order", where(customer__orders=1))) == "LookupNotAllowed"


async def test_rows(unexposed: None) -> None:
    """A principal sees its own orders."""
    expose(import_module("kitchen.models").Customer)
    ROWS.run()
    for customer in ("Ada", "Grace"):
        await make_order(customer)
    count = tree("kitchen.Order", end=op("count"))
    assert [await asked(count, principal=each) for each in ("Ada", "Bob")] == [1, 0]


async def test_methods(unexposed: None) -> None:
    """The kitchen's methods are called, and no others."""
    METHODS.run()
    dish = await make_dish("Soup", stock=3)
    line = {"dish": dish.pk, "quantity": 2}
    end = op("call", "place", "Ada", [line])
    (row,) = (await asked(tree("kitchen.Order", end=end))).rows
    assert len((await asked(tree("kitchen.Order", end=op("call", "detailed")))).rows) == 1
    await asked(tree("kitchen.Order", end=op("call", "advance", row[0])))
    assert await coded(tree("kitchen.Order", end=op("call", "update"))) == "MethodNotAllowed"
    await dish.arefresh_from_db()
    assert dish.stock == 1


async def test_users(unexposed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Principals are users, and have Django's permissions."""
    settings = USERS.settings()["PGBACKEND_RPC"]
    module = USER_OF.run("kitchen.principals")
    monkeypatch.setitem(sys.modules, "kitchen.principals", module)
    PERMISSIONS.run()
    dish = await make_dish("Soup")
    user = await User.objects.acreate(username="ada")
    view = await Permission.objects.filter(codename="view_dish").afirst()
    update = tree("kitchen.Dish", end=op("update", price="7.50"))
    with override_settings(PGBACKEND_RPC={**settings, "LISTEN": None}):
        assert await coded(tree("kitchen.Dish"), principal="ada") == "PermissionDenied"
        assert await coded(tree("kitchen.Dish"), principal="nobody") == "PermissionDenied"
        if view is not None:
            await user.user_permissions.aadd(view)
            assert await coded(tree("kitchen.Dish"), principal="ada") is None
            assert await coded(update, principal="ada") == "PermissionDenied"
        await User.objects.filter(pk=user.pk).aupdate(is_superuser=True)
        assert await asked(update, principal="ada") == 1
    await dish.arefresh_from_db()
    assert str(dish.price) == "7.50"


def test_limits() -> None:
    """The limits of the page are limits."""
    with override_settings(PGBACKEND_RPC=LIMITS.settings()["PGBACKEND_RPC"]):
        limits = service().limits
        assert (limits.max_rows, limits.max_affected) == (200, 20)


async def test_test_case(unexposed: None) -> None:
    """The test case of the page passes, and fails where the stock is not hidden."""
    FIELDS.run()
    names = vars(TESTS.run())
    settings = {"KEYS": {"portal": "a secret of 32 bytes or more, from the environment"}}
    case = names["ExposedTests"]("test_stock_is_hidden")
    with override_settings(PGBACKEND_RPC={**settings, "LISTEN": None}):
        await bridged(case.test_stock_is_hidden)()
        dish = import_module("kitchen.models").Dish
        registry.unregister(dish)
        expose(dish, readable=["name", "stock"])
        await dish.objects.all().adelete()
        with pytest.raises(AssertionError, match="FieldNotAllowed"):
            await bridged(case.test_stock_is_hidden)()


# REST


def stub(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    """Have examples import *names* from the module *name*."""
    package, _, _ = name.rpartition(".")
    for each in (package, name):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    vars(sys.modules[name]).update(names)


@pytest.fixture
def orders(unexposed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kitchen's orders as models of a service, by the module `counter.models`."""
    PATHS.run()
    with (
        override_settings(DATABASE_ROUTERS=["pgbackend.rpc.RpcRouter"]),
        isolate_apps("tests.rpc.waiter"),
        alias(TRANSPORT="local"),
    ):

        class Customer(RpcModel):
            name = models.CharField(max_length=80)

            class Meta:
                app_label = "waiter"

            class Rpc:
                app_label = "kitchen"

        class Order(RpcModel):
            customer = models.ForeignKey(Customer, models.PROTECT)
            status = models.CharField(max_length=10)

            class Meta:
                app_label = "waiter"

            class Rpc:
                app_label = "kitchen"

        stub(monkeypatch, "counter.models", Order=Order)
        yield


async def test_rest_and_querysets(orders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both functions of the page return the same."""
    monkeypatch.setenv("KITCHEN_TOKEN", "token")
    order = await make_order("Ada")
    await make_order("Grace")

    def api(environ: Any, start_response: Any) -> Any:
        assert "customer=Ada" in environ["QUERY_STRING"]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"results": [{"id": order.pk}]}).encode()]

    with httpx.Client(transport=httpx.WSGITransport(api)) as client:
        monkeypatch.setattr(httpx, "get", client.get)
        assert BEFORE.run().open_orders("Ada") == [order.pk]
    assert await bridged(AFTER.run().open_orders)("Ada") == [order.pk]


async def test_two_databases(orders: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that are fetched first stand in the condition."""
    order = await make_order("Ada")
    kitchen = import_module("kitchen.models")
    visits = kitchen.Order.objects.annotate(order_number=models.F("pk"))
    stub(monkeypatch, "guests.models", Visit=SimpleNamespace(objects=visits))
    found = await bridged(TWO_DATABASES.run().orders_of_visits)()
    assert [each.pk for each in found] == [order.pk]


def test_alias_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """The alias of the page is one."""
    monkeypatch.setenv("RPC_KEY_COUNTER", "a secret of the tests, 32 bytes or more")
    settings = HTTP_ALIAS.settings()["DATABASES"]["rpc"]
    service = Service("rpc", settings)
    try:
        assert repr(service) == "<Service 'rpc' by HttpTransport>"
    finally:
        service.transport.close()
