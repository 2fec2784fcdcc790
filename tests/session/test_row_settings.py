"""A role or setting that a request has made on one of its connections is in force, or refused."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, ProgrammingError, connection, transaction
from psycopg import sql

from pgbackend.session.row_settings import Change, changes_settings_only, setting_changes
from pgbackend.transaction import detached, pinned
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.one_request import (
    REFUSED,
    Ask,
    close,
    count,
    count_by_cursor,
    execute,
    in_request,
    in_thread,
    on_loop,
)
from tests.support.server import Server

# Statements, and what undoes them.
SETTINGS = [
    ("SET app.tenant = 'a'", "RESET app.tenant"),
    ("SET SESSION app.tenant TO 'a'", "SET app.tenant TO DEFAULT"),
    ("SELECT set_config('app.tenant', 'a', false)", "SELECT set_config('app.tenant', '', false)"),
    ("/* b */ SET /* c */ search_path = pg_catalog, public", "RESET search_path"),
    ("SET SCHEMA 'public'", "RESET search_path"),
    ("SET ROLE pg_read_all_data", "RESET ROLE"),
    ("SET LOCAL app.other = 'b'; SET ROLE pg_read_all_data", "SET ROLE NONE"),
    ("SET SESSION AUTHORIZATION postgres", "RESET SESSION AUTHORIZATION"),
    ("SET row_security = off", "RESET ALL"),
    ('SET "role" = pg_read_all_data', "DISCARD ALL"),
    ('SET "app"."tenant" = \'a\'', 'RESET "app".tenant'),
    (b"SET ROLE pg_read_all_data", b"RESET ROLE"),
    (sql.SQL("SET ROLE {}").format(sql.Identifier("pg_read_all_data")), sql.SQL("RESET ROLE")),
    ("SELECT SET_CONFIG('app.tenant', concat('a', 'b'), 'f')", "RESET app.tenant"),
    ("SET search_path = none, public", "RESET search_path"),
    ("SET ROLE pg_read_all_data", "SET SESSION AUTHORIZATION DEFAULT"),
]

# Where the name is not in the text, nothing is known to undo it but the end of the connection.
UNNAMED = [
    "SELECT set_config('app.' || 'tenant', 'a', false)",
    "SELECT set_config($$app.tenant$$, 'a', false)",
    "DO $$ BEGIN SET app.tenant = 'a'; END $$",
    "UPDATE pg_settings SET setting = 'public' WHERE name = 'search_path'",
]


def count_in_a_block() -> int:
    with transaction.atomic():
        return Author.objects.count()


@pytest.mark.parametrize(
    "ask", [count, count_by_cursor, count_in_a_block], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(("query", "undo"), SETTINGS)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_set_on_one_side(
    here: Any, there: Any, query: Any, undo: Any, ask: Ask, server: Server
) -> None:
    """What is executed on the other side is refused until the setting is made there or undone."""

    async def view() -> None:
        assert await there(ask) == 0
        await here(execute, query)
        assert await here(ask) == 0
        with pytest.raises(ProgrammingError, match=REFUSED):
            await there(ask)
        await here(execute, undo)
        assert await there(ask) == 0
        await here(execute, query)
        await there(execute, query)
        assert await there(ask) == await here(ask) == 0

    in_request(view)


def copy_out() -> Any:
    with connection.cursor() as cursor, cursor.copy("COPY tests_author TO STDOUT") as copy:
        return list(copy)


def copy_in() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY tests_author (name) FROM STDIN") as copy,
    ):
        copy.write_row(["Ada"])


def stream() -> Any:
    with connection.cursor() as cursor:
        return list(cursor.stream("SELECT current_user"))


def call() -> None:
    with connection.cursor() as cursor:
        cursor.callproc("current_database")


def execute_many() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [["Ada"]])


def with_another_setting() -> None:
    execute("SET LOCAL app.other = 'x'; SELECT current_user")


def with_a_setting_in_its_row() -> None:
    execute("SELECT set_config('app.other', '1', true), count(*) FROM tests_author")


def before_a_reset() -> None:
    execute("SELECT current_user; RESET app.other")


@pytest.mark.parametrize(
    "ask",
    [
        copy_out,
        copy_in,
        stream,
        call,
        execute_many,
        with_another_setting,
        with_a_setting_in_its_row,
        before_a_reset,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_ways_to_execute(here: Any, there: Any, ask: Ask, server: Server) -> None:
    """Whichever way a statement takes, it is refused, though it may set something, too."""

    async def view() -> None:
        await here(execute, "SET ROLE pg_read_all_data")
        with pytest.raises(ProgrammingError, match=REFUSED):
            await there(ask)

    in_request(view)
    assert server.all("SELECT name FROM tests_author") == []


def set_many() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config(%s, %s, false)", [["app.tenant", "a"]])


@pytest.mark.parametrize("query", [*UNNAMED, None])
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_name_is_not_in_the_text(here: Any, there: Any, query: str | None, server: Server) -> None:
    """A statement that sets something by a name that it computes counts, too."""

    async def view() -> None:
        if query is None:
            await here(set_many)
        else:
            await here(execute, query)
        with pytest.raises(ProgrammingError, match=REFUSED):
            await there(count)

    in_request(view)


def set_and_roll_back() -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        execute("SET app.tenant = 'a'")
        raise ZeroDivisionError


def set_and_roll_back_to_a_savepoint() -> None:
    with transaction.atomic():
        set_and_roll_back()


def set_in_vain() -> None:
    with suppress(ProgrammingError, DataError):
        execute("SET ROLE nobody_such")


@pytest.mark.parametrize(
    "undone",
    [set_and_roll_back, set_and_roll_back_to_a_savepoint, set_in_vain],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_undone(here: Any, there: Any, undone: Callable[[], None], server: Server) -> None:
    """What was rolled back, or has failed, is not in force: on neither side."""

    async def view() -> None:
        await here(undone)
        assert await there(count) == 0
        await there(execute, "SET app.tenant = 'a'")
        await there(execute, "SET ROLE pg_read_all_data")
        await here(undone)
        with pytest.raises(ProgrammingError, match=REFUSED):
            await here(count)

    in_request(view)


def test_several_threads(server: Server) -> None:
    """Each has a connection of its own: what one rolls back, or closes, the other has still.

    Though both are in blocks of one object.
    """
    shared = transaction.atomic()
    inside, has_set = threading.Event(), threading.Event()

    def other() -> None:
        with shared:
            inside.set()
            assert has_set.wait(PATIENCE)
        connection.close()

    def sets() -> None:
        assert inside.wait(PATIENCE)
        execute("SET app.tenant = 'a'")
        with suppress(ZeroDivisionError), shared:
            execute("SET app.other = 'b'")
            raise ZeroDivisionError
        has_set.set()

    async def view() -> None:
        task = asyncio.create_task(sync_to_async(other, thread_sensitive=False)())
        await in_thread(sets)
        await task
        with pytest.raises(ProgrammingError, match=r"has set app\.tenant on"):
            await on_loop(count)
        await on_loop(execute, "SET app.tenant = 'a'")
        assert await on_loop(count) == 0

    in_request(view)


def test_new_connection_of_a_thread(server: Server) -> None:
    """What was set on a connection is gone with it."""

    async def view() -> None:
        await in_thread(execute, "SET app.tenant = 'a'")
        await in_thread(close)
        assert await on_loop(count) == 0

    in_request(view)


def test_savepoints(server: Server) -> None:
    """The end of a block is none of it: what it has written is kept or rolled back as it says."""

    async def view() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="outer")
            async with transaction.atomic():
                await Author.objects.acreate(name="nested")
                with detached():
                    task = asyncio.create_task(in_thread(execute, "SET app.tenant = 'a'"))
                await task
        async with transaction.atomic(), transaction.atomic():
            await on_loop(execute, "SET LOCAL app.tenant = 'a'")
            await Author.objects.acreate(name="later")

    in_request(view)
    assert server.all("SELECT name FROM tests_author ORDER BY name") == [
        ("later",),
        ("nested",),
        ("outer",),
    ]


@pytest.mark.parametrize("ask", [count, count_by_cursor], ids=lambda f: f.__name__)
def test_set_locally(ask: Ask, server: Server) -> None:
    """A transaction of the loop's that makes the setting for itself may go on."""

    async def view() -> None:
        await in_thread(execute, "SET app.tenant = 'a'")
        async with transaction.atomic():
            with pytest.raises(ProgrammingError, match=REFUSED):
                await on_loop(ask)
            await on_loop(execute, "SELECT set_config('app.tenant', %s, true)", ["a"])
            assert await on_loop(ask) == 0
        with pytest.raises(ProgrammingError, match=REFUSED):
            await on_loop(ask)

    in_request(view)


def test_parameters(server: Server) -> None:
    """A name that is a parameter counts as well."""

    async def view() -> None:
        name, value = "app.tenant", "a"
        await in_thread(execute, "SELECT set_config(%s, %s, false)", [name, value])
        with pytest.raises(ProgrammingError, match=rf"app\.tenant .*{REFUSED}"):
            await Author.objects.acount()

    in_request(view)


def test_asynchronous_statements(server: Server) -> None:
    """Of a-methods, of children and of streams nothing is executed without the setting."""

    async def view() -> None:
        await in_thread(execute, "SET ROLE pg_read_all_data")
        with pytest.raises(ProgrammingError, match=REFUSED):
            await Author.objects.acount()
        with pytest.raises(ProgrammingError, match=REFUSED):
            await asyncio.create_task(Author.objects.acount())
        with pytest.raises(ProgrammingError, match=REFUSED):
            async for _ in Author.objects.aiterator():
                pass
        with pytest.raises(ProgrammingError, match=REFUSED):
            await Author.objects.abulk_create([Author(name="Ada")])
        with pytest.raises(ProgrammingError, match=REFUSED):
            async with transaction.atomic():
                await Author.objects.acreate(name="Ada")

    in_request(view)
    assert server.all("SELECT name FROM tests_author") == []


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'SET ROLE pg_read_all_data'",
        "UPDATE tests_author SET name = 'set app.tenant'",
        "SET statement_timeout = '10s'",
        "SET LOCAL app.tenant = 'a'",
        "SELECT pg_advisory_lock(1)",
        "SELECT set_config('app.tenant', 'a', true)",
        "SELECT set_config('app.tenant', coalesce('a', ''), true)",
        "SELECT $q$ SELECT set_config('app.tenant', 'a', false) $q$",
        "SELECT 1 /* set_config('app.tenant', 'a', false) */",
        "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql AS"
        " $f$ SELECT set_config('app.tenant', 'a', false) $f$",
    ],
)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_other_statements(here: Any, there: Any, sql: str, server: Server) -> None:
    """What no row hangs on, or what has ended, refuses nothing."""

    async def view() -> None:
        await here(execute, sql)
        assert await there(count) == 0

    in_request(view)


def test_pinned(server: Server) -> None:
    """A pin's settings end with it; threads have no part in it."""

    async def view() -> None:
        async with pinned():
            await on_loop(execute, "SET app.tenant = 'a'")
        assert await in_thread(count) == 0

    in_request(view)


def test_changes() -> None:
    """Names are small letters; what no row hangs on is none."""
    assert list(setting_changes("SET App.Tenant = 'a'")) == [Change("app.tenant", True, False)]
    assert list(setting_changes("set local role x")) == [Change("role", True, True)]
    assert list(setting_changes("DISCARD ALL")) == [Change("discard", False, False)]
    assert list(setting_changes("UPDATE a SET role = 'x'")) == []
    assert list(setting_changes("SELECT 1; -- SET ROLE x")) == []


@pytest.mark.parametrize(
    "text",
    [
        "SELECT set_config('a.b', " + "''" * 50_000,
        "SELECT set_config('a.b', (" * 4_000,
        "SELECT set_config('a.b', 'c', false), " * 3_000,
        "SET LOCAL " * 10_000,
        "SET a" + ".b" * 30_000,
        "SET ROLE x; " * 8_000,
        "SET 'a'" + " '" * 30_000,
        "discard" + " " * 100_000,
        "RESET " + "app." * 20_000,
        'SET "' + '"a".' * 20_000,
    ],
    ids=range(10),
)
def test_long_texts(text: str) -> None:
    """A text is looked at in linear time, whatever is in it."""
    began = time.process_time()
    list(setting_changes(text))
    changes_settings_only(text)
    assert time.process_time() - began < 1.0
