"""Sessions: what a borrower leaves behind is gone for the next one, and what costs a reset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.postgres.fields import ArrayField
from django.db import (
    DatabaseError,
    DataError,
    ProgrammingError,
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
from pgbackend.transaction import pinned
from pgbackend.wrapper.dispatch import in_bridge
from tests.models import Author, Book
from tests.support.server import NAME, Server
from tests.support.session import PROBES, SETTING, backend, run
from tests.support.wrapper import AddAlias, until

# Calls what may do anything, for all that is known.
PID_DIRTY = "SELECT pg_backend_pid() FROM pg_stat_get_activity(pg_backend_pid())"


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
