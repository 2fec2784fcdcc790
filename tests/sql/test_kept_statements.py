"""Statements that the server plans once for each connection, and what may make it forget them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from django.db import DataError, OperationalError, ProgrammingError, connections, transaction

from pgbackend import bridged
from pgbackend.extending import KeptStatement, execute_kept, own_cursor
from pgbackend.sql.kept_statements import THRESHOLD
from pgbackend.transaction import pinned
from tests.support.limits import AT_ONCE
from tests.support.server import DATABASES, Server
from tests.support.wrapper import small_pool, until, use_wrapper

PREPARED = "SELECT name FROM pg_prepared_statements WHERE name LIKE 'pgbackend%%' ORDER BY 1"
TABLE = "kept_statements"
STATEMENT = KeptStatement(f"SELECT value, '%%' FROM {TABLE} WHERE id = %s")
INSERT = KeptStatement(f"INSERT INTO {TABLE} VALUES (%s, %s) RETURNING id")


@pytest.fixture(autouse=True)
def table(server: Server) -> Iterator[None]:
    """A table with one row."""
    server.all(f"CREATE TABLE {TABLE} (id int PRIMARY KEY, value int)")
    server.all(f"INSERT INTO {TABLE} VALUES (1, 17)")
    yield
    server.all(f"DROP TABLE {TABLE}")


def value(kept: KeptStatement = STATEMENT, *params: object) -> object:
    """Execute a statement, and return the first value that it returns."""
    with own_cursor("default") as cursor:
        execute_kept(cursor, kept, params or [1])
        return cursor.fetchone()[0]


def prepared() -> list[str]:
    """Return the statements that the connection has kept."""
    with connections["default"].cursor() as cursor:
        cursor.execute(PREPARED)
        return [name for (name,) in cursor.fetchall()]


def keep() -> None:
    """Execute the statement until it is kept."""
    for _ in range(THRESHOLD + 1):
        assert value() == 17


@bridged
def test_it_is_kept() -> None:
    """After some executions the server has the statement; its results stay what they were."""
    small_pool()
    for _ in range(THRESHOLD):
        assert value() == 17
    assert prepared() == []
    keep()
    assert prepared() == [STATEMENT.name]
    with own_cursor("default") as cursor:
        execute_kept(cursor, STATEMENT, [1])
        assert cursor.fetchall() == [(17, "%")]
        assert cursor.rowcount == 1


async def test_begin_is_in_the_same_message(server: Server) -> None:
    """As the first statement of a transaction it is one message with the BEGIN."""
    small_pool()
    await bridged(keep)()
    async with transaction.atomic():
        assert await bridged(value)() == 17
        query = "SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'"
        assert server.one(f"{query} AND application_name = 'pgbackend-tests'").startswith(
            f"BEGIN;\nEXECUTE {STATEMENT.name}"
        )


@bridged
def test_not_within_a_transaction() -> None:
    """Behind other statements of a transaction the text is executed: it cannot be missing."""
    small_pool()
    keep()
    with transaction.atomic():
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT set_config('work_mem', '5MB', true)")
            cursor.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
        assert value() == 17
        assert value() == 17


@pytest.mark.parametrize("in_block", [False, True])
async def test_somebody_deallocates_it(server: Server, in_block: bool) -> None:
    """A statement that the server has no more is executed by its text, and nothing fails."""
    small_pool()
    server.all(
        f"CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NEW; END $$;"
        f" CREATE TRIGGER forget AFTER INSERT ON {TABLE} EXECUTE FUNCTION forget()"
    )
    try:
        await bridged(keep)()
        for number in range(2, 9):
            # The statement of a package, so no reset of the session follows.
            assert await bridged(value)(INSERT, number, number) == number
        if in_block:
            async with transaction.atomic():
                assert await bridged(value)(STATEMENT, 8) == 8
            assert await bridged(value)(STATEMENT, 8) == 8
        else:
            assert await bridged(value)(STATEMENT, 8) == 8
            assert await bridged(value)(STATEMENT, 8) == 8
    finally:
        server.all(f"DROP TRIGGER forget ON {TABLE}; DROP FUNCTION forget()")


async def test_a_column_changes(server: Server) -> None:
    """Where the type of a result has changed, the text is executed."""
    small_pool()
    await bridged(keep)()
    server.all(f"ALTER TABLE {TABLE} ALTER value TYPE text")
    async with transaction.atomic():
        assert await bridged(value)() == "17"
    assert await bridged(value)() == "17"


@bridged
def test_a_reset_forgets_it() -> None:
    """After a reset of the session the statement is kept anew, once it was executed some times."""
    small_pool()
    keep()
    with pinned(), connections["default"].cursor() as cursor:
        cursor.execute("SET work_mem = '5MB'")
    assert value() == 17
    assert prepared() == []
    keep()
    assert prepared() == [STATEMENT.name]


@bridged
def test_errors_are_its_own() -> None:
    """A statement that fails, or cannot be prepared, raises what its text raises."""
    small_pool()
    missing = KeptStatement("SELECT 1 FROM no_such_table WHERE id = %s")
    divided = KeptStatement("SELECT 1 / %s::int")
    for _ in range(THRESHOLD + 2):
        with pytest.raises(ProgrammingError, match="no_such_table"):
            value(missing)
    for _ in range(THRESHOLD + 2):
        with pytest.raises(DataError):
            value(divided, 0)
    assert value() == 17
    assert divided.name in prepared()


async def test_cancelled_while_it_is_prepared(server: Server) -> None:
    """A task that is cancelled in the PREPARE leaves a connection that works."""
    small_pool()
    for _ in range(THRESHOLD):
        await bridged(value)()
    with psycopg.connect(server.dsn, dbname=DATABASES[0], autocommit=True) as other:
        other.execute(f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(bridged(value)())
        waits = (
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'PREPARE%' AND wait_event = 'relation'"
        )
        await until(lambda: server.all(waits))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other.execute("ROLLBACK")
    for _ in range(THRESHOLD + 2):
        assert await bridged(value)() == 17


@pytest.mark.parametrize("how", ["cancel", "lock_timeout"])
async def test_stopped_while_it_is_prepared(server: Server, how: str) -> None:
    """What stops the PREPARE stops the statement: a time-out is not waited for twice."""
    options = {} if how == "cancel" else {"options": "-c lock_timeout=200ms"}
    use_wrapper(options={"pool": {"max_size": 1}, **options})
    for _ in range(THRESHOLD):
        await bridged(value)()
    with psycopg.connect(server.dsn, dbname=DATABASES[0], autocommit=True) as other:
        other.execute(f"BEGIN; LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE")
        task = asyncio.create_task(bridged(value)())
        if how == "cancel":
            stop = (
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'PREPARE%'"
                " AND wait_event = 'relation'"
            )
            await until(lambda: server.all(stop))
        with pytest.raises(OperationalError, match="canceling statement due to"):
            await asyncio.wait_for(task, AT_ONCE)
        last = f"SELECT query FROM pg_stat_activity WHERE query LIKE '%AS SELECT value%{TABLE}%'"
        assert server.one(f"{last} AND pid <> pg_backend_pid()").startswith("PREPARE")
        other.execute("ROLLBACK")
    for _ in range(THRESHOLD + 2):
        assert await bridged(value)() == 17
    assert await bridged(prepared)() == [STATEMENT.name]


@pytest.mark.parametrize("kept", [False, True])
async def test_another_task_of_the_transaction(server: Server, kept: bool) -> None:
    """The work of another task in the block is kept, whatever the server has forgotten."""
    small_pool()
    server.all(
        f"CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN EXECUTE 'DEALLOCATE ALL'; RETURN NEW; END $$;"
        f" CREATE TRIGGER forget AFTER INSERT ON {TABLE} EXECUTE FUNCTION forget()"
    )

    def insert(number: int) -> None:
        with own_cursor("default") as cursor:
            cursor.execute(f"INSERT INTO {TABLE} VALUES (%s, 18)", [number])

    try:
        for _ in range(THRESHOLD + kept):
            await bridged(value)()
        if kept:
            await bridged(insert)(2)
        async with transaction.atomic():
            # The second one waits for its turn while the first one is prepared or executed.
            await asyncio.gather(bridged(value)(), bridged(insert)(3))
        assert await bridged(value)(STATEMENT, 3) == 18
    finally:
        server.all(f"DROP TRIGGER forget ON {TABLE}; DROP FUNCTION forget()")
