"""Three of the tests, as pytest and pytest-django have them: `python -m pytest kitchen`."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from decimal import Decimal
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import AsyncClient

from kitchen import board
from kitchen.models import Customer, Dish, Order


@pytest.fixture
async def soup(db: None) -> Dish:
    return await Dish.objects.acreate(name="Tomato soup", price=Decimal("6.50"), stock=4)


@pytest.fixture
def order(soup: Dish) -> Order:
    """An order of Grace's for two portions of soup."""
    order = Order.objects.create(customer=Customer.objects.create(name="Grace"))
    order.lines.create(dish=soup, quantity=2, price=soup.price)
    return order


async def post_order(client: AsyncClient, dish: Dish, customer: str = "Ada") -> HttpResponse:
    """Order one portion by the API."""
    order = {"customer": customer, "lines": [{"dish": dish.pk, "quantity": 1}]}
    return await client.post("/api/orders/", order, content_type="application/json")


async def test_order_page(
    order: Order,
    async_client: AsyncClient,
    django_assert_num_queries: Callable[[int], AbstractContextManager[Any]],
) -> None:
    """The order's page has one query for each relation, and one for the earlier orders."""
    with django_assert_num_queries(2 + 2 + 3 + 1):
        response = await async_client.get(order.get_absolute_url())
    assert "Thank you, Grace." in response.text
    assert "<td>Tomato soup</td><td>2</td>" in response.text


async def test_concurrent_orders(soup: Dish, async_client: AsyncClient) -> None:
    """Of six orders at once for four portions four succeed."""
    responses = await asyncio.gather(
        *(post_order(async_client, soup, f"Guest {n}") for n in range(6))
    )
    assert sorted(response.status_code for response in responses) == [201] * 4 + [409] * 2
    await soup.arefresh_from_db()
    assert soup.stock == 0


async def test_board(transactional_db: None, soup: Dish, async_client: AsyncClient) -> None:
    """The board's stream tells of an order after its commit."""
    async with aclosing(board.events()) as stream, asyncio.timeout(10):
        assert "retry:" in await anext(stream)
        assert "event: board" in await anext(stream)
        await post_order(async_client, soup)
        assert "Ada" in await anext(stream)
