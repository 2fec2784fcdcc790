"""Sessions: what a borrower leaves behind is gone for the next one, and what costs a reset."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import ProgrammingError, connection, connections, models, transaction
from django.db.backends.signals import connection_created
from django.db.models import Count, F, Func, Q, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Lower

from pgbackend import bridged
from pgbackend.routing import in_bridge
from pgbackend.session import CleanSQL, changes_session, is_clean_field
from pgbackend.transaction import pinned
from tests.conftest import Server
from tests.models import Author
from tests.wrapper import until

AddAlias = Callable[..., str]

PROBES = {
    "setting": ("SET work_mem = '77MB'", "SHOW work_mem", "4MB"),
    "search_path": ("SET search_path = pg_catalog", "SHOW search_path", '"$user", public'),
    "custom setting": (
        "SELECT set_config('app.tenant', 'a', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "",
    ),
    "role": ("SET ROLE pg_monitor", "SELECT current_user <> session_user", False),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "UTC"),
    "temporary table": ("CREATE TEMP TABLE t AS SELECT 1", "SELECT to_regclass('t')", None),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        0,
    ),
    "listen": ("LISTEN orders", "SELECT count(*) FROM pg_listening_channels()", 0),
    "prepared statement": (
        "PREPARE p AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'",
        0,
    ),
    "cursor": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'c'",
        0,
    ),
}


def run(alias: str, sql: str, params: Any = None) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


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


@pytest.mark.parametrize("name", PROBES)
async def test_nothing_passes_on_from_a_transaction(name: str, add_alias: AddAlias) -> None:
    """The same for what a transaction set, whether it is committed or not."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]
    async with transaction.atomic(alias):
        await bridged(run)(alias, change)
    assert await bridged(run)(alias, ask) == fresh


@pytest.mark.parametrize("name", PROBES)
async def test_nothing_passes_on_from_psycopgs_own_cursors(name: str, add_alias: AddAlias) -> None:
    """Nor is what was changed past Django's cursors, by methods of psycopg's connection."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    @bridged
    def change_it() -> None:
        with transaction.atomic(alias):
            Author.objects.using(alias).exists()
            connections[alias].connection.execute(change)

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
    alias = add_alias({"pool": {"max_size": 1}}, ENGINE="tests.instrumentation_tenants")
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
    pids = {await bridged(backend)(alias) for _ in range(20)}
    assert len(pids) == 1
    assert pool.get_stats()["connections_num"] == 1
    # Its reset has not begun to be answered when these two come.
    await asyncio.gather(*[bridged(backend)(alias) for _ in range(2)])
    await until(lambda: pool.get_stats()["connections_num"] == 2)


class Doubled(models.IntegerField):
    """A field of the application's that puts SQL of its own into statements."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> Any:
        return f"2 * {sql}", params


class Shout(Func):
    function = "upper"


CLEAN = {
    "all": lambda: Author.objects.all(),
    "filter": lambda: Author.objects.filter(name__icontains="a").exclude(pk__in=[1, 2]),
    "annotate": lambda: Author.objects.annotate(n=Lower("name"), c=Coalesce("name", Value(""))),
    "aggregate": lambda: Author.objects.values("name").annotate(n=Count("pk")),
    "subquery": lambda: Author.objects.filter(pk__in=Author.objects.values("pk")),
    "q": lambda: Author.objects.filter(Q(name="a") | ~Q(pk=F("pk"))),
    "union": lambda: Author.objects.all().union(Author.objects.all()),
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


@pytest.mark.parametrize("name", [*CLEAN, *DIRTY])
def test_what_is_clean(name: str) -> None:
    """A statement of Django's own parts alone is clean; one with an application's is not."""
    query = (CLEAN | DIRTY)[name]().query
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


async def test_clean_statements_cost_no_reset() -> None:
    """A run of ORM statements, savepoints included, leaves nothing to be reset."""

    async def work() -> None:
        author = await Author.objects.acreate(name="a")
        await Author.objects.filter(pk=author.pk).aupdate(name="b")
        async with transaction.atomic(), transaction.atomic():
            await Author.objects.aget(pk=author.pk)
        await author.adelete()

    await work()
    lease_resets = []
    pool = await bridged(lambda: connection.async_pool)()
    reset = pool._reset_session
    pool._reset_session = lambda conn: (lease_resets.append(conn), reset(conn))
    await work()
    await asyncio.sleep(0)
    assert lease_resets == []
    await bridged(backend)("default")
    assert await bridged(backend)("default")
    assert len(lease_resets) >= 1


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
