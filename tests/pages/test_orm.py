"""The examples that are functions on the models of the example project."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import asgiref
import django
import psycopg
import pytest

from pgbackend.locks import advisory_lock
from pgbackend.version import __version__
from tests.pages.examples import example
from tests.support.kitchen import make_dish, make_order
from tests.support.limits import PATIENCE
from tests.support.script import run_script
from tests.support.server import Server

pytestmark = pytest.mark.usefixtures("kitchen")

STOCK_VIEWS = [
    example("README.md", "take_from_stock"),
    example("docs/tutorial/before-and-after.md", "take_from_stock"),
]
REPRICE = example("docs/explanation/session-state.md", "def reprice")
ATOMIC = example("docs/explanation/transactions.md", "def order_for")
ACCOUNTS = example("docs/explanation/transactions.md", "def accounts")
TAKE = example("docs/explanation/transactions.md", "def take_all")
DELIVER = example("docs/explanation/transactions.md", "def deliver")
BOTH_PATHS = example("docs/howto/going-back.md", "aon_commit")
EXPORT = example("docs/howto/pgbouncer.md", "def export")
VERSIONS = example("docs/howto/upgrading-django.md", "print(__version__")
BOT = example("docs/howto/workers-and-bots.md", "def on_message")
NAMES = example("docs/reference/api.md", "CommitInDoubt")
REPORT = example("docs/reference/api.md", "def report")
NIGHTLY = example("docs/reference/api.md", "def nightly_report")

# The tests' settings with one alias, and the application.
KITCHEN = """
conf["DATABASES"] = {"default": conf["DATABASES"]["default"]}
conf["INSTALLED_APPS"].append("kitchen")
del conf["DATABASE_ROUTERS"]
"""


@pytest.mark.process
async def test_the_view_before() -> None:
    """The view that both pages show for Django's own backend works on that."""
    assert STOCK_VIEWS[0].text == STOCK_VIEWS[1].text
    await make_order(dish=await make_dish())
    script = """
conf["DATABASES"]["default"]["ENGINE"] = "django.db.backends.postgresql"
del conf["DATABASES"]["default"]["OPTIONS"]["pool"]
settings.configure(**conf)
import django
django.setup()
from asgiref.sync import async_to_sync
from django.db import connections
from django.test import AsyncRequestFactory
from tests.pages.examples import example
view = example("README.md", "take_from_stock").run()
print(async_to_sync(view.take)(AsyncRequestFactory().get("/"), 1, 2).text)
connections.close_all()
"""
    printed = run_script(KITCHEN + script)
    assert printed == '{"left": 3, "orders": 1, "dishes": 1}\n'


async def test_atomic(capsys: pytest.CaptureFixture[str]) -> None:
    """An order is told of after its commit; it is cooked; and its customer is renamed."""
    code = ATOMIC.run()
    order = await code.order_for("Ada")
    assert capsys.readouterr().out == "Order 1 was placed\n"
    await code.start_cooking(order.pk)
    await code.rename(order.customer_id, "Grace")
    await order.arefresh_from_db(from_queryset=type(order).objects.select_related("customer"))
    assert (order.status, order.customer.name) == ("cooking", "Grace")
    assert order.cooking_at is not None


async def test_deliver(server: Server) -> None:
    """Tasks and a thread are in the transaction; what is detached ends after it."""
    for name in ("Soup", "Bread", "Pear"):
        await make_dish(name)
    assert await DELIVER.run().deliver({1: 5, 2: 3}, [3]) == 3
    assert server.all("SELECT stock FROM kitchen_dish ORDER BY id") == [(10,), (8,), (0,)]


async def test_reprice(server: Server) -> None:
    """One connection holds the lock for the whole block, and gives it back at its end."""
    await make_dish("Soup", price=Decimal(6))
    await make_dish("Bread", price=Decimal(2))
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42"
    code = REPRICE.run()
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        with server.conn.transaction():
            server.all("SELECT 1 FROM kitchen_dish FOR UPDATE")
            tasks.create_task(code.reprice(Decimal("1.5")))
            while not server.one("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            assert server.one(locks) == 1
    # The session is reset in the background, or by its next borrower.
    async with asyncio.timeout(PATIENCE):
        while server.one(locks):
            await asyncio.sleep(0.01)
    assert server.all("SELECT price FROM kitchen_dish ORDER BY id") == [(9,), (3,)]


async def test_accounts() -> None:
    """Both numbers are of one snapshot."""
    await make_order(dish=await make_dish("Soup"))
    assert await ACCOUNTS.run().accounts() == (3, {"Soup": 1})


async def test_conflicts() -> None:
    """What many take at once is gone from the stock, by each of both forms."""
    dish = await make_dish("Soup", stock=50)
    code = TAKE.run()
    async with asyncio.timeout(PATIENCE):
        left = await asyncio.gather(*(code.take(dish.pk, 2) for _ in range(5)))
        assert sorted(left) == [40, 42, 44, 46, 48]
        await asyncio.gather(code.take_all({dish.pk: 3}), code.take_all({dish.pk: 4}))
    await dish.arefresh_from_db()
    assert dish.stock == 33


async def test_advisory_lock(server: Server) -> None:
    """The report is made where no other process is at it."""
    await make_order()
    report = NIGHTLY.run().nightly_report
    assert await report() == 1
    (number,) = advisory_lock("nightly report").numbers
    server.all(f"SELECT pg_advisory_lock({number})")
    try:
        assert await report() is None
    finally:
        server.all(f"SELECT pg_advisory_unlock({number})")
    assert await report() == 1


@pytest.mark.process
async def test_code_for_both_paths() -> None:
    """It works on the bridge, and with the bridge off."""
    await make_order()
    called: list[str] = []
    assert await BOTH_PATHS.run().start_cooking(1, lambda: called.append("now")) == "Ada"
    assert called == ["now"]
    script = """
conf["DATABASES"]["default"]["OPTIONS"] = {"bridge": False, "application_name": "pgbackend-tests"}
settings.configure(**conf)
import django
django.setup()
from asgiref.sync import async_to_sync
from django.db import connections
from tests.pages.examples import example
code = example("docs/howto/going-back.md", "aon_commit").run()
async def notify():
    print("notified")
print(async_to_sync(code.start_cooking)(1, notify))
where = example("docs/howto/development-server.md", "def where").run()
print(async_to_sync(where.where)(None).text)
connections.close_all()
"""
    printed = run_script(KITCHEN + script)
    assert printed == 'notified\nAda\n{"bridged": false}\n'


async def test_export() -> None:
    """All rows are written, in the order of their keys."""
    for name in ("Ada", "Grace"):
        await make_order(name)
    written: list[int] = []

    async def write(pk: int) -> None:
        written.append(pk)

    await EXPORT.run().export(write)
    assert written == [1, 2]


async def test_bot() -> None:
    """A handler that a library calls answers with the customer and the status."""
    await make_order()
    replies: list[str] = []

    class Message:
        content = "1"

        async def reply(self, text: str) -> None:
            replies.append(text)

    await asyncio.create_task(BOT.run().on_message(Message()))
    assert replies == ["Ada: Placed"]


async def test_report() -> None:
    """Two synchronous functions run on the loop, at once."""
    await make_order(dish=await make_dish())
    assert await REPORT.run().report() == [{"customer": "Ada", "dishes": ["Soup"]}, 3]


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """What the environment has is printed."""
    VERSIONS.run()
    versions = (__version__, django.__version__, psycopg.__version__, asgiref.__version__)
    assert capsys.readouterr().out == " ".join(versions) + "\n"


def test_names() -> None:
    """The names of the package can be imported."""
    names = vars(NAMES.run())
    assert issubclass(names["NotCommitted"], Exception)
    assert not names["is_bridged"]()
