"""Clients and services whose own databases are of Django's engines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

from tests.rpc.site import models as served
from tests.rpc.waiter.models import Dish
from tests.support.limits import PATIENCE
from tests.support.rpc import alias
from tests.support.rpc_services import SERVICES
from tests.support.script import ROOT

pytestmark = pytest.mark.process

NATIVE = "django.db.backends.postgresql"


# Services


@pytest.mark.parametrize(
    "transport",
    ["http", *(pytest.param(each, marks=pytest.mark.load) for each in ("postgres", "redis"))],
)
def test_service(transport: str) -> None:
    """A service on Django's own backend answers in threads, several messages at once."""
    keys = settings.PGBACKEND_RPC["KEYS"]
    with (
        SERVICES[transport](real=True) as service,
        service.running(RPC_ENGINE=NATIVE) as worker,
        alias(**service.settings(), KEYS=keys, KEY="k1") as name,
    ):
        served.Dish.objects.create(name="soup", price=4)
        assert [each.name for each in Dish.objects.all()] == ["soup"]
        asyncio.run(many())
        dishes = Dish.objects.future()
        assert connections[name].cursor().gather(dishes.count(), dishes.exists()) == [9, True]
        with pytest.raises(Dish.DoesNotExist):
            Dish.objects.get(name="none")
        with connections[name].cursor() as cursor, pytest.raises(Dish.DoesNotExist):
            made = dishes.create(name="lost")
            cursor.gather(made, dishes.get(name="none"), atomic=True)
        text = worker.text()
    assert not served.Dish.objects.filter(name="lost").exists()
    assert "ServerError" not in text
    assert "Traceback" not in text


async def many() -> None:
    """Write eight rows at once."""
    await asyncio.gather(*(Dish.objects.acreate(name=f"dish {number}") for number in range(8)))


# Clients: a project of its own, on the engine that is named.
CLIENT = """
import asyncio, json, os, sys, threading

import django
from django.conf import settings

database, rpc, folder = json.loads(sys.argv[1])
settings.configure(
    DATABASES={"default": database, "rpc": rpc},
    DATABASE_ROUTERS=["pgbackend.rpc.RpcRouter"],
    INSTALLED_APPS=[
        "django.contrib.contenttypes", "django.contrib.auth", "pgbackend.rpc", "tests.rpc.waiter",
    ],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    SECRET_KEY="tests",
    USE_TZ=True,
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF="__main__",
    SILENCED_SYSTEM_CHECKS=["postgres.E005"],
)
django.setup()

from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.http import JsonResponse
from django.test import AsyncClient, Client
from django.urls import path

from pgbackend.rpc.service import forget
from tests.rpc.waiter.models import Dish, Station

said = {}


def names():
    return [dish.name for dish in Dish.objects.order_by("name")]


def view(request):
    # In a transaction of the project's own database.
    with transaction.atomic():
        user = User.objects.create(username=request.GET["name"])
        dish = Dish.objects.create(name=user.username)
    return JsonResponse({"dish": dish.name, "count": Dish.objects.count()})


async def async_view(request):
    user = await User.objects.acreate(username=request.GET["name"])
    dish = await Dish.objects.acreate(name=user.username)
    first, number = await connections["rpc"].cursor().agather(
        Dish.objects.future().get(pk=dish.pk), Dish.objects.future().count()
    )
    rows = [each.name async for each in Dish.objects.filter(name=dish.name)]
    return JsonResponse({"dish": first.name, "count": number, "rows": rows})


urlpatterns = [path("view/", view), path("async/", async_view)]


async def main():
    client = AsyncClient()
    said["async view"] = (await client.get("/async/?name=three")).json()
    said["view under ASGI"] = (await client.get("/view/?name=four")).json()
    said["at once"] = await asyncio.gather(*(Dish.objects.acount() for _ in range(5)))
    dish = await Dish.objects.select_related("station").aget(name="soup")
    said["related"] = dish.station.name
    dish.listed = False
    await dish.asave()
    said["saved"] = (await Dish.objects.aget(pk=dish.pk)).listed
    said["in a thread"] = await sync_to_async(names)()
    said["users"] = await User.objects.acount()
    try:
        Dish.objects.count()
    except Exception as error:
        said["on the loop"] = type(error).__name__
    await sync_to_async(connections.close_all)()


call_command("migrate", verbosity=0)
said["tables"] = [each for each in connection.introspection.table_names() if "waiter" in each]
said["names"] = names()
said["view"] = Client().get("/view/?name=two").json()
found = []
thread = threading.Thread(target=lambda: found.extend(names()))
thread.start()
thread.join()
said["thread"] = found
asyncio.run(main())
# The project does not use the backend, and Django is as it was.
said["backend"] = "pgbackend.base" in sys.modules
connections.close_all()
forget()
print(json.dumps(said))
"""


@pytest.mark.parametrize("engine", ["sqlite3", pytest.param("postgresql", marks=pytest.mark.load)])
def test_client(engine: str, tmp_path: Any) -> None:
    """A project on another engine has models of a service, in synchronous and asynchronous code."""
    own: dict[str, Any] = {
        "ENGINE": f"django.db.backends.{engine}",
        "NAME": str(tmp_path / "db.sqlite3"),
    }
    database = "pgbackend_tests_client"
    if engine == "postgresql":
        names = ("USER", "PASSWORD", "HOST", "PORT")
        own |= {name: settings.DATABASES["default"][name] for name in names}
        own |= {"NAME": database, "OPTIONS": {"application_name": "pgbackend-rpc-client"}}
        with connections["default"].cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {database}")
    grill = served.Station.objects.create(name="grill")
    served.Dish.objects.create(name="soup", price=4, station=grill)
    keys = settings.PGBACKEND_RPC["KEYS"]
    with SERVICES["postgres"](real=True) as service, service.running():
        conf = settings.DATABASES["default"]
        dsn = (
            f"host={conf['HOST']} port={conf['PORT']} dbname={conf['NAME']}"
            f" user={conf['USER']} password='{conf['PASSWORD']}'"
        )
        rpc = {
            "ENGINE": "pgbackend.rpc",
            "TRANSPORT": "postgres",
            "DATABASE": dsn,
            "KEYS": keys,
            "PRINCIPAL": "chef",
            "TIMEOUT": 60,
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CLIENT, json.dumps([own, rpc, str(tmp_path)])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    if engine == "postgresql":
        with connections["default"].cursor() as cursor:
            cursor.execute(f"DROP DATABASE {database} WITH (FORCE)")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "tables": [],
        "names": ["soup"],
        "view": {"dish": "two", "count": 2},
        "thread": ["soup", "two"],
        "async view": {"dish": "three", "count": 3, "rows": ["three"]},
        "view under ASGI": {"dish": "four", "count": 4},
        "at once": [4] * 5,
        "related": "grill",
        "saved": False,
        "in a thread": ["four", "soup", "three", "two"],
        "users": 3,
        "on the loop": "NotAwaitedError",
        "backend": False,
    }
