"""Threads that join a transaction of the loop."""

import asyncio
import contextvars
import gc
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import (
    DatabaseError,
    IntegrityError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from pgbackend import await_bridged, bridged
from pgbackend.transaction import acommit, arollback, aset_autocommit, detached
from tests.models import Author, Elsewhere
from tests.support.limits import PATIENCE
from tests.support.loop import get
from tests.support.server import Server
from tests.support.sessions import apid, pid, running, sleep, until
from tests.support.sessions import committed as committed_names
from tests.support.wrapper import AddAlias, avalue, on_loan


class Failed(Exception):
    pass


def names() -> set[str]:
    return set(Author.objects.values_list("name", flat=True))


async def committed() -> set[str]:
    """Return the names that a task outside any transaction sees."""
    with detached():
        return await asyncio.create_task(bridged(names)())


async def test_a_thread_writes_in_the_owners_transaction(server: Server) -> None:
    """What sync_to_async writes is seen by the owner and goes with its rollback."""
    with pytest.raises(Failed):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            await sync_to_async(Author.objects.create)(name="thread")
            assert await sync_to_async(names)() == {"owner", "thread"}
            assert await bridged(names)() == {"owner", "thread"}
            assert await committed() == set()
            raise Failed
    assert await bridged(names)() == set()


async def test_a_thread_is_committed_with_its_owner(server: Server) -> None:
    """asyncio.to_thread joins as well, with blocks, hooks and chunked reads of its own."""
    ran = []

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="kept")
            transaction.on_commit(lambda: ran.append("kept"))
        with pytest.raises(Failed), transaction.atomic():
            Author.objects.create(name="dropped")
            raise Failed
        assert {author.name for author in Author.objects.iterator(chunk_size=1)} == {"kept"}
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM tests_author")
            assert cursor.fetchone() == (1,)
        assert connection.in_atomic_block
        assert ran == []

    async with transaction.atomic():
        await asyncio.to_thread(work)
        assert await bridged(names)() == {"kept"}
    assert ran == ["kept"]
    assert await committed() == {"kept"}


async def test_threads_and_tasks_take_turns(server: Server) -> None:
    """Blocks of threads and tasks in one transaction never interleave."""

    def in_thread(name: str, fail: bool) -> None:
        with transaction.atomic():
            Author.objects.create(name=name)
            if fail:
                raise Failed

    async with transaction.atomic():
        results = await asyncio.gather(
            *(
                asyncio.to_thread(in_thread, f"thread {n}", bool(n % 2))
                if n % 3
                else bridged(in_thread)(f"task {n}", bool(n % 2))
                for n in range(12)
            ),
            return_exceptions=True,
        )
    assert [isinstance(each, Failed) for each in results] == [bool(n % 2) for n in range(12)]
    expected = {f"thread {n}" if n % 3 else f"task {n}" for n in range(0, 12, 2)}
    assert await bridged(names)() == expected


async def test_a_plain_thread_does_not_join(server: Server) -> None:
    """A thread that merely begins with its starter's context has its own connection."""
    seen = []

    def work() -> None:
        seen.append(names())
        connection.close()

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
    assert seen == [set()]


async def test_a_thread_outlives_the_transaction(server: Server) -> None:
    """A thread whose transaction has ended gets a RuntimeError before any SQL."""
    entered, proceed = threading.Event(), threading.Event()
    outcome = []

    def work() -> None:
        Author.objects.create(name="early")
        entered.set()
        proceed.wait(PATIENCE)
        for use in (names, transaction.atomic().__enter__):
            try:
                use()
            except RuntimeError as error:
                outcome.append(str(error))

    async with transaction.atomic():
        task = asyncio.create_task(asyncio.to_thread(work))
        await asyncio.to_thread(entered.wait, 30)
    proceed.set()
    await task
    assert len(outcome) == 2
    assert all("thread was started inside a transaction that has ended" in each for each in outcome)


async def test_a_cancelled_owner_is_dead_before_the_threads_next_statement(server: Server) -> None:
    """A cancelled owner rolls back; the thread that still runs writes nothing more."""
    entered, proceed = threading.Event(), threading.Event()
    outcome = []

    def work() -> None:
        try:
            with transaction.atomic():
                Author.objects.create(name="early")
                entered.set()
                proceed.wait(PATIENCE)
                Author.objects.create(name="late")
        except RuntimeError as error:
            outcome.append(str(error))

    async def own() -> None:
        async with transaction.atomic():
            await asyncio.to_thread(work)

    task = asyncio.create_task(own())
    await asyncio.get_running_loop().run_in_executor(None, entered.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proceed.set()
    while not outcome:
        await asyncio.sleep(0.01)
    assert "has ended" in outcome[0]
    assert await bridged(names)() == set()


async def test_a_blocked_loop_is_not_waited_for_for_ever(server: Server) -> None:
    """A thread whose loop does not turn gets a RuntimeError, and nothing is done."""
    async with transaction.atomic():
        context = contextvars.copy_context()
        outcome = []

        def work() -> None:
            connection.turn_timeout = 0.2
            try:
                Author.objects.create(name="late")
            except RuntimeError as error:
                outcome.append(str(error))

        thread = threading.Thread(target=context.run, args=[work])
        thread.start()
        thread.join(PATIENCE)  # holds the loop
        assert len(outcome) == 1
        assert "did not take a thread's statement within 0.2 s" in outcome[0]
    assert await bridged(names)() == set()


# Ways into a thread

Move = Callable[..., Awaitable[Any]]


def sensitive(function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    return sync_to_async(function)(*args)


def insensitive(function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
    return sync_to_async(function, thread_sensitive=False)(*args)


moves = pytest.mark.parametrize(
    "move", [sensitive, insensitive, asyncio.to_thread], ids=lambda move: move.__name__
)


@moves
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
async def test_a_thread_is_in_the_transaction(server: Server, move: Move, fails: bool) -> None:
    """It works on the owner's connection, in blocks of its own, and shares the owner's end."""

    def work() -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert connection.in_atomic_block
        assert not connection.get_autocommit()
        assert Author.objects.get().name == "owner"
        with transaction.atomic():
            Author.objects.create(name="nested")
            with pytest.raises(Failed), transaction.atomic():
                Author.objects.create(name="lost")
                raise Failed
        with transaction.atomic(savepoint=False):
            Author.objects.bulk_create([Author(name="many"), Author(name="more")])
        Author.objects.get_or_create(name="found")
        return pid()

    try:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            assert await move(work) == await apid()
            assert await Author.objects.acount() == 5
            assert committed_names(server) == []
            if fails:
                raise Failed
    except Failed:
        pass
    expected = ["found", "many", "more", "nested", "owner"]
    assert committed_names(server) == ([] if fails else expected)


@moves
async def test_durable_is_refused_in_a_thread(server: Server, move: Move) -> None:
    """durable=True is refused in a thread that joined, before any SQL."""

    def work() -> None:
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pass
        Author.objects.create(name="after")

    async with transaction.atomic():
        await move(work)
    assert committed_names(server) == ["after"]


async def test_savepoints_by_hand_in_a_thread(server: Server) -> None:
    """savepoint_rollback() in a thread undoes what came after its savepoint."""
    # Renamed in Django 6.1.
    create = getattr(transaction, "savepoint_create", transaction.savepoint)

    def work() -> None:
        Author.objects.create(name="before")
        savepoint = create()
        Author.objects.create(name="undone")
        transaction.savepoint_rollback(savepoint)
        savepoint = create()
        Author.objects.create(name="kept")
        transaction.savepoint_commit(savepoint)
        transaction.clean_savepoints()

    async with transaction.atomic():
        await asyncio.to_thread(work)
    assert committed_names(server) == ["before", "kept"]


# Cursors


def execute_many(cursor: Any) -> None:
    cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [["a"], ["b"], ["c"]])
    assert cursor.rowcount == 3


def fetch(cursor: Any) -> None:
    cursor.execute("SELECT generate_series(1, %s) AS n", [9])
    assert [column.name for column in cursor.description] == ["n"]
    assert cursor.rowcount == 9
    assert cursor.fetchone() == (1,)
    assert cursor.fetchmany(2) == [(2,), (3,)]
    assert cursor.fetchmany(size=3) == [(4,), (5,), (6,)]
    assert list(cursor) == [(7,), (8,), (9,)]
    assert cursor.fetchall() == []


def call(cursor: Any) -> None:
    cursor.callproc("upper", ["ada"])
    assert cursor.fetchone() == ("ADA",)


def copy(cursor: Any) -> None:
    with cursor.copy("COPY tests_author (name) FROM STDIN") as rows:
        rows.write_row(["a"])
        rows.write(b"b\nc\n")
    with cursor.copy("COPY (SELECT name FROM tests_author ORDER BY 1) TO STDOUT") as rows:
        rows.set_types(["text"])
        assert list(rows.rows()) == [("a",), ("b",), ("c",)]
    with cursor.copy("COPY (SELECT 1) TO STDOUT") as rows:
        assert bytes(rows.read()) == b"1\n"
        assert not rows.read()
    with cursor.copy("COPY (SELECT 1) TO STDOUT") as rows:
        assert b"".join(map(bytes, rows)) == b"1\n"


def stream(cursor: Any) -> None:
    assert list(cursor.stream("SELECT generate_series(1, 3)")) == [(1,), (2,), (3,)]


def fail_and_recover(cursor: Any) -> None:
    with pytest.raises(DatabaseError), transaction.atomic():
        cursor.execute("SELECT 1 / 0")
    cursor.execute("SELECT 1")
    assert cursor.fetchall() == [(1,)]


@pytest.mark.parametrize(
    "use",
    [execute_many, fetch, call, copy, stream, fail_and_recover],
    ids=lambda use: use.__name__,
)
@pytest.mark.parametrize("debug", [False, True])
async def test_raw_cursor_in_a_thread(use: Callable[[Any], None], debug: bool) -> None:
    """A raw cursor does in a thread what Django's does."""

    def work() -> None:
        with connection.cursor() as cursor:
            use(cursor)
        assert connection.in_atomic_block

    with override_settings(DEBUG=debug):
        async with transaction.atomic():
            await asyncio.to_thread(work)
            await Author.objects.acount()


async def test_iterator_in_a_thread(server: Server) -> None:
    """iterator() reads in chunks by a server-side cursor, beside other statements."""

    def work() -> list[str]:
        found = []
        for author in Author.objects.order_by("name").iterator(chunk_size=1):
            found.append(author.name)
            Author.objects.filter(name="a").update(name="a")
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 3)")
            assert cursor.fetchone() == (1,)
            assert cursor.fetchall() == [(2,), (3,)]
        return found

    async with transaction.atomic():
        await Author.objects.abulk_create([Author(name=name) for name in "abc"])
        assert await asyncio.to_thread(work) == ["a", "b", "c"]
        assert await Author.objects.acount() == 3


async def test_cursor_of_a_thread_after_the_transaction(server: Server) -> None:
    """A cursor that a thread keeps beyond the transaction does nothing more, but closes."""
    entered, proceed = threading.Event(), threading.Event()

    def work() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        entered.set()
        proceed.wait(PATIENCE)
        with pytest.raises((RuntimeError, DatabaseError, psycopg.Error)):
            cursor.execute("INSERT INTO tests_author (name) VALUES ('late')")
        cursor.close()

    async with transaction.atomic():
        task = asyncio.create_task(asyncio.to_thread(work))
        await until(entered.is_set)
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
        proceed.set()
        await task
    assert committed_names(server) == ["next"]


async def test_open_cursor_of_a_thread_holds_no_connection(server: Server) -> None:
    """A cursor that a thread never closes keeps the connection no longer than the transaction."""
    cursors: list[Any] = []

    def work() -> None:
        cursors.append(connection.cursor())
        cursors[0].execute("SELECT 1")

    async with transaction.atomic():
        await asyncio.to_thread(work)
    await until(lambda: on_loan(connection) == 0)
    cursors[0].close()
    assert await apid() > 0
    await until(lambda: on_loan(connection) == 0)


async def test_select_for_update_in_a_thread(server: Server) -> None:
    """A row that a thread locks stays locked until the owner's transaction ends."""
    server.all("INSERT INTO tests_author (name) VALUES ('Ada')")

    def work() -> None:
        Author.objects.select_for_update().get(name="Ada")

    lock = "SELECT name FROM tests_author FOR UPDATE NOWAIT"
    async with transaction.atomic():
        await asyncio.to_thread(work)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            server.all(lock)
    assert server.all(lock) == [("Ada",)]


async def test_connection_of_a_thread(server: Server) -> None:
    """What else Django asks a connection for works in a thread that joined."""

    def work() -> None:
        assert "tests_author" in connection.introspection.table_names()
        assert connection.pg_version >= 140000
        with connection.constraint_checks_disabled():
            Author.objects.create(name="unchecked")
        connection.check_constraints()
        with connection.schema_editor() as editor:
            editor.execute("CREATE TEMPORARY TABLE scratch (n int) ON COMMIT DROP")
        assert connection.ops.compose_sql("SELECT %s", [1]) == "SELECT 1"

    async with transaction.atomic():
        await asyncio.to_thread(work)
        assert connection.in_atomic_block
    assert committed_names(server) == ["unchecked"]


async def test_is_usable_in_a_thread(server: Server) -> None:
    """is_usable() in a thread tells whether the connection of the transaction still works."""
    async with transaction.atomic():
        assert await asyncio.to_thread(lambda: connection.is_usable())
        assert connection.in_atomic_block


async def test_closing_in_a_thread_leaves_the_transaction(server: Server) -> None:
    """What a thread does to get rid of its own connection leaves the owner's as it is."""

    def work() -> None:
        Author.objects.create(name="thread")
        close_old_connections()
        connection.close_if_unusable_or_obsolete()
        connections.close_all()
        connection.close()
        Author.objects.create(name="after")

    async with transaction.atomic():
        own = await apid()
        await asyncio.to_thread(work)
        assert await apid() == own
    assert committed_names(server) == ["after", "thread"]


# Logs and wrappers


async def test_statements_of_a_thread_are_in_the_loops_log(server: Server) -> None:
    """The query log and the execute_wrappers of the loop's wrapper have a thread's statements."""
    seen: list[str] = []

    def note(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql)
        return execute(sql, *args)

    def work() -> None:
        Author.objects.create(name="thread")

    @bridged
    def own() -> list[dict[str, str]]:
        with connection.execute_wrapper(note), CaptureQueriesContext(connection) as captured:
            await_bridged(asyncio.to_thread(work))
        return list(captured.captured_queries)

    async with transaction.atomic():
        queries = await own()
    assert len(queries) == len(seen) == 1
    assert "INSERT" in queries[0]["sql"]
    assert "INSERT" in seen[0]


def test_statements_of_a_thread_are_in_its_own_log(server: Server) -> None:
    """CaptureQueriesContext in a thread has its statements, savepoints too, and nobody else's."""
    captured: list[str] = []

    def work() -> None:
        with CaptureQueriesContext(connection) as queries:
            with transaction.atomic():
                Author.objects.create(name="thread")
            with connection.cursor() as cursor:
                cursor.executemany("SELECT %s::int", [[1], [2]])
        captured.extend(query["sql"] for query in queries.captured_queries)
        assert connection.queries_log[-1]["sql"] == captured[-1]
        Author.objects.count()
        assert len(queries.captured_queries) == len(captured)

    async def main() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            await asyncio.to_thread(work)
            assert len(connection.queries_log) == 0

    asyncio.run(main())
    verbs = [sql.split()[0] for sql in captured]
    assert verbs == ["SAVEPOINT", "INSERT", "RELEASE", "2"]
    assert "'thread'" in captured[1]


@pytest.mark.parametrize("debug", [False, True])
async def test_a_statement_of_a_thread_is_logged_once(debug: bool) -> None:
    """Captured by the thread and by the loop, a statement is in each log once, failed or not."""

    def work() -> list[str]:
        with CaptureQueriesContext(connection) as captured, connection.cursor() as cursor:
            cursor.execute("SELECT %s", ["thread"])
            with pytest.raises(DatabaseError), transaction.atomic():
                cursor.execute("SELECT 1 / 0")
        return [query["sql"] for query in captured.captured_queries]

    @bridged
    def own() -> tuple[list[str], list[str]]:
        with CaptureQueriesContext(connection) as captured:
            threads = await_bridged(asyncio.to_thread(work))
        return threads, [query["sql"] for query in captured.captured_queries]

    with override_settings(DEBUG=debug):
        async with transaction.atomic():
            threads, owners = await own()
    assert threads == owners
    assert threads.count("SELECT 'thread'") == 1
    assert threads.count("SELECT 1 / 0") == 1


@moves
async def test_execute_wrapper_of_a_thread(server: Server, move: Move) -> None:
    """execute_wrapper() in a thread is called for the thread's statements only, and may refuse."""
    seen: list[str] = []
    entered, leave = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def note(execute: Any, sql: str, *args: Any) -> Any:
        seen.append(sql.split()[0])
        return execute(sql, *args)

    def refuse(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        assert context["connection"].alias == connection.alias
        raise Failed

    def work() -> None:
        with connection.execute_wrapper(note):
            Author.objects.create(name="thread")
            entered.set()
            asyncio.run_coroutine_threadsafe(leave.wait(), loop).result(30)
            with transaction.atomic():
                Author.objects.update(name="thread")
            with connection.execute_wrapper(refuse), pytest.raises(Failed):
                Author.objects.count()
        Author.objects.count()

    async with transaction.atomic():
        task = asyncio.ensure_future(move(work))
        await until(entered.is_set)
        await Author.objects.aexists()
        leave.set()
        await task
    assert seen == ["INSERT", "SAVEPOINT", "UPDATE", "RELEASE", "SELECT"]


# Iterators that a thread leaves unfinished


def half_read() -> Any:
    """Return an iterator whose server-side cursor is open."""
    rows = Author.objects.order_by("name").iterator(chunk_size=1)
    assert next(rows).name == "a"
    return rows


@moves
@pytest.mark.parametrize("where", ["thread", "loop", "bridge", "another thread"])
async def test_unfinished_iterator_of_a_thread(server: Server, move: Move, where: str) -> None:
    """Wherever it is dropped it ends at once and in silence; the transaction goes on."""
    rows: list[Any] = []

    def work() -> None:
        rows.append(half_read())
        if where == "thread":
            rows.clear()

    async with transaction.atomic():
        await Author.objects.abulk_create([Author(name=name) for name in "abc"])
        await move(work)
        started = asyncio.get_running_loop().time()
        if where == "loop":
            rows.clear()
        elif where == "bridge":
            await bridged(rows.clear)()
        elif where == "another thread":
            await asyncio.get_running_loop().run_in_executor(None, rows.clear)
        assert asyncio.get_running_loop().time() - started < 10
        await move(work)
        rows.clear()
        assert await Author.objects.acount() == 3
    assert committed_names(server) == ["a", "b", "c"]
    assert on_loan(connection) == 0
    assert await avalue("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django%'") == 0


async def test_unfinished_iterator_of_a_thread_after_the_transaction(server: Server) -> None:
    """Dropped when the transaction has ended, it leaves its connection's next borrower alone."""
    async with transaction.atomic():
        await Author.objects.abulk_create([Author(name=name) for name in "abc"])
        rows = [await asyncio.to_thread(half_read) for _ in range(2)]
    async with transaction.atomic():
        rows.pop()
        await asyncio.to_thread(rows.clear)
        await Author.objects.acreate(name="d")
    assert committed_names(server) == ["a", "b", "c", "d"]
    assert on_loan(connection) == 0


async def test_cursors_of_threads_with_one_number(server: Server) -> None:
    """The cursor of a thread that has ended is none of a later one's, if that has its number."""
    rows: list[Any] = []
    numbers: set[int | None] = set()

    def start(context: contextvars.Context) -> None:
        thread = threading.Thread(target=context.run, args=[lambda: rows.append(half_read())])
        thread.start()
        thread.join(PATIENCE)
        numbers.add(thread.ident)

    async with transaction.atomic():
        await Author.objects.abulk_create([Author(name=name) for name in "abc"])
        for _ in range(5):
            await asyncio.get_running_loop().run_in_executor(
                None, start, contextvars.copy_context()
            )
        assert len(rows) == 5
        assert len(numbers) < 5
        rows.clear()


# Hooks and errors


async def test_hooks_of_a_thread(server: Server) -> None:
    """Hooks of a thread run in order with the others, after the commit, in the owner's task."""
    ran: list[str] = []
    owner = asyncio.current_task()

    async def asynchronous() -> None:
        assert asyncio.current_task() is owner
        assert committed_names(server) == ["thread"]
        ran.append(f"asynchronous {await Author.objects.acount()}")

    def synchronous() -> None:
        assert asyncio.current_task() is owner
        ran.append(f"synchronous {Author.objects.count()}")

    def work() -> None:
        Author.objects.create(name="thread")
        transaction.on_commit(asynchronous)
        with pytest.raises(Failed), transaction.atomic():
            transaction.on_commit(lambda: ran.append("undone"))
            raise Failed
        transaction.on_commit(synchronous)

    async with transaction.atomic():
        transaction.on_commit(lambda: ran.append("first"))
        await asyncio.to_thread(work)
        transaction.on_commit(lambda: ran.append("last"))
        assert ran == []
    assert ran == ["first", "asynchronous 1", "synchronous 1", "last"]


@moves
async def test_exceptions_cross(server: Server, move: Move) -> None:
    """Exceptions cross with their type, their cause and the thread's frames."""
    error = Failed()

    def insert_twice() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            Author.objects.create(name="Ada")

    def fail_in_a_block() -> None:
        with transaction.atomic():
            raise error

    async with transaction.atomic():
        with pytest.raises(IntegrityError) as caught:
            await move(insert_twice)
        assert isinstance(caught.value.__cause__, psycopg.errors.UniqueViolation)
        functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert functions.index("insert_twice") < functions.index("_execute")
        with pytest.raises(Failed) as failed:
            await move(fail_in_a_block)
        assert failed.value is error
        await Author.objects.acreate(name="Ada")
    assert committed_names(server) == ["Ada"]


@pytest.mark.parametrize("mark", [True, False], ids=["an error", "set_rollback"])
async def test_a_thread_breaks_the_owners_block(server: Server, mark: bool) -> None:
    """A database error in a thread breaks the block that it was raised in, the owner's here."""

    def work() -> None:
        if mark:
            with pytest.raises(IntegrityError):
                Author.objects.create(name="owner")
        else:
            transaction.set_rollback(True)
        assert transaction.get_rollback()
        with pytest.raises(TransactionManagementError):
            Author.objects.count()

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        await asyncio.to_thread(work)
        with pytest.raises(TransactionManagementError):
            await Author.objects.acount()
    assert committed_names(server) == []


# Autocommit off, several databases


async def test_commit_by_hand_in_a_thread(server: Server) -> None:
    """With autocommit off, commit() and rollback() in a thread are the transaction's."""

    def commit() -> None:
        assert not transaction.get_autocommit()
        Author.objects.create(name="kept")
        transaction.commit()

    def roll_back() -> None:
        Author.objects.create(name="lost")
        transaction.rollback()
        close_old_connections()

    await aset_autocommit(False)
    await Author.objects.acreate(name="owner")
    await asyncio.to_thread(commit)
    assert committed_names(server) == ["kept", "owner"]
    await asyncio.to_thread(roll_back)
    await Author.objects.acreate(name="after")
    await acommit()
    await Author.objects.acreate(name="lost too")
    await arollback()
    await aset_autocommit(True)
    assert committed_names(server) == ["after", "kept", "owner"]


async def test_autocommit_in_a_thread_of_a_transaction_by_hand(server: Server) -> None:
    """A block of a thread is a savepoint while autocommit is off; the thread may turn it on."""

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="thread")
        assert committed_names(server) == []
        transaction.commit()
        transaction.set_autocommit(True)

    await aset_autocommit(False)
    await asyncio.to_thread(work)
    assert committed_names(server) == ["thread"]
    assert await bridged(transaction.get_autocommit)()
    await Author.objects.acreate(name="after")
    assert committed_names(server) == ["after", "thread"]


async def test_a_thread_joins_each_open_transaction(server: Server) -> None:
    """A thread is in the transactions of all databases that were open when it was started."""

    def work() -> None:
        Author.objects.create(name="thread")
        with transaction.atomic(using="other"):
            Elsewhere.objects.create(name="thread")

    async with transaction.atomic():
        with pytest.raises(Failed):
            async with transaction.atomic(using="other"):
                await asyncio.to_thread(work)
                assert await Elsewhere.objects.acount() == 1
                raise Failed
        assert committed_names(server) == []
    assert committed_names(server) == ["thread"]
    assert await Elsewhere.objects.acount() == 0


async def test_a_thread_on_a_database_without_a_transaction(server: Server) -> None:
    """On another database a thread has its own connection, as in stock Django."""

    def work() -> None:
        with transaction.atomic(using="other"):
            Elsewhere.objects.create(name="thread")
        assert not connections["other"].in_atomic_block
        connections["other"].close()

    with pytest.raises(Failed):
        async with transaction.atomic():
            await asyncio.to_thread(work)
            raise Failed
    assert await Elsewhere.objects.acount() == 1


# Threads of threads


def in_a_loop_of_its_own() -> None:
    """Write from coroutines that a thread waits for, and from a thread that these start."""

    async def write() -> None:
        await Author.objects.acreate(name="coroutine")
        async with transaction.atomic():
            await Author.objects.acreate(name="block")
        await asyncio.to_thread(Author.objects.create, name="to_thread")
        await sync_to_async(Author.objects.create)(name="sync_to_async")

    with transaction.atomic():
        async_to_sync(write)()


@moves
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
async def test_coroutines_of_a_thread(server: Server, move: Move, fails: bool) -> None:
    """What a thread starts by async_to_sync is in the transaction, and so are threads of that."""
    try:
        async with transaction.atomic():
            async with asyncio.timeout(PATIENCE):
                await move(in_a_loop_of_its_own)
            assert await Author.objects.acount() == 4
            assert committed_names(server) == []
            if fails:
                raise Failed
    except Failed:
        pass
    expected = ["block", "coroutine", "sync_to_async", "to_thread"]
    assert committed_names(server) == ([] if fails else expected)


@moves
async def test_blocks_of_a_threads_coroutines_take_turns(server: Server, move: Move) -> None:
    """Blocks of tasks that a thread's coroutine starts, and of their threads, never interleave."""

    def in_thread(name: str, fail: bool) -> None:
        with transaction.atomic():
            Author.objects.create(name=name)
            if fail:
                raise Failed

    async def in_task(name: str, fail: bool) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
            await asyncio.sleep(0)
            if fail:
                raise Failed

    async def start() -> list[Any]:
        calls = (
            in_task,
            sync_to_async(in_thread, thread_sensitive=False),
            sync_to_async(in_thread),
        )
        return await asyncio.gather(
            *(calls[n % 3](f"{n:02}", bool(n // 3 % 2)) for n in range(12)), return_exceptions=True
        )

    def work() -> list[Any]:
        with transaction.atomic():
            return async_to_sync(start)()

    async with transaction.atomic():
        async with asyncio.timeout(PATIENCE):
            results = await move(work)
    assert [isinstance(each, Failed) for each in results] == [bool(n // 3 % 2) for n in range(12)]
    assert committed_names(server) == ["00", "01", "02", "06", "07", "08"]


async def test_a_threads_block_after_others_worked_in_the_thread(server: Server) -> None:
    """A thread leaves a block that it entered before it served a coroutine it waits for."""

    async def serve() -> None:
        await sync_to_async(Author.objects.get_or_create)(name="served")
        with pytest.raises(Failed):
            async with transaction.atomic():
                await sync_to_async(Author.objects.create)(name="lost")
                raise Failed

    def work() -> None:
        with transaction.atomic():
            async_to_sync(serve)()
            Author.objects.create(name="own")
        with pytest.raises(Failed), transaction.atomic():
            async_to_sync(serve)()
            raise Failed

    async with transaction.atomic():
        await asyncio.to_thread(work)
    assert committed_names(server) == ["own", "served"]


async def test_a_thread_in_a_childs_block(server: Server) -> None:
    """A thread started in a task's nested block works inside that block, others wait."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="lost")
            entered.set()
            release.wait(PATIENCE)

    async def child() -> None:
        async with transaction.atomic():
            await asyncio.to_thread(work)
            raise Failed

    async with transaction.atomic():
        task = asyncio.create_task(child())
        await until(entered.is_set)
        count = asyncio.create_task(Author.objects.acount())
        await asyncio.sleep(0)
        assert not count.done()
        release.set()
        with pytest.raises(Failed):
            await task
        assert await count == 0
    assert committed_names(server) == []


# Threads that do not join


async def by_executor(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)


async def by_pool(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(function))


async def by_detached(function: Callable[[], Any]) -> Any:
    with detached():
        return await asyncio.to_thread(function)


@pytest.mark.parametrize(
    "move", [by_executor, by_pool, by_detached], ids=lambda move: move.__name__
)
async def test_threads_that_do_not_join(server: Server, move: Move) -> None:
    """Executors, and threads started in detached(), have a connection of their own."""

    def work() -> None:
        assert not connection.in_atomic_block
        assert names() == set()
        with transaction.atomic():
            Author.objects.create(name="thread")
        connection.close()

    with pytest.raises(Failed):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            await move(work)
            raise Failed
    assert committed_names(server) == ["thread"]


# Turns, and the end


async def test_a_thread_waits_for_its_turn(add_alias: AddAlias) -> None:
    """A thread whose turn never comes gets a RuntimeError that names the holder."""
    alias = add_alias({"turn_timeout": 0.1})
    entered, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with transaction.atomic(using=alias):
            entered.set()
            await release.wait()

    def work() -> None:
        for use in (pid, lambda alias: transaction.atomic(using=alias).__enter__()):
            with pytest.raises(RuntimeError, match=r"0\.1 s .*the-holder.*turn_timeout"):
                use(alias)

    async with transaction.atomic(using=alias):
        holder = asyncio.create_task(hold(), name="the-holder")
        await entered.wait()
        await asyncio.to_thread(work)
        release.set()
        await holder


async def test_commit_waits_for_a_threads_block(server: Server) -> None:
    """The owner's commit waits for a thread's block, also if it no longer waits for the thread."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic():
            entered.set()
            release.wait(PATIENCE)
            Author.objects.create(name="thread")

    async def own() -> None:
        async with transaction.atomic():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(work), 0.1)
            await until(entered.is_set)
        assert committed_names(server) == ["thread"]

    task = asyncio.create_task(own())
    await until(entered.is_set)
    await asyncio.sleep(0.2)
    assert not task.done()
    release.set()
    await task


@pytest.mark.parametrize("cancelled", [False, True], ids=["failed", "cancelled"])
async def test_owner_fails_while_a_threads_statement_runs(server: Server, cancelled: bool) -> None:
    """The statement is stopped in the server; the thread's block only unwinds."""
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            with transaction.atomic():
                Author.objects.create(name="thread")
                sleep(600)
        except BaseException as error:
            outcome.append(error)

    async def own() -> None:
        async with transaction.atomic():
            asyncio.create_task(asyncio.to_thread(work))  # noqa: RUF006  # outcome says
            await until(lambda: running(server, "active", "%pg_sleep%") == 1)
            if cancelled:
                await asyncio.Event().wait()
            raise Failed

    task = asyncio.create_task(own())
    if cancelled:
        await until(lambda: running(server, "active", "%pg_sleep%") == 1)
        task.cancel()
    with pytest.raises((Failed, asyncio.CancelledError)):
        async with asyncio.timeout(PATIENCE):
            await task
    assert running(server, "active", "%pg_sleep%") == 0
    assert running(server, "idle in transaction%") == 0
    await until(lambda: bool(outcome))
    assert isinstance(outcome[0], DatabaseError)
    assert committed_names(server) == []


@pytest.mark.parametrize("thread_fails", [False, True])
async def test_late_exit_of_a_thread(server: Server, thread_fails: bool) -> None:
    """A thread that leaves its block after the owner failed commits nothing, and is told so."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="thread")
            entered.set()
            release.wait(PATIENCE)
            if thread_fails:
                raise Failed

    async def own() -> None:
        async with transaction.atomic():
            tasks.append(asyncio.create_task(asyncio.to_thread(work)))
            await until(entered.is_set)
            raise KeyError

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(KeyError):
        await asyncio.create_task(own())
    assert running(server, "idle in transaction%") == 0
    release.set()
    with pytest.raises(Failed if thread_fails else RuntimeError) as caught:
        await tasks[0]
    assert thread_fails or "has ended" in str(caught.value)
    assert committed_names(server) == []


# The loop's end


class Stranded:
    """A thread in the transaction of a loop that ends, and what became of it."""

    def __init__(self, when: str, server: Server) -> None:
        self.when = when
        self.server = server
        self.ended = threading.Event()
        self.raised: list[BaseException] = []
        self.inside = threading.Event()

    def work(self) -> None:
        try:
            if self.when == "before a statement":
                Author.objects.create(name="thread")
                self.inside.set()
                assert self.ended.wait(PATIENCE)
            elif self.when == "in a statement":
                self.inside.set()
                sleep(600)
            Author.objects.create(name="late")
        except BaseException as error:
            self.raised.append(error)

    async def hold(self) -> None:
        """Keep the thread, if it is to wait, from its turn."""
        async with transaction.atomic():
            await Author.objects.acreate(name="holder")
            self.inside.set()
            await asyncio.Event().wait()

    async def own(self) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            tasks = []
            if self.when == "waiting for its turn":
                tasks.append(asyncio.create_task(self.hold()))
                await until(self.inside.is_set)
            self.thread = threading.Thread(target=contextvars.copy_context().run, args=[self.work])
            self.thread.start()
            await asyncio.Event().wait()

    async def main(self) -> None:
        """Return when the thread has got where it is to be."""
        self.owner = asyncio.create_task(self.own())
        await until(self.inside.is_set)
        if self.when == "in a statement":
            await until(lambda: running(self.server, "active", "%pg_sleep%") == 1)
        elif self.when == "waiting for its turn":
            # Everything that the thread could hand over has been taken.
            await until(lambda: len(asyncio.all_tasks()) >= 5)
            await asyncio.sleep(0.05)

    def check(self) -> None:
        self.ended.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert len(self.raised) == 1
        assert isinstance(self.raised[0], RuntimeError)
        assert "has ended" in str(self.raised[0])


whens = pytest.mark.parametrize(
    "when", ["before a statement", "waiting for its turn", "in a statement"]
)


@whens
def test_the_loop_ends_while_a_thread_is_in_a_transaction(server: Server, when: str) -> None:
    """asyncio.run() returns, the thread is told why, and nothing is left in the server."""
    stranded = Stranded(when, server)
    asyncio.run(stranded.main())
    server.wait_for_backends(0)
    stranded.check()
    assert committed_names(server) == []


@whens
@pytest.mark.filterwarnings("ignore:.*ended inside a transaction:ResourceWarning")
def test_the_loop_stops_while_a_thread_is_in_a_transaction(server: Server, when: str) -> None:
    """A thread does not wait for a loop that was stopped; nothing of its call is done later."""
    stranded = Stranded(when, server)
    with asyncio.Runner() as runner:
        runner.run(stranded.main())
        stranded.check()
        stranded.owner.cancel()
        runner.run(asyncio.wait([stranded.owner], timeout=PATIENCE))
        assert stranded.owner.cancelled()
    server.wait_for_backends(0)
    assert committed_names(server) == []


@whens
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's own
def test_the_loop_is_closed_while_a_thread_is_in_a_transaction(
    server: Server, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop closed with its tasks pending: the thread's next call ends the transaction."""
    caplog.set_level("CRITICAL", "asyncio")  # "Task was destroyed but it is pending!"
    stranded = Stranded(when, server)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(stranded.main())
    loop.close()
    stranded.check()
    gc.collect()
    assert running(server, "idle in transaction%") == 0
    assert running(server, "active", "%pg_sleep%") == 0
    assert committed_names(server) == []


# Requests


async def mixed(request: HttpRequest) -> HttpResponse:
    await Author.objects.acreate(name="view")
    await sync_to_async(Author.objects.create)(name="thread")
    assert await sync_to_async(pid)() == await apid()
    if "fail" in request.GET:
        raise Failed
    return HttpResponse("done")


@transaction.non_atomic_requests
async def apart(request: HttpRequest) -> HttpResponse:
    await Author.objects.acreate(name="view")
    await sync_to_async(Author.objects.create)(name="thread")
    raise Failed


urlpatterns = [path("mixed/", mixed), path("apart/", apart)]


@pytest.mark.parametrize(
    ("address", "status", "expected"),
    [
        ("/mixed/", 200, ["thread", "view"]),
        ("/mixed/?fail", 500, []),
        ("/apart/", 500, ["thread", "view"]),
    ],
)
async def test_thread_sensitive_function_in_an_atomic_request(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    address: str,
    status: int,
    expected: list[str],
) -> None:
    """Under ATOMIC_REQUESTS a function that the view sends to a thread is in its transaction."""
    caplog.set_level("CRITICAL", "django.request")
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    with override_settings(ROOT_URLCONF=__name__):
        assert (await get(ASGIHandler(), address))[0] == status
    assert committed_names(server) == expected
    await sync_to_async(connections.close_all)()
