"""Instrumentation: each request's statements are seen, all of them in order, and no other's.

Instrumentations change Django and psycopg for the whole process: each has one of its own here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.contrib.contenttypes.models import ContentType

from tests import settings as tests_settings
from tests.instrumentation.scripts import LOCALS, ON_LOOP, WATCHED, middleware, run
from tests.instrumentation.site import expected, make_library
from tests.instrumentation.tenants import site as tenants
from tests.models import Author, Book
from tests.support.server import Server

pytestmark = pytest.mark.process


# Without an instrumentation


@ON_LOOP
@pytest.mark.parametrize(
    "name", ["watch_queries", pytest.param("watch_queries_in_a_thread", marks=pytest.mark.load)]
)
def test_queries(name: str, sync_on_loop: bool) -> None:
    """Under DEBUG, connection.queries has what any task or thread of the request executed."""
    make_library()
    seen = run(
        WATCHED, DEBUG=True, MIDDLEWARE=[middleware(name)], PGBACKEND_SYNC_ON_LOOP=sync_on_loop
    )
    # Of executemany() Django logs how many rows there were, not which.
    assert seen == {
        request: [re.sub("SELECT upper.*", "1 times: SELECT upper(%s)", each) for each in sent]
        for request, sent in expected().items()
    }


@ON_LOOP
@pytest.mark.parametrize(
    "name", ["watch_executed", pytest.param("watch_executed_in_a_thread", marks=pytest.mark.load)]
)
def test_execute_wrapper(name: str, sync_on_loop: bool) -> None:
    """A function for execute_wrapper gets what any task or thread of the request executes."""
    make_library()
    seen = run(WATCHED, MIDDLEWARE=[middleware(name)], PGBACKEND_SYNC_ON_LOOP=sync_on_loop)
    # These are psycopg's, without a cursor.
    assert seen == expected(without=("BEGIN", "COMMIT"))


# OpenTelemetry

# It traces what a connection's cursor() returns. Server-side cursors, which Django makes itself, it
# does not see on Django's own backend either: with the client's it sees chunked reading.
OPENTELEMETRY = """
for each in conf["DATABASES"].values():
    each["DISABLE_SERVER_SIDE_CURSORS"] = True
settings.configure(**conf)
from psycopg.types import numeric
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
DjangoInstrumentor().instrument(is_sql_commentor_enabled=True)
PsycopgInstrumentor().instrument(capture_parameters=True)
import django
django.setup()

from tests.instrumentation import site
site.visit()
spans = sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)
requests = {
    span.context.span_id: span.attributes["http.target"].split("/")[2]
    for span in spans
    if span.kind is trace.SpanKind.SERVER
}
seen = {name: [] for name in requests.values()}
for span in spans:
    if span.kind is not trace.SpanKind.SERVER:
        request = span.parent
        sql, _, comment = span.attributes["db.statement"].partition(" /*")
        assert f"traceparent='00-{request.trace_id:032x}-{request.span_id:016x}-" in comment
        # Numbers are written as psycopg's, such as Int8(1).
        params = eval(span.attributes.get("db.statement.parameters", "()"), vars(numeric))
        seen[requests[request.span_id]].append(site.text(sql, params))
print(json.dumps(seen))
"""


@ON_LOOP
def test_opentelemetry(sync_on_loop: bool) -> None:
    """A request's statements are spans under its own, and say so to the server in a comment."""
    make_library()
    seen = run(OPENTELEMETRY, PGBACKEND_SYNC_ON_LOOP=sync_on_loop)
    assert seen == expected(without=("BEGIN", "COMMIT"))


# Sentry

SENTRY = """
conf["MIDDLEWARE"] = ["tests.instrumentation.site.report_to_sentry"]
settings.configure(**conf)
import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.transport import Transport

events = []


class InMemory(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            events.append(item.get_transaction_event() or item.get_event())


sentry_sdk.init(
    dsn="http://key@127.0.0.1/1",
    integrations=[DjangoIntegration(db_transaction_spans=True)],
    traces_sample_rate=1.0,
    transport=InMemory,
    _experiments={"record_sql_params": True},
)
import django
django.setup()

from tests.instrumentation import site
site.visit()
spans, crumbs = {}, {}
for event in events:
    name = event["request"]["url"].split("/")[4]
    if event.get("type") == "transaction":
        spans[name] = [
            site.text(span["description"], span["data"].get("db.params"))
            for span in event["spans"]
            if span["op"] == "db" and span["description"] != "connect"
        ]
    else:
        crumbs[name] = [
            site.text(crumb["message"], crumb["data"].get("db.params"))
            for crumb in event["breadcrumbs"]["values"]
            if crumb["category"] == "query" and crumb["message"] != "connect"
        ]
print(json.dumps([spans, crumbs]))
"""


@ON_LOOP
def test_sentry(sync_on_loop: bool) -> None:
    """A request's statements are spans and breadcrumbs in the event of its own transaction."""
    make_library()
    spans, crumbs = run(SENTRY, PGBACKEND_SYNC_ON_LOOP=sync_on_loop)
    # Asked for by db_transaction_spans.
    assert spans == expected(without=("BEGIN",))
    assert crumbs == expected(without=("BEGIN", "COMMIT"))


# Packages that keep a request's state in a threading.local


def test_unknown_threading_local() -> None:
    """What an unknown package's function looks for in its own thread, it finds there.

    Inside transactions of the loop it is not called: the thread may wait for them. That is logged.
    """
    make_library()
    quiet = "import logging\nlogging.basicConfig(filename='/dev/null')\n"
    seen = run(quiet + WATCHED, path=LOCALS, MIDDLEWARE=["unknown.diary.middleware"])
    sent = expected()
    for name, statements in sent.items():
        if "BEGIN" in statements and not name.startswith("synchronous"):
            begin, commit = statements.index("BEGIN"), statements.index("COMMIT")
            del statements[begin : commit + 1]
        sent[name] = [each for each in statements if each not in ("BEGIN", "COMMIT")]
    assert seen == sent


TRIGGERS = """
settings.configure(**conf)
import django
django.setup()
import uvloop
from asgiref.sync import sync_to_async
from pgbackend import bridged
from pgtrigger.runtime import _ignore, ignore, noted
from tests.models import Author


async def child(name, barrier):
    with ignore(name):
        await barrier.wait()
        await Author.objects.filter(name=name).acount()
        await sync_to_async(in_thread)(name)
        await barrier.wait()
    await Author.objects.filter(name=name).acount()
    assert _ignore.value == {"all"}


def in_thread(name):
    with ignore(f"{name} in a thread"):
        pass
    assert _ignore.value == {"all", name}


async def main():
    with ignore("all"):
        barrier = asyncio.Barrier(3)
        await asyncio.gather(*(child(name, barrier) for name in ("a", "b", "c")))
        await Author.objects.filter(name="none").acount()
    assert _ignore.value == set()

for main in (main, bridged(main)):
    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
assert not hasattr(_ignore, "value")
print(json.dumps(sorted([names for sql, names in noted])))
"""


def test_pgtrigger() -> None:
    """What one task ignores, it alone ignores: not its siblings, and not who began it."""
    ignored = run(TRIGGERS, path=LOCALS)
    once = [["a", "all"], ["all"], ["all"], ["all"], ["all"], ["all", "b"], ["all", "c"]]
    assert ignored == sorted(once * 4)


@ON_LOOP
def test_silk(sync_on_loop: bool) -> None:
    """What replaces SQLCompiler.execute_sql sees the statements that come by it, in their request.

    Django's INSERTs have an execute_sql of their own.
    """
    make_library()
    seen = run(
        WATCHED,
        path=LOCALS,
        MIDDLEWARE=["silk.collector.middleware"],
        PGBACKEND_SYNC_ON_LOOP=sync_on_loop,
    )
    assert seen == {
        name: [each for each in sent if re.match("SELECT .* FROM|UPDATE", each)]
        for name, sent in expected().items()
    }


REPLACED_BEFORE = """
if own:
    for each in conf["DATABASES"].values():
        each["ENGINE"] = "django.db.backends.postgresql"
        del each["OPTIONS"]["pool"]
settings.configure(**conf)
import functools
from django.db.models.sql import compiler
seen = []


def replace(cls):
    original = cls.execute_sql

    @functools.wraps(original)
    def execute_sql(self, *args, **kwargs):
        seen.append([cls.__name__, "" if "Insert" in cls.__name__ else self.as_sql()[0]])
        return original(self, *args, **kwargs)

    cls.execute_sql = execute_sql

replace(compiler.SQLCompiler)
replace(compiler.SQLInsertCompiler)
import django
django.setup()
from asgiref.sync import sync_to_async
from django.db import connections
from tests.models import Author, Book


async def main():
    author = await Author.objects.acreate(name="Ada")
    await Author.objects.abulk_create([Author(name="Eve")])
    assert await Author.objects.aget(name="Ada") == author
    await Author.objects.filter(name="Ada").aupdate(name="Ida")
    assert [each.name async for each in Author.objects.order_by("name")] == ["Eve", "Ida"]
    async for each in Author.objects.order_by("name").aiterator(chunk_size=1):
        pass
    assert await Author.objects.acount() == 2
    await Book.objects.acreate(title="a", author=author, price=1, data={})
    await author.adelete()
    await Author.objects.all().adelete()
    await sync_to_async(connections.close_all)()

asyncio.run(main())
print(json.dumps(seen))
"""


def test_execute_sql_replaced_before_loading() -> None:
    """Whoever replaced execute_sql before the backend was loaded sees what it does on Django's."""
    # The first of them would have to make them.
    ContentType.objects.get_for_models(Author, Book)
    own, ours = (run(f"own = {own}\n{REPLACED_BEFORE}") for own in (True, False))
    assert ours == own
    assert len(own) > 10


# State that a request keeps on the wrapper

TENANTS = """
settings.configure(**conf)
import django
django.setup()
from tests.instrumentation.tenants import site
print(json.dumps({tenant: answer.json()["names"] for tenant, answer in site.visit().items()}))
"""


@pytest.fixture
def schemas(server: Server) -> Iterator[None]:
    """A schema for each tenant, with an author of that name and a book of theirs."""
    for tenant in tenants.TENANTS:
        server.all(
            f"CREATE SCHEMA {tenant};"
            f"CREATE TABLE {tenant}.tests_author (LIKE public.tests_author INCLUDING ALL);"
            f"CREATE TABLE {tenant}.tests_book (LIKE public.tests_book INCLUDING ALL);"
            f"INSERT INTO {tenant}.tests_author (id, name) VALUES (1, '{tenant}');"
            f"INSERT INTO {tenant}.tests_book (id, title, author_id, price, on_loan, data)"
            " VALUES (1, '', 1, 0, false, '{}')"
        )
    yield
    for tenant in tenants.TENANTS:
        server.all(f"DROP SCHEMA {tenant} CASCADE")


# Synchronous middleware in a thread sets the tenant of the thread's wrapper, not of the loop's.
@pytest.mark.usefixtures("schemas")
@pytest.mark.parametrize(
    ("middleware", "sync_on_loop"),
    [
        ("asynchronous", False),
        ("Hooked", True),
        pytest.param("asynchronous", True, marks=pytest.mark.load),
        pytest.param("synchronous", True, marks=pytest.mark.load),
    ],
)
def test_tenants(middleware: str, sync_on_loop: bool) -> None:
    """A tenant that middleware sets on the wrapper is the request's, in its tasks too."""
    default = tests_settings.database("pgbackend_tests", pool={"min_size": 0, "max_size": 10})
    answers = run(
        TENANTS,
        DATABASES={"default": {**default, "ENGINE": "tests.instrumentation.tenants"}},
        DATABASE_ROUTERS=[],
        MIDDLEWARE=[f"tests.instrumentation.tenants.site.{middleware}"],
        PGBACKEND_SYNC_ON_LOOP=sync_on_loop,
        ROOT_URLCONF="tests.instrumentation.tenants.site",
    )
    assert answers == {tenant: [tenant] * 8 for tenant in tenants.TENANTS}
