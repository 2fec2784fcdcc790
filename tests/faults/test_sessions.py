"""Faults, rows 28, 30 and 37: what lives in a session, and what a connection is opened with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from psycopg import sql

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.transaction import pinned
from pgbackend.wrapper.dispatch import in_bridge
from tests.support.client import Client, serving
from tests.support.server import NAME, Server
from tests.support.session import PROBES, run
from tests.support.wrapper import PID, AddAlias, avalue

# Those of the tests of sessions, but for the lock, which each session has its own of here, and
# with the role last: it would not be allowed all others.
SESSION = {
    **{name: probe for name, probe in PROBES.items() if name != "role"},
    "advisory lock": (
        "SELECT pg_advisory_lock(pg_backend_pid())",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        0,
    ),
    "role": PROBES["role"],
}
FRESH = {name: fresh for name, (_, _, fresh) in SESSION.items()}


class Failed(Exception):
    pass


def look(alias: str) -> dict[str, Any]:
    return {name: run(alias, ask) for name, (_, ask, _) in SESSION.items()}


def spoil(alias: str) -> None:
    for change, _, _ in SESSION.values():
        run(alias, change)


# Row 28


async def test_28_each_borrower_has_a_fresh_session(server: Server, add_alias: AddAlias) -> None:
    """Of 60 that spoil all there is, and end well, fail or are cancelled, none sees another's."""
    alias = add_alias({"pool": {"max_size": 4}})
    seen: list[dict[str, Any]] = []

    async def borrow(number: int) -> None:
        if number % 2:
            await work(number, pinned(alias))
        else:
            await in_bridge(work, number, transaction.atomic(alias))

    async def work(number: int, keep: Any) -> None:
        async with keep:
            seen.append(await bridged(look)(alias))
            await bridged(spoil)(alias)
            found = await bridged(look)(alias)
            kept = {name for name in FRESH if found[name] == FRESH[name]}
            # LISTEN begins with the commit.
            assert kept <= ({"listen"} if number % 2 == 0 else set())
            if number % 3 == 1:
                raise Failed
            if number % 3 == 2:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_later(0.01, task.cancel)
                await avalue("SELECT pg_sleep(600)", alias)

    ends = await asyncio.gather(*map(borrow, range(60)), return_exceptions=True)
    expected = [type(None), Failed, asyncio.CancelledError] * 20
    assert [type(end) for end in ends] == expected
    seen += await asyncio.gather(*(bridged(look)(alias) for _ in range(8)))
    assert [each for each in seen if each != FRESH] == []
    assert len(seen) == 68


# Row 30


@pytest.fixture
def user(server: Server, asks_for_passwords: None) -> Iterator[str]:
    """A user whose password is asked for."""
    name = "pgbackend_tests_user"
    server.all(f"CREATE ROLE {name} LOGIN PASSWORD 'first'")
    yield name
    server.all(f"DROP ROLE {name}")


@pytest.fixture
def rotate(server: Server, user: str) -> Callable[[str], None]:
    """A function that gives the user another password and ends its connections."""

    def change(password: str) -> None:
        server.conn.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(user), password)
        )
        server.all(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE usename = %s",
            user,
        )

    return change


async def check_refused(alias: str) -> None:
    with pytest.raises(OperationalError, match="password authentication failed"):
        await avalue("SELECT 1", alias)


async def check_accepted(alias: str, user: str) -> None:
    """Check that the user is let in, once the attempts have ended that the pool had begun."""
    for _ in range(2):
        try:
            assert await avalue("SELECT current_user", alias) == user
        except OperationalError:
            continue
        return
    assert await avalue("SELECT current_user", alias) == user


async def test_30_password_file(
    add_alias: AddAlias,
    user: str,
    rotate: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PGPASSFILE is read for each connection: a rotated password needs no restart."""
    file = tmp_path / "passwords"
    file.touch(mode=0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    alias = add_alias({"pool": {"max_size": 2}}, USER=user, PASSWORD="")
    file.write_text("*:*:*:*:first")
    assert await avalue("SELECT current_user", alias) == user
    rotate("second")
    await check_refused(alias)
    file.write_text("*:*:*:*:second")
    await check_accepted(alias, user)


async def test_30_password_in_settings(
    add_alias: AddAlias, user: str, rotate: Callable[[str], None]
) -> None:
    """A password that is changed in the settings of a running process is used from then on."""
    alias = add_alias({"pool": {"max_size": 2}}, USER=user, PASSWORD="first")
    assert await avalue("SELECT current_user", alias) == user
    rotate("second")
    await check_refused(alias)
    connections.settings[alias]["PASSWORD"] = "second"
    assert await avalue("SELECT current_user", alias) == user


async def test_30_password_of_a_subclass(
    add_alias: AddAlias, user: str, rotate: Callable[[str], None]
) -> None:
    """get_connection_params() of a subclass is asked for each connection: tokens that expire."""
    tokens = ["first"]

    class Tokens(DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "password": tokens[-1]}

    alias = add_alias({"pool": {"max_size": 2}}, USER=user, PASSWORD="")
    connections[alias] = Tokens(connections.settings[alias], alias)
    assert await avalue("SELECT current_user", alias) == user
    rotate("second")
    await check_refused(alias)
    tokens.append("second")
    await check_accepted(alias, user)


async def test_30_service_file(
    add_alias: AddAlias, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service file is read for each connection: an edit holds from the next one on."""
    conf = connection.settings_dict
    file = tmp_path / "services"
    monkeypatch.setenv("PGSERVICEFILE", str(file))

    def write(database: str) -> None:
        lines = [f"host={conf['HOST']}", f"port={conf['PORT'] or ''}", f"user={conf['USER']}"]
        if conf["PASSWORD"]:
            lines.append(f"password={conf['PASSWORD']}")
        file.write_text("\n".join(["[site]", f"dbname={database}", *lines]))

    alias = add_alias(
        {"service": "site", "pool": {"max_size": 1}},
        **dict.fromkeys(("NAME", "HOST", "PORT", "USER", "PASSWORD"), ""),
    )
    write(conf["NAME"])
    assert await avalue("SELECT current_database()", alias) == conf["NAME"]
    write("postgres")
    # Those that are open stay.
    pid = await avalue(PID, alias)
    assert await avalue("SELECT current_database()", alias) == conf["NAME"]
    assert server.one("SELECT pg_terminate_backend(%s, 30000)", pid)
    assert await avalue("SELECT current_database()", alias) == "postgres"


async def test_30_role_and_time_zone(add_alias: AddAlias) -> None:
    """assume_role and TIME_ZONE hold for a connection's first statement and after each reset."""
    alias = add_alias(
        {"pool": {"max_size": 3}, "assume_role": "pg_monitor"}, TIME_ZONE="Asia/Tokyo"
    )
    ask = "SELECT ARRAY[current_user::text, current_setting('TimeZone')]"
    expected = ["pg_monitor", "Asia/Tokyo"]

    async def work() -> None:
        async with pinned(alias):
            assert await avalue(ask, alias) == expected
            for statement in ("RESET ROLE", "SET TIME ZONE 'Europe/Paris'"):
                await bridged(run)(alias, statement)
            assert await avalue(ask, alias) != expected
        async with transaction.atomic(alias):
            await bridged(run)(alias, "RESET ALL")
            await bridged(run)(alias, "SET LOCAL ROLE pg_read_all_data")
        assert await avalue(ask, alias) == expected

    await asyncio.gather(*(work() for _ in range(30)))


# Row 37


async def view(request: HttpRequest) -> HttpResponse:
    """Make something in the session, and return whether it is there after other queries."""
    change, ask, fresh = SESSION[request.GET["name"]]
    before = run("default", ask)
    run("default", change)
    await asyncio.sleep(0)
    run("default", "SELECT 1")
    found = run("default", ask)
    return HttpResponse(f"{before == fresh} {found != fresh}")


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    change, ask, fresh = SESSION[request.GET["name"]]
    run("default", change)

    async def body() -> Any:
        yield f"{run('default', ask) != fresh} "
        await asyncio.sleep(0)
        yield f"{run('default', ask) != fresh}"

    return StreamingHttpResponse(body())


@pytest.fixture
def site() -> Iterator[Client]:
    urls = ModuleType("urls")
    urls.urlpatterns = [path("view/", view), path("stream/", stream)]
    with serving(ROOT_URLCONF=urls) as client:
        yield client


@pytest.mark.process
@pytest.mark.parametrize("name", SESSION)
async def test_37_in_a_request(server: Server, site: Client, name: str) -> None:
    """It lasts to the end of the request, its stream included, and is gone for the next ones."""
    name = name.replace(" ", "%20")
    answers = await asyncio.gather(*(site.get(f"/view/?name={name}") for _ in range(12)))
    assert {answer.text for answer in answers} == {"True True"}
    answers = await asyncio.gather(*(site.get(f"/stream/?name={name}") for _ in range(12)))
    assert {answer.text for answer in answers} == {"True True"}
    seen = await asyncio.gather(*(bridged(look)("default") for _ in range(12)))
    assert [each for each in seen if each != FRESH] == []


@pytest.mark.parametrize("name", SESSION)
async def test_37_where_nothing_keeps_it(server: Server, name: str) -> None:
    """In a task of its own it is an error that names the pin, and nothing has been sent."""
    change = SESSION[name][0]

    async def refused() -> None:
        with pytest.raises(ProgrammingError, match=r"pgbackend\.transaction\.pinned\('default'\)"):
            await bridged(run)("default", change)

    await asyncio.gather(*(refused() for _ in range(12)))
    # The server has never seen it.
    last = "SELECT query FROM pg_stat_activity WHERE application_name = %s AND query = %s"
    assert server.all(last, NAME, change) == []
    async with pinned():
        await bridged(run)("default", change)
    assert await bridged(look)("default") == FRESH


def test_37_on_djangos_own_path() -> None:
    """In synchronous code it lasts as long as the thread's connection, as in stock Django."""
    spoil("default")
    found = look("default")
    assert not [name for name in FRESH if found[name] == FRESH[name]]
    connection.close()
