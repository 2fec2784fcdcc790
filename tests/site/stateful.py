"""Views that change something, hold something or wait for something: state of their request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakKeyDictionary

from asgiref.sync import async_to_sync
from django.db import connection, connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views import View

from tests.models import Author, Book, Elsewhere
from tests.support.limits import PATIENCE

# Transactions


def end(then: str) -> HttpResponse:
    """End a view, as the query says, and tell which aliases are in a transaction."""
    inside = [alias for alias in connections if connections[alias].in_atomic_block]
    if then == "error":
        raise RuntimeError("this view fails")
    if then == "404":
        raise Http404
    if then == "rollback":
        for alias in inside:
            transaction.set_rollback(True, using=alias)
    return JsonResponse({"inside": inside})


async def write(request: HttpRequest) -> HttpResponse:
    await Author.objects.acreate(name="Ada")
    await Elsewhere.objects.acreate(name="Ada")
    return end(request.GET.get("then", ""))


class Write(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await write(request)


def write_synchronously(request: HttpRequest) -> HttpResponse:
    Author.objects.create(name="Ada")
    Elsewhere.objects.create(name="Ada")
    return end(request.GET.get("then", ""))


@transaction.non_atomic_requests
async def write_outside(request: HttpRequest) -> HttpResponse:
    return await write(request)


@transaction.non_atomic_requests(using="other")
async def write_outside_other(request: HttpRequest) -> HttpResponse:
    return await write(request)


async def write_and_stream(request: HttpRequest) -> StreamingHttpResponse:
    await Author.objects.acreate(name="Ada")

    async def body() -> AsyncIterator[str]:
        yield f"{connection.in_atomic_block}"
        await meet(request)
        await Author.objects.acreate(name="Grace")
        yield ";last"

    return StreamingHttpResponse(body())


# Isolation

_meetings: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Barrier]]
_meetings = WeakKeyDictionary()


async def meet_at(name: str, parties: int) -> None:
    """Wait until so many have come to the meeting of that name; TimeoutError after PATIENCE."""
    meetings = _meetings.setdefault(asyncio.get_running_loop(), {})
    async with asyncio.timeout(PATIENCE):
        await meetings.setdefault(name, asyncio.Barrier(parties)).wait()


async def meet(request: HttpRequest) -> None:
    """Wait until as many requests as the query says have come to the meeting it names."""
    await meet_at(request.GET["meeting"], int(request.GET["parties"]))


async def query_log(request: HttpRequest) -> JsonResponse:
    """Return the names that the statements in the query log look for."""
    name = request.GET["name"]
    for _ in range(3):
        await meet(request)
        await Author.objects.filter(name=name).aexists()
        assert not Author.objects.filter(name=name)
    await meet(request)
    names = [query["sql"].partition("'")[2].partition("'")[0] for query in connection.queries]
    return JsonResponse({"names": names})


async def execute_wrappers(request: HttpRequest) -> JsonResponse:
    """Return the names that statements look for which an execute_wrapper was called for."""
    name = request.GET["name"]
    names: list[str] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        names.extend(each for each in params if isinstance(each, str))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        for _ in range(3):
            await meet(request)
            await Author.objects.filter(name=name).aexists()
            assert not Author.objects.filter(name=name)
        await meet(request)
    assert connection.execute_wrappers == []
    return JsonResponse({"names": names})


async def on_commit(request: HttpRequest) -> JsonResponse:
    """Return the names that functions given to on_commit() have noted."""
    name = request.GET["name"]
    names: list[str] = []
    async with transaction.atomic():
        for _ in range(3):
            await meet(request)
            transaction.on_commit(lambda: names.append(name))
        await meet(request)
        assert len(connection.run_on_commit) == 3
    return JsonResponse({"names": names})


async def tenant(request: HttpRequest) -> JsonResponse:
    """Return what was found in an attribute that is set on the wrapper."""
    if hasattr(connection, "tenant"):
        return JsonResponse({"names": [connection.tenant]})
    names = []
    connection.tenant = request.GET["name"]
    for _ in range(3):
        await meet(request)
        await Author.objects.aexists()
        names.append(connection.tenant)
    return JsonResponse({"names": names})


# The end

# What became of the views below.
ends: list[str] = []


async def wait(request: HttpRequest) -> HttpResponse:
    """Write in a transaction and read the books, which a test has locked."""
    try:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            books = len(Book.objects.all())
    except asyncio.CancelledError:
        await Author.objects.acreate(name=request.path)
        ends.append("cancelled")
        raise
    ends.append("went on")
    return HttpResponse(books)


def wait_synchronously(request: HttpRequest) -> HttpResponse:
    """As `wait`."""
    try:
        with transaction.atomic():
            Author.objects.create(name="lost")
            books = len(Book.objects.all())
    except asyncio.CancelledError:
        Author.objects.create(name=request.path)
        ends.append("cancelled")
        raise
    ends.append("went on")
    return HttpResponse(books)


async def wait_and_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Stream a word, then read the books, in a transaction around both."""

    async def body() -> AsyncIterator[str]:
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                yield "first"
                books = len(Book.objects.all())
        except asyncio.CancelledError:
            await Author.objects.acreate(name=request.path)
            ends.append("cancelled")
            raise
        ends.append("went on")
        yield f"{books}"

    return StreamingHttpResponse(body())


# async_to_sync


class Layer:
    """Groups that messages are sent to, as in a channel layer."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        self.tasks: list[asyncio.Task[Any] | None] = []

    async def group_send(self, group: str, message: str) -> None:
        await asyncio.sleep(0)
        self.tasks.append(asyncio.current_task())
        await self.messages.put(f"{group}: {message}")


async def announce(request: HttpRequest) -> HttpResponse:
    return announce_synchronously(request)


def announce_synchronously(request: HttpRequest) -> HttpResponse:
    layer = Layer()
    async_to_sync(layer.group_send)("room", request.GET["message"])
    assert layer.tasks == [asyncio.current_task()]
    return HttpResponse(layer.messages.get_nowait())


urlpatterns = [
    path("write/", write),
    path("write/class/", Write.as_view()),
    path("write/synchronously/", write_synchronously),
    path("write/outside/", write_outside),
    path("write/outside/other/", write_outside_other),
    path("write/streaming/", write_and_stream),
    path("query-log/", query_log),
    path("execute-wrappers/", execute_wrappers),
    path("on-commit/", on_commit),
    path("tenant/", tenant),
    path("wait/", wait),
    path("wait/synchronously/", wait_synchronously),
    path("wait/streaming/", wait_and_stream),
    path("announce/", announce),
    path("announce/synchronously/", announce_synchronously),
]
