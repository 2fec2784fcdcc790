"""The examples of the page about futures, on the models of the example project."""

from __future__ import annotations

import asyncio

import pytest

from tests.pages.examples import example
from tests.support.kitchen import make_dish, make_order
from tests.support.threads import run_in_thread

pytestmark = pytest.mark.usefixtures("kitchen")

PAGE = "docs/howto/futures.md"
BOARD = example(PAGE, "def board")
MISSING = example(PAGE, "def add_missing")
RENAME = example(PAGE, "def rename_all")
COUNTS = example(PAGE, "def counts")
DELAYED = example(PAGE, "def orders_of_desserts")
REPORT = example(PAGE, "def report")


async def test_gather() -> None:
    """The board has its numbers; an order is placed with locked dishes."""
    code = BOARD.run()
    soup = await make_dish(stock=5)
    await make_order(dish=soup)
    waiting, cooking, portions, names = await code.board()
    assert (waiting, cooking, names) == (1, 0, ["Soup"])
    assert portions == soup.stock
    order, dishes = await code.place("Grace", "Soup")
    assert dishes == [soup]
    assert order.customer.name == "Grace"


async def test_failures_and_functions() -> None:
    """Customers that exist are left out, and the others are renamed."""
    add, rename = MISSING.run().add_missing, RENAME.run().rename_all
    assert await add("Ada", "Bea") == 2
    assert await add("Bea", "Cy", "Ada") == 1
    (renamed,) = await rename({1: "Adele"})
    assert renamed.name == "Adele"


async def test_as_completed_and_delayed() -> None:
    """Counts come as they end; a delayed queryset is a subquery and a list."""
    cake = await make_dish(course="dessert")
    order = await make_order(dish=cake)
    assert {name: count async for name, count in COUNTS.run().counts()} == {
        "orders": 1,
        "dishes": 1,
    }
    assert await DELAYED.run().orders_of_desserts() == ([order], [{"pk": cake.pk}])


async def test_without_await() -> None:
    """A plain thread gathers in its transaction."""
    await make_dish()
    found = await asyncio.to_thread(run_in_thread, REPORT.run().report)
    assert found == "0 orders, 1 dishes"
