"""gather() in a plain thread: in its transaction the statements go together there, too."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import (
    DEFAULT_DB_ALIAS,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext

from pgbackend.errors import NotRun
from pgbackend.futures import future, gather
from tests.models import Author, Book
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.threads import run_in_thread
from tests.support.wrapper import make_wrapper

TRACE: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


def in_transaction(work: Callable[[], Any]) -> Any:
    """Run *work* in a transaction of a plain thread."""

    def run() -> Any:
        with transaction.atomic():
            return work()

    return run_in_thread(run)


async def test_one_message(server: Server) -> None:
    """The gathered statements of a transaction are one message."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:

        def work() -> list[Any]:
            connections[DEFAULT_DB_ALIAS] = make_wrapper(
                HOST="127.0.0.1", PORT=proxy.port, options={"pool": False}
            )
            with transaction.atomic():
                Author.objects.create(name="a0")
                before = proxy.messages
                found = gather(
                    Author.objects.order_by("pk"),
                    future(Author.objects).create(name="a1"),
                    future(Author.objects).count(),
                    future(Author.objects).filter(name="a0").update(name="a2"),
                    Author.objects.prefetch_related("books"),
                ).result()
                # One for all, and one for the books.
                assert proxy.messages - before == 2
            return found

        rows, created, count, updated, _ = await asyncio.to_thread(run_in_thread, work)
        assert ([author.name for author in rows], count, updated) == (["a0"], 2, 1)
        assert created.pk


def test_failures() -> None:
    """Errors are those of the loop: the first is raised, and what was behind it was not run."""

    def work() -> None:
        Author.objects.create(name="a0")
        with pytest.raises(IntegrityError), transaction.atomic():
            gather(
                future(Author.objects).create(name="a0"), future(Author.objects).count()
            ).result()
        with transaction.atomic():
            found = gather(
                future(Author.objects).get(name="nobody"),
                future(Author.objects).create(name="a0"),
                future(Author.objects).count(),
                return_exceptions=True,
            ).result()
            assert [type(each) for each in found] == [Author.DoesNotExist, IntegrityError, NotRun]
            transaction.set_rollback(True)
        assert Author.objects.count() == 1

    in_transaction(work)


def test_savepoints() -> None:
    """With savepoints each call has a block of its own."""

    def work() -> None:
        found = gather(
            *[future(Author.objects).create(name=name) for name in "aab"],
            return_exceptions=True,
            savepoints=True,
        ).result()
        assert isinstance(found[1], IntegrityError)
        assert sorted(Author.objects.values_list("name", flat=True)) == ["a", "b"]

    in_transaction(work)


def test_by_other_means() -> None:
    """Cursors, nested blocks and streams work, and a log sees each statement."""

    def nested() -> int:
        with transaction.atomic():
            Author.objects.create(name="nested")
            return Author.objects.count()

    def cursor() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tests_author")
            return cursor.fetchone()[0]

    def work() -> None:
        found = gather(
            future(nested)(),
            future(cursor)(),
            future(lambda: [each.name for each in Author.objects.iterator()])(),
            future(Author.objects).get_or_create(name="got"),
            future(Author.objects).filter(name="nested").count(),
        ).result()
        assert found[0] == 1
        assert found[3][1]
        with CaptureQueriesContext(connection) as captured:
            gather(Author.objects.all(), future(Author.objects).count()).result()
        assert len(captured) == 2

    in_transaction(work)


def test_contexts_and_threads() -> None:
    """The calls run in the calling thread, each in a copy of its context."""
    seen: list[Any] = []

    def call(name: str) -> None:
        seen.append((TRACE.get(), threading.get_ident()))
        TRACE.set(name)
        Author.objects.count()
        seen.append((TRACE.get(), threading.get_ident()))

    def work() -> int:
        TRACE.set("outside")
        gather(*[future(call)(name) for name in "ab"]).result()
        future(call)("c").result()
        assert TRACE.get() == "outside"
        return threading.get_ident()

    own = in_transaction(work)
    assert seen == [
        *[("outside", own)] * 2,
        *[(name, own) for name in "ab"],
        ("outside", own),
        ("c", own),
    ]


def test_exit() -> None:
    """SystemExit in a call ends the others, which unwind."""
    left: list[str] = []

    def leave() -> None:
        raise SystemExit

    def call() -> None:
        try:
            Author.objects.count()
        finally:
            left.append("left")

    def work() -> None:
        gather(future(call)(), future(leave)(), future(call)()).result()

    def run() -> None:
        with pytest.raises(SystemExit), transaction.atomic():
            work()

    run_in_thread(run)
    assert left == ["left"]


def test_lost_connection(server: Server) -> None:
    """A connection that is lost is an error of the calls."""

    @contextmanager
    def killed() -> Iterator[None]:
        with TableLock(server, "tests_book") as lock:

            def kill() -> None:
                while not lock.waiting():
                    pass
                server.all("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")

            thread = threading.Thread(target=kill)
            thread.start()
            yield
            thread.join()

    def work() -> None:
        with pytest.raises(OperationalError), transaction.atomic(), killed():
            gather(Book.objects.all(), Author.objects.all()).result()
        connection.close()
        assert Author.objects.count() == 0

    run_in_thread(work)


def test_savepoints_of_a_waiting_thread() -> None:
    """A coroutine for which a thread waits has savepoints in the thread's transaction, too."""

    async def create() -> list[Any]:
        return await gather(
            *[future(Author.objects).create(name=name) for name in ("a", "a", "b")],
            future(Author.objects).count(),
            return_exceptions=True,
            savepoints=True,
        )

    found = in_transaction(lambda: async_to_sync(create)())
    assert [getattr(each, "name", type(each)) for each in found[:3]] == ["a", IntegrityError, "b"]
    assert found[3] == 2


def test_savepoints_of_another_backend(stock: str) -> None:
    """A transaction on Django's own backend goes on, too, where a gathered call fails."""

    def work() -> list[Any]:
        with transaction.atomic(using=stock):
            found = gather(
                *[future(Author.objects.using(stock)).create(name="a") for _ in range(2)],
                future(Author.objects.using(stock)).count(),
                return_exceptions=True,
                savepoints=True,
            ).result()
            transaction.set_rollback(True, using=stock)
        return found

    found = run_in_thread(work)
    assert [type(each) for each in found] == [Author, IntegrityError, int]


@pytest.mark.parametrize("inside", [False, True])
def test_stop_iteration(inside: bool) -> None:
    """StopIteration in a call is an error, as in coroutines, not the end of the call."""

    def stop() -> Any:
        return next(iter(Author.objects.none()))

    def work() -> Any:
        return gather(future(stop)(), return_exceptions=True).result()

    (found,) = in_transaction(work) if inside else run_in_thread(work)
    assert isinstance(found, RuntimeError)
    assert isinstance(found.__cause__, StopIteration)
