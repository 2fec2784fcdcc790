"""Security: what is quoted, what is seen of a password and of parameters, what roles see."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.models import F, Value
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from psycopg import sql

from pgbackend import bridged
from pgbackend.transaction import pinned
from tests.models import Author
from tests.site.stateful import meet_at
from tests.support.client import serving
from tests.support.server import Server
from tests.support.session import run
from tests.support.wrapper import PID, AddAlias, avalue, until

# Nothing but a parameter or a password may be this.
CANARY = "canary-5e0f1d"

# Requests


async def state(request: HttpRequest) -> HttpResponse:
    """Have a log, a wrapper, a hook and a transaction of its own, while others have theirs."""
    name = request.GET["name"]
    seen: list[str] = []
    hooks: list[str] = []

    def note(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
        seen.extend(each for each in params or () if isinstance(each, str))
        return execute(sql, params, *args)

    assert len(connection.queries_log) == 0
    assert connection.execute_wrappers == []
    with connection.execute_wrapper(note):
        async with transaction.atomic():
            transaction.on_commit(lambda: hooks.append(name))
            for _ in range(3):
                await Author.objects.acreate(name=f"{name} {len(seen)}")
                await asyncio.sleep(0)
            assert len(connection.run_on_commit) == 1
            assert connection.in_atomic_block
            await meet_at("inside", 8)
        assert not connection.in_atomic_block
    assert connection.run_on_commit == []
    said = [query["sql"] for query in connection.queries if "INSERT" in query["sql"]]
    assert len(said) == 3
    assert all(f"'{name} " in each for each in said)
    assert {each.partition(" ")[0] for each in seen} == {name}
    return HttpResponse(" ".join(hooks))


async def test_security_requests_are_apart() -> None:
    """No request sees the log, the execute_wrappers, the hooks or the transaction of another."""
    urls = ModuleType("urls")
    urls.urlpatterns = [path("state/", state)]
    with serving(ROOT_URLCONF=urls, DEBUG=True, PGBACKEND_BLOCKING_TIME=None) as client:
        answers = await asyncio.gather(*(client.get(f"/state/?name=n{n}") for n in range(8)))
    assert [(answer.status, answer.text) for answer in answers] == [
        (200, f"n{n}") for n in range(8)
    ]


# Passwords


@pytest.fixture
def user(server: Server, asks_for_passwords: None) -> Iterator[str]:
    """A user whose password is the canary."""
    name = "pgbackend_tests_user"
    server.all(f"CREATE ROLE {name} LOGIN PASSWORD '{CANARY}'")
    yield name
    server.all(f"DROP ROLE {name}")


@pytest.mark.parametrize("works", [True, False])
async def test_security_a_password_is_seen_nowhere(
    server: Server, add_alias: AddAlias, caplog: pytest.LogCaptureFixture, user: str, works: bool
) -> None:
    """It is in no log, repr, traceback or debug page, and not in pg_stat_activity."""
    for logger in ("", "django"):
        caplog.set_level(logging.DEBUG, logger)
    alias = add_alias({"pool": {"max_size": 2}}, USER=user if works else "nobody", PASSWORD=CANARY)
    said: list[str] = []

    async def view(request: HttpRequest) -> HttpResponse:
        wrapper = connections[alias]
        said.extend(map(repr, (wrapper, wrapper.async_pool, wrapper.async_pool.get_stats())))
        with wrapper.cursor() as cursor:
            said.extend(map(repr, (cursor, cursor.lease, wrapper.connection, wrapper.state)))
            said.append(repr(wrapper.connection.info.get_parameters()))
            cursor.execute("SELECT 1 / 0")
        return HttpResponse()

    urls = ModuleType("urls")
    urls.urlpatterns = [path("", view)]
    with serving(ROOT_URLCONF=urls, DEBUG=True, PGBACKEND_BLOCKING_TIME=None) as client:
        page = await client.get("/", accept="text/html")
        plain = await client.get("/")
    assert (page.status, plain.status) == (500, 500)
    words = "division by zero" if works else "password authentication failed"
    assert words in page.text
    assert "Local vars" in page.text
    with pytest.raises(DatabaseError) as caught:
        await avalue("SELECT 1 / 0", alias)
    said += [page.text, plain.text, caplog.text, str(caught.value), repr(caught.getrepr())]
    said += map(repr, server.all("SELECT * FROM pg_stat_activity"))
    assert not [each for each in said if CANARY in each]


@override_settings(DEBUG=True)
async def test_security_parameters_are_logged_at_debug_only(
    server: Server, add_alias: AddAlias, caplog: pytest.LogCaptureFixture
) -> None:
    """Above DEBUG no record has a parameter, whatever becomes of the statement."""
    for logger in ("", "django"):
        caplog.set_level(logging.DEBUG, logger)
    alias = add_alias({"pool": {"max_size": 1, "timeout": 5.0}})
    await Author.objects.using(alias).acreate(name=CANARY)
    with pytest.raises(IntegrityError):
        await Author.objects.using(alias).acreate(name=CANARY)
    with pytest.raises(DataError):
        await bridged(run)(alias, "SELECT %s::int", [CANARY])
    task = asyncio.create_task(bridged(run)(alias, "SELECT pg_sleep(600), %s", [CANARY]))
    query = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s"
    await until(lambda: server.all(query, f"SELECT pg_sleep(600), '{CANARY}%"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(OperationalError):
        async with pinned(alias):
            await bridged(run)(alias, "SELECT set_config('app.secret', %s, false)", [CANARY])
            pid = await avalue(PID, alias)
            assert server.one("SELECT pg_terminate_backend(%s, 30000)", pid)
            await bridged(run)(alias, "SELECT %s", [CANARY])
    assert await avalue("SELECT 1", alias) == 1
    seen = [each for each in caplog.records if CANARY in f"{each.getMessage()} {each.__dict__}"]
    assert {each.levelno for each in seen} == {logging.DEBUG}
    assert {each.name for each in seen} == {"django.db.backends"}


# Quoting

HOSTILE = "a'b\"c\\d; DROP TABLE tests_author; -- %s %(x)s $1 Ü"


@pytest.mark.parametrize("binding", [False, True])
async def test_security_parameters_are_quoted(add_alias: AddAlias, binding: bool) -> None:
    """A parameter is a value, whatever is in it: signs, quotes, placeholders."""
    alias = add_alias({"server_side_binding": binding})
    authors = Author.objects.using(alias)

    def raw(query: str, *params: Any) -> Any:
        return run(alias, query, params)

    # Not "1--1", which would begin a comment.
    assert await bridged(raw)("SELECT 1-%s::int", -1) == 2
    assert await bridged(raw)("SELECT 1 -%s::int\n", -1) == 2
    assert await bridged(raw)("SELECT %s::text", HOSTILE) == HOSTILE
    await authors.acreate(name=HOSTILE[:50])
    found = await authors.annotate(less=F("pk") - Value(-1), text=Value(HOSTILE)).aget(
        name=HOSTILE[:50]
    )
    assert (found.less, found.text) == (found.pk + 1, HOSTILE)
    assert await authors.filter(name__contains="%s").acount() == 1
    assert await authors.filter(name__contains="_").acount() == 1


@pytest.mark.parametrize("binding", [False, True])
async def test_security_nul_bytes(add_alias: AddAlias, binding: bool) -> None:
    """A NUL byte is refused before it is sent; nothing is cut off, the connection is good."""
    alias = add_alias({"server_side_binding": binding, "pool": {"max_size": 1}})
    pid = await avalue(PID, alias)
    for text in ("Ada\x00", "\x00", "Ada\x00' OR true --"):
        with pytest.raises((DataError, ValueError), match="NUL"):
            await Author.objects.using(alias).acreate(name=text)
        with pytest.raises((DataError, ValueError), match="NUL"):
            await Author.objects.using(alias).filter(name=text).aexists()
    assert await avalue(PID, alias) == pid
    assert await Author.objects.using(alias).acount() == 0


async def test_security_names_of_roles_and_settings(add_alias: AddAlias, server: Server) -> None:
    """A role's name and a setting's value are quoted when connecting and in each reset."""
    role = HOSTILE.encode()[:60].decode()
    server.conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        alias = add_alias({"assume_role": role, "pool": {"max_size": 1}})

        def set_up(connection: Any, **kwargs: Any) -> None:
            if connection.alias == alias:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT set_config('app.name', %s, false)", [HOSTILE])

        connection_created.connect(set_up)
        try:
            for _ in range(3):
                assert await avalue("SELECT current_user::text", alias) == role
                assert await avalue("SELECT current_setting('app.name')", alias) == HOSTILE
        finally:
            connection_created.disconnect(set_up)
    finally:
        server.conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert server.one("SELECT count(*) FROM tests_author") == 0


async def test_security_explain_options() -> None:
    """explain() takes no SQL in the names or values of its options."""
    authors = Author.objects.all()
    with pytest.raises(ValueError, match="Invalid option name"):
        await authors.aexplain(**{"analyze); DROP TABLE tests_author; --": True})
    with pytest.raises(ValueError, match="is not a recognized format"):
        await authors.aexplain(format="json); DROP TABLE tests_author; --")
    await authors.aexplain(analyze="true); DROP TABLE tests_author; --")
    assert await authors.acount() == 0


# Row-level security


@pytest.fixture
def tenants(server: Server) -> Iterator[list[str]]:
    """Two roles, each of which sees the authors that have its name first."""
    roles = ["pgbackend_tests_a", "pgbackend_tests_b"]
    server.all("ALTER TABLE tests_author ENABLE ROW LEVEL SECURITY")
    server.all("CREATE POLICY own ON tests_author USING (starts_with(name, current_user))")
    for role in roles:
        server.all(f"CREATE ROLE {role}")
        server.all(f"GRANT SELECT ON tests_author TO {role}")
        server.all(
            "INSERT INTO tests_author (name) SELECT %s || n FROM generate_series(1, 3) n", role
        )
    yield roles
    server.all("ALTER TABLE tests_author DISABLE ROW LEVEL SECURITY")
    server.all("DROP POLICY own ON tests_author")
    for role in roles:
        server.all(f"DROP OWNED BY {role}")
        server.all(f"DROP ROLE {role}")


@pytest.mark.parametrize("options", [{}, {"server_side_binding": True, "prepare_threshold": 0}])
async def test_security_rows_of_roles(
    add_alias: AddAlias, tenants: list[str], options: dict[str, Any]
) -> None:
    """No plan, prepared statement or role is shared: each sees its rows, on one connection."""
    alias = add_alias({"pool": {"max_size": 1}, **options})
    assumed = [add_alias({"assume_role": role, **options}) for role in tenants]

    async def seen(alias: str) -> list[str]:
        return [each.name async for each in Author.objects.using(alias).order_by("name")]

    async def of_transaction(role: str) -> list[str]:
        async with transaction.atomic(alias):
            await bridged(run)(alias, f"SET LOCAL ROLE {role}")
            return await seen(alias)

    async def of_pin(role: str) -> list[str]:
        async with pinned(alias):
            await bridged(run)(alias, f"SET ROLE {role}")
            return await seen(alias)

    async def of_alias(role: str) -> list[str]:
        return await seen(assumed[tenants.index(role)])

    ways = [of_transaction, of_pin, of_alias]
    asked = [(way, role) for _ in range(10) for way in ways for role in tenants]
    found = await asyncio.gather(*(way(role) for way, role in asked))
    for (_, role), names in zip(asked, found, strict=True):
        assert names == [f"{role}{n}" for n in (1, 2, 3)]
    # The superuser sees all, after each of them.
    assert len(await seen(alias)) == 6
