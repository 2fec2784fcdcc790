"""The restaurant's tests: `python -m proj test kitchen`, or with pytest `python -m pytest kitchen`.

Each test is one transaction, rolled back at its end: setUpTestData, the test itself, the requests
of its clients and the tasks that they start. All of it is bridged, on one event loop: synchronous
tests call the clients and the ORM as ever, asynchronous ones await them.
"""

# ruff: noqa: PT009, PT027  # the assertions are those of Django's test cases

import asyncio
from contextlib import aclosing
from decimal import Decimal
from unittest.mock import patch

from django.db import DataError, IntegrityError, transaction
from django.http import HttpResponse
from django.test import TestCase, TransactionTestCase, override_settings
from django.urls import path

from kitchen import board, ordering, views
from kitchen.models import Customer, Dish, Order, Ticket
from kitchen.tickets import print_ticket

# An address for orders, but no page of theirs: what is placed there cannot be answered.
urlpatterns = [path("orders/", views.orders)]


class KitchenTestCase(TestCase):
    """A menu, and one order of Grace's."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.soup = Dish.objects.create(name="Tomato soup", price=Decimal("6.50"), stock=4)
        cls.tart = Dish.objects.create(name="Lemon tart", price=Decimal("5.25"), stock=3)
        grace = Customer.objects.create(name="Grace")
        cls.order = Order.objects.create(customer=grace)
        cls.order.lines.create(dish=cls.soup, quantity=2, price=cls.soup.price)
        cls.order.lines.create(dish=cls.tart, quantity=1, price=cls.tart.price)

    async def post_order(self, customer: str = "Ada", portions: int = 1) -> HttpResponse:
        """Order portions of soup by the API."""
        lines = [{"dish": self.soup.pk, "quantity": portions}]
        return await self.async_client.post(
            "/api/orders/",
            {"customer": customer, "lines": lines},
            content_type="application/json",
        )


class OrderingTests(KitchenTestCase):
    async def test_order(self) -> None:
        """An order takes its portions from the stock."""
        response = await self.post_order(portions=3)
        self.assertEqual(response.status_code, 201)
        await self.soup.arefresh_from_db()
        self.assertEqual(self.soup.stock, 1)

    def test_order_by_form(self) -> None:
        """So does one by the form, which leads to the order's page."""
        data = {"customer": "Ada", f"dish-{self.soup.pk}": 1, f"dish-{self.tart.pk}": 2}
        response = self.client.post("/orders/", data, follow=True)
        self.assertContains(response, "Thank you, Ada.")
        self.assertContains(response, "€ 17.00")
        self.tart.refresh_from_db()
        self.assertEqual(self.tart.stock, 1)

    async def test_concurrent_orders(self) -> None:
        """Of six orders at once for four portions four succeed."""
        responses = await asyncio.gather(*(self.post_order(f"Guest {n}") for n in range(6)))
        statuses = sorted(response.status_code for response in responses)
        self.assertEqual(statuses, [201, 201, 201, 201, 409, 409])
        await self.soup.arefresh_from_db()
        self.assertEqual(self.soup.stock, 0)
        self.assertEqual(await Order.objects.acount(), 1 + 4)

    @override_settings(ROOT_URLCONF="kitchen.tests")
    async def test_order_that_cannot_be_answered(self) -> None:
        """If the view fails after it has placed the order, the order is not placed."""
        self.async_client.raise_request_exception = False
        data = {"customer": "Ada", f"dish-{self.soup.pk}": 1}
        with self.assertLogs("django.request", "ERROR"):
            response = await self.async_client.post("/orders/", data)
        self.assertEqual(response.status_code, 500)
        await self.soup.arefresh_from_db()
        self.assertEqual((self.soup.stock, await Customer.objects.acount()), (4, 1))
        self.assertEqual(await Order.objects.aget(), self.order)

    async def test_order_that_fails(self) -> None:
        """An order that fails half-way leaves the transaction around it as it was."""
        with self.assertRaises(DataError):
            await ordering.place("A name that is too long. " * 4, {self.soup.pk: 1})
        await self.soup.arefresh_from_db()
        self.assertEqual(self.soup.stock, 4)

    def test_stock_is_never_negative(self) -> None:
        """The database itself refuses to go below zero."""
        self.soup.stock = -1
        with self.assertRaises(IntegrityError), transaction.atomic():
            self.soup.save()


class OrderPageTests(KitchenTestCase):
    async def test_order_page(self) -> None:
        """The page shows the order and its customer's earlier ones, one query for each relation."""
        later = await Order.objects.acreate(customer=self.order.customer)
        await later.lines.acreate(dish=self.tart, quantity=3, price=Decimal("5.00"))
        # The view's savepoint and its release; the order, its customer; its lines, their dish and,
        # for the total, the lines once more; the earlier order, its lines and their two dishes.
        with self.assertNumQueries(2 + 2 + 3 + 4):
            response = await self.async_client.get(later.get_absolute_url())
        self.assertContains(response, "Thank you, Grace.")
        self.assertContains(response, "<td>Lemon tart</td><td>3</td>")
        self.assertContains(response, "€ 15.00")
        self.assertContains(response, "2 of Tomato soup, 1 of Lemon tart")

    async def test_lazy_relations(self) -> None:
        """In a test, too, relations can be followed as they come."""
        order = await Order.objects.aget()
        self.assertEqual(order.customer.name, "Grace")
        self.assertEqual(
            [line.dish.name for line in order.lines.all()], ["Tomato soup", "Lemon tart"]
        )

    async def test_unknown_order(self) -> None:
        """An order that is not there gets 404."""
        response = await self.async_client.get(f"/orders/{self.order.pk + 1}/")
        self.assertEqual(response.status_code, 404)


class ReportTests(KitchenTestCase):
    def test_report(self) -> None:
        """The report adds up what was sold of each dish."""
        with self.assertNumQueries(2 + 2):
            response = self.client.get("/report/")
        self.assertContains(response, "<td>Tomato soup</td><td>4</td><td>2</td><td>€ 13.00</td>")
        self.assertContains(response, "<td>Lemon tart</td><td>3</td><td>1</td><td>€ 5.25</td>")
        self.assertContains(response, "Total of 1 order<")
        self.assertContains(response, "€ 18.25")


class TicketTests(KitchenTestCase):
    async def test_ticket(self) -> None:
        """The ticket of an order has its lines, and the page shows it."""
        with (
            self.assertLogs("kitchen.tickets", "INFO") as logged,
            self.captureOnCommitCallbacks(execute=True),
        ):
            await print_ticket(old=None, new=self.order)
        text = f"Order {self.order.pk} for Grace\n2 x Tomato soup\n1 x Lemon tart"
        ticket = await Ticket.objects.aget()
        self.assertEqual((ticket.order_id, ticket.text), (self.order.pk, text))
        self.assertIn("Lemon tart", logged.output[0])
        self.assertContains(await self.async_client.get("/tickets/"), text)

    async def test_deleted_order(self) -> None:
        """An order that was deleted before its ticket was printed has none."""
        order = await Order.objects.aget()
        await order.adelete()
        await print_ticket(old=None, new=self.order)
        self.assertFalse(await Ticket.objects.aexists())


class BoardTests(TransactionTestCase):
    """Notifications come after a commit, so these tests are no transactions."""

    async def order(self, customer: str) -> Order:
        """Place an order."""
        guest, _ = await Customer.objects.aget_or_create(name=customer)
        return await Order.objects.acreate(customer=guest)

    async def test_changes(self) -> None:
        """The board's stream tells of an order, of its next step, and that it has gone."""
        async with aclosing(board.events()) as stream, asyncio.timeout(10):
            self.assertIn("retry:", await anext(stream))
            self.assertIn("event: board\ndata: []", await anext(stream))
            order = await self.order("Ada")
            self.assertIn("Ada", await anext(stream))
            await ordering.advance(order.pk)
            self.assertIn('"cooking"', await anext(stream))
            await order.adelete()
            self.assertIn("event: removed", await anext(stream))

    @patch.object(board, "CHANGES_WAITING", 2)
    async def test_slow_client(self) -> None:
        """The stream of a client that does not read ends when too many changes wait."""
        async with aclosing(board.events()) as stream, asyncio.timeout(10):
            await anext(stream)
            await anext(stream)
            with (
                self.assertLogs("kitchen.board", "WARNING") as logged,
                self.assertRaises(StopAsyncIteration),
            ):
                while True:
                    for _ in range(8):
                        await self.order("Ada")
                    # If not enough of them were heard of yet, the rest comes on top.
                    await anext(stream)
        self.assertIn("reads too slowly", logged.output[0])
