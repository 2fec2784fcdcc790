"""What a server tells: sessions, long transactions, and who blocks whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction

from pgbackend.status.server import SHOWN, Server, own_aliases, read, shown
from tests.faults.fix_servers import PgBouncer
from tests.models import Author
from tests.support.server import Server as Backends
from tests.support.table_lock import TableLock
from tests.support.wrapper import PID, AddAlias, avalue, until


@asynccontextmanager
async def asking(alias: str) -> AsyncIterator[Server]:
    server = Server(alias)
    task = asyncio.create_task(server.connection.run())
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(server.close(), task, return_exceptions=True)


async def answer_of(alias: str) -> Any:
    async with asking(alias) as server:
        await server.ask()
        part = server.part()
        assert part["error"] == ""
        assert part["age"] < 10
        return part["answer"]


async def test_blocked_statement(server: Backends) -> None:
    """A blocked statement is there with its lock and what blocks it, and no value of either."""
    name = "<script>alert('x')</script>"
    with TableLock(server, "tests_author") as lock:
        lock.conn.execute("SELECT 'of the blocker', 12345")
        task = asyncio.create_task(Author.objects.filter(name=name).acount())
        await lock.waited_for()
        found = await answer_of("default")
        assert found["sessions"]["blocked"] == 1
        assert found["sessions"]["in_transaction"] == 1
        (wait,) = found["blocked"]
        assert wait["blockers"] == [lock.conn.info.backend_pid]
        assert (wait["locktype"], wait["relation"]) == ("relation", "tests_author")
        assert wait["mode"] == "AccessShareLock"
        assert wait["seconds"] >= 0
        blocked = found["by_pid"][str(wait["pid"])]
        blocker = found["by_pid"][str(wait["blockers"][0])]
        assert '"tests_author"."name" = ' in blocked["query"]
        assert blocked["wait"] == "Lock: relation"
        assert blocker["query"] == "SELECT '…', …"
        assert blocker["state"] == "idle in transaction"
        assert blocker["open_seconds"] > 0
        assert "script" not in str(found)
        assert lock.conn.info.backend_pid in found["longest"]
        lock.release()
        await task
    assert (await answer_of("default"))["blocked"] == []


async def test_row_lock() -> None:
    """One that waits for a row, of a transaction of this process, is found with its transaction."""
    await Author.objects.acreate(name="Ada")
    async with transaction.atomic():
        await Author.objects.aupdate(name="Grace")
        pid = await avalue(PID)
        conn = await psycopg.AsyncConnection.connect(
            **{
                name: value
                for name, value in connections["default"].get_connection_params().items()
                if name not in ("context", "cursor_factory")
            }
        )
        async with conn, asking("default") as server:
            task = asyncio.create_task(conn.execute("UPDATE tests_author SET name = 'Edith'"))

            async def blocked() -> Any:
                await server.ask()
                return (server.part()["answer"] or {}).get("blocked")

            while not (found := await blocked()):
                await asyncio.sleep(0.01)
            assert found[0]["blockers"] == [pid]
            assert found[0]["locktype"] == "transactionid"
            assert found[0]["relation"] is None
            await conn.cancel_safe()
            with pytest.raises(psycopg.errors.QueryCanceled):
                await task


async def test_full_pool(add_alias: AddAlias) -> None:
    """The server is asked beside the pool: also while that can lend nothing, and unseen by it."""
    alias = add_alias({"pool": {"max_size": 1, "timeout": 30}})
    async with transaction.atomic(using=alias):
        pid = await avalue(PID, alias)
        found = await answer_of(alias)
        assert pid in found["longest"]
        assert connections[alias].async_pool.get_stats()["requests_num"] == 1


async def test_no_server(add_alias: AddAlias) -> None:
    """A server that is not there is a part of the answer, in its words."""
    alias = add_alias({}, HOST="127.0.0.1", PORT="1")
    async with asking(alias) as server:
        assert server.part() == {"error": "connecting", "answer": None, "age": None}
        server.ask()
        await until(lambda: server.connection.failures)
        await until(lambda: server.ask().done() or server.connection.error)
        server._asks.cancel()  # type: ignore[union-attr]  # ends before its time-out
    assert "refused" in str(server.connection.error)


async def test_server_goes_away(server: Backends) -> None:
    """A lost connection is told of with the last answer, and made anew."""
    async with asking("default") as asked:
        await asked.ask()
        assert asked.part()["error"] == ""
        pid = asked.connection._conn.info.backend_pid  # type: ignore[union-attr]
        server.all("SELECT pg_terminate_backend(%s)", pid)
        await until(lambda: asked.connection.losses)
        await asked.ask()
        await asked.ask()
        part = asked.part()
        assert (part["error"], part["answer"]["replica"]) == ("", False)


async def test_a_role_that_may_not_look(add_alias: AddAlias, server: Backends) -> None:
    """Of other roles' sessions such a role is told the number alone."""
    server.all("DROP ROLE IF EXISTS status_reader")
    server.all("CREATE ROLE status_reader LOGIN PASSWORD 'secret'")
    try:
        alias = add_alias({}, USER="status_reader", PASSWORD="secret")
        await Author.objects.acount()
        found = await answer_of(alias)
        assert found["sessions"]["hidden"] >= 1
        assert found["longest"] == []
        assert found["by_pid"] == {}
        # One that such a role is blocked by has a number, and no statement.
        server.all("GRANT SELECT ON tests_author TO status_reader")
        server.other.execute("SELECT 1")
        with TableLock(server, "tests_author") as lock:
            task = asyncio.create_task(Author.objects.using(alias).acount())
            await lock.waited_for()
            found = await answer_of(alias)
            ((pid,),) = [each["blockers"] for each in found["blocked"]]
            assert found["by_pid"][str(pid)]["hidden"]
            assert found["by_pid"][str(pid)]["query"] == ""
            lock.release()
            await task
    finally:
        with psycopg.connect(server.dsn, dbname="pgbackend_tests", autocommit=True) as conn:
            await connections["default"].async_pool.close()
            conn.execute("DROP OWNED BY status_reader")
            conn.execute("DROP ROLE status_reader")


@pytest.mark.process
async def test_pgbouncer(pgbouncer: PgBouncer, add_alias: AddAlias) -> None:
    """Behind a pooler the answer comes, from whichever session, again and again."""
    alias = add_alias({}, HOST="127.0.0.1", PORT=pgbouncer.port)
    async with asking(alias) as server:
        for _ in range(10):
            await server.ask()
            assert server.part()["error"] == ""


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT 'it''s', 1.5e3, $1, t2.\"a b\" FROM t2", "SELECT '…', …, $1, t2.\"a b\" FROM t2"),
        ("SELECT 1 -- of ada@example.com\n, 2", "SELECT … , …"),
        ("SELECT /* /* token */ x */ 3", "SELECT …"),
        ("SELECT $$secret$$, E'a\\'b', 'secret'", "SELECT '…"),
        ("SELECT $a$secret$a$, 2", "SELECT '…', …"),
        (r"SELECT 'C:\', 'secret'", "SELECT '…"),
        ("INSERT INTO t VALUES ('cut off", "INSERT INTO t VALUES ('…'"),
        ("ALTER ROLE ada PASSWORD 'secret'", "ALTER ROLE ada PASSWORD '…'"),
        ("SELECT\n\t\tx1,\n -.5", "SELECT x1, -…"),
        ("", ""),
    ],
)
def test_shown(query: str, expected: str) -> None:
    """A statement is shown without literals, numbers and comments, in one line."""
    assert shown(query) == expected


def test_long_statement() -> None:
    """A long statement is cut."""
    text = shown("SELECT " + "a, " * 1000)
    assert len(text) == SHOWN + 2
    assert text.endswith(" …")


def test_read() -> None:
    """A session whose statement is hidden has none, whatever the server says in its place."""
    found = read('{"by_pid": {"7": {"hidden": true, "query": "<insufficient privilege>"}}}')
    assert found["by_pid"]["7"]["query"] == ""


def test_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases of other backends are named with their engines, and not asked."""
    monkeypatch.setitem(
        connections.settings,
        "file",
        {**connections.settings["default"], "ENGINE": "django.db.backends.sqlite3"},
    )
    try:
        own, others = own_aliases()
    finally:
        del connections["file"]
    assert {"default", "other"} <= set(own)
    assert others["file"] == "django.db.backends.sqlite3"
