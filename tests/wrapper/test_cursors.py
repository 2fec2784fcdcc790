"""Raw SQL through Django's cursors, and how long a cursor holds its connection."""

import asyncio
import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from pgbackend import bridged
from pgbackend.bridge.greenlets import run_bridged
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.wrapper import PID, check_all_back, on_loan, run, small_pool, until, use_wrapper


@pytest.fixture
def authors(server: Server) -> Iterator[list[str]]:
    """Ten authors in the table, in this order."""
    names = [f"author {n}" for n in range(10)]
    for name in names:
        server.all("INSERT INTO tests_author (name) VALUES (%s)", name)
    return names


# Statements


@bridged
def _statements() -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", ["Ada"])
        assert cursor.rowcount == 1
        cursor.executemany(
            "INSERT INTO tests_author (name) VALUES (%s)", [["Grace"], ["Jean"], ["Edsger"]]
        )
        assert cursor.rowcount == 3
        query = "SELECT name FROM tests_author ORDER BY id"
        cursor.execute(query)
        assert [column.name for column in cursor.description] == ["name"]
        assert cursor.fetchone() == ("Ada",)
        assert cursor.fetchmany(2) == [("Grace",), ("Jean",)]
        assert cursor.fetchall() == [("Edsger",)]
        assert cursor.fetchone() is None
        cursor.execute(query)
        assert [name for (name,) in cursor] == ["Ada", "Grace", "Jean", "Edsger"]


async def test_execute_and_fetch() -> None:
    """execute, executemany, the fetch methods and iteration give what PEP 249 says."""
    await _statements()
    assert await Author.objects.acount() == 4


async def test_parameters() -> None:
    """Parameters go by position and by name; without any a percent sign is itself."""

    def statements() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s || %s", ["a", "b%"])
            assert cursor.fetchone() == ("ab%",)
            cursor.execute("SELECT %(x)s", {"x": "named"})
            assert cursor.fetchone() == ("named",)
            cursor.execute("SELECT '100%'")
            assert cursor.fetchone() == ("100%",)

    await run_bridged(statements)


async def test_nextset() -> None:
    """Several statements in one execute give several result sets."""

    def statements() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2 UNION ALL SELECT 3")
            assert cursor.fetchall() == [(1,)]
            assert cursor.nextset()
            assert cursor.fetchall() == [(2,), (3,)]
            assert not cursor.nextset()

    await run_bridged(statements)


async def test_callproc() -> None:
    """callproc calls a function of the server."""

    def statements() -> None:
        with connection.cursor() as cursor:
            assert cursor.callproc("concat", ["a", "b"]) == ["a", "b"]
            assert cursor.fetchone() == ("ab",)
            cursor.callproc("pg_backend_pid")
            assert cursor.fetchone() == (connection.connection.info.backend_pid,)
            with pytest.raises(NotSupportedError):
                cursor.callproc("concat", ["a"], {"b": 1})

    await run_bridged(statements)


async def test_copy(authors: list[str]) -> None:
    """copy() of the cursor reads and writes, as psycopg documents it."""

    def statements() -> None:
        with connection.cursor() as cursor:
            with cursor.copy("COPY tests_author (name) FROM STDIN") as copy:
                copy.write("one\ntwo\n")
            with cursor.copy("COPY (SELECT name FROM tests_author ORDER BY id) TO STDOUT") as copy:
                names = b"".join(copy).decode().split()
        assert names[-2:] == ["one", "two"]

    await run_bridged(statements)
    assert await Author.objects.acount() == 12


ENDLESS = "COPY (SELECT generate_series(1, 2000000000)) TO STDOUT"


def leave_copy() -> None:
    """Read the first row of a COPY that has far more."""
    with connection.cursor() as cursor:
        with cursor.copy(ENDLESS) as copy:
            assert next(iter(copy))
        assert not cursor.closed
        if not connection.in_atomic_block:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)


def leave_copy_in_blocks(blocks: int) -> None:
    with transaction.atomic():
        Author.objects.create(name=f"undone {blocks}")
        if blocks > 1:
            leave_copy_in_blocks(blocks - 1)
        else:
            leave_copy()


async def test_copy_left_early(server: Server) -> None:
    """A COPY TO that is left early is stopped; a transaction that it was in cannot be committed."""
    await run_bridged(leave_copy)
    for blocks in (1, 2, 3):
        with pytest.raises(InternalError):
            await run_bridged(leave_copy_in_blocks, blocks)
    assert server.one("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY %'") == 0
    assert await Author.objects.acount() == 0


def test_copy_left_early_in_a_thread() -> None:
    """So it is on a connection of a thread."""
    leave_copy()
    for blocks in (1, 2):
        with pytest.raises(InternalError):
            leave_copy_in_blocks(blocks)
    assert Author.objects.count() == 0


async def test_chunked_cursor(server: Server) -> None:
    """A named cursor leaves the rows in the server and fetches them in parts."""
    wrapper = small_pool()

    def statements() -> None:
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 1000)")
            assert cursor.fetchone() == (1,)
            assert cursor.fetchmany(2) == [(2,), (3,)]
            with connection.cursor() as other:
                other.execute("SELECT is_holdable FROM pg_cursors")
                assert other.fetchall() == [(True,)]
            assert len(cursor.fetchall()) == 997

    await run_bridged(statements)
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0
    await check_all_back(wrapper)


# Errors


@pytest.mark.parametrize(
    ("query", "error", "cause"),
    [
        ("SELEC", ProgrammingError, psycopg.errors.SyntaxError),
        ("SELECT 1 / 0", DataError, psycopg.errors.DivisionByZero),
        (
            "INSERT INTO tests_book (title) VALUES (NULL)",
            IntegrityError,
            psycopg.errors.NotNullViolation,
        ),
        (
            "SET LOCAL statement_timeout = 1; SELECT pg_sleep(600)",
            OperationalError,
            psycopg.errors.QueryCanceled,
        ),
    ],
)
async def test_errors_are_djangos(
    query: str, error: type[DatabaseError], cause: type[psycopg.Error]
) -> None:
    """A failing statement raises Django's class, caused by psycopg's, and leaves no lease."""
    wrapper = small_pool()
    with pytest.raises(error) as caught:
        await run(wrapper, query)
    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, cause)
    await check_all_back(wrapper)


async def test_errors_of_fetching_are_djangos() -> None:
    """Fetching where there is no result is Django's ProgrammingError."""

    def fetch(method: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET search_path = public")
            getattr(cursor, method)()

    for method in ("fetchone", "fetchmany", "fetchall"):
        with pytest.raises(ProgrammingError):
            await run_bridged(fetch, method)


async def test_error_in_callproc_and_executemany() -> None:
    """callproc and executemany raise Django's classes too, and leave no lease."""
    wrapper = small_pool()

    def callproc() -> None:
        with connection.cursor() as cursor:
            cursor.callproc("no_such_function")

    def executemany() -> None:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [["x"], ["x"]])

    with pytest.raises(ProgrammingError, match="no_such_function"):
        await run_bridged(callproc)
    with pytest.raises(IntegrityError, match="tests_author_name"):
        await run_bridged(executemany)
    await check_all_back(wrapper)
    assert await Author.objects.acount() == 0


async def test_cursor_goes_on_after_an_error() -> None:
    """Outside a transaction a cursor can be used again after a statement has failed."""

    def statements() -> Any:
        with connection.cursor() as cursor:
            with pytest.raises(ProgrammingError):
                cursor.execute("SELEC")
            cursor.execute("SELECT 1")
            return cursor.fetchone()

    assert await run_bridged(statements) == (1,)


async def test_many_errors_leave_no_lease() -> None:
    """A hundred failing statements at once leave every connection in the pool."""
    wrapper = small_pool(3)
    results = await asyncio.gather(
        *(run(wrapper, "SELECT 1 / 0") for _ in range(100)), return_exceptions=True
    )
    assert {type(result) for result in results} == {DataError}
    await check_all_back(wrapper)


async def test_closed_cursor() -> None:
    """A closed cursor cannot be used, and closing it again does nothing."""
    wrapper = small_pool()

    def statements() -> None:
        cursor = connection.cursor()
        cursor.close()
        cursor.close()
        assert on_loan(wrapper) == 0
        with pytest.raises(InterfaceError, match="closed"):
            cursor.execute("SELECT 1")

    await run_bridged(statements)
    await check_all_back(wrapper)


# Instrumentation


async def test_execute_wrapper(authors: list[str]) -> None:
    """execute_wrapper sees each statement of the task, ORM and raw, many or one."""
    seen: list[tuple[str, bool]] = []

    def watch(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        assert context["connection"].alias == "default"
        seen.append((sql, many))
        return execute(sql, params, many, context)

    def statements() -> None:
        with connection.execute_wrapper(watch), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.executemany("UPDATE tests_author SET name = %s WHERE false", [["x"]])
            Author.objects.count()
        Author.objects.count()

    await run_bridged(statements)
    assert [many for _, many in seen] == [False, True, False]
    assert seen[0] == ("SELECT 1", False)
    assert "COUNT(*)" in seen[2][0]


async def test_execute_wrapper_may_forbid_statements() -> None:
    """An execute_wrapper that raises keeps the statement from the server, and leaves no lease."""
    wrapper = small_pool()

    def forbid(*args: Any) -> None:
        raise LookupError("no queries here")

    async def forbidden() -> None:
        with connection.execute_wrapper(forbid):
            await Author.objects.acreate(name="Ada")

    with pytest.raises(LookupError, match="no queries here"):
        await forbidden()
    await check_all_back(wrapper)
    assert await Author.objects.acount() == 0


async def test_query_log_in_debug(caplog: pytest.LogCaptureFixture) -> None:
    """With DEBUG each statement is in connection.queries and goes to django.db.backends."""
    with override_settings(DEBUG=True), caplog.at_level(logging.DEBUG, "django.db.backends"):
        await Author.objects.acreate(name="Ada")
        await run(connections["default"], "SELECT %s", [41])
        queries = [query["sql"] for query in connection.queries]
    assert queries[0].startswith("INSERT INTO")
    assert queries[1:] == ["SELECT 41"]
    records = [record for record in caplog.records if record.name == "django.db.backends"]
    assert [record.sql for record in records] == queries  # type: ignore[attr-defined]  # extra
    assert all("alias=default" in record.getMessage() for record in records)


async def test_no_query_log_without_debug() -> None:
    """Without DEBUG nothing is logged."""
    await Author.objects.acount()
    assert connection.queries == []


async def test_force_debug_cursor() -> None:
    """CaptureQueriesContext works in bridged code, with raw SQL, executemany and COPY."""

    def statements() -> list[str]:
        with CaptureQueriesContext(connection) as captured, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.executemany("UPDATE tests_author SET name = %s", [["x"], ["y"]])
            with cursor.copy("COPY tests_author (name) FROM STDIN") as copy:
                copy.write_row(["Ada"])
            list(Author.objects.all())
        return [query["sql"] for query in captured.captured_queries]

    queries = await run_bridged(statements)
    assert queries[:3] == [
        "SELECT 1",
        "2 times: UPDATE tests_author SET name = %s",
        "COPY tests_author (name) FROM STDIN",
    ]
    assert queries[3].startswith("SELECT")
    assert len(queries) == 4


async def test_transactions_are_logged() -> None:
    """BEGIN and COMMIT appear in the query log, as in Django."""

    def statements() -> list[str]:
        with CaptureQueriesContext(connection) as captured, transaction.atomic():
            Author.objects.count()
        return [query["sql"] for query in captured.captured_queries]

    queries = await run_bridged(statements)
    assert (queries[0], queries[-1], len(queries)) == ("BEGIN", "COMMIT", 3)


# Server-side cursors


async def test_aiterator_holds_its_connection(authors: list[str]) -> None:
    """aiterator keeps its connection between the chunks, shared with the task's statements."""
    wrapper = small_pool()
    names = []
    pids = set()
    async for author in Author.objects.order_by("pk").aiterator(chunk_size=3):
        names.append(author.name)
        pids.add(await run(wrapper, PID))
        # The last chunk holds the last row alone: with it the cursor has ended.
        assert on_loan(wrapper) == (len(names) < len(authors))
    assert names == authors
    assert len(pids) == 1
    assert on_loan(wrapper) == 0
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0


async def test_aiterator_reads_from_the_server_in_chunks(authors: list[str]) -> None:
    """aiterator's rows come from a cursor that stays open in the server."""
    wrapper = small_pool()
    rows = Author.objects.order_by("pk").aiterator(chunk_size=3)
    async for _ in rows:
        assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 1
        break
    await rows.aclose()


async def test_aiterator_left_early_by_aclose(authors: list[str]) -> None:
    """aclose() closes the cursor in the server and gives its connection back at once."""
    wrapper = small_pool()
    rows = Author.objects.order_by("pk").aiterator(chunk_size=3)
    assert (await anext(rows)).name == authors[0]
    pid = await run(wrapper, PID)
    await rows.aclose()
    assert on_loan(wrapper) == 0
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0
    assert await run(wrapper, PID) == pid


async def test_aiterator_that_fails(authors: list[str]) -> None:
    """An error of the server is Django's, and gives the connection back."""
    wrapper = small_pool()
    rows = Author.objects.extra(select={"broken": "1 / (5 - id)"}).order_by("pk")

    async def read() -> None:
        async for _ in rows.aiterator(chunk_size=2):
            pass

    with pytest.raises(DataError, match="division by zero"):
        await read()
    await check_all_back(wrapper)


async def test_aiterator_dropped_on_a_running_loop(authors: list[str]) -> None:
    """An aiterator that is dropped half-way is closed by the loop, as async generators are."""
    wrapper = small_pool()
    rows = Author.objects.order_by("pk").aiterator(chunk_size=3)
    await anext(rows)
    pid = await run(wrapper, PID)
    del rows
    gc.collect()
    await until(lambda: not on_loan(wrapper))
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0
    assert await run(wrapper, PID) == pid


def test_aiterator_left_open_when_the_loop_ends(authors: list[str], server: Server) -> None:
    """A program that ends inside an aiterator ends cleanly, and its connection closes."""

    async def main() -> Any:
        rows = Author.objects.order_by("pk").aiterator(chunk_size=3)
        await anext(rows)
        return rows

    rows = asyncio.run(main())
    server.wait_for_backends(0)
    del rows
    gc.collect()


def _start_iterator() -> Any:
    rows = Author.objects.order_by("pk").iterator(chunk_size=3)
    next(rows)
    return rows


def _start_chunked_cursor() -> Any:
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT name FROM tests_author")
    return cursor


@pytest.mark.parametrize("start", [_start_iterator, _start_chunked_cursor])
async def test_server_side_cursor_collected_outside_the_bridge(
    start: Callable[[], Any], authors: list[str]
) -> None:
    """A server-side cursor dropped outside the bridge warns, and its connection is replaced."""
    wrapper = small_pool()
    rows = await run_bridged(start)
    pid = await run(wrapper, PID)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del rows
        gc.collect()
    # psycopg may warn of its cursor, too.
    assert {warning.category for warning in caught} == {ResourceWarning}
    ours = [str(each.message) for each in caught if "its connection is closed" in str(each.message)]
    assert len(ours) == 1
    assert "aclose()" in ours[0]
    await check_all_back(wrapper)
    assert await run(wrapper, PID) != pid


async def test_iterator_goes_on_in_the_next_bridged_call(authors: list[str]) -> None:
    """A server-side cursor outlasts the call that opened it, and ends with its last row."""
    wrapper = small_pool()

    def start() -> Any:
        rows = Author.objects.order_by("pk").iterator(chunk_size=3)
        return rows, next(rows).name

    rows, first = await run_bridged(start)
    assert on_loan(wrapper) == 1
    rest = await run_bridged(lambda: [author.name for author in rows])
    assert [first, *rest] == authors
    assert on_loan(wrapper) == 0


def test_aiterator_dropped_as_the_loop_ends(authors: list[str], server: Server) -> None:
    """An aiterator that is left just before the loop ends is no trouble, either."""

    async def main() -> None:
        async for _ in Author.objects.order_by("pk").aiterator(chunk_size=3):
            break

    asyncio.run(main())
    gc.collect()
    server.wait_for_backends(0)


async def test_cancelled_while_a_server_side_cursor_is_closed(authors: list[str]) -> None:
    """Who is cancelled while the cursor is being closed has not left it open: no warning."""
    wrapper = small_pool()

    def read() -> None:
        with wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT name FROM tests_author")
            assert cursor.fetchone() is not None
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(run_bridged(read))
    await check_all_back(wrapper)


async def test_server_side_cursor_is_closed_on_a_lost_connection(
    server: Server, authors: list[str]
) -> None:
    """The error of a cursor that is closed is Django's, as that of its statements."""
    wrapper = small_pool()

    def read() -> None:
        with wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid() FROM tests_author")
            server.all("SELECT pg_terminate_backend(%s, 10000)", cursor.fetchone()[0])

    with pytest.raises(OperationalError):
        await run_bridged(read)
    await check_all_back(wrapper)


async def test_aiterator_cancelled_between_chunks(authors: list[str]) -> None:
    """A task cancelled while it reads by aiterator gives its connection back."""
    wrapper = small_pool()
    reading = asyncio.Event()

    async def read() -> None:
        async for _ in Author.objects.order_by("pk").aiterator(chunk_size=3):
            reading.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await asyncio.wait_for(reading.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await check_all_back(wrapper)
    assert await run(wrapper, "SELECT count(*) FROM pg_cursors") == 0


async def test_aiterators_of_many_tasks(authors: list[str]) -> None:
    """More tasks than connections read by aiterator: each gets all rows, none is lost."""
    wrapper = use_wrapper(options={"pool": {"max_size": 3}})

    async def read() -> list[str]:
        rows = Author.objects.order_by("pk").aiterator(chunk_size=3)
        return [author.name async for author in rows]

    assert await asyncio.gather(*(read() for _ in range(20))) == [authors] * 20
    await check_all_back(wrapper)
