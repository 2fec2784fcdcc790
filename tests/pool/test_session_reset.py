"""Resets that go with the next statement: none is executed in a session that a function spoilt."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import (
    DatabaseError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.models import Max

from pgbackend import bridged
from pgbackend.transaction import pinned
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.loops import LOOPS
from tests.support.server import Server
from tests.support.wrapper import AddAlias, run, until, use_wrapper, value

# Does to its session what a function can, and no text tells.
SPOIL = """
    CREATE OR REPLACE FUNCTION spoil(what text) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN
        IF what = 'all' THEN
            PERFORM set_config('app.tenant', 'a', false), set_config('work_mem', '77MB', false),
                set_config('search_path', 'pg_catalog', false), pg_advisory_lock(77);
            EXECUTE 'PREPARE spoilt AS SELECT 1';
            EXECUTE 'CREATE TEMP TABLE spoilt AS SELECT 1';
            EXECUTE 'LISTEN spoilt';
            PERFORM set_config('role', 'pg_monitor', false);
        ELSE
            PERFORM set_config(split_part(what, '=', 1), split_part(what, '=', 2), false);
        END IF;
        RETURN 1;
    END $$
"""

# One row that is all there is to see.
LOOK = """
    SELECT coalesce(current_setting('app.tenant', true), ''), current_setting('work_mem'),
        current_setting('search_path'), current_user = session_user,
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'spoilt'),
        to_regclass('spoilt')::text, (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""
FRESH = ("", "4MB", '"$user", public', True, 0, None, 0, 0)


@pytest.fixture(autouse=True)
def spoil_exists(server: Server) -> Iterator[None]:
    for conn in (server.conn, server.other):
        conn.execute(SPOIL)
    yield
    for conn in (server.conn, server.other):
        conn.execute("DROP FUNCTION spoil(text)")


def spoil(what: str = "all", alias: str = "default") -> None:
    assert value(f"SELECT spoil('{what}')", alias) == 1


def by_cursor(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(LOOK)
        return cursor.fetchone()


def by_cursor_with_parameters(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(LOOK + "WHERE 1 = %s", [1])
        return cursor.fetchone()


def by_bytes(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(LOOK.encode())
        return cursor.fetchone()


def by_sql(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(psycopg.sql.SQL(LOOK))
        return cursor.fetchone()


def by_two_statements(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT 1; {LOOK}; SELECT 2")
        assert cursor.fetchone() == (1,)
        assert cursor.nextset()
        row = cursor.fetchone()
        assert cursor.nextset()
        assert cursor.fetchone() == (2,)
        assert not cursor.nextset()
        return row


def in_transaction(alias: str) -> Any:
    with transaction.atomic(using=alias):
        return by_cursor(alias)


def rolled_back(alias: str) -> Any:
    with transaction.atomic(using=alias):
        by_cursor(alias)
        transaction.set_rollback(True, using=alias)
    return by_cursor(alias)


def by_server_side_cursor(alias: str) -> Any:
    with transaction.atomic(using=alias), connections[alias].chunked_cursor() as cursor:
        cursor.execute(LOOK)
        return cursor.fetchone()


def by_psycopg(alias: str) -> Any:
    with connections[alias].cursor():
        return connections[alias].connection.execute(LOOK).fetchone()


def by_copy(alias: str) -> Any:
    with connections[alias].cursor() as cursor, cursor.copy(f"COPY ({LOOK}) TO STDOUT") as copy:
        copy.set_types(["text", "text", "text", "bool", "int8", "text", "int8", "int8"])
        return next(iter(copy.rows()))


def by_stream(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        return next(iter(list(cursor.stream(LOOK))))


def by_pipeline(alias: str) -> Any:
    with connections[alias].cursor():
        conn = connections[alias].connection
        with conn.pipeline():
            return conn.execute(LOOK).fetchone()


def by_prepared_statement(alias: str) -> Any:
    with connections[alias].cursor():
        conn = connections[alias].connection
        return psycopg.Cursor(conn).execute(LOOK, prepare=True).fetchone()


def by_executemany(alias: str) -> Any:
    Author.objects.using(alias).filter(name__startswith="seen").delete()
    spoil("app.tenant=b", alias)
    with connections[alias].cursor() as cursor:
        cursor.executemany(
            "INSERT INTO tests_author (name)"
            " VALUES (%s || coalesce(current_setting('app.tenant', true), ''))",
            [["seen"], ["seen too"]],
        )
    assert {each.name for each in Author.objects.using(alias).filter(name__startswith="seen")} == {
        "seen",
        "seen too",
    }
    return by_cursor(alias)


def after_a_failure(alias: str) -> Any:
    with pytest.raises(DatabaseError):
        value("SELECT 1/0", alias)
    return by_cursor(alias)


def after_other_statements(alias: str) -> Any:
    """What cannot be in a transaction, or must begin one, is sent alone."""
    for statement in ("VACUUM tests_author", "SET TRANSACTION READ ONLY", "", "-- nothing", ";"):
        spoil("app.tenant=b", alias)
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
    return by_cursor(alias)


WAYS = {
    function.__name__: function
    for function in (
        by_cursor,
        by_cursor_with_parameters,
        by_bytes,
        by_sql,
        by_two_statements,
        in_transaction,
        rolled_back,
        by_server_side_cursor,
        by_psycopg,
        by_copy,
        by_stream,
        by_pipeline,
        by_prepared_statement,
        by_executemany,
        after_a_failure,
        after_other_statements,
    )
}


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("reset", ["dirty", "always"])
@pytest.mark.parametrize("way", WAYS)
async def test_nobody_sees_it(add_alias: AddAlias, way: str, reset: str, binding: bool) -> None:
    """Whatever is executed next, by the same task or another, finds a fresh session."""
    alias = add_alias({"pool": {"max_size": 1}, "reset": reset, "server_side_binding": binding})
    look = WAYS[way]

    def twice() -> list[Any]:
        spoil("all", alias)
        seen = [look(alias)]
        with transaction.atomic(using=alias):
            spoil("all", alias)
        return [*seen, look(alias)]

    assert await bridged(twice)() == [FRESH, FRESH]
    await bridged(spoil)("all", alias)
    assert await asyncio.create_task(bridged(look)(alias)) == FRESH


async def test_statements_of_the_orm() -> None:
    """The short way's statements are executed in a fresh session, and their results are right."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})
    await Author.objects.acreate(name="before")
    for way in (
        lambda: Author.objects.acreate(name="a"),
        lambda: Author.objects.filter(name="a").aupdate(name="b"),
        lambda: Author.objects.acount(),
        lambda: Author.objects.aget(name="b"),
        lambda: Author.objects.aaggregate(Max("pk")),
        lambda: Author.objects.filter(name="b").adelete(),
    ):
        await bridged(spoil)()
        # The path would lead nowhere, and the role would be allowed nothing.
        assert await way()
    assert await Author.objects.acount() == 1
    assert await bridged(by_cursor)("default") == FRESH
    assert wrapper.async_pool.get_stats()["pool_size"] == 1


async def test_one_message(server: Server) -> None:
    """The reset is sent with the statement, and the log of queries shows the latter alone."""
    use_wrapper(options={"pool": {"max_size": 1}})
    seen = "SELECT query FROM pg_stat_activity WHERE pid = %s"

    def work() -> tuple[int, list[str]]:
        spoil()
        connection.force_debug_cursor = True
        try:
            pid = value("SELECT pg_backend_pid()")
        finally:
            connection.force_debug_cursor = False
        return pid, [each["sql"] for each in connection.queries_log]

    pid, logged = await bridged(work)()
    sent = server.one(seen, pid)
    assert sent.startswith("BEGIN ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE; CLOSE ALL; ")
    assert sent.endswith(";\nSELECT pg_backend_pid()")
    assert logged[-1].endswith("SELECT pg_backend_pid()")
    assert "CLOSE" not in logged[-1]
    # The next has nothing to reset.
    assert await bridged(value)("SELECT pg_backend_pid()") == pid
    assert server.one(seen, pid) == "SELECT pg_backend_pid()"


async def test_errors_are_those_of_the_statement() -> None:
    """Position and line in an error count from the statement's own beginning."""

    def failing(first: Callable[[], None]) -> list[tuple[str, str | None]]:
        found = []
        for statement, params in (
            ("SELECT nothing", None),
            ("SELECT 1,\n  nothing", None),
            ("SELECT %s,\n  nothing", [1]),
            ("SELEC 1", None),
        ):
            first()
            with pytest.raises(DatabaseError) as caught, connection.cursor() as cursor:
                cursor.execute(statement, params)
            cause: Any = caught.value.__cause__
            found.append((str(caught.value), cause.diag.statement_position))
        first()
        with pytest.raises(DatabaseError) as caught:
            list(Author.objects.extra(where=["nothing = 1"]))
        cause = caught.value.__cause__
        return [*found, (str(caught.value), cause.diag.statement_position)]

    use_wrapper(options={"pool": {"max_size": 1}})
    assert await bridged(failing)(spoil) == await bridged(failing)(lambda: None)


@pytest.mark.parametrize(
    "setting",
    [
        "TimeZone=Asia/Tokyo",
        "DateStyle=German",
        "IntervalStyle=sql_standard",
        "client_encoding=LATIN1",
        "standard_conforming_strings=off",
        "default_transaction_read_only=on",
        "default_transaction_isolation=serializable",
        "statement_timeout=1",
        "session_replication_role=replica",
    ],
)
@pytest.mark.parametrize("orm", [True, False])
async def test_what_statements_are_written_by(setting: str, orm: bool) -> None:
    """What a function has set decides nothing about how the next statement is written and read."""
    use_wrapper(options={"pool": {"max_size": 1}})
    name = "ü€\\'" + setting

    def work() -> None:
        spoil(setting)
        if orm:
            Author.objects.create(name=name)
        else:
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])
        spoil(setting)
        assert Author.objects.get().name == name
        spoil(setting)
        moment = datetime.datetime(2026, 2, 3, 4, 5, tzinfo=datetime.UTC)
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::timestamptz, %s::interval", [moment, moment - moment])
            assert cursor.fetchone() == (moment, datetime.timedelta())
        spoil(setting)
        assert value("SELECT pg_sleep(0.02)::text") == ""
        spoil(setting)
        assert value("SELECT current_setting('transaction_isolation')") == "read committed"

    await bridged(work)()


@pytest.mark.parametrize("loop", [name for name in LOOPS if name.startswith("asyncio")])
def test_an_idle_session_is_reset_soon(server: Server, loop: str) -> None:
    """A lock that a function has taken does not stay because nobody uses the connection."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(idle_sessions_are_reset(server))


async def idle_sessions_are_reset(server: Server) -> None:
    wrapper = use_wrapper(options={"pool": {"max_size": 2}})
    await bridged(spoil)()
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77"

    async def gone() -> None:
        async with asyncio.timeout(PATIENCE):
            while server.one(locks):  # another server's state
                await asyncio.sleep(0.01)

    await gone()
    stats = wrapper.async_pool.get_stats()
    await until(lambda: wrapper.async_pool.get_stats()["pool_available"] == stats["pool_size"])
    # Nor if somebody borrows it, and executes nothing.
    await bridged(spoil)()
    await bridged(connection.ensure_connection)()
    await gone()


async def test_what_makes_a_session_again_is_not_sent_with_statements(add_alias: AddAlias) -> None:
    """A receiver's temporary table is there for each borrower, with its rows, and no other."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE given AS SELECT 7 AS n; SELECT 'a;b'")

    connection_created.connect(receiver)
    try:
        alias = add_alias({"pool": {"max_size": 1}})
        for _ in range(3):
            await bridged(spoil)("all", alias)
            assert await bridged(value)("SELECT count(*) FROM given", alias) == 1
            assert await bridged(by_cursor)(alias) == FRESH
    finally:
        connection_created.disconnect(receiver)


async def test_a_receivers_settings(add_alias: AddAlias) -> None:
    """Settings, a role and LISTEN of connection_created come back with what is sent together."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET app.tenant = 'of; all'")
            cursor.execute("SELECT set_config('work_mem', '5MB', false)")
            cursor.execute('SET search_path = pg_temp, public, "o\'dd"')
            cursor.execute("SET ROLE pg_monitor")
            cursor.execute("LISTEN given")

    connection_created.connect(receiver)
    fresh = ("of; all", "5MB", 'pg_temp, public, "o\'dd"', False, 0, None, 1, 0)
    try:
        alias = add_alias({"pool": {"max_size": 1}})
        for way in (by_cursor, in_transaction, by_prepared_statement):
            await bridged(spoil)("all", alias)
            assert await bridged(way)(alias) == fresh
    finally:
        connection_created.disconnect(receiver)


async def test_many_at_once(add_alias: AddAlias) -> None:
    """Of 300 tasks on a pool of 3, some cancelled, none sees what another's function has made."""
    alias = add_alias({"pool": {"max_size": 3, "timeout": 30.0}})
    seen: list[Any] = []

    async def one(number: int) -> None:
        def work() -> None:
            for step in range(4):
                spoil("app.tenant=b", alias) if (number + step) % 2 else None
                seen.append(list(WAYS.values())[(number * 3 + step) % 7](alias))
                if number % 5 == 0:
                    value("SELECT pg_sleep(0.01)", alias)

        await bridged(work)()

    tasks = [asyncio.create_task(one(number)) for number in range(300)]
    loop = asyncio.get_running_loop()
    for task in tasks[::7]:
        loop.call_later(0.05 + 0.002 * tasks.index(task), task.cancel)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [each for each in ended if isinstance(each, Exception)] == []
    assert set(seen) == {FRESH}
    pool = await bridged(lambda: connections[alias].async_pool)()
    await until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])


async def test_a_lost_connection(server: Server) -> None:
    """A connection that dies while its reset is due is replaced; the statement is executed."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, "SELECT pg_backend_pid()")
    await bridged(spoil)()
    server.one("SELECT pg_terminate_backend(%s, 5000)", pid)
    assert await run(wrapper, "SELECT pg_backend_pid()") != pid
    assert await bridged(by_cursor)("default") == FRESH


def by_block(lose: Callable[[], None]) -> None:
    with transaction.atomic():
        lose()


def by_hand(lose: Callable[[], None]) -> None:
    transaction.set_autocommit(False)
    lose()
    transaction.commit()


@pytest.mark.parametrize("end", [by_block, by_hand])
async def test_a_connection_lost_in_an_empty_transaction(
    server: Server, end: Callable[[Callable[[], None]], None]
) -> None:
    """If a lost session is to be reset before a COMMIT, nothing is in doubt."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, "SELECT pg_backend_pid()")
    await bridged(spoil)()
    with pytest.raises(OperationalError) as caught:
        await bridged(end)(lambda: server.one("SELECT pg_terminate_backend(%s, 5000)", pid))
    assert type(caught.value) is OperationalError


async def test_pinned() -> None:
    """A session that is kept begins fresh, keeps what functions make, and ends at once."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await bridged(spoil)()
    async with pinned():
        assert await bridged(by_cursor)("default") == FRESH
        await bridged(spoil)("app.tenant=b")
        assert (await bridged(by_cursor)("default"))[0] == "b"
    assert await bridged(by_cursor)("default") == FRESH


async def test_the_pool_is_closed(server: Server) -> None:
    """Whatever is due still, a pool closes, and so does one that is drained."""
    wrapper = use_wrapper(options={"pool": {"max_size": 2}})
    for close in ("drain", "close_when_idle", "close"):
        await bridged(spoil)()
        pool = wrapper.async_pool
        await getattr(pool, close)(*([5] if close == "close_when_idle" else []))
        if close == "drain":
            assert await bridged(by_cursor)("default") == FRESH
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    await until(lambda: server.one(locks) == 0)


async def test_cancelled_in_the_reset(server: Server) -> None:
    """A statement that is stopped while its reset runs leaves a connection that works, or none."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})
    await bridged(by_cursor)("default")
    for number in range(60):
        await bridged(spoil)("app.tenant=b")
        task = asyncio.create_task(bridged(by_cursor)("default"))
        await asyncio.sleep(0)
        await asyncio.sleep(number * 0.00002)
        task.cancel()
        await asyncio.wait([task])
        assert await bridged(by_cursor)("default") == FRESH
    await until(lambda: wrapper.async_pool.get_stats()["pool_available"] == 1)


# Attacks that a reset in one message with the statement once failed by.


def committed_by(alias: str, how: Callable[[], Any]) -> list[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS seen_tenants (tenant text)")
        cursor.execute("TRUNCATE seen_tenants")
        cursor.execute(
            "CREATE OR REPLACE FUNCTION audit() RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen_tenants VALUES (coalesce(current_setting('app.tenant', true), ''));"
            " RETURN 'a'; END $$"
        )
    spoil("app.tenant=b", alias)
    try:
        how()
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT tenant FROM seen_tenants")
            return cursor.fetchall()
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TABLE seen_tenants; DROP FUNCTION audit()")


async def test_server_side_cursors_outside_transactions(add_alias: AddAlias) -> None:
    """A cursor WITH HOLD is declared in a fresh session: it reads and writes as nobody's."""
    alias = add_alias({"pool": {"max_size": 1}})

    def chunks() -> None:
        with connections[alias].chunked_cursor() as cursor:
            cursor.execute("SELECT audit()")
            assert cursor.fetchall() == [("a",)]

    assert await bridged(committed_by)(alias, chunks) == [("",)]
    await Author.objects.using(alias).acreate(name="a")
    for what in ("app.tenant=b", "search_path=pg_catalog", "role=pg_monitor"):
        await bridged(spoil)(what, alias)
        assert [each.name async for each in Author.objects.using(alias).aiterator()] == ["a"]
        await bridged(spoil)(what, alias)
        assert await bridged(lambda: len(list(Author.objects.using(alias).iterator())))() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        "SELECT 1,,",
        "SELECT * FORM t",
        "SELECT 'a",
        "SELECT /* a",
        "SELECT $a$",
        'SELECT "a',
        "SELECT ?",
    ],
)
async def test_what_cannot_be_parsed(add_alias: AddAlias, wrong: str) -> None:
    """A message that the server refuses whole costs an error, not the connection."""
    alias = add_alias({"pool": {"max_size": 1}})

    def work() -> None:
        pid = value("SELECT pg_backend_pid()", alias)
        spoil("app.tenant=b", alias)
        with connections[alias].cursor() as cursor:
            with pytest.raises(DatabaseError):
                cursor.execute(wrong)
            cursor.execute(LOOK)
            assert cursor.fetchone() == FRESH
        spoil("app.tenant=b", alias)
        with connections[alias].cursor() as cursor:
            with pytest.raises(DatabaseError):
                list(Author.objects.using(alias).extra(where=["1 = = 1"]))
            cursor.execute("SELECT pg_backend_pid()")
            assert cursor.fetchone() == (pid,)

    await bridged(work)()
    await bridged(spoil)("app.tenant=b", alias)
    async with pinned(alias):
        with pytest.raises(DatabaseError):
            await bridged(value)(wrong, alias)
        assert await bridged(by_cursor)(alias) == FRESH


@pytest.mark.parametrize("encoding", ["LATIN1", "SJIS", "SQL_ASCII"])
async def test_texts_of_receivers(add_alias: AddAlias, encoding: str) -> None:
    """What a receiver has set comes back as it was, however texts are read in the old session."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET app.tenant = 'é€ C:\\new\\temp'")
            cursor.execute("CREATE TEMP TABLE given AS SELECT 'ü\\n' AS a")

    connection_created.connect(receiver)
    try:
        alias = add_alias({"pool": {"max_size": 1}})
        for setting in (f"client_encoding={encoding}", "standard_conforming_strings=off"):
            await bridged(spoil)(setting, alias)
            found = await bridged(value)("SELECT current_setting('app.tenant')", alias)
            assert found == "é€ C:\\new\\temp"
            assert await bridged(value)("SELECT a FROM given", alias) == "ü\\n"
        await bridged(spoil)("default_transaction_read_only=on", alias)
        pid = await bridged(value)("SELECT pg_backend_pid() FROM given", alias)
        await bridged(spoil)("default_transaction_read_only=on", alias)
        assert await bridged(value)("SELECT pg_backend_pid() FROM given", alias) == pid
    finally:
        connection_created.disconnect(receiver)


async def test_how_long_statements_are_read(add_alias: AddAlias) -> None:
    """A time-out of the old session does not end the reading of a statement of the next one."""
    alias = add_alias({"pool": {"max_size": 1}})
    long = "x" * 1_000_000

    def work() -> None:
        for _ in range(5):
            spoil("statement_timeout=1", alias)
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT length(%s)", [long])
                assert cursor.fetchone() == (len(long),)
            spoil("statement_timeout=1", alias)
            assert not Author.objects.using(alias).filter(pk__in=list(range(1, 30_000))).exists()

    await bridged(work)()


async def test_how_backslashes_are_read(add_alias: AddAlias) -> None:
    """A setting of the lexer that is not reported decides nothing."""
    alias = add_alias({"pool": {"max_size": 1}})
    await bridged(spoil)("backslash_quote=off", alias)
    assert await bridged(value)(r"SELECT E'it\'s'", alias) == "it's"


async def test_what_the_server_says(server: Server, add_alias: AddAlias) -> None:
    """Handlers hear nothing that is of the session before."""
    alias = add_alias({"pool": {"max_size": 1}})
    heard: list[Any] = []

    def work() -> None:
        spoil("client_min_messages=debug5", alias)
        with connections[alias].cursor() as cursor:
            connections[alias].connection.add_notice_handler(heard.append)
            cursor.execute("SELECT 1")
        spoil("all", alias)
        server.conn.execute("NOTIFY spoilt, 'secret'")
        with connections[alias].cursor() as cursor:
            conn = connections[alias].connection
            conn.add_notify_handler(heard.append)
            cursor.execute("SELECT 1")
        spoil("all", alias)
        server.conn.execute("NOTIFY spoilt, 'secret'")
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            heard.extend(connections[alias].connection.notifies(timeout=0.05))

    await bridged(work)()
    assert heard == []


async def test_a_reset_that_cannot_go_with_a_statement(add_alias: AddAlias) -> None:
    """Where a receiver executes what no transaction may hold, statements are not its victims."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("DISCARD ALL")

    connection_created.connect(receiver)
    try:
        alias = add_alias({"pool": {"max_size": 1}})
        for _ in range(3):
            await bridged(spoil)("app.tenant=b", alias)
            assert await bridged(by_cursor)(alias) == FRESH
    finally:
        connection_created.disconnect(receiver)


async def test_psycopgs_own_ways(add_alias: AddAlias) -> None:
    """The PGconn in pinned(), what the server reports, and the pool's own context manager."""
    alias = add_alias({"pool": {"max_size": 1}})
    setting = b"SELECT coalesce(current_setting('app.tenant', true), '')"

    def by_pgconn() -> Any:
        with connections[alias].cursor():
            return connections[alias].connection.pgconn.exec_(setting).get_value(0, 0)

    await bridged(spoil)("app.tenant=b", alias)
    async with pinned(alias):
        assert await bridged(by_pgconn)() == b""
    await bridged(spoil)("application_name=evil", alias)

    def reported() -> Any:
        with connections[alias].cursor():
            return connections[alias].connection.info.parameter_status("application_name")

    assert await bridged(reported)() == "pgbackend-tests"
    await bridged(spoil)("app.tenant=b", alias)
    pool = await bridged(lambda: connections[alias].async_pool)()
    async with pool.connection() as conn:
        assert await (await conn.execute(setting)).fetchone() == ("",)


async def test_defaults_for_transactions(server: Server, add_alias: AddAlias) -> None:
    """A reset waits for no other client's transaction, whatever has become the default."""
    alias = add_alias({"pool": {"max_size": 1}})
    with psycopg.connect(server.dsn) as other:
        other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        other.execute("CREATE TEMP TABLE mine AS SELECT 1")

        def work() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute(
                    "SELECT spoil('default_transaction_isolation=serializable'),"
                    " spoil('default_transaction_read_only=on'),"
                    " spoil('default_transaction_deferrable=on')"
                )
            assert by_cursor(alias) == FRESH

        async with asyncio.timeout(PATIENCE):
            await bridged(work)()
