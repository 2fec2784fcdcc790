"""Sessions: what a borrower leaves behind is gone for the next one, and what costs a reset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import (
    DatabaseError,
    DataError,
    ProgrammingError,
    connection,
    connections,
    models,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.models import Case, Count, Exists, F, Func, OuterRef, Q, Subquery, Value
from django.db.models.expressions import CombinedExpression, RawSQL
from django.db.models.functions import Cast, Coalesce, Lower
from psycopg import sql

from pgbackend import bridged
from pgbackend.session.clean import CleanSQL, changes_session, is_clean_field
from pgbackend.transaction import detached, pinned
from pgbackend.wrapper.dispatch import in_bridge
from tests.models import Author, Book
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server
from tests.support.session import PROBES, run
from tests.support.wrapper import until

AddAlias = Callable[..., str]

# Calls what may do anything, for all that is known.
PID_DIRTY = "SELECT pg_backend_pid() FROM pg_stat_get_activity(pg_backend_pid())"


def backend(alias: str) -> int:
    return int(run(alias, "SELECT pg_backend_pid()"))


@pytest.mark.parametrize("name", PROBES)
async def test_nothing_passes_to_the_next_borrower(name: str, add_alias: AddAlias) -> None:
    """What a pinned session was made to be is not seen by the connection's next borrower."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]
    before = await bridged(backend)(alias)

    async with pinned(alias):
        await bridged(run)(alias, change)
        assert await bridged(run)(alias, ask) != fresh
    assert await bridged(run)(alias, ask) == fresh
    assert await bridged(backend)(alias) == before


# What is missed with an error: it may be for one transaction only.
LOUD = ("temporary table", "prepared statement", "cursor")


@pytest.mark.parametrize("name", PROBES)
async def test_in_a_transaction(name: str, add_alias: AddAlias) -> None:
    """Inside atomic() nothing is lost silently: it is refused, or missed with an error later."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]
    if name in LOUD:
        async with transaction.atomic(alias):
            await bridged(run)(alias, change)
            assert await bridged(run)(alias, ask) != fresh
    else:
        with pytest.raises(ProgrammingError, match=r"at the end of the transaction.*SET LOCAL"):
            async with transaction.atomic(alias):
                await bridged(run)(alias, change)
    assert await bridged(run)(alias, ask) == fresh


@pytest.mark.parametrize("name", PROBES)
async def test_in_a_transaction_of_a_request(name: str, add_alias: AddAlias) -> None:
    """In a request, what atomic() has made in the session is there after it, in its tasks too."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    async def view(by_task: bool) -> Any:
        async with transaction.atomic(alias):
            if by_task:
                await asyncio.create_task(bridged(run)(alias, change))
            else:
                run(alias, change)
        await asyncio.sleep(0)
        run(alias, "SELECT 1")
        return run(alias, ask)

    for by_task in (False, True):
        assert await in_bridge(view, by_task) != fresh
        assert await bridged(run)(alias, ask) == fresh


async def test_setting_to_null_in_a_transaction(add_alias: AddAlias) -> None:
    """A setting may be given its default again by set_config() inside a transaction.

    django-pgtrigger does so when its ``ignore()`` ends; a value of NULL is what RESET is.
    """
    alias = add_alias({"pool": {"max_size": 1}})
    execute = bridged(run)
    async with transaction.atomic(using=alias):
        await execute(alias, "SELECT set_config('app.one', 'a', true)")
        await execute(alias, "SELECT set_config('app.one', NULL, false)")
        assert await execute(alias, "SELECT current_setting('app.one')") == ""
    assert await execute(alias, "SELECT current_setting('app.one', true)") in (None, "")
    with pytest.raises(ProgrammingError, match="lives in the session"):
        await execute(alias, "SELECT set_config('app.one', NULL, false)")


async def test_with_autocommit_off(add_alias: AddAlias) -> None:
    """With autocommit off a session lasts from one transaction to the next, until it is on."""
    alias = add_alias({"pool": {"max_size": 1}})

    @bridged
    def work() -> list[str]:
        transaction.set_autocommit(False, alias)
        run(alias, "SET work_mem = '33MB'")
        transaction.commit(alias)
        with transaction.atomic(alias):
            run(alias, "SET maintenance_work_mem = '34MB'")
        found = [run(alias, "SHOW work_mem"), run(alias, "SHOW maintenance_work_mem")]
        transaction.rollback(alias)
        transaction.set_autocommit(True, alias)
        return found

    assert await work() == ["33MB", "34MB"]
    assert await bridged(run)(alias, "SHOW work_mem") == "4MB"


FORMS: dict[str, Callable[[str], Any]] = {
    "bytes": lambda change: change.encode(),
    "psycopg.sql": lambda change: sql.SQL("{}").format(sql.SQL(change)),
    "comment": lambda change: f"/* it's */ -- ;\n{change}",
    "later": lambda change: f"SELECT 1; {change}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBES)
async def test_other_forms(form: str, name: str, add_alias: AddAlias) -> None:
    """Whatever a statement is given as, it is refused, and kept in a request."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    async def view() -> Any:
        run(alias, FORMS[form](change))
        run(alias, "SELECT 1")
        return run(alias, ask)

    with pytest.raises(ProgrammingError, match="lives in the session"):
        await bridged(run)(alias, FORMS[form](change))
    assert await bridged(run)(alias, ask) == fresh
    assert await in_bridge(view) != fresh
    assert await bridged(run)(alias, ask) == fresh


SETTING = "SELECT coalesce(current_setting('app.one', true), '')"
PARAMETERS: dict[str, Any] = {
    "by position": ("SELECT set_config(%s, %s, %s)", ["app.one", "a", False]),
    "by name": ("SELECT set_config(%(n)s, 'a', %(l)s)", {"n": "app.one", "l": "off"}),
    "cast": ("SELECT set_config('app.one', 'a', %s::bool)", ["f"]),
    "in a block": ("DO %s", ["BEGIN SET app.one = 'a'; END"]),
    "percent signs": ("SELECT '%%s', set_config('app.one', %s, %s), '%%'", ["a", False]),
}


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("name", PARAMETERS)
async def test_parameters(name: str, binding: bool, add_alias: AddAlias) -> None:
    """Whether set_config() outlives its transaction may stand in a parameter."""
    alias = add_alias({"pool": {"max_size": 1}, "server_side_binding": binding})
    change, params = PARAMETERS[name]
    if binding and name == "in a block":
        pytest.skip("not a parameter for the server")

    async def view() -> Any:
        run(alias, change, params)
        run(alias, "SELECT 1")
        return run(alias, SETTING)

    with pytest.raises(ProgrammingError, match="lives in the session"):
        await bridged(run)(alias, change, params)
    assert await in_bridge(view) == "a"
    assert await bridged(run)(alias, SETTING) == ""


@bridged
def test_parameters_that_are_local() -> None:
    """set_config() for the transaction is not refused, wherever that is said."""
    for local in (True, "true", "on"):
        run("default", "SELECT set_config('app.one', 'a', %s)", [local])
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.one', %s, %s)", [["a", True], ["b", True]])
        with pytest.raises(ProgrammingError, match="lives in the session"):
            cursor.executemany("SELECT set_config('app.one', %s, %s)", [["a", True], ["b", False]])


def named(connection: Any) -> None:
    with connection.cursor("n", withhold=True) as cursor:
        cursor.execute("SELECT set_config('app.one', 'a', false)")


CALLS: dict[str, Callable[[Any], Any]] = {
    "execute": lambda cursor: cursor.execute("SET app.one = 'a'"),
    "executemany": lambda cursor: cursor.executemany("SET app.one = %s", iter([["a"], ["b"]])),
    "callproc": lambda cursor: cursor.callproc("set_config", ["app.one", "a", False]),
    "stream": lambda cursor: list(cursor.stream("SELECT set_config('app.one', 'a', false)")),
    "copy": lambda cursor: list(
        cursor.copy("COPY (SELECT set_config('app.one', 'a', false)) TO STDOUT").__enter__()
    ),
    "psycopg's cursor": lambda cursor: cursor.cursor.execute("SET app.one = 'a'"),
    "psycopg's connection": lambda cursor: cursor.db.connection.execute("SET app.one = 'a'"),
    "its cursor": lambda cursor: cursor.db.connection.cursor().execute(b"SET app.one = 'a'"),
    "its named cursor": lambda cursor: named(cursor.db.connection),
}


@pytest.mark.parametrize("name", CALLS)
async def test_other_ways(name: str, add_alias: AddAlias) -> None:
    """By whichever method it goes to the server, psycopg's own included, it is refused."""
    alias = add_alias({"pool": {"max_size": 1}})

    @bridged
    def call() -> None:
        with connections[alias].cursor() as cursor:
            CALLS[name](cursor)

    with pytest.raises((ProgrammingError, psycopg.ProgrammingError), match="lives in the session"):
        await call()
    assert await bridged(run)(alias, SETTING) == ""


def setting_and_lock() -> Any:
    """Return authors with what a setting is set to and whether a lock was taken."""
    return Author.objects.annotate(
        one=Func(
            Value("app.one"), Value("a"), Value(False), function="set_config", output_field=TEXT
        ),
        lock=Func(Value(7), function="pg_try_advisory_lock", output_field=models.BooleanField()),
    )


TEXT = models.TextField()
SETTING_AND_LOCK = (
    "SELECT concat(current_setting('app.one', true), count(*)) FROM pg_locks"
    " WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
)


def read_a_row(alias: str) -> None:
    rows = setting_and_lock().using(alias).iterator(chunk_size=1)
    next(rows)
    rows.close()


def read_in_a_block(alias: str) -> None:
    with transaction.atomic(alias):
        list(setting_and_lock().using(alias).iterator())


async def read_asynchronously(alias: str) -> None:
    async for _ in setting_and_lock().using(alias).aiterator():
        pass


READS: dict[str, Callable[[str], Any]] = {
    "list": lambda alias: list(setting_and_lock().using(alias)),
    "iterator": lambda alias: list(setting_and_lock().using(alias).iterator()),
    "one row": read_a_row,
    "values": lambda alias: list(setting_and_lock().using(alias).values_list().iterator()),
    "in a block": read_in_a_block,
    "aiterator": read_asynchronously,
}


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("name", READS)
async def test_expressions_of_querysets(name: str, binding: bool, add_alias: AddAlias) -> None:
    """What an expression makes in the session is kept in a request, refused elsewhere.

    Whether the rows are fetched at once or by a server-side cursor.
    """
    alias = add_alias({"pool": {"max_size": 1}, "server_side_binding": binding})
    for each in ("a", "b", "c"):
        await Author.objects.acreate(name=each)

    async def read() -> None:
        found = READS[name](alias)
        if found is not None and asyncio.iscoroutine(found):
            await found

    async def view() -> Any:
        await read()
        run(alias, "SELECT 1")
        return run(alias, SETTING_AND_LOCK)

    async def inside_pinned() -> Any:
        async with pinned(alias):
            if name == "aiterator":
                await read_asynchronously(alias)
            else:
                await bridged(READS[name])(alias)
            return await bridged(run)(alias, SETTING_AND_LOCK)

    def plain() -> None:
        READS[name](alias)

    fresh = await bridged(run)(alias, SETTING_AND_LOCK)
    assert await in_bridge(view) == "a1"
    assert await bridged(run)(alias, SETTING_AND_LOCK) == fresh
    assert await inside_pinned() == "a1"
    assert await bridged(run)(alias, SETTING_AND_LOCK) == fresh
    with pytest.raises(ProgrammingError, match="lives in the session"):
        await (read_asynchronously(alias) if name == "aiterator" else bridged(plain)())
    assert await bridged(run)(alias, SETTING_AND_LOCK) == fresh


class Hidden:
    """SQL that goes to the server by way of a parameter."""

    def __init__(self, text: str) -> None:
        self.text = text


class HiddenDumper(psycopg.adapt.Dumper):
    def dump(self, obj: Hidden) -> bytes:
        return obj.text.encode()

    quote = dump


async def test_what_only_the_answer_tells(add_alias: AddAlias) -> None:
    """What the text does not tell, the server's answer does: kept in a request, or an error."""
    alias = add_alias({"pool": {"max_size": 1}})

    def hide(text: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.adapters.register_dumper(Hidden, HiddenDumper)
            cursor.execute("SELECT 1; %s", [Hidden(text)])

    async def view() -> Any:
        hide("SET app.one = 'a'")
        return run(alias, SETTING)

    with pytest.raises(ProgrammingError, match="It has run, since its text did not tell"):
        await bridged(hide)("SET app.one = 'a'")
    assert await bridged(run)(alias, SETTING) == ""
    assert await in_bridge(view) == "a"
    assert await bridged(run)(alias, SETTING) == ""
    with pytest.raises(ProgrammingError, match=r"at the end of the transaction. It"):
        async with transaction.atomic(alias):
            await bridged(hide)("LISTEN orders")
    await bridged(hide)("SELECT 'SET'")
    await bridged(run)(alias, "SET LOCAL app.one = 'a'; SET TRANSACTION READ ONLY")


@pytest.mark.parametrize("name", PROBES)
async def test_nothing_passes_on_from_psycopgs_own_cursors(name: str, add_alias: AddAlias) -> None:
    """Nor is what was changed past all cursors that we know of."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    @bridged
    def change_it() -> None:
        with transaction.atomic(alias):
            Author.objects.using(alias).exists()
            psycopg.ClientCursor(connections[alias].connection).execute(change)

    before = await bridged(backend)(alias)
    await change_it()
    assert await bridged(run)(alias, ask) == fresh
    assert await bridged(backend)(alias) == before


@pytest.mark.parametrize("name", PROBES)
async def test_a_session_that_nothing_keeps(name: str, server: Server) -> None:
    """Outside a transaction, a pin and a request such a statement is refused before it is sent."""
    change, ask, fresh = PROBES[name]
    if name == "role":
        change = "SET ROLE postgres"
    with pytest.raises(ProgrammingError, match=r"pinned\('default'\)"):
        await bridged(run)("default", change)
    assert await bridged(run)("default", ask) == fresh


@pytest.mark.parametrize("name", PROBES)
async def test_a_request_keeps_its_session(name: str, add_alias: AddAlias) -> None:
    """In a request the connection is kept to the request's end, and reset then."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    async def view() -> Any:
        run(alias, change)
        await asyncio.sleep(0)
        return run(alias, ask)

    assert await in_bridge(view) != fresh
    assert await bridged(run)(alias, ask) == fresh


async def test_what_a_wrapper_sets_for_each_cursor(add_alias: AddAlias) -> None:
    """A wrapper's class that changes the session for each cursor it makes may do so anywhere."""
    alias = add_alias({"pool": {"max_size": 1}}, ENGINE="tests.instrumentation.tenants")
    for schema in ("pg_catalog", "information_schema"):
        connections[alias].set_schema(schema)
        assert await bridged(run)(alias, "SHOW search_path") == f"{schema}, public"
    with pytest.raises(ProgrammingError, match="pinned"):
        await bridged(run)(alias, "SET search_path = pg_catalog")


async def test_what_connecting_set_up_is_kept(add_alias: AddAlias) -> None:
    """A reset ends where connection_created left the session, own settings and role included."""

    def set_up(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            with connection.cursor() as cursor:
                cursor.execute("SET work_mem = '33MB'")
                cursor.execute("SELECT set_config(%s, 'it''s', false)", ["app.name"])
                cursor.execute("SET app.other TO 'b'")

    alias = add_alias(
        {"pool": {"max_size": 1}, "assume_role": "pg_monitor"}, TIME_ZONE="Asia/Tokyo"
    )
    ask = (
        "SELECT ARRAY[current_setting('work_mem'), current_setting('app.name'),"
        " current_setting('app.other'), current_setting('TimeZone'), current_user]"
    )
    connection_created.connect(set_up)
    try:
        fresh = await bridged(run)(alias, ask)
        assert fresh == ["33MB", "it's", "b", "Asia/Tokyo", "pg_monitor"]
        async with pinned(alias):
            await bridged(run)(alias, "RESET ROLE")
            for name, value in (("work_mem", "44MB"), ("app.name", "c"), ("app.other", "d")):
                await bridged(run)(alias, "SELECT set_config(%s, %s, false)", [name, value])
        assert await bridged(run)(alias, ask) == fresh
    finally:
        connection_created.disconnect(set_up)


MADE: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "setting": (
        lambda cursor: cursor.execute(b"SET app.one = 'it''s %'"),
        SETTING,
        "it's %",
    ),
    "by psycopg.sql": (
        lambda cursor: cursor.execute(
            sql.SQL("SET {} TO {}").format(sql.Identifier("app", "one"), sql.Literal("x\\"))
        ),
        SETTING,
        "x\\",
    ),
    "by parameters": (
        lambda cursor: cursor.execute(
            "SELECT set_config('app.' || %s, %s, %s)", ["one", "é", 0 > 1]
        ),
        SETTING,
        "é",
    ),
    "behind a comment": (
        lambda cursor: cursor.execute("/* ; */ SET app.one = 'a' -- for each"),
        SETTING,
        "a",
    ),
    "by psycopg": (lambda cursor: cursor.db.connection.execute("SET app.one = 'a'"), SETTING, "a"),
    "by a block": (
        lambda cursor: cursor.execute("DO %s", ["BEGIN SET app.one = 'a'; END"]),
        SETTING,
        "a",
    ),
    "search path": (
        lambda cursor: cursor.execute("SET search_path = pg_catalog, public"),
        "SHOW search_path",
        "pg_catalog, public",
    ),
    "temporary table": (lambda cursor: make_table(cursor), "SELECT array_agg(n) FROM t", [1, 2, 3]),
    "temporary view": (
        lambda cursor: cursor.execute("CREATE VIEW pg_temp.v AS SELECT 7"),
        "SELECT * FROM v",
        7,
    ),
    "prepared statement": (
        lambda cursor: cursor.execute("PREPARE one AS SELECT 1"),
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'one'",
        1,
    ),
    "cursor": (
        lambda cursor: cursor.execute("DECLARE c CURSOR WITH HOLD FOR SELECT 1"),
        "SELECT count(*) FROM pg_cursors WHERE name = 'c'",
        1,
    ),
    "LISTEN": (
        lambda cursor: cursor.execute("LISTEN chan"),
        "SELECT array_agg(c) FROM pg_listening_channels() c",
        ["chan"],
    ),
    "advisory lock": (
        lambda cursor: cursor.callproc("pg_advisory_lock_shared", [77]),
        "SELECT array_agg(objid::int) FROM pg_locks WHERE locktype = 'advisory'"
        " AND pid = pg_backend_pid()",
        [77],
    ),
    "role": (
        lambda cursor: cursor.execute("SET ROLE pg_monitor"),
        "SELECT current_user",
        "pg_monitor",
    ),
    "session authorization": (
        lambda cursor: cursor.execute(
            "SET log_statement = 'ddl'; SET SESSION AUTHORIZATION pg_monitor"
        ),
        "SELECT session_user || ' ' || current_user",
        "pg_monitor pg_monitor",
    ),
    "both": (
        lambda cursor: cursor.execute(
            "SET SESSION AUTHORIZATION pg_monitor; SET ROLE pg_read_all_stats"
        ),
        "SELECT session_user || ' ' || current_user",
        "pg_monitor pg_read_all_stats",
    ),
    "by a function": (
        lambda cursor: cursor.execute("SELECT pgbackend_tests_sets('work_mem', '33MB')"),
        "SHOW work_mem",
        "33MB",
    ),
    "session authorization by a function": (
        lambda cursor: cursor.execute(
            "SELECT pgbackend_tests_sets('session_authorization', 'pg_monitor')"
        ),
        "SELECT session_user",
        "pg_monitor",
    ),
    "with an error": (lambda cursor: make_with_an_error(cursor), SETTING, "a"),
}


def make_table(cursor: Any) -> None:
    cursor.execute("CREATE TEMP TABLE IF NOT EXISTS t (n int)")
    cursor.execute("INSERT INTO t VALUES (%s)", [1])
    cursor.executemany("INSERT INTO t VALUES (%s)", [[2], [3]])


def make_with_an_error(cursor: Any) -> None:
    with pytest.raises(DataError):
        cursor.execute("SET ROLE no_such_role")
    cursor.execute("SET app.one = 'a'")


@pytest.fixture
def sets(server: Server) -> Iterator[None]:
    """A function of the server that changes its caller's session, as its text does not tell."""
    server.all(
        "CREATE FUNCTION pgbackend_tests_sets(name text, value text) RETURNS text"
        " LANGUAGE sql AS $$ SELECT set_config(name, value, false) $$"
    )
    yield
    server.all("DROP FUNCTION pgbackend_tests_sets")


@pytest.mark.parametrize("name", MADE)
async def test_what_receivers_make(name: str, add_alias: AddAlias, sets: None) -> None:
    """What a receiver of connection_created makes in a session is there for each borrower."""
    make, ask, expected = MADE[name]
    created = []

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            created.append(connection)
            with connection.cursor() as cursor:
                make(cursor)

    @bridged
    def spoil() -> None:
        with pinned(alias), connections[alias].cursor() as cursor:
            cursor.execute("SET SESSION AUTHORIZATION DEFAULT")
            cursor.execute("SELECT 1; TRUNCATE t" if name == "temporary table" else "SELECT 1")
            cursor.execute("DISCARD ALL")
            cursor.execute("SET app.one = 'b'; SET search_path = pg_temp; CREATE TEMP TABLE t ()")
            cursor.execute("SET ROLE pg_read_all_data")
            cursor.execute("LISTEN another")

    alias = add_alias({"pool": {"max_size": 1}})
    connection_created.connect(receive)
    try:
        for _ in range(3):
            assert await bridged(run)(alias, ask) == expected
            await spoil()
        assert await bridged(run)(alias, ask) == expected
    finally:
        connection_created.disconnect(receive)
    assert len(created) == 1


class Basket(models.Model):
    """A row of a temporary table."""

    item = models.TextField()

    class Meta:
        app_label = "tests"
        db_table = "pgbackend_basket"
        managed = False


def write_by_the_orm(alias: str) -> None:
    Basket.objects.using(alias).create(item="secret")


def change_by_the_orm(alias: str) -> None:
    Basket.objects.using(alias).update(item="secret")


def remove_in_a_block(alias: str) -> None:
    with transaction.atomic(alias):
        Basket.objects.using(alias).all().delete()


def write_by_sql(alias: str) -> None:
    run(alias, "INSERT INTO pgbackend_basket (item) VALUES ('secret')")


def write_in_a_transaction_of_its_own(alias: str) -> None:
    with transaction.atomic(alias):
        write_by_the_orm(alias)


def count_by_a_sequence(alias: str) -> None:
    with pytest.raises(DataError), transaction.atomic(alias):
        write_by_the_orm(alias)
        run(alias, "SELECT 1 / 0")


WRITES = [
    write_by_the_orm,
    change_by_the_orm,
    remove_in_a_block,
    write_by_sql,
    write_in_a_transaction_of_its_own,
    count_by_a_sequence,
]


@pytest.fixture
def makes_baskets(server: Server) -> Iterator[None]:
    """A function of the server that makes a temporary table, as its caller's text does not tell."""
    server.all(
        "CREATE FUNCTION pgbackend_tests_baskets() RETURNS void LANGUAGE sql AS $$"
        " CREATE TEMP TABLE pgbackend_basket (id serial PRIMARY KEY, item text) $$"
    )
    yield
    server.all("DROP FUNCTION pgbackend_tests_baskets")


@pytest.mark.parametrize("write", WRITES)
async def test_rows_in_tables_that_receivers_make(
    write: Callable[[str], None], add_alias: AddAlias
) -> None:
    """What a borrower writes into a receiver's temporary table is gone for the next one."""

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            with connection.cursor() as cursor:
                cursor.execute("CREATE TEMP TABLE pgbackend_basket (id serial, item text)")
                cursor.execute("INSERT INTO pgbackend_basket (item) VALUES ('first')")

    @bridged
    def rows() -> list[Any]:
        return list(Basket.objects.using(alias).values_list("id", "item"))

    @bridged
    def next_id() -> int:
        return int(Basket.objects.using(alias).create(item="next").pk)

    alias = add_alias({"pool": {"max_size": 1}})
    connection_created.connect(receive)
    try:
        for _ in range(2):
            assert await rows() == [(1, "first")]
            await bridged(write)(alias)
        assert await rows() == [(1, "first")]
        assert await next_id() == 2
    finally:
        connection_created.disconnect(receive)


async def test_rows_in_tables_of_a_receivers_function(
    add_alias: AddAlias, makes_baskets: None
) -> None:
    """Nor do rows pass on in a table that a receiver makes by a function in the server."""

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pgbackend_tests_baskets()")

    alias = add_alias({"pool": {"max_size": 1}})
    connection_created.connect(receive)
    try:
        await bridged(write_by_the_orm)(alias)
        with pytest.raises(ProgrammingError, match="does not exist"):
            await bridged(Basket.objects.using(alias).count)()
    finally:
        connection_created.disconnect(receive)


async def test_what_receivers_write(add_alias: AddAlias, server: Server) -> None:
    """What else a receiver of connection_created does is done once for each connection."""

    def receive(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            Author.objects.using(alias).create(name="connected")
            with connection.cursor() as cursor:
                cursor.execute("SET app.one = 'a'")
                cursor.execute("SELECT set_config('app.two', 'b', true)")

    alias = add_alias({"pool": {"max_size": 1}})
    connection_created.connect(receive)
    try:
        for _ in range(3):
            assert await bridged(run)(alias, SETTING) == "a"
            assert await bridged(run)(alias, PID_DIRTY)
    finally:
        connection_created.disconnect(receive)
    assert await Author.objects.acount() == 1


async def test_a_reset_that_fails_discards_the_connection(
    add_alias: AddAlias, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection whose session cannot be reset is closed, and the next one is fresh."""
    alias = add_alias({"pool": {"max_size": 1}})
    before = await bridged(backend)(alias)
    async with pinned(alias):
        await bridged(run)(alias, "CREATE TEMP TABLE t (n int)")
        server.all("SELECT pg_terminate_backend(%s)", before)
    assert await bridged(backend)(alias) != before


async def test_who_finds_one_being_reset_waits_for_that(add_alias: AddAlias) -> None:
    """While a session is reset, who comes next takes it; the pool grows for those beyond."""
    alias = add_alias({"pool": {"max_size": 5}})
    pool = await bridged(lambda: connections[alias].async_pool)()
    pids = {await bridged(run)(alias, PID_DIRTY) for _ in range(20)}
    assert len(pids) == 1
    assert pool.get_stats()["connections_num"] == 1
    # Its reset has not begun to be answered when these two come.
    await asyncio.gather(*[bridged(run)(alias, PID_DIRTY) for _ in range(2)])
    await until(lambda: pool.get_stats()["connections_num"] == 2)


class Doubled(models.IntegerField):
    """A field of the application's that puts SQL of its own into statements."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return f"2 * {sql}", params


class Shout(Func):
    function = "upper"


class Marked(models.TextField):
    """A field of the application's whose type is SQL of its own."""

    def cast_db_type(self, connection: Any) -> str:
        return f"text || {CHANGING}"


CHANGING = "set_config('role', 'pg_monitor', false)"


def changed(node: Any, name: str, value: Any) -> Any:
    """Return *node* with an attribute of its own."""
    setattr(node, name, value)
    return node


CLEAN = {
    "all": lambda: Author.objects.all(),
    "filter": lambda: Author.objects.filter(name__icontains="a").exclude(pk__in=[1, 2]),
    "annotate": lambda: Author.objects.annotate(n=Lower("name"), c=Coalesce("name", Value(""))),
    "aggregate": lambda: Author.objects.values("name").annotate(n=Count("pk")),
    "subquery": lambda: Author.objects.filter(pk__in=Author.objects.values("pk")),
    "q": lambda: Author.objects.filter(Q(name="a") | ~Q(pk=F("pk"))),
    "union": lambda: Author.objects.all().union(Author.objects.all()),
    "arithmetic": lambda: Author.objects.annotate(n=F("pk") + 1, m=F("pk").bitand(1), k=-F("pk")),
    "cast": lambda: Author.objects.annotate(n=Cast("name", models.CharField(max_length=3))),
    "cast to an array": lambda: Author.objects.annotate(
        n=Cast("name", ArrayField(models.DecimalField(max_digits=3, decimal_places=1)))
    ),
    "exists": lambda: Author.objects.filter(Exists(Author.objects.filter(pk=OuterRef("pk")))),
}
DIRTY = {
    "raw sql": lambda: Author.objects.annotate(n=RawSQL("1", ())),
    "func": lambda: Author.objects.annotate(n=Func("name", function="upper")),
    "template": lambda: Author.objects.annotate(n=Lower("name", function="upper")),
    "own expression": lambda: Author.objects.annotate(n=Shout("name")),
    "extra": lambda: Author.objects.extra(where=["true"]),
    "in a subquery": lambda: Author.objects.filter(
        pk__in=Author.objects.annotate(n=RawSQL("1", ())).values("n")
    ),
}
# The same, by parts of Django's that were given SQL.
GIVEN_SQL = {
    "template of a subquery": lambda: Author.objects.annotate(
        n=Subquery(Author.objects.values("name")[:1], template=f"(SELECT {CHANGING})")
    ),
    "template of exists": lambda: Author.objects.annotate(
        n=Exists(Author.objects.all(), template=f"({CHANGING} IS NULL OR EXISTS(%(subquery)s))")
    ),
    "connector": lambda: Author.objects.annotate(
        n=CombinedExpression(
            F("name"), f"|| {CHANGING} ||", F("name"), output_field=models.TextField()
        )
    ),
    "cast to an own type": lambda: Author.objects.annotate(n=Cast("name", Marked())),
    "cast to an array of an own type": lambda: Author.objects.annotate(
        n=Cast("name", ArrayField(Marked()))
    ),
    "cast to a length": lambda: Author.objects.annotate(
        n=Cast("name", models.CharField(max_length=f"20) || {CHANGING} || ''::varchar(20"))
    ),
    "function of an instance": lambda: Author.objects.annotate(
        n=changed(Lower("name"), "function", f"{CHANGING} || lower")
    ),
    "template of an instance": lambda: Author.objects.annotate(
        n=changed(Case(default=Value(1)), "template", f"length({CHANGING})")
    ),
    "SQL of an instance": lambda: Author.objects.annotate(
        n=changed(Value("x"), "as_sql", lambda *args: (CHANGING, []))
    ),
}


@pytest.mark.parametrize("name", [*CLEAN, *DIRTY, *GIVEN_SQL])
def test_what_is_clean(name: str) -> None:
    """A statement of Django's own parts alone is clean; one with an application's is not."""
    query = (CLEAN | DIRTY | GIVEN_SQL)[name]().query
    sql, _ = query.get_compiler("default").as_sql()
    assert isinstance(sql, CleanSQL) is (name in CLEAN)


def test_fields_with_sql_of_their_own() -> None:
    """A field class that takes part in the SQL is not clean; one that only overrides more is."""

    class Plain(models.IntegerField):
        def to_python(self, value: Any) -> Any:
            return super().to_python(value)

    assert is_clean_field(models.JSONField())
    assert is_clean_field(Plain())
    assert not is_clean_field(Doubled())
    assert is_clean_field(ArrayField(Plain()))
    assert not is_clean_field(ArrayField(Marked()))
    named = models.IntegerField(db_column=f'"name" || {CHANGING} || "name"')
    named.set_attributes_from_name("named")
    assert not is_clean_field(named)


@pytest.mark.parametrize("name", GIVEN_SQL)
async def test_expressions_with_sql_of_their_own(add_alias: AddAlias, name: str) -> None:
    """What the SQL in an expression makes in the session is refused, or not the next borrower's."""
    alias = add_alias({"pool": {"max_size": 1}})
    await Author.objects.acreate(name="a")
    role = "SELECT current_user, current_setting('role')"
    before = await bridged(run)(alias, role)
    with suppress(DatabaseError):
        await bridged(list)(GIVEN_SQL[name]().using(alias))
    assert await bridged(run)(alias, role) == before


async def test_clean_statements_cost_no_reset(server: Server) -> None:
    """A run of ORM statements, savepoints included, leaves nothing to be reset."""

    async def work() -> None:
        author = await Author.objects.acreate(name="a")
        await Author.objects.filter(pk=author.pk).aupdate(name="b")
        async with transaction.atomic(), transaction.atomic():
            await Author.objects.aget(pk=author.pk)
        await author.adelete()

    def resets() -> list[str]:
        """Return the last messages of our connections that have reset the session."""
        sent = "SELECT query FROM pg_stat_activity WHERE application_name = %s"
        return [query for (query,) in server.all(sent, NAME) if "RESET ALL" in query]

    await work()
    await work()
    assert await bridged(backend)("default")
    assert resets() == []
    await bridged(run)("default", "SELECT count(*) FROM tests_author WHERE name = %s", ["a"])
    assert await bridged(backend)("default")
    assert resets() == []
    await bridged(run)("default", "SELECT pg_catalog.pg_stat_clear_snapshot()")
    assert await bridged(backend)("default")
    assert len(resets()) == 1


def test_changes_session() -> None:
    """Statements whose effect lives in the session are told from others by their text."""
    kept = [
        "SET LOCAL work_mem = '1MB'",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "UPDATE t SET a = 1",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT set_config('a.b', 'c', true)",
        "CREATE TABLE temperatures (n int)",
        "SELECT 'LISTEN'",
    ]
    assert not any(map(changes_session, kept))
    assert all(changes_session(change) for change, _, _ in PROBES.values())
    assert changes_session("\n  set session work_mem to 1")
    assert changes_session("create local temporary table t ()")


async def test_reverse_relations() -> None:
    """A comparison with the far end of a relation is Django's own: it works, and it is clean."""
    author = await Author.objects.acreate(name="Ada")
    book = await Book.objects.acreate(title="A", author=author)
    await book.readers.aadd(author)
    for filters in (
        {"books": book},
        {"books": book.pk},
        {"books__in": [book]},
        {"reads": book},
        {"reads__in": Book.objects.all()},
        {"books__isnull": False},
    ):
        queryset = Author.objects.filter(**filters)
        assert [each async for each in queryset] == [author], filters
        sql, _ = queryset.query.get_compiler("default").as_sql()
        assert type(sql) is CleanSQL, filters


# Tasks of a request that keeps its session


def in_request(alias: str, *coroutines: Callable[[], Any]) -> Any:
    """Return a coroutine function: a view that sets a role, and then gathers others."""

    async def view() -> list[Any]:
        run(alias, "SET ROLE pg_monitor")
        return list(await asyncio.gather(*(each() for each in coroutines)))

    return in_bridge(view)


USER = "SELECT current_user"


async def test_tasks_use_the_session_of_their_request(add_alias: AddAlias) -> None:
    """What a request has set is in force in the tasks it starts then, by whatever they read."""
    alias = add_alias({"pool": {"max_size": 3}})

    async def by_cursor() -> Any:
        return await bridged(run)(alias, USER)

    async def by_orm() -> Any:
        authors = Author.objects.using(alias).annotate(user=RawSQL("current_user::text", ()))
        return await authors.values_list("user", flat=True).aget()

    async def in_a_transaction() -> Any:
        async with transaction.atomic(alias):
            return await bridged(run)(alias, USER)

    async def by_iterator() -> Any:
        authors = Author.objects.using(alias).annotate(user=RawSQL("current_user::text", ()))
        return [user async for user in authors.values_list("user", flat=True).aiterator()].pop()

    async def in_a_task() -> Any:
        return await asyncio.create_task(by_cursor())

    await Author.objects.acreate(name="a")
    await bridged(run)(alias, "GRANT SELECT ON tests_author TO pg_monitor")
    try:
        ways = [by_cursor, by_orm, in_a_transaction, by_iterator, in_a_task] * 3
        assert await in_request(alias, *ways) == ["pg_monitor"] * 15
        assert await by_cursor() != "pg_monitor"
    finally:
        await bridged(run)(alias, "REVOKE SELECT ON tests_author FROM pg_monitor")


async def test_requests_whose_tasks_use_their_sessions(add_alias: AddAlias) -> None:
    """As many requests as connections, each with a session and tasks, do not wait for others."""
    alias = add_alias({"pool": {"max_size": 4, "timeout": 20}})
    together = asyncio.Barrier(4)

    async def view(number: int) -> list[Any]:
        run(alias, f"SET app.one = '{number}'")
        await together.wait()
        return await asyncio.gather(*(bridged(run)(alias, SETTING) for _ in range(5)))

    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*(in_bridge(view, number) for number in range(4)))
    assert found == [[str(number)] * 5 for number in range(4)]
    assert await bridged(run)(alias, SETTING) == ""


async def test_transactions_of_tasks_in_one_session(add_alias: AddAlias) -> None:
    """Tasks of a request with a session have their transactions in turns, each for itself."""
    alias = add_alias({"pool": {"max_size": 1}})
    authors = Author.objects.using(alias)

    async def write(number: int) -> None:
        await asyncio.sleep(0)
        async with transaction.atomic(alias):
            await authors.acreate(name=f"in {number}")
            await asyncio.sleep(0)
            if number % 2:
                raise ZeroDivisionError

    async def write_outside(number: int) -> None:
        for _ in range(number % 7):
            await asyncio.sleep(0)
        await authors.acreate(name=f"out {number}")

    async def view() -> list[Any]:
        run(alias, "SET app.one = 'a'")
        tasks = [write(number) for number in range(20)]
        tasks += [write_outside(number) for number in range(20)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = await in_bridge(view)
    assert [type(each) for each in outcomes[:20]] == [type(None), ZeroDivisionError] * 10
    assert outcomes[20:] == [None] * 20
    names = {name async for name in authors.values_list("name", flat=True)}
    expected = {f"in {number}" for number in range(0, 20, 2)}
    assert names == expected | {f"out {number}" for number in range(20)}


async def test_a_task_that_outlives_its_requests_session(add_alias: AddAlias) -> None:
    """A task that goes on after the request's session has ended is told, before any SQL."""
    alias = add_alias({"pool": {"max_size": 2}})
    go_on = asyncio.Event()

    async def late() -> Any:
        await go_on.wait()
        return await bridged(run)(alias, USER)

    async def view() -> list[Any]:
        early = asyncio.create_task(late())
        run(alias, "SET ROLE pg_monitor")
        outliving = asyncio.create_task(late())
        with detached():
            apart = asyncio.create_task(late())
        return [early, outliving, apart]

    early, outliving, apart = await in_bridge(view)
    go_on.set()
    with pytest.raises(RuntimeError, match="started in a request that has made something"):
        await outliving
    assert await early == await apart == await bridged(run)(alias, USER)


async def test_a_task_does_not_close_its_requests_session(add_alias: AddAlias) -> None:
    """connection.close() in a task leaves its request's session alone; in the request it ends."""
    alias = add_alias({"pool": {"max_size": 2}})

    async def close() -> None:
        await bridged(lambda: connections[alias].close())()

    async def view() -> list[Any]:
        run(alias, "SET ROLE pg_monitor")
        await asyncio.create_task(close())
        seen = [run(alias, USER)]
        connections[alias].close()
        seen.append(await asyncio.create_task(bridged(run)(alias, USER)))
        return seen

    assert await in_bridge(view) == ["pg_monitor", await bridged(run)(alias, USER)]


async def test_two_calls_with_sessions_at_once(add_alias: AddAlias) -> None:
    """Calls that run at once each have their own session, whoever started them."""
    alias = add_alias({"pool": {"max_size": 4}})

    @bridged
    async def call(number: int) -> list[Any]:
        run(alias, f"SET app.one = '{number}'")
        await asyncio.sleep(0)
        found = await asyncio.gather(*(bridged(run)(alias, SETTING) for _ in range(3)))
        return [*found, run(alias, SETTING)]

    found = await asyncio.gather(*map(call, range(4)))
    assert found == [[str(number)] * 4 for number in range(4)]


async def test_a_session_kept_by_a_task_of_a_transaction(add_alias: AddAlias) -> None:
    """A session that a task makes in the transaction of its request is the request's, then."""
    alias = add_alias({"pool": {"max_size": 2}})

    async def view() -> list[Any]:
        async with transaction.atomic(alias):
            await asyncio.create_task(bridged(run)(alias, "SET ROLE pg_monitor"))
        return [run(alias, USER), await asyncio.create_task(bridged(run)(alias, USER))]

    assert await in_bridge(view) == ["pg_monitor", "pg_monitor"]
