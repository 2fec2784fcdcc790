"""The waiter's terminal: a process of its own, beside the kitchen's, and what passes between."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.support.brokers import Redis
from tests.support.fix_uvicorn import Process, Site
from tests.support.fix_waiter import SETTINGS, WAITER
from tests.support.limits import PATIENCE

pytestmark = pytest.mark.process


def send(terminal: Process, path: str = "/", **fields: object) -> httpx.Response:
    """Send a form of the terminal's, as a browser does; underscores stand for hyphens."""
    with httpx.Client(base_url=terminal.url, timeout=PATIENCE) as client:
        page = client.get("/")
        token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert token is not None, page.text
        data = {name.replace("_", "-"): str(value) for name, value in fields.items()}
        return client.post(path, data={"csrfmiddlewaretoken": token[1], **data})


def test_menu(site: Site, terminal: Process) -> None:
    """The menu is the kitchen's, as it is now."""
    site.add_dish("Tomato soup", 20, "6.50")
    site.add_dish("Poached pear", 0, "7.00")
    page = httpx.get(terminal.url)
    assert page.status_code == 200
    for words in ("Tomato soup", "€ 6.50", "20 left", "Poached pear", "Sold out"):
        assert words in page.text


def test_order(site: Site, terminal: Process) -> None:
    """An order takes its portions from the kitchen's stock, and has its ticket."""
    dish = site.add_dish("Tomato soup", 20)
    placed = send(terminal, customer="Table 4", **{f"dish_{dish}": 2})
    assert (placed.status_code, placed.headers["Location"]) == (302, "/orders/#order-1")
    assert (site.stock(dish), site.orders(), site.customers()) == (18, 1, 1)
    site.wait_for_tickets()
    assert site.one("SELECT text FROM kitchen_ticket") == "Order 1 for Table 4\n2 x Tomato soup"
    page = httpx.get(f"{terminal.url}/orders/").text
    assert 'id="order-1"' in page
    assert "<b>2</b> Tomato soup" in page
    assert "Table 4" in page


def test_refused_order(site: Site, terminal: Process) -> None:
    """What the kitchen refuses is said in its words, and nothing is written."""
    dish = site.add_dish("Chocolate mousse", 2)
    refused = send(terminal, customer="Table 4", **{f"dish_{dish}": 3})
    assert refused.status_code == 409
    assert "Chocolate mousse: only 2 left." in refused.text
    # The choice is still there.
    assert 'value="3"' in refused.text
    assert (site.stock(dish), site.orders(), site.customers()) == (2, 0, 0)


def test_wrong_form(site: Site, terminal: Process) -> None:
    """What the form itself refuses is not sent."""
    dish = site.add_dish("Tomato soup", 20)
    nothing = send(terminal, customer="Table 4")
    assert (nothing.status_code, "Choose at least one dish." in nothing.text) == (400, True)
    for wrong in ({"customer": "x" * 81}, {"customer": ""}, {f"dish_{dish}": -1}):
        fields = {"customer": "Table 4", f"dish_{dish}": 1, **wrong}
        assert send(terminal, **fields).status_code == 400
    assert site.orders() == 0


def test_advance(site: Site, terminal: Process) -> None:
    """The kitchen's own method moves an order on, once for each status."""
    dish = site.add_dish("Tomato soup", 20)
    send(terminal, customer="Table 4", **{f"dish_{dish}": 1})
    seen = []
    for _ in range(3):
        assert send(terminal, "/orders/1/advance/").status_code == 302
        seen.append(site.one("SELECT status FROM kitchen_order"))
    assert seen == ["cooking", "ready", "ready"]
    # The menu says that somebody waits.
    assert '<b class="ready">1<' in httpx.get(terminal.url).text
    # An order that is not there is no error of the page.
    assert send(terminal, "/orders/99/advance/").status_code == 302


def test_old_orders(site: Site, terminal: Process) -> None:
    """Orders that were ready long ago are not the waiter's business, nor moved on by it."""
    dish = site.add_dish("Tomato soup", 20)
    send(terminal, customer="Table 4", **{f"dish_{dish}": 1})
    site.all("UPDATE kitchen_order SET status = 'ready', ready_at = now() - interval '2 hours'")
    assert "Table 4" not in httpx.get(f"{terminal.url}/orders/").text
    assert '<b class="ready">' not in httpx.get(terminal.url).text


# What is tried in one process with the terminal's settings; it prints JSON.
SCRIPT = """
import io
import json
from decimal import Decimal

import django
django.setup()

from django.core.management import call_command
from django.db import connections
from django.db.models import Count, Sum
from django.test import Client

from pgbackend.rpc import RemoteError
from pgbackend.rpc.service import forget
from proj.waiter.models import Customer, Dish, Order, OrderLine

attempts = [
    lambda: list(Customer.objects.all()),
    lambda: list(OrderLine.objects.all()),
    lambda: Dish.objects.update(price=0),
    lambda: Dish.objects.create(name="x", course="main", price=Decimal(1), stock=1),
    lambda: Order.objects.all().delete(),
    lambda: Order.objects.call("bulk_create", []),
    lambda: Order.objects.call("detailed"),
    lambda: list(Order.objects.filter(customer__name__startswith="A")),
    lambda: list(Order.objects.filter(lines__price__gt=1)),
    lambda: Dish.objects.aggregate(Sum("stock")),
    lambda: list(Dish.objects.order_by("stock")),
    lambda: list(Order.objects.annotate(n=Count("lines"))),
    lambda: Order.objects.call("place", "Ada", [{"dish": 10**30, "quantity": 1}]),
    lambda: Order.objects.call("place", "Ada", "soup"),
]
codes = []
for attempt in attempts:
    try:
        codes.append(f"nothing was refused: {attempt()}")
    except Exception as error:
        cause = error if isinstance(error, RemoteError) else error.__cause__
        codes.append(getattr(cause, "code", repr(error)))

said = io.StringIO()
call_command("check", databases=["rpc"], stdout=said, stderr=said)
call_command("makemigrations", check_changes=True, dry_run=True, stdout=said)


def page(**settings):
    kept = dict(connections["rpc"].settings_dict)
    connections["rpc"].settings_dict.update(settings)
    forget()
    response = Client(headers={"host": "localhost"}).get("/")
    connections["rpc"].settings_dict.update(kept)
    return f"{response.status_code} {response.text}"


nowhere = "host=127.0.0.1 port=1 dbname=nothing user=nobody"
print(json.dumps({
    "codes": codes,
    "said": said.getvalue(),
    "another key": page(KEYS={"waiter": "another key, as long as a key has to be"}),
    "no kitchen": page(DATABASE=nowhere, TIMEOUT=0.5),
}))
forget()
"""


@pytest.fixture(scope="module")
def tried(served_site: Site, terminal: Process) -> dict[str, Any]:
    """What the script says."""
    found: dict[str, Any] = json.loads(served_site.run("-c", SCRIPT, **SETTINGS))
    return found


def test_nothing_else(tried: dict[str, Any]) -> None:
    """Whoever has the terminal's key can do what the terminal does, and no more."""
    assert tried["codes"] == [
        "OperationNotAllowed",
        "OperationNotAllowed",
        "OperationNotAllowed",
        "OperationNotAllowed",
        "OperationNotAllowed",
        "MethodNotAllowed",
        "MethodNotAllowed",
        "LookupNotAllowed",
        "LookupNotAllowed",
        "AggregateNotAllowed",
        "OrderingNotAllowed",
        "AggregateNotAllowed",
        "ValidationError",
        "ValidationError",
    ]


def test_check(tried: dict[str, Any]) -> None:
    """The terminal's models are those of the kitchen, and make no migrations."""
    assert tried["said"] == (
        "System check identified no issues (0 silenced).\nNo changes detected\n"
    )


def test_another_key(tried: dict[str, Any]) -> None:
    """A terminal whose key is another is refused, and says so."""
    assert tried["another key"].startswith("503 ")
    assert "The kitchen refuses." in tried["another key"]
    assert "BadSignature" in tried["another key"]


def test_no_kitchen(tried: dict[str, Any]) -> None:
    """Where nobody answers, the pages say so."""
    assert tried["no kitchen"].startswith("503 ")
    assert "The kitchen does not answer." in tried["no kitchen"]


@pytest.mark.load
def test_celery(new_site: Site) -> None:
    """With BROKER_URL the messages go through Celery, to a worker of the kitchen's project."""
    new_site.run("-m", "proj", "migrate", "--verbosity=0")
    dish = new_site.add_dish("Tomato soup", 20)
    with Redis() as broker:
        environ = {"BROKER_URL": broker.url}
        worker = new_site.start(
            # Celery warns of root.
            *("-W", "default", "-m", "celery", "-A", "pgbackend.rpc.celery"),
            *("worker", "-Q", "rpc,rpc.high"),
            **environ,
        )
        # It needs no PostgreSQL: nobody listens at this address.
        nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
        terminal = new_site.serve(*WAITER, **SETTINGS, **environ, DATABASE_URL=nowhere)
        new_site.wait_for(lambda: httpx.get(terminal.url, timeout=PATIENCE).status_code == 200)
        assert send(terminal, customer="Table 4", **{f"dish_{dish}": 2}).status_code == 302
        assert new_site.stock(dish) == 18
        assert terminal.terminate() == 0
        assert worker.terminate() == 0, worker.output
