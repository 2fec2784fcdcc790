"""The example project as its users meet it: a real uvicorn process and real HTTP clients."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import httpx
import psycopg
import pytest

from tests.support.fix_uvicorn import ROOT, TROUBLE, UVICORN, Site
from tests.support.limits import PATIENCE
from tests.support.sampler import BackendSampler

pytestmark = pytest.mark.process

JSON = {"Content-Type": "application/json"}


def browser(site: Site) -> httpx.Client:
    """Return a client that keeps cookies, as a browser does, and follows no redirects."""
    return httpx.Client(base_url=site.url, timeout=PATIENCE)


class FormParser(HTMLParser):
    """Collects the values of the inputs of a page, by name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inputs: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "input" and (name := values.get("name")):
            self.inputs[name] = values.get("value") or ""


def form(response: httpx.Response, **values: str | int) -> dict[str, Any]:
    """Return what a browser would send of the page's form with some fields filled in.

    Underscores in names stand for hyphens. A field that the page lacks fails the test.
    """
    inputs = FormParser(response.text).inputs
    filled = {name.replace("_", "-"): value for name, value in values.items()}
    assert filled.keys() <= inputs.keys()
    return {**inputs, **filled}


def place(site: Site, dish: int, quantity: int = 1, customer: str = "Ada") -> dict[str, Any]:
    """Place an order by the API and return it."""
    order = {"customer": customer, "lines": [{"dish": dish, "quantity": quantity}]}
    answer = httpx.post(f"{site.url}/api/orders/", json=order)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


# 200 orders at once


@pytest.mark.parametrize("by", ["api", pytest.param("form", marks=pytest.mark.load)])
async def test_200_orders_for_50_portions(site: Site, by: str) -> None:
    """Of 200 concurrent orders for 50 portions 50 succeed, on no more backends than the pool's."""
    pool_size = site.pool_size()
    dish = site.add_dish("Aubergine lasagne", 50)
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=site.url, timeout=PATIENCE, limits=limits) as client:
        if by == "form":
            fields = FormParser((await client.get("/")).text).inputs

        async def order(number: int) -> int:
            customer = f"Guest {number}"
            if by == "form":
                data = {**fields, "customer": customer, f"dish-{dish}": "1"}
                return (await client.post("/orders/", data=data)).status_code
            lines = [{"dish": dish, "quantity": 1}]
            body = {"customer": customer, "lines": lines}
            return (await client.post("/api/orders/", json=body)).status_code

        with BackendSampler(site.dsn, site.name) as sampler:
            statuses = await asyncio.gather(*(order(number) for number in range(200)))

    success = 302 if by == "form" else 201
    assert (statuses.count(success), statuses.count(409)) == (50, 150)
    assert site.stock(dish) == 0
    assert (site.orders(), site.lines(), site.customers()) == (50, 50, 50)
    # One that has the dish's lock and one that waits for it: fewer would mean that nothing was
    # concurrent, or that the sampler saw nothing. One more listens for the printer of tickets.
    assert 2 <= sampler.peak <= pool_size + 1
    # The pool's connections stay. One that has gone was a thread's, or was thrown away.
    gone = sampler.pids - sampler.last
    assert not gone, f"{len(gone)} backends beside the pool's {len(sampler.last)}"
    site.wait_for(lambda: site.count_backends("state <> 'idle'") == 0)


def test_other_dishes_are_not_waited_for(site: Site) -> None:
    """An order waits for those of the same dish only."""
    locked, free = site.add_dish("Locked", 5), site.add_dish("Free", 5)
    with site.conn.transaction():
        site.all("SELECT 1 FROM kitchen_dish WHERE id = %s FOR UPDATE", locked)
        assert place(site, free)["lines"][0]["name"] == "Free"
    assert site.stock(free) == 4


# Pages


def test_menu(site: Site) -> None:
    """The menu shows each dish with its price and how many are left."""
    site.add_dish("Tomato soup", 20, "6.50")
    site.add_dish("Poached pear", 0, "7.00")
    page = httpx.get(f"{site.url}/")
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    for words in ("Tomato soup", "€ 6.50", "20 left", "Poached pear", "€ 7.00", "Sold out"):
        assert words in page.text


def test_menu_is_styled(site: Site) -> None:
    """What the pages link to beside themselves is served."""
    with browser(site) as client:
        links = re.findall(r'(?:href|src)="(/static/[^"]+)"', client.get("/board/").text)
        assert {link.rpartition(".")[2] for link in links} == {"css", "js", "svg"}
        assert {client.get(link).status_code for link in links} == {200}


def test_order_by_form(site: Site) -> None:
    """The order form leads to a page that confirms what was ordered."""
    soup, tart = site.add_dish("Tomato soup", 20, "6.50"), site.add_dish("Lemon tart", 3, "5.25")
    with browser(site) as client:
        data = form(client.get("/"), customer=" Ada ", **{f"dish_{soup}": 2, f"dish_{tart}": 1})
        answer = client.post("/orders/", data=data)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/orders/1/")
        page = client.get("/orders/1/")
    assert page.status_code == 200
    for words in ("Thank you, Ada.", "Tomato soup", "€ 13.00", "Lemon tart", "€ 18.25"):
        assert words in page.text
    assert 'data-status="placed"' in page.text
    assert (site.stock(soup), site.stock(tart)) == (18, 2)


def test_order_form_needs_its_token(site: Site) -> None:
    """A form without the CSRF token is refused, and nothing is written."""
    dish = site.add_dish("Tomato soup", 20)
    with browser(site) as client:
        data = form(client.get("/"), customer="Ada", **{f"dish_{dish}": 1})
        del data["csrfmiddlewaretoken"]
        assert client.post("/orders/", data=data).status_code == 403
    assert (site.orders(), site.stock(dish)) == (0, 20)


def test_too_little_stock_by_form(site: Site) -> None:
    """A form that asks for too much gets 409, the dish named, its input kept, nothing written."""
    enough, few = site.add_dish("Tomato soup", 20), site.add_dish("Crème brûlée", 2)
    with browser(site) as client:
        data = form(client.get("/"), customer="Ada", **{f"dish_{enough}": 4, f"dish_{few}": 3})
        page = client.post("/orders/", data=data)
    assert page.status_code == 409
    assert "Crème brûlée: only 2 left." in page.text
    assert (
        form(page).items()
        >= {
            "customer": "Ada",
            f"dish-{enough}": "4",
            f"dish-{few}": "3",
        }.items()
    )
    assert (site.stock(enough), site.stock(few)) == (20, 2)
    assert (site.orders(), site.lines(), site.customers()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("customer", "quantity"),
    [
        ("", "1"),
        ("   ", "1"),
        ("x" * 81, "1"),
        ("A\x00da", "1"),
        ("Ada", ""),
        ("Ada", "0"),
        ("Ada", "-1"),
        ("Ada", "1.5"),
        ("Ada", "many"),
    ],
)
def test_bad_form(site: Site, customer: str, quantity: str) -> None:
    """A form that cannot be understood is shown again with 400, and nothing is written."""
    dish = site.add_dish("Tomato soup", 20)
    with browser(site) as client:
        data = form(client.get("/"), customer=customer, **{f"dish_{dish}": quantity})
        page = client.post("/orders/", data=data)
    assert page.status_code == 400
    assert 'role="alert"' in page.text
    assert (site.orders(), site.customers(), site.stock(dish)) == (0, 0, 20)


def test_kitchen_advances_an_order(site: Site) -> None:
    """The board's buttons move an order from placed to cooking to ready, and no further."""
    order = place(site, site.add_dish("Tomato soup", 20))["id"]
    seen = []
    with browser(site) as client:
        for _ in range(3):
            page = client.get("/board/")
            answer = client.post(f"/orders/{order}/advance/", data=form(page))
            assert (answer.status_code, answer.headers["Location"]) == (302, "/board/")
            seen.append(site.one("SELECT status FROM kitchen_order"))
    assert seen == ["cooking", "ready", "ready"]
    assert site.all("SELECT placed_at < cooking_at, cooking_at < ready_at FROM kitchen_order") == [
        (True, True)
    ]


def test_advance_needs_its_token(site: Site) -> None:
    """Without the CSRF token the board's buttons do nothing."""
    order = place(site, site.add_dish("Tomato soup", 20))["id"]
    assert httpx.post(f"{site.url}/orders/{order}/advance/").status_code == 403
    assert site.one("SELECT status FROM kitchen_order") == "placed"


def test_board(site: Site) -> None:
    """The board shows each order in the column of its status."""
    dish = site.add_dish("Tomato soup", 20)
    orders = [place(site, dish, customer=name)["id"] for name in ("Ada", "Grace", "Edsger")]
    for order, times in zip(orders, (0, 1, 2), strict=True):
        for _ in range(times):
            httpx.post(f"{site.url}/api/orders/{order}/advance/", headers=JSON)
    page = httpx.get(f"{site.url}/board/")
    assert page.status_code == 200
    sections = re.findall(r'<section .*?data-status="(\w+)".*?</section>', page.text, re.DOTALL)
    assert sections == ["placed", "cooking", "ready"]
    columns = re.split(r"<section ", page.text)[1:]
    for column, order in zip(columns, orders, strict=True):
        assert re.findall(r'data-order="(\d+)"', column) == [str(order)]


def test_order_page(site: Site) -> None:
    """The board leads to an order's page, which shows the order and its customer's earlier ones."""
    soup, tart = site.add_dish("Tomato soup", 20, "6.50"), site.add_dish("Lemon tart", 3, "5.25")
    place(site, soup, 2, "Grace")
    order = place(site, tart, 3, "Grace")
    place(site, soup, 4, "Ada")
    with browser(site) as client:
        assert f'href="/orders/{order["id"]}/"' in client.get("/board/").text
        page = client.get(f"/orders/{order['id']}/")
    assert page.status_code == 200
    for words in ("Thank you, Grace.", "<td>Lemon tart</td><td>3</td>", "€ 15.75"):
        assert words in page.text
    assert '<a href="/orders/1/">2 of Tomato soup</a>.' in page.text
    assert "/orders/3/" not in page.text


def test_report(site: Site) -> None:
    """The report adds up what was sold of each dish."""
    soup, tart = site.add_dish("Tomato soup", 20, "6.50"), site.add_dish("Lemon tart", 3, "5.25")
    for dish, quantity in ((soup, 2), (soup, 1), (tart, 1)):
        place(site, dish, quantity)
    page = httpx.get(f"{site.url}/report/")
    assert page.status_code == 200
    rows = re.findall(r"<td>(.*?)</td>" * 4, page.text)
    assert rows == [("Tomato soup", "17", "3", "€ 19.50"), ("Lemon tart", "2", "1", "€ 5.25")]
    assert "Total of 3 orders</th><td>4</td><td>€ 24.75</td>" in page.text


# Serves the site and tells of each thread that is started.
TELLING = """
import sys, threading
import uvicorn
from proj.asgi import application

def tell(*args):
    sys.setprofile(None)
    print("started a thread:", threading.current_thread().name)

threading.setprofile(tell)
uvicorn.run(application, port=0)
"""


def test_report_needs_no_thread(new_site: Site) -> None:
    """The report is a synchronous view that runs in the event loop's thread."""
    # The detector is a thread, too.
    new_site.environ["DEBUG"] = "0"
    new_site.run("-m", "proj", "migrate", "--verbosity=0")
    process = new_site.serve("-c", TELLING)
    for path in ("/report/", "/api/dishes/", "/admin/login/"):
        assert httpx.get(process.url + path).status_code == 200
    new_site.wait_for(lambda: "GET /admin/login/" in process.output)
    # Django's own path for a synchronous view shows that threads are told of.
    before, _, after = process.output.partition("started a thread")
    assert '"GET /api/dishes/' in before
    assert '"GET /admin/login/' in after


def test_orders_of_today(site: Site) -> None:
    """/orders/ lists the orders of today, and /favicon.ico is the icon."""
    assert "There are no orders yet" in httpx.get(f"{site.url}/orders/").text
    place(site, site.add_dish("Tomato soup", 20))
    place(site, site.add_dish("Bread", 20))
    site.all("UPDATE kitchen_order SET placed_at = now() - interval '2 days' WHERE id = 1")
    page = httpx.get(f"{site.url}/orders/").text
    assert 'href="/orders/2/"' in page
    assert 'href="/orders/1/"' not in page
    assert httpx.get(f"{site.url}/favicon.ico", follow_redirects=True).text.startswith("<svg")
    assert httpx.put(f"{site.url}/orders/").status_code in (403, 405)


@pytest.mark.parametrize("path", ["/orders/99/", "/nothing/"])
def test_page_that_does_not_exist(site: Site, path: str) -> None:
    """An address without a page, or of an order that is not there, gets 404."""
    assert httpx.get(site.url + path).status_code == 404


def test_order_that_does_not_exist_is_not_advanced(site: Site) -> None:
    """Advancing an order that is not there gets 404."""
    place(site, site.add_dish("Tomato soup", 20))
    with browser(site) as client:
        data = form(client.get("/board/"))
        assert client.post("/orders/99/advance/", data=data).status_code == 404


# Server-sent events


class Events:
    """The events of the board's stream, as a browser's EventSource would give them."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._lines = response.aiter_lines()

    async def leave(self) -> None:
        """Disconnect."""
        await self._response.aclose()

    async def next(self, name: str) -> Any:
        """Return the data of the next event called *name*; fail after PATIENCE."""
        kind = ""
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data" and kind == name:
                    return json.loads(value)
        pytest.fail(f"the stream ended before an event {name!r}")


@asynccontextmanager
async def board_events(site: Site) -> AsyncIterator[Events]:
    """Connect to the board's events; leaving the block disconnects."""
    async with (
        httpx.AsyncClient(base_url=site.url, timeout=PATIENCE) as client,
        client.stream("GET", "/board/events/") as response,
    ):
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        yield Events(response)


# What the backends have executed last that listen for the site's processes.
LISTENS = "query ~ '^(LISTEN|UNLISTEN|SELECT pg_notify)'"


async def test_board_events(site: Site) -> None:
    """Who listens to the board sees what is there, then each order that another client places."""
    dish = site.add_dish("Tomato soup", 20)
    first = await asyncio.to_thread(place, site, dish)
    async with board_events(site) as one, board_events(site) as two:
        for events in (one, two):
            assert [order["id"] for order in await events.next("board")] == [first["id"]]
        second = await asyncio.to_thread(place, site, dish, 3, "Grace")
        for events in (one, two):
            assert await events.next("order") == second
        async with httpx.AsyncClient(base_url=site.url) as cook:
            await cook.post(f"/api/orders/{second['id']}/advance/", headers=JSON)
        for events in (one, two):
            order = await events.next("order")
            assert (order["id"], order["status"]) == (second["id"], "cooking")


async def test_board_hears_of_an_order_after_its_commit(new_site: Site) -> None:
    """An order is told of after its request's transaction was committed, not before."""
    new_site.run("-m", "proj", "migrate", "--verbosity=0")
    new_site.url = new_site.serve(*UVICORN).url
    dish = new_site.add_dish("Tomato soup", 20)
    # A COMMIT that lasts as long as we want.
    new_site.all(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'"
    )
    new_site.all(
        "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON kitchen_order"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()"
    )

    def commits() -> bool:
        return new_site.count_backends("wait_event = 'advisory' AND query = 'COMMIT'") == 1

    async with board_events(new_site) as events:
        await events.next("board")
        with new_site.conn.transaction():
            new_site.all("SELECT pg_advisory_xact_lock(1)")
            placing = asyncio.create_task(asyncio.to_thread(place, new_site, dish))
            await asyncio.to_thread(new_site.wait_for, commits)
            # A stream that was told too early has looked by the time that others are answered.
            page = await asyncio.to_thread(httpx.get, f"{new_site.url}/board/")
            assert (page.text.count("No orders."), "Ada" in page.text) == (3, False)
            assert not placing.done()
        assert await events.next("order") == await placing


async def test_board_events_hold_no_connection(site: Site) -> None:
    """More listeners than the pool has connections all hear of an order."""
    dish = site.add_dish("Tomato soup", 20)
    count = site.pool_size() + 5
    listening = asyncio.Barrier(count + 1)

    async def listen() -> str:
        async with board_events(site) as events:
            await events.next("board")
            await listening.wait()
            return str((await events.next("order"))["customer"])

    async with asyncio.TaskGroup() as group:
        listeners = [group.create_task(listen()) for _ in range(count)]
        async with asyncio.timeout(PATIENCE):
            await listening.wait()
        with BackendSampler(site.dsn, site.name) as sampler:
            await asyncio.to_thread(place, site, dish)
            heard = await asyncio.gather(*listeners)
    assert heard == ["Ada"] * count
    # One listens for all boards, and one for the printer of tickets.
    assert 1 <= sampler.peak <= site.pool_size() + 2


async def test_board_events_after_an_outage(site: Site) -> None:
    """Who listens to the board sees what others do to the table, also while nothing is heard."""
    order = await asyncio.to_thread(place, site, site.add_dish("Tomato soup", 20))
    await asyncio.to_thread(site.wait_for_tickets)
    async with board_events(site) as events:
        await events.next("board")
        # It waits until they have gone: what is notified now, nobody hears.
        gone = site.all(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE application_name = %s AND {LISTENS}",
            site.name,
        )
        assert gone
        assert all(gone)
        site.all("UPDATE kitchen_order SET status = 'cooking', cooking_at = now()")
        found = await events.next("order")
        assert (found["id"], found["status"]) == (order["id"], "cooking")
        for table in ("ticket", "orderline", "order"):
            site.conn.execute(f"DELETE FROM kitchen_{table}".encode())
        assert await events.next("removed") == {"id": order["id"]}


async def test_listener_that_leaves(site: Site) -> None:
    """A query that runs for a listener who leaves is stopped in the server; no other one begins."""
    place(site, site.add_dish("Tomato soup", 20))
    site.wait_for_tickets()
    look = "wait_event_type = 'Lock' AND strpos(query, 'kitchen_customer') > 0"
    async with board_events(site) as events:
        await events.next("board")
        with (
            psycopg.connect(site.dsn, autocommit=True) as other,
            site.conn.transaction(),
        ):
            site.all("LOCK TABLE kitchen_customer")
            other.execute("UPDATE kitchen_order SET status = 'cooking', cooking_at = now()")
            await asyncio.to_thread(site.wait_for, lambda: site.count_backends(look) == 1)
            await events.leave()
            # The lock is still held: nothing but its cancellation can end the query.
            await asyncio.to_thread(
                site.wait_for, lambda: site.count_backends("state <> 'idle'") == 0
            )
            other.execute("UPDATE kitchen_order SET status = 'ready', ready_at = now()")
            for _ in range(5):
                await asyncio.to_thread(httpx.get, f"{site.url}/api/dishes/")
                assert site.count_backends(look) == 0


# Tickets


def test_tickets(site: Site) -> None:
    """Each order has its ticket, on the page and in the log of the site."""
    order = place(site, site.add_dish("Tomato soup", 20), 2, "Grace")["id"]
    site.wait_for_tickets()
    text = f"Order {order} for Grace\n2 x Tomato soup"
    assert text in httpx.get(f"{site.url}/tickets/").text
    line = f"ticket 1: {text}".replace("\n", ", ")
    site.wait_for(lambda: f"{line}\n" in site.processes[0].lines)


# Ten orders.
ORDERS = """
    WITH customer AS (
        INSERT INTO kitchen_customer (name) VALUES (gen_random_uuid()) RETURNING id
    ), dish AS (
        INSERT INTO kitchen_dish (name, description, course, price, stock)
        VALUES (gen_random_uuid(), '', 'main', 1, 1) RETURNING id
    ), placed AS (
        INSERT INTO kitchen_order (customer_id, status, placed_at)
        SELECT customer.id, 'placed', now() FROM customer, generate_series(1, 10) RETURNING id
    )
    INSERT INTO kitchen_orderline (order_id, dish_id, quantity, price)
    SELECT placed.id, dish.id, 1, 1 FROM placed, dish
"""

KILLS = 3


def test_tickets_survive_kills(new_site: Site) -> None:
    """Though the site is killed again and again while orders come, each has one ticket."""
    site = new_site
    site.run("-m", "proj", "migrate", "--verbosity=0")
    ended = threading.Event()

    def place_orders() -> None:
        with psycopg.connect(site.dsn, autocommit=True) as conn:
            while not ended.wait(0.4):
                conn.execute(ORDERS)

    def printing() -> list[Any]:
        """Return the transactions that have claimed orders, or printed their tickets."""
        return site.server.all(
            "SELECT backend_xid::text FROM pg_stat_activity"
            " WHERE application_name = %s AND backend_xid IS NOT NULL",
            site.name,
        )

    interrupted = 0
    customers = threading.Thread(target=place_orders)
    customers.start()
    try:
        for _ in range(KILLS):
            process = site.serve(*UVICORN)
            site.wait_for(lambda: bool(printing()))
            transactions = printing()
            process.kill()
            site.wait_for(lambda: site.count_backends() == 0)
            for (xid,) in transactions:
                interrupted += site.one("SELECT pg_xact_status(%s::xid8)", xid) == "aborted"
    finally:
        ended.set()
        customers.join()
    site.run("-m", "proj", "listen", "--batch")
    assert interrupted
    assert site.orders() >= 10 * KILLS
    assert site.one("SELECT count(*) FROM pgpubsub_notification") == 0
    counts = site.all(
        "SELECT DISTINCT count(kitchen_ticket.id) FROM kitchen_order"
        " LEFT JOIN kitchen_ticket ON order_id = kitchen_order.id GROUP BY kitchen_order.id"
    )
    assert counts == [(1,)]


# JSON


def test_api(site: Site) -> None:
    """The API lists dishes, places an order, shows it, lists orders and advances them."""
    dish = site.add_dish("Tomato soup", 20, "6.50")
    with browser(site) as client:
        assert client.get("/api/dishes/").json() == {
            "dishes": [
                {
                    "id": dish,
                    "name": "Tomato soup",
                    "description": "",
                    "course": "main",
                    "price": "6.50",
                    "stock": 20,
                }
            ]
        }
        order = place(site, dish, 2)
        assert order["lines"] == [
            {"dish": dish, "name": "Tomato soup", "quantity": 2, "price": "6.50"}
        ]
        assert (order["status"], order["customer"], order["total"]) == ("placed", "Ada", "13.00")
        assert client.get(f"/api/orders/{order['id']}/").json() == order
        assert client.get("/api/orders/").json() == {"orders": [order]}
        assert client.get("/api/orders/?status=placed").json() == {"orders": [order]}
        assert client.get("/api/orders/?status=ready").json() == {"orders": []}
        advance = f"/api/orders/{order['id']}/advance/"
        assert client.post(advance, headers=JSON).json()["status"] == "cooking"
        assert client.post(advance, headers=JSON).json()["status"] == "ready"
        refusal = client.post(advance, headers=JSON)
    assert (refusal.status_code, refusal.json()) == (409, {"error": "Order 1 is ready already."})


def test_lines_of_one_dish_are_added_up(site: Site) -> None:
    """A dish that is ordered in two lines is one line of the order."""
    dish = site.add_dish("Tomato soup", 5)
    lines = [{"dish": dish, "quantity": 2}, {"dish": dish, "quantity": 3}]
    answer = httpx.post(f"{site.url}/api/orders/", json={"customer": "Ada", "lines": lines})
    assert answer.status_code == 201
    assert site.all("SELECT dish_id, quantity FROM kitchen_orderline") == [(dish, 5)]
    assert site.stock(dish) == 0


@pytest.mark.parametrize(
    ("left", "message"), [(2, "Crème brûlée: only 2 left."), (0, "Crème brûlée: sold out.")]
)
def test_too_little_stock_by_api(site: Site, left: int, message: str) -> None:
    """An order for more than there is gets 409 that names the dish, and nothing is written."""
    enough, few = site.add_dish("Tomato soup", 20), site.add_dish("Crème brûlée", left)
    lines = [{"dish": enough, "quantity": 1}, {"dish": few, "quantity": 3}]
    answer = httpx.post(f"{site.url}/api/orders/", json={"customer": "Ada", "lines": lines})
    assert answer.status_code == 409
    assert answer.json() == {"error": message, "dish": "Crème brûlée"}
    assert (site.stock(enough), site.stock(few)) == (20, left)
    assert (site.orders(), site.lines(), site.customers()) == (0, 0, 0)


def test_more_than_any_stock(site: Site) -> None:
    """A quantity beyond what the database can store is too little stock, no server error."""
    dish = site.add_dish("Tomato soup", 20)
    lines = [{"dish": dish, "quantity": 10**30}]
    answer = httpx.post(f"{site.url}/api/orders/", json={"customer": "Ada", "lines": lines})
    assert answer.status_code == 409


def short(value: object) -> str:
    """Return a parameter's part of a test's name, which some would make very long."""
    return str(value)[:40]


def order_with(**changes: Any) -> bytes:
    """Return an order for dish 1, with changes, as JSON."""
    order = {"customer": "Ada", "lines": [{"dish": 1, "quantity": 1}], **changes}
    return json.dumps(order).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "Send an object"),
        (order_with(customer=None), "customer must be a name"),
        (order_with(customer=5), "customer must be a name"),
        (order_with(customer=" "), "customer must be a name"),
        (order_with(customer="x" * 81), "at most 80 characters"),
        (order_with(customer="A\x00da"), "characters that no name has"),
        (order_with(customer="A\ud800da"), "characters that no name has"),
        (order_with(lines=None), "at least one"),
        (order_with(lines=[]), "at least one"),
        (order_with(lines={}), "at least one"),
        (order_with(lines=[{"dish": 1, "quantity": 1}] * 101), "at most 100"),
        (order_with(lines=[1]), "Line 1 must be an object"),
        (order_with(lines=[{"quantity": 1}]), "Line 1: dish must be the id"),
        (order_with(lines=[{"dish": "1", "quantity": 1}]), "Line 1: dish must be the id"),
        (order_with(lines=[{"dish": True, "quantity": 1}]), "Line 1: dish must be the id"),
        (order_with(lines=[{"dish": 1}]), "Line 1: quantity must be a whole number"),
        (order_with(lines=[{"dish": 1, "quantity": 0}]), "Line 1: quantity must be a whole"),
        (order_with(lines=[{"dish": 1, "quantity": -1}]), "Line 1: quantity must be a whole"),
        (order_with(lines=[{"dish": 1, "quantity": 1.5}]), "Line 1: quantity must be a whole"),
        (order_with(lines=[{"dish": 1, "quantity": "1"}]), "Line 1: quantity must be a whole"),
        (
            order_with(lines=[{"dish": 1, "quantity": 1}, {"dish": 1, "quantity": True}]),
            "Line 2: quantity must be a whole",
        ),
        (order_with(lines=[{"dish": 99, "quantity": 1}]), "There is no dish 99"),
        (order_with(lines=[{"dish": -1, "quantity": 1}]), "There is no dish -1"),
        (order_with(lines=[{"dish": 2**63, "quantity": 1}]), f"There is no dish {2**63}"),
    ],
    ids=short,
)
def test_bad_order(site: Site, body: bytes, message: str) -> None:
    """Bad input gets 400 and is told what is wrong with it; nothing is written."""
    dish = site.add_dish("Tomato soup", 20)
    assert dish == 1
    answer = httpx.post(f"{site.url}/api/orders/", content=body, headers=JSON)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert (site.orders(), site.customers(), site.stock(dish)) == (0, 0, 20)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/api/orders/?status=lost", {}, b"", 400),
        ("GET", "/api/orders/99/", {}, b"", 404),
        ("POST", "/api/orders/99/advance/", JSON, b"", 404),
        ("POST", "/api/orders/", {"Content-Type": "text/plain"}, order_with(), 415),
        ("POST", "/api/orders/", {}, order_with(), 415),
        ("POST", "/api/orders/", JSON, b" " * 2_700_000, 413),
    ],
    ids=short,
)
def test_refused_request(
    site: Site, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    """What the API cannot serve it refuses with the status for it, and says why in JSON."""
    site.add_dish("Tomato soup", 20)
    answer = httpx.request(method, site.url + path, headers=headers, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert site.orders() == 0


def test_method_that_is_not_allowed(site: Site) -> None:
    """A method that an address does not have gets 405."""
    assert httpx.delete(f"{site.url}/api/orders/").status_code == 405
    assert httpx.get(f"{site.url}/orders/1/advance/").status_code == 405


# Admin


def test_admin(site: Site) -> None:
    """A superuser logs in and finds the orders, with totals, in the admin's list."""
    dish = site.add_dish("Tomato soup", 20, "6.50")
    order = place(site, dish, 3, "Grace")
    site.run(
        *("-m", "proj", "createsuperuser", "--noinput"),
        *("--username=chef", "--email=chef@example.com"),
        DJANGO_SUPERUSER_PASSWORD="secret of the kitchen",
    )
    with browser(site) as client:
        answer = client.get("/admin/kitchen/order/")
        assert answer.status_code == 302
        login = answer.headers["Location"]
        page = client.get(login)
        wrong = client.post(login, data=form(page, username="chef", password="guess"))
        assert wrong.status_code == 200
        assert "Please enter the correct username and password" in wrong.text
        right = form(page, username="chef", password="secret of the kitchen")
        answer = client.post(login, data=right)
        assert answer.status_code == 302
        assert answer.headers["Location"] == "/admin/kitchen/order/"
        page = client.get("/admin/kitchen/order/")
        assert page.status_code == 200
        for words in (f"Order {order['id']}", "Grace", "Placed", "19.50"):
            assert words in page.text
        page = client.get(f"/admin/kitchen/order/{order['id']}/change/")
        assert page.status_code == 200
        assert "Tomato soup" in page.text
        site.all(
            "INSERT INTO pgpubsub_notification (channel, payload, state, last_error)"
            " VALUES ('no.such.Channel', '{}', 'dead', 'ZeroDivisionError: no portions')"
        )
        page = client.get("/admin/pgpubsub/notification/")
        site.all("DELETE FROM pgpubsub_notification WHERE state = 'dead'")
        assert page.status_code == 200
        for words in ("no.such.Channel", "Dead", "ZeroDivisionError: no portions"):
            assert words in page.text


def test_admin_leaves_no_connections(site: Site) -> None:
    """The connections of synchronous views, which the pool does not count, end with them."""
    place(site, site.add_dish("Tomato soup", 20))
    site.wait_for(lambda: site.count_backends("state <> 'idle'") == 0)
    before = site.count_backends()
    with browser(site) as client:
        for _ in range(5):
            assert client.get("/admin/login/").status_code == 200
    site.wait_for(lambda: site.count_backends() == before)


# The application's own tests


def test_migrations(new_site: Site) -> None:
    """The models, and the triggers of the channels, are as the migrations make them."""
    output = new_site.run("-m", "proj", "makemigrations", "--check", "--dry-run", "kitchen")
    assert "No changes detected" in output


def run_tests(site: Site, *command: str) -> str:
    """Run Python, warnings as errors, with the tests that *command* names; return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=ROOT,
        # Of pytest's plugins only those that the command names.
        env={**site.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    assert not TROUBLE.search(done.stdout), done.stdout
    return done.stdout


def test_runner(new_site: Site) -> None:
    """The demo's own tests pass with the runner that its settings name."""
    output = run_tests(new_site, "-m", "proj", "test", "kitchen", "--noinput")
    assert "Ran 14 tests" in output
    assert "\nOK\n" in output


@pytest.mark.load
def test_pytest(new_site: Site) -> None:
    """They pass with pytest-django, too, and so do those that are written for it."""
    plugins = ("-p", "pgbackend.pytest_plugin", "-p", "pytest_django.plugin")
    command = ("-m", "pytest", "-p", "no:cacheprovider", *plugins)
    assert re.search(r"=== 17 passed in ", run_tests(new_site, *command, "kitchen"))
    ended = run_tests(new_site, *command, "kitchen/pytest_tests.py")
    assert re.search(r"=== 3 passed in ", ended)


# Start and end


def test_pool_is_open_at_start(new_site: Site) -> None:
    """The site is connected to its database before the first request."""
    new_site.run("-m", "proj", "migrate", "--verbosity=0")
    new_site.serve(*UVICORN)
    assert new_site.count_backends(f"NOT ({LISTENS})") >= 1


def test_start_without_database(new_site: Site) -> None:
    """Without its database the site does not start, and says why."""
    environ = {**new_site.environ, "DATABASE_URL": f"{new_site.dsn}_missing"}
    done = subprocess.run(
        [sys.executable, *UVICORN],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 3, done.stderr
    assert f'database "{new_site.database}_missing" does not exist' in done.stderr
    assert "Application startup failed" in done.stderr


async def test_sigterm_ends_the_site(new_site: Site) -> None:
    """SIGTERM ends `python -m proj.serve` with status 0, also while the board is listened to."""
    process = new_site.serve("-m", "proj.serve")
    new_site.url = process.url
    async with board_events(new_site) as events:
        # The orders of the sample data.
        assert len(await events.next("board")) == 3
        assert new_site.count_backends() > 0
        status = await asyncio.to_thread(process.terminate)
    assert status == 0, process.output
    new_site.wait_for(lambda: new_site.count_backends() == 0)
    assert process.trouble() == [], process.output


def test_sigterm_ends_uvicorn(new_site: Site) -> None:
    """SIGTERM ends uvicorn in order: nothing is left in the server, and no error is told."""
    new_site.run("-m", "proj", "migrate", "--verbosity=0")
    process = new_site.serve(*UVICORN)
    httpx.get(f"{process.url}/api/dishes/").raise_for_status()
    assert new_site.count_backends() > 0
    # uvicorn sends itself the signal again once it has shut down.
    assert process.terminate() in (0, -signal.SIGTERM), process.output
    new_site.wait_for(lambda: new_site.count_backends() == 0)
    assert process.trouble() == [], process.output
