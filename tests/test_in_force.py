"""A role or setting that a request has made on one of its connections is in force, or refused."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import ProgrammingError, connection, transaction

from pgbackend import bridged
from pgbackend.asgi import serve
from pgbackend.in_force import Change, changes
from pgbackend.transaction import pinned
from tests.conftest import Server
from tests.models import Author
from tests.wrapper import use_wrapper

REFUSED = "is not in force"

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
]

Ask = Callable[[], Any]


def execute(sql: str, params: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def count() -> int:
    return Author.objects.count()


def count_by_cursor() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tests_author")
        return cursor.fetchone()[0]


def count_in_a_block() -> int:
    with transaction.atomic():
        return Author.objects.count()


def close() -> None:
    connection.close()


def in_thread(function: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    return sync_to_async(function)(*args)


def on_loop(function: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    return bridged(function)(*args)


def in_request(view: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Serve *view* as a request, on a loop of its own."""

    async def whole() -> None:
        try:
            await view()
        finally:
            await in_thread(close)

    async def main() -> None:
        async with asyncio.timeout(30):
            await serve(whole)

    use_wrapper(options={"pool": {"max_size": 2}})
    with asyncio.Runner() as runner:
        runner.run(main())


@pytest.mark.parametrize(
    "ask", [count, count_by_cursor, count_in_a_block], ids=lambda f: f.__name__
)
@pytest.mark.parametrize(("sql", "undo"), SETTINGS)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_set_on_one_side(
    here: Any, there: Any, sql: str, undo: str, ask: Ask, server: Server
) -> None:
    """What is executed on the other side is refused until the setting is made there or undone."""

    async def view() -> None:
        assert await there(ask) == 0
        await here(execute, sql)
        assert await here(ask) == 0
        with pytest.raises(ProgrammingError, match=REFUSED):
            await there(ask)
        await here(execute, undo)
        assert await there(ask) == 0
        await here(execute, sql)
        await there(execute, sql)
        assert await there(ask) == await here(ask) == 0

    in_request(view)


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
    ],
)
@pytest.mark.parametrize(("here", "there"), [(in_thread, on_loop), (on_loop, in_thread)])
def test_other_statements(here: Any, there: Any, sql: str, server: Server) -> None:
    """What no row hangs on, or what has ended, refuses nothing."""

    async def view() -> None:
        await here(execute, sql)
        assert await there(count) == 0

    in_request(view)


def test_next_request(server: Server) -> None:
    """Another request, before, after or meanwhile, has nothing to do with it."""
    set_it, looked = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await in_thread(execute, "SET app.tenant = 'a'")
        set_it.set()
        await looked.wait()
        await in_thread(close)

    async def second() -> None:
        await set_it.wait()
        assert await Author.objects.acount() == 0
        looked.set()

    async def main() -> None:
        async with asyncio.timeout(30):
            await asyncio.gather(serve(first), serve(second))
            await serve(second)

    use_wrapper(options={"pool": {"max_size": 2}})
    with asyncio.Runner() as runner:
        runner.run(main())


def test_pinned(server: Server) -> None:
    """A pin's settings end with it; threads have no part in it."""

    async def view() -> None:
        async with pinned():
            await on_loop(execute, "SET app.tenant = 'a'")
        assert await in_thread(count) == 0

    in_request(view)


def test_changes() -> None:
    """Names are small letters; what no row hangs on is none."""
    assert list(changes("SET App.Tenant = 'a'")) == [Change("app.tenant", True, False)]
    assert list(changes("set local role x")) == [Change("role", True, True)]
    assert list(changes("DISCARD ALL")) == [Change("", False, False)]
    assert list(changes("UPDATE a SET role = 'x'")) == []
    assert list(changes("SELECT 1; -- SET ROLE x")) == []
