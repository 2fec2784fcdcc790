"""A site whose requests name their tenant, and whose view reads what belongs to it."""

from __future__ import annotations

import asyncio
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

from tests.instrumentation.site import meet, send
from tests.models import Author, Book
from tests.support.client import Answer

TENANTS = [f"tenant{number}" for number in range(10)]


def set_schema(request: HttpRequest) -> None:
    wrapper: Any = connection
    wrapper.set_schema(request.GET["tenant"])


def asynchronous(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> HttpResponse:
        set_schema(request)
        response: HttpResponse = await get_response(request)
        return response

    return middleware


asynchronous.async_capable = True  # type: ignore[attr-defined]  # as Django documents
asynchronous.sync_capable = False  # type: ignore[attr-defined]


def synchronous(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        set_schema(request)
        response: HttpResponse = get_response(request)
        return response

    return middleware


class Hooked(MiddlewareMixin):
    """Middleware with a synchronous hook, as django-tenants has it."""

    def process_request(self, request: HttpRequest) -> None:
        set_schema(request)


async def names(request: HttpRequest) -> HttpResponse:
    """Read the name of the tenant's only author in every way there is."""
    author = await Author.objects.aget()
    await meet()
    found = [author.name, Author.objects.get().name]
    book = await Book.objects.only("author").aget()
    found.append(book.author.name)
    async with transaction.atomic():
        found.append((await Author.objects.aget()).name)
        await meet()
    found += [each.name async for each in Author.objects.aiterator()]
    found += [each.name for each in await asyncio.gather(*(Author.objects.aget() for _ in "12"))]
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM tests_author")
        found += [name for (name,) in cursor.fetchall()]
    return JsonResponse({"names": found})


urlpatterns = [path("names/", names)]


def visit() -> dict[str, Answer]:
    """Send a request for each tenant, all at once, and return their answers by tenant."""
    return send({tenant: f"/names/?tenant={tenant}" for tenant in TENANTS})
