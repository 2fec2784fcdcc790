"""The context of notifications: it reaches the triggers of whoever set it, and nobody else."""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.core.signals import request_started
from django.db import IntegrityError, connection, transaction
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from pgbackend import bridged
from pgbackend.pubsub import (
    Notification,
    PayloadError,
    aset_notification_context,
    notification_context,
    set_notification_context,
)
from tests.support.client import serving

from .site.models import Author


def contexts() -> dict[str, Any]:
    """Return the context of each author's notification, and forget them."""
    found = {
        row.payload["new"]["name"]: row.payload["context"] for row in Notification.objects.all()
    }
    Notification.objects.all().delete()
    return found


def run_bridged(test: Callable[[], None]) -> None:
    asyncio.run(bridged(test)())


@pytest.fixture(params=[lambda test: test(), run_bridged], ids=["plain", "bridged"])
def run(request: pytest.FixtureRequest) -> Any:
    """Run a function as synchronous code, and on an event loop."""
    return request.param


def test_autocommit(run: Any) -> None:
    """A statement outside of a transaction has the context; the next one, without, has none."""

    def test() -> None:
        with notification_context({"tenant": 5}):
            Author.objects.create(name="in")
            Author.objects.bulk_create([Author(name="bulk")])
        Author.objects.create(name="out")
        assert contexts() == {"in": {"tenant": 5}, "bulk": {"tenant": 5}, "out": {}}

    run(test)


def test_transactions(run: Any) -> None:
    """A transaction asks for the context once; a rollback to a savepoint does not lose it."""

    def test() -> None:
        set_notification_context({"n": 1})
        with transaction.atomic():
            with CaptureQueriesContext(connection) as queries:
                Author.objects.create(name="a")
                Author.objects.create(name="b")
            assert len(queries) == 3
            set_notification_context({"n": 2})
            Author.objects.create(name="c")
            with pytest.raises(ZeroDivisionError), transaction.atomic():
                set_notification_context({"n": 3})
                Author.objects.create(name="lost")
                raise ZeroDivisionError
            set_notification_context({"n": 2})
            Author.objects.create(name="d")
            set_notification_context({})
            Author.objects.create(name="e")
        with transaction.atomic():
            Author.objects.create(name="f")
        set_notification_context({"n": 4})
        with transaction.atomic():
            Author.objects.create(name="g")
        with transaction.atomic():
            Author.objects.create(name="h")
        set_notification_context({})
        assert contexts() == {
            **{"a": {"n": 1}, "b": {"n": 1}, "c": {"n": 2}, "d": {"n": 2}},
            **{"e": {}, "f": {}, "g": {"n": 4}, "h": {"n": 4}},
        }

    run(test)


@override_settings(PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT=True)
def test_bound_to_the_transaction(run: Any) -> None:
    """Bound to the transaction it ends with it, and is an error where there is none."""

    def test() -> None:
        with transaction.atomic():
            set_notification_context({"n": 1})
            Author.objects.create(name="a")
        Author.objects.create(name="b")
        with pytest.raises(RuntimeError, match=r"call it in a block of transaction\.atomic"):
            set_notification_context({"n": 1})
        assert contexts() == {"a": {"n": 1}, "b": {}}

    run(test)


@override_settings(PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT=True)
def test_transaction_that_cannot_commit(run: Any) -> None:
    """In a transaction that can only be rolled back, nothing is done."""

    def test() -> None:
        with transaction.atomic():
            connection.needs_rollback = True
            set_notification_context({"n": 1})
        with transaction.atomic():
            with pytest.raises(Exception, match="syntax error"), connection.cursor() as cursor:
                cursor.execute("nonsense")
            set_notification_context({"n": 1})
            transaction.set_rollback(True)

    run(test)


async def test_tasks() -> None:
    """Tasks that run at once have each their own."""

    async def write(n: int) -> None:
        await aset_notification_context({"n": n})
        for i in range(5):
            await Author.objects.acreate(name=f"{n}-{i}")
            await asyncio.sleep(0)

    await asyncio.gather(*map(write, range(10)))
    await Author.objects.acreate(name="outside")
    found = await bridged(contexts)()
    assert found.pop("outside") == {}
    assert found == {f"{n}-{i}": {"n": n} for n in range(10) for i in range(5)}


async def test_tasks_in_one_transaction() -> None:
    """Tasks in one transaction have each their own, too."""

    async def write(n: int) -> None:
        with notification_context({"n": n}):
            for i in range(5):
                await Author.objects.acreate(name=f"{n}-{i}")
                await asyncio.sleep(0)

    async with transaction.atomic():  # type: ignore[attr-defined]
        await asyncio.gather(*map(write, range(5)))
        await Author.objects.acreate(name="outside")
    found = await bridged(contexts)()
    assert found.pop("outside") == {}
    assert found == {f"{n}-{i}": {"n": n} for n in range(5) for i in range(5)}


def set_once(request: HttpRequest, name: str) -> JsonResponse:
    """Set a context that is never taken back, in one request of two."""
    if name.startswith("set"):
        set_notification_context({"name": name})
    Author.objects.create(name=name)
    return JsonResponse({})


urlpatterns = [path("<str:name>", set_once)]


async def test_requests() -> None:
    """A request never has the context of another one, before it or beside it."""
    with serving(ROOT_URLCONF=__name__) as client:
        names = [f"{kind}{n}" for n in range(20) for kind in ("set", "not")]
        await asyncio.gather(*(client.get(f"/{name}") for name in names[:20]))
        for name in names[20:]:
            await client.get(f"/{name}")
    found = await bridged(contexts)()
    assert found == {n: {"name": n} if n.startswith("set") else {} for n in names}


def test_threads_of_a_wsgi_server() -> None:
    """A thread that serves again begins without the context of its last request."""

    def serve(name: str) -> None:
        request_started.send(sender=None)
        set_once(HttpRequest(), name)
        connection.close()

    with ThreadPoolExecutor(1) as thread:
        for name in ("set1", "not1", "set2", "not2"):
            thread.submit(serve, name).result()
    assert contexts() == {
        **{"set1": {"name": "set1"}, "not1": {}},
        **{"set2": {"name": "set2"}, "not2": {}},
    }


def test_sessions(run: Any) -> None:
    """The session itself never has a context."""

    def test() -> None:
        with notification_context({"n": 1}):
            Author.objects.create(name="a")
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('pgpubsub.notification_context', true)")
                assert cursor.fetchone()[0] in ("", None)

    run(test)


INSERT = "INSERT INTO pubsub_site_author (name) VALUES ('x')"


@pytest.mark.parametrize(
    "statement",
    [
        INSERT,
        INSERT.encode(),
        f"-- why\n/* and */ {INSERT.lower()}",
        f"WITH made AS ({INSERT} RETURNING 1) TABLE made",
        f"DO $$ BEGIN {INSERT}; END $$",
    ],
)
def test_raw_statements(statement: str) -> None:
    """Statements of the project's own have the context, too, behind comments and in a WITH."""
    with notification_context({"n": 1}), connection.cursor() as cursor:
        cursor.execute(statement)
    assert contexts() == {"x": {"n": 1}}


def test_error_in_a_transaction(run: Any) -> None:
    """A statement that fails may be rolled back to a savepoint of the project's own."""

    def test() -> None:
        with notification_context({"n": 1}), transaction.atomic():
            Author.objects.create(name="a")
            savepoint = connection.savepoint()
            with pytest.raises(IntegrityError), connection.cursor() as cursor:
                cursor.execute("INSERT INTO pubsub_site_author (name) VALUES (NULL)")
            connection.savepoint_rollback(savepoint)
            Author.objects.create(name="b")
        assert contexts() == {"a": {"n": 1}, "b": {"n": 1}}

    run(test)


def test_refused() -> None:
    """What is no dictionary, or no JSON for PostgreSQL, is refused at once."""
    with pytest.raises(TypeError, match="is a dictionary, not 'tenant'"):
        set_notification_context("tenant")  # type: ignore[arg-type]
    with pytest.raises(PayloadError, match="NUL"):
        set_notification_context({"a": "\0"})
    with notification_context({"a": "\\u0000"}):
        Author.objects.create(name="x")
    assert contexts() == {"x": {"a": "\\u0000"}}


def test_djangos_own_backend(add_alias: Callable[..., str]) -> None:
    """With Django's own ENGINE the context is carried in the same way."""
    alias = add_alias(ENGINE="django.db.backends.postgresql")
    with notification_context({"n": 1}, using=alias):
        Author.objects.using(alias).create(name="autocommit")
        with transaction.atomic(using=alias):
            Author.objects.using(alias).create(name="atomic")
    Author.objects.using(alias).create(name="out")
    assert contexts() == {"autocommit": {"n": 1}, "atomic": {"n": 1}, "out": {}}


@pytest.mark.parametrize("engine", ["pgbackend", "django.db.backends.postgresql"])
def test_coroutines_of_threads(add_alias: Callable[..., str], engine: str) -> None:
    """Where the statements of a coroutine run in a thread, the context is set there, or refused."""
    alias = add_alias(ENGINE=engine)

    async def view() -> None:
        with pytest.raises(SynchronousOnlyOperation, match="await aset_notification_context"):
            set_notification_context({"n": 1}, using=alias)
        with (
            pytest.raises(SynchronousOnlyOperation, match="await aset_notification_context"),
            notification_context({"n": 1}, using=alias),
        ):
            pass
        await aset_notification_context({"n": 2}, using=alias)
        await Author.objects.using(alias).acreate(name="in")
        await aset_notification_context({}, using=alias)
        await Author.objects.using(alias).acreate(name="out")

    async_to_sync(view)()
    assert contexts() == {"in": {"n": 2}, "out": {}}


def test_copied_to_other_threads() -> None:
    """A context that was set before in another thread is set in a thread, and on a loop, too."""

    def write(name: str) -> None:
        set_notification_context({"name": name})
        Author.objects.create(name=name)
        connection.close()

    async def awrite(name: str) -> None:
        set_notification_context({"name": name})
        await Author.objects.acreate(name=name)

    write("here")
    with ThreadPoolExecutor(1) as thread:
        thread.submit(copy_context().run, write, "thread").result()
    asyncio.run(awrite("loop"))
    set_notification_context({})
    assert contexts() == {name: {"name": name} for name in ("here", "thread", "loop")}
    # The copies of the context: with them its function goes from this thread's connection.
    gc.collect()
    assert list(connection.execute_wrappers) == []


def test_short_way_again(run: Any) -> None:
    """When no context has a value any longer, nothing is called around statements."""

    def in_a_context_of_its_own() -> None:
        set_notification_context({"n": 1})
        assert connection.execute_wrappers
        Author.objects.create(name="in")

    def test() -> None:
        with notification_context({"n": 1}), transaction.atomic():
            Author.objects.create(name="a")
        copy_context().run(in_a_context_of_its_own)
        set_notification_context({"n": 2})
        set_notification_context({})
        with transaction.atomic():
            set_notification_context({"n": 3})
            Author.objects.create(name="b")
            set_notification_context({})
            Author.objects.create(name="c")
        set_notification_context({})
        assert contexts() == {"a": {"n": 1}, "in": {"n": 1}, "b": {"n": 3}, "c": {}}
        assert list(connection.execute_wrappers) == []

    run(test)


def test_beside_other_wrappers() -> None:
    """A function that is called around statements for a block ends with its block."""
    seen: list[str] = []

    def look(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql.split()[0])
        return execute(sql, params, many, context)

    with connection.execute_wrapper(look):
        set_notification_context({"n": 1})
    Author.objects.create(name="a")
    set_notification_context({})
    assert seen == []
    assert contexts() == {"a": {"n": 1}}
