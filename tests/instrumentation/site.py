"""A site each of whose views says what it sends to the server, for tests of who sees that.

`visit` sends several requests to each view, all at once: each waits in the middle of its view
until all are there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.core.checks import Tags, run_checks
from django.core.handlers.asgi import ASGIHandler
from django.db import IntegrityError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.decorators import async_only_middleware

from tests.models import Author, Book, Elsewhere
from tests.support.client import Answer, Client

# How many requests each view gets at a time.
REQUESTS = 3

# Seconds for all of them.
TIMEOUT = 100

View = Callable[..., Any]

VIEWS: dict[str, View] = {}

# What a view sends, by the view's name; ``{name}`` stands for the name of its request.
SENT: dict[str, tuple[str, ...]] = {}


def sends(*statements: str) -> Callable[[View], View]:
    """Declare the statements of a view in order, in the form that `text` gives them."""

    def declare(view: View) -> View:
        VIEWS[view.__name__] = view
        SENT[view.__name__] = statements
        return view

    return declare


def text(sql: str, params: Any = ()) -> str:
    """Return a statement with its parameters, without quotes and without numbers that differ."""
    if params:
        # Of executemany the first row.
        row = params[0] if isinstance(params[0], list | tuple) else params
        sql %= tuple(f"'{value}'" if isinstance(value, str) else value for value in row)
    sql = re.sub(r'"(?:tests_)?(\w+)"', r"\1", sql)
    sql = re.sub(r"DECLARE \w+ NO SCROLL CURSOR (WITH HOLD )?FOR ", "", sql)
    sql = re.sub(r"SAVEPOINT s\d+_x", "SAVEPOINT ", sql)
    return re.sub(r"id = \d+", "id = n", sql)


def names() -> list[str]:
    """Return the names of the requests: their view's name and a digit."""
    return [f"{view}{number}" for view in VIEWS for number in range(REQUESTS)]


def expected(*, without: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Return what each request sends, by its name, *without* some statements."""
    return {
        name: [each.format(name=name) for each in SENT[name[:-1]] if each not in without]
        for name in names()
    }


def make_library() -> None:
    """Make what the views read: three books for each request, some with an author."""
    for name in names():
        author = Author.objects.create(name=name) if name.startswith("relations") else None
        Book.objects.bulk_create(Book(title=f"{name} {n}", author=author) for n in (1, 2, 3))


# Views

BARRIER: list[asyncio.Barrier] = []


async def meet() -> None:
    """Wait until every request is in the middle of its view."""
    await BARRIER[0].wait()


@sends(
    "INSERT INTO author (name) VALUES ('{name}') RETURNING author.id",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name}'",
    "SELECT 1 AS a FROM author WHERE author.name = '{name}' LIMIT 1",
    "UPDATE author SET name = '{name}' WHERE author.name = '{name}'",
    "SELECT author.id, author.name FROM author WHERE author.id = n LIMIT 21",
    "SELECT author.id, author.name FROM author WHERE author.name = '{name}'",
)
async def methods(request: HttpRequest, name: str) -> HttpResponse:
    created = await Author.objects.acreate(name=name)
    authors = Author.objects.filter(name=name)
    await authors.acount()
    await meet()
    await authors.aexists()
    await authors.aupdate(name=name)
    await created.arefresh_from_db()
    return HttpResponse([author.name async for author in authors])


@sends(
    "SELECT book.id, book.title, book.author_id FROM book WHERE book.title = '{name} 1' LIMIT 21",
    "SELECT author.id, author.name FROM author WHERE author.id = n LIMIT 21",
    "SELECT COUNT(*) AS __count FROM book WHERE book.author_id = n",
    "SELECT book.id, book.price FROM book WHERE book.id = n LIMIT 21",
)
async def relations(request: HttpRequest, name: str) -> HttpResponse:
    book = await Book.objects.only("title", "author").aget(title=f"{name} 1")
    await meet()
    return HttpResponse([book.author.name, book.author.books.count(), book.price])


@sends("SELECT '{name} 1'", "SELECT upper('{name} 2')", "SELECT '{name} 3'")
async def cursors(request: HttpRequest, name: str) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s", [f"{name} 1"])
        await meet()
        cursor.executemany("SELECT upper(%s)", [[f"{name} 2"]])
        cursor.execute(f"SELECT '{name} 3'")
        return HttpResponse(cursor.fetchone())


@sends(
    "BEGIN",
    "INSERT INTO author (name) VALUES ('{name}') RETURNING author.id",
    "SAVEPOINT 1",
    "INSERT INTO author (name) VALUES ('{name}') RETURNING author.id",
    "ROLLBACK TO SAVEPOINT 1",
    "RELEASE SAVEPOINT 1",
    "SAVEPOINT 2",
    "UPDATE author SET name = '{name}' WHERE author.name = '{name}'",
    "RELEASE SAVEPOINT 2",
    "COMMIT",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name}'",
)
async def transactions(request: HttpRequest, name: str) -> HttpResponse:
    authors = Author.objects.filter(name=name)
    async with transaction.atomic():
        await Author.objects.acreate(name=name)
        await meet()
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name=name)
        except IntegrityError:
            pass
        with transaction.atomic():
            authors.update(name=name)
        transaction.on_commit(authors.acount)
    return HttpResponse()


@sends(
    "SELECT book.id FROM book WHERE book.title::text LIKE '{name}%' ORDER BY book.id ASC",
    "SELECT book.id FROM book WHERE book.title::text LIKE '{name}%' ORDER BY book.id DESC",
)
async def chunks(request: HttpRequest, name: str) -> HttpResponse:
    books = Book.objects.filter(title__startswith=name).only("pk")
    found = []
    async for book in books.aiterator(chunk_size=2):
        if not found:
            await meet()
        found.append(book.pk)
    found += [book.pk for book in books.reverse().iterator(chunk_size=2)]
    return HttpResponse(found)


@sends(
    "BEGIN",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name} 1'",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name} 2'",
    "COMMIT",
    "SELECT COUNT(*) AS __count FROM elsewhere WHERE elsewhere.name = '{name}'",
)
async def tasks(request: HttpRequest, name: str) -> HttpResponse:
    await meet()
    async with transaction.atomic():
        await asyncio.gather(
            Author.objects.filter(name=f"{name} 1").acount(),
            Author.objects.filter(name=f"{name} 2").acount(),
        )
    # The first in this request to use this alias.
    await asyncio.create_task(Elsewhere.objects.filter(name=name).acount())
    return HttpResponse()


@sends(
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name} 1'",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name} 2'",
    "BEGIN",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name} 3'",
    "COMMIT",
)
async def threads(request: HttpRequest, name: str) -> HttpResponse:
    await Author.objects.filter(name=f"{name} 1").acount()
    await meet()
    await sync_to_async(Author.objects.filter(name=f"{name} 2").count)()
    async with transaction.atomic():
        await sync_to_async(Author.objects.filter(name=f"{name} 3").count)()
    return HttpResponse()


@sends(
    "BEGIN",
    "SELECT COUNT(*) AS __count FROM author WHERE author.name = '{name}'",
    "UPDATE author SET name = '{name}' WHERE author.name = '{name}'",
    "COMMIT",
)
def synchronous(request: HttpRequest, name: str) -> HttpResponse:
    authors = Author.objects.filter(name=name)
    with transaction.atomic():
        authors.count()
        async_to_sync(meet)()
        authors.update(name=name)
    return HttpResponse()


urlpatterns = [path(f"{name}/<name>/", view) for name, view in VIEWS.items()]


# Requests


def visit() -> dict[str, Answer]:
    """Send all requests at once and return their answers by name."""
    return send({name: f"/{name[:-1]}/{name}/" for name in names()})


def send(addresses: dict[str, str]) -> dict[str, Answer]:
    """Send a request to each address, all at once, on a loop of their own; return the answers."""
    # Instrumentation must not make Django look like one that the backend does not know.
    assert run_checks(tags=[Tags.async_support]) == []
    return dict(zip(addresses, asyncio.run(_send(list(addresses.values()))), strict=True))


async def _send(addresses: list[str]) -> list[Answer]:
    BARRIER[:] = [asyncio.Barrier(len(addresses))]
    client = Client(ASGIHandler())

    async def get(address: str) -> Answer:
        answer = await client.get(address)
        assert answer.status == 200, (address, answer.text)
        return answer

    # The first that fails ends all: the others would wait for it.
    async with asyncio.timeout(TIMEOUT), asyncio.TaskGroup() as group:
        sent = [group.create_task(get(address)) for address in addresses]
    return [each.result() for each in sent]


# Middleware

# What it saw, by the name of the request.
seen: dict[str, list[str]] = {}

Watch = Callable[[], AbstractContextManager[list[str]]]


@contextmanager
def queries() -> Iterator[list[str]]:
    """Return what ``connection.queries`` of all aliases has at the end of the block."""
    statements: list[str] = []
    yield statements
    statements += [text(query["sql"]) for each in connections.all() for query in each.queries]


@contextmanager
def executed() -> Iterator[list[str]]:
    """Return what a function for ``execute_wrapper`` of all aliases sees of the block."""
    statements: list[str] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
        statements.append(text(sql, params))
        return execute(sql, params, *args)

    with ExitStack() as stack:
        for each in connections.all():
            stack.enter_context(each.execute_wrapper(note))
        yield statements


def watching(watch: Watch) -> View:
    """Return asynchronous middleware that notes what *watch* sees."""

    def middleware(get_response: Any) -> Any:
        async def call(request: HttpRequest) -> HttpResponse:
            with watch() as statements:
                response: HttpResponse = await get_response(request)
            seen[request.path.split("/")[2]] = statements
            return response

        return call

    return async_only_middleware(middleware)


def watching_in_a_thread(watch: Watch) -> View:
    """Return synchronous middleware that notes what *watch* sees."""

    def middleware(get_response: Any) -> Any:
        def call(request: HttpRequest) -> HttpResponse:
            with watch() as statements:
                response: HttpResponse = get_response(request)
            seen[request.path.split("/")[2]] = statements
            return response

        return call

    return middleware


watch_queries = watching(queries)
watch_queries_in_a_thread = watching_in_a_thread(queries)
watch_executed = watching(executed)
watch_executed_in_a_thread = watching_in_a_thread(executed)


def do_nothing_in_a_thread(get_response: Any) -> Any:
    """Synchronous middleware: what is below it begins in a thread."""
    return lambda request: get_response(request)


@async_only_middleware
def report_to_sentry(get_response: Any) -> Any:
    """Send an event to Sentry, which tells what led to it."""
    # Here, for importing it leaves traces in the process.
    import sentry_sdk

    async def call(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await get_response(request)
        sentry_sdk.capture_message("served")
        return response

    return call
