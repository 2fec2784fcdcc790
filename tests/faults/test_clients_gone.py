"""Clients that go, at any moment of a request, are no error of the server's: row 17."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware, sync_only_middleware

from pgbackend import bridged
from tests.support.client import serving
from tests.support.limits import PATIENCE
from tests.support.server import Server

# How many turns of the loop after the beginning of a request its client goes.
TURNS = [0, 2, 5, 9, 14, 20, 30, 45, 70]


def sleep() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.02)")


async def in_view(request: HttpRequest) -> HttpResponse:
    await bridged(sleep)()
    return HttpResponse()


async def in_block(request: HttpRequest) -> HttpResponse:
    async with transaction.atomic():
        await bridged(sleep)()
        return HttpResponse()


async def in_children(request: HttpRequest) -> HttpResponse:
    async with transaction.atomic():
        await asyncio.gather(*(bridged(sleep)() for _ in range(3)))
        return HttpResponse()


async def in_sensitive_thread(request: HttpRequest) -> HttpResponse:
    async with transaction.atomic():
        await sync_to_async(sleep)()
        return HttpResponse()


async def in_thread(request: HttpRequest) -> HttpResponse:
    async with transaction.atomic():
        await asyncio.to_thread(sleep)
        return HttpResponse()


async def in_body(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await bridged(sleep)()
        yield b"second"

    return StreamingHttpResponse(body())


def synchronous(request: HttpRequest) -> HttpResponse:
    sleep()
    return HttpResponse()


def synchronous_block(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        sleep()
        return HttpResponse()


def waiting_in_thread(request: HttpRequest) -> HttpResponse:
    response: HttpResponse = async_to_sync(in_block)(request)
    return response


VIEWS = {
    view.__name__: view
    for view in (
        *(in_view, in_block, in_children, in_sensitive_thread, in_thread, in_body),
        *(synchronous, synchronous_block, waiting_in_thread),
    )
}

urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]


@sync_only_middleware
def in_between(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    return lambda request: get_response(request)


@async_only_middleware
def around(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    async def middleware(request: HttpRequest) -> Any:
        async with transaction.atomic():
            return await get_response(request)

    return middleware


# In threads, with and without a transaction around; and with synchronous code on the loop.
CASES = [
    *((name, None, False) for name in VIEWS),
    *((name, "around", False) for name in VIEWS if name != "waiting_in_thread"),
    *((name, "in_between", True) for name in VIEWS if "synchronous" in name),
    *((name, "around", True) for name in VIEWS if "thread" in name or "children" in name),
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")
@pytest.mark.parametrize(("name", "middleware", "on_loop"), CASES)
async def test_17_clients_gone(
    name: str,
    middleware: str | None,
    on_loop: bool,
    server: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whenever its client goes, a request ends without an error, logged, raised or reported."""
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(f"{context['message']}: {context.get('exception')!r}")
    )
    with serving(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[f"{__name__}.{middleware}"] if middleware else [],
        PGBACKEND_SYNC_ON_LOOP=on_loop,
    ) as client:
        for turns in TURNS:
            exchange = client.open(f"/{name}/")
            task = asyncio.create_task(exchange.application(*exchange.protocol))
            for _ in range(turns):
                await asyncio.sleep(0)
            exchange.disconnect()
            async with asyncio.timeout(PATIENCE):
                await task
            del exchange, task
            gc.collect()
    await asyncio.sleep(0)
    assert reported == []
    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert errors == []
    await asyncio.to_thread(connection.close_pool)
    await bridged(connection.close_pool)()
    await asyncio.to_thread(server.wait_for_backends, 0)
