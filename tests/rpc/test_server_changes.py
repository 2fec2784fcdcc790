"""The triggers that tell of changes, and who hears them on an event loop."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.test import override_settings
from django.test.utils import isolate_apps

from pgbackend import bridged
from pgbackend.rpc.protocol.errors import Unavailable
from pgbackend.rpc.server import changes
from pgbackend.rpc.server.expose import expose
from tests.rpc.site.models import Child, Dish, Label, Order, ServerModel, Station
from tests.settings import INSTALLED_APPS
from tests.support.limits import AT_ONCE

pgtrigger = pytest.importorskip("pgtrigger")

DISH = changes.tables([Dish])


async def heard(*work: Any, wanted: frozenset[str] = DISH) -> bool:
    """Return whether changes of the tables *wanted* are heard while *work* runs."""
    hearing = changes.hearing_of("default")
    wait = hearing.open()
    try:
        await hearing.listening()
        wait.clear()
        for each in work:
            await bridged(each)()
        loop = asyncio.get_running_loop()
        return await wait.until(wanted, 0, loop.time() + 0.3)
    finally:
        wait.close()


def truncate() -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE rpc_site_dish CASCADE")


async def test_each_kind_of_statement() -> None:
    """Rows that are inserted, updated and deleted, and a table that is emptied, are heard."""
    assert await heard(lambda: Dish.objects.create(name="soup"))
    assert await heard(lambda: Dish.objects.update(price=2))
    assert await heard(lambda: Dish.objects.all().delete())
    assert await heard(truncate)
    assert not await heard(lambda: Dish.objects.count())


async def test_when_it_is_committed() -> None:
    """What is rolled back is not heard; what is not committed is not heard yet."""

    def roll_back() -> None:
        with transaction.atomic():
            Dish.objects.create(name="soup")
            transaction.set_rollback(True)

    assert not await heard(roll_back)


async def test_other_tables() -> None:
    """Of tables that nobody asks for, and of models that are not exposed for it, nothing comes."""
    assert not await heard(lambda: Station.objects.create(name="grill"))
    assert not await heard(lambda: Dish.objects.create(name="soup"), wanted=changes.tables([Order]))


def test_tables() -> None:
    """A model stands for its own table and those of its parents, a proxy for what it is of."""
    assert changes.tables([Child]) == {"rpc_site_child", "rpc_site_servermodel"}
    with isolate_apps("tests.rpc.site"):
        proxy: Any = type("Proxy", (Dish,), {"__module__": __name__, "Meta": _meta(proxy=True)})
        other: Any = type(
            "Other", (ServerModel,), {"__module__": __name__, "Meta": _meta(db_table='"a"."b"')}
        )
    assert changes.tables([proxy]) == DISH
    assert changes.tables([other]) == {"b", "rpc_site_servermodel"}


def _meta(**options: Any) -> Any:
    return type("Meta", (), {"app_label": "rpc_site", **options})


def test_registered_once() -> None:
    """However often a model is exposed, its table has one trigger."""
    for _ in range(2):
        changes.register_trigger(Dish)
    found = [
        model
        for model, each in pgtrigger.registered()
        if model is Dish and each.name == "rpc_changed"
    ]
    assert found == [Dish]


def test_models_that_have_the_triggers() -> None:
    """A proxy has it instead of its table's model, and a model's parents have one too."""

    def registered() -> set[Any]:
        return {model for model, each in pgtrigger.registered() if each.name == "rpc_changed"}

    with isolate_apps("tests.rpc.site"):
        proxy: Any = type(
            "ProxyOfLabel", (Label,), {"__module__": __name__, "Meta": _meta(proxy=True)}
        )
        for model, having in ((proxy, {proxy}), (Child, {Child, ServerModel})):
            before = registered()
            changes.register_trigger(model)
            new = registered() - before
            for each, trigger in pgtrigger.registered():
                if each in new and trigger.name == "rpc_changed":
                    trigger.unregister(each)
            assert new == having


def test_without_pgtrigger() -> None:
    """The error names what is missing."""
    with (
        override_settings(INSTALLED_APPS=[each for each in INSTALLED_APPS if "pgt" not in each]),
        pytest.raises(ImproperlyConfigured, match='"pgtrigger" in INSTALLED_APPS'),
    ):
        changes.register_trigger(Station)
    with pytest.raises(ImproperlyConfigured, match="neither True nor False"):
        expose(Station, subscribe="yes")


async def test_a_server_that_cannot_be_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is unavailable, and not silence."""
    monkeypatch.setattr(changes, "LISTEN_TIMEOUT", 0.2)
    monkeypatch.setitem(connections.settings["default"], "PORT", "1")
    hearing = changes.hearing_of("default")
    wait = hearing.open()
    try:
        with pytest.raises(Unavailable, match="cannot hear of changes"):
            await hearing.listening()
    finally:
        wait.close()
        hearing.close()


async def test_bursts_and_ends() -> None:
    """Waiting ends neither before *earliest* nor after *latest*, and when it is stopped."""
    hearing = changes.hearing_of("default")
    wait = hearing.open()
    loop = asyncio.get_running_loop()
    began = loop.time()
    wait.note("rpc_site_dish")
    assert await wait.until(DISH, began + 0.1, began + 60)
    assert loop.time() - began >= 0.09
    wait.clear()
    assert not await wait.until(DISH, 0, loop.time() + 0.01)
    loop.call_later(0.01, changes.stop_waiting)
    async with asyncio.timeout(AT_ONCE):
        assert not await wait.until(DISH, 0, loop.time() + 60)
    wait.close()


async def test_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection outlasts the time between two messages, and goes when nobody comes."""
    monkeypatch.setattr(changes, "LINGER", 0.1)
    hearing = changes.hearing_of("default")
    hearing.open().close()
    wait = hearing.open()
    await asyncio.sleep(0.2)
    assert changes.hearing_of("default") is hearing
    wait.close()
    await asyncio.sleep(0.2)
    assert changes.hearing_of("default") is not hearing
    changes.hearing_of("default").close()


def test_loops_that_have_ended() -> None:
    """Nothing of a loop is left when another one begins."""
    known: list[Any] = []

    async def hear() -> None:
        hearing = changes.hearing_of("default")
        hearing.open()
        known.append(weakref.ref(hearing))

    for _ in range(3):
        asyncio.run(hear())
    gc.collect()
    assert [each() is None for each in known[:2]] == [True, True]
