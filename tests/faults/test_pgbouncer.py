"""Faults, row 29: PgBouncer in transaction mode between the pool and the server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from django.db import DataError, IntegrityError, InternalError, connections, transaction

from pgbackend import CommitInDoubt, bridged
from pgbackend.transaction import atomic
from tests.faults.fix_servers import PgBouncer
from tests.models import Author
from tests.support.loops import LOOPS
from tests.support.server import Server
from tests.support.work import until_running
from tests.support.wrapper import PID, AddAlias, avalue, until, value

pytestmark = pytest.mark.process


@pytest.fixture
def alias(pgbouncer: PgBouncer, add_alias: AddAlias) -> str:
    """An alias with the options of the tests, behind PgBouncer."""
    return add_alias({"pool": {"max_size": 8}}, HOST="127.0.0.1", PORT=pgbouncer.port)


async def test_29_statements_move_between_sessions(alias: str, server: Server) -> None:
    """Statements and transactions of 200 tasks do what they say on three sessions in turn."""
    pids: set[int] = set()

    async def work(number: int) -> None:
        author = await Author.objects.using(alias).acreate(name=f"{number}")
        async with transaction.atomic(alias):
            pid = await avalue(PID, alias)
            await Author.objects.using(alias).filter(pk=author.pk).aupdate(name=f"new {number}")
            with pytest.raises(IntegrityError):
                async with transaction.atomic(alias):
                    await Author.objects.using(alias).acreate(pk=author.pk, name="twice")
            assert await avalue(PID, alias) == pid
        pids.add(pid)

    await asyncio.gather(*map(work, range(200)))
    assert len(pids) == 3
    names = server.one("SELECT array_agg(name ORDER BY id) FROM tests_author")
    assert sorted(names) == sorted(f"new {number}" for number in range(200))


async def test_29_chunks(alias: str) -> None:
    """aiterator() and iterator() read all rows, from the server in a transaction only."""
    await Author.objects.abulk_create([Author(name=f"{number:03}") for number in range(50)])
    authors = Author.objects.using(alias).order_by("name")
    names = [f"{number:03}" for number in range(50)]

    async def others() -> None:
        # So that the next FETCH would find another session.
        await asyncio.gather(*(avalue("SELECT 1", alias) for _ in range(4)))

    async def read(cursors: int) -> list[str]:
        found = []
        async for author in authors.aiterator(7):
            if not found:
                assert await avalue("SELECT count(*) FROM pg_cursors", alias) == cursors
            found.append(author.name)
            await others()
        return found

    assert await read(0) == names
    async with transaction.atomic(alias):
        assert await read(1) == names
    assert await bridged(lambda: [each.name for each in authors.iterator(7)])() == names


async def test_29_prepared_statements(pgbouncer: PgBouncer, add_alias: AddAlias) -> None:
    """Statements that psycopg prepares are found in each session, also after a session's reset."""
    alias = add_alias(
        {"pool": {"max_size": 8}, "server_side_binding": True, "prepare_threshold": 1},
        HOST="127.0.0.1",
        PORT=pgbouncer.port,
    )
    await Author.objects.acreate(name="Ada")
    prepared = 0

    async def work() -> None:
        nonlocal prepared
        async with transaction.atomic(alias):
            for _ in range(3):
                assert await Author.objects.using(alias).aget(name="Ada")
            # Raw SQL: the session is reset.
            prepared += await avalue("SELECT count(*) FROM pg_prepared_statements", alias)
        assert await Author.objects.using(alias).aget(name="Ada")

    await asyncio.gather(*(work() for _ in range(100)))
    assert prepared


async def test_29_cancellation(alias: str, server: Server) -> None:
    """A cancelled statement is stopped behind PgBouncer too, and its transaction rolled back."""
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s"
    query = "SELECT 'cancelled', pg_sleep(600)"

    async def work() -> None:
        async with transaction.atomic(alias):
            await Author.objects.using(alias).acreate(name="lost")
            await avalue(query, alias)

    task = asyncio.create_task(work())
    await until(lambda: server.one(running, query))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.one(running, query) == 0
    assert not await Author.objects.using(alias).aexists()


async def test_29_time_zone(pgbouncer: PgBouncer, add_alias: AddAlias) -> None:
    """TIME_ZONE is that of each statement, whichever session runs it, before and after a reset."""

    def there(zone: str) -> str:
        return add_alias(
            {"pool": {"max_size": 4}}, HOST="127.0.0.1", PORT=pgbouncer.port, TIME_ZONE=zone
        )

    zones = {there(zone): zone for zone in ("Asia/Tokyo", "Europe/Paris")}

    async def work(alias: str) -> None:
        assert await avalue("SHOW TimeZone", alias) == zones[alias]

    await asyncio.gather(*(work(alias) for alias in [*zones] * 50))


async def test_29_what_a_transaction_sets_for_itself(alias: str) -> None:
    """SET LOCAL, a temporary table dropped at commit and a lock of the transaction stay in it."""

    def work() -> list[Any]:
        with transaction.atomic(alias), connections[alias].cursor() as cursor:
            cursor.execute("SET LOCAL work_mem = '77MB'")
            cursor.execute("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1")
            cursor.execute("SELECT pg_advisory_xact_lock(7)")
            return [value("SHOW work_mem", alias), value("SELECT count(*) FROM t", alias)]

    for found in await asyncio.gather(*(bridged(work)() for _ in range(20))):
        assert found == ["77MB", 1]
    seen = await asyncio.gather(*(avalue("SHOW work_mem", alias) for _ in range(20)))
    assert set(seen) == {"4MB"}
    assert await avalue("SELECT to_regclass('t')", alias) is None
    assert await avalue("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", alias) == 0


async def test_50_commit_answered_by_rollback(alias: str, server: Server) -> None:
    """Behind PgBouncer, too, a block whose transaction a caught error has aborted raises."""
    hooks: list[str] = []
    for _ in range(3):
        with pytest.raises(InternalError, match="cannot be committed"):
            async with transaction.atomic(alias):
                await Author.objects.using(alias).acreate(name="lost")
                transaction.on_commit(lambda: hooks.append("ran"), using=alias)
                with pytest.raises(DataError):
                    await avalue("SELECT 1 / 0", alias)
    assert hooks == []
    assert server.one("SELECT count(*) FROM tests_author") == 0
    async with transaction.atomic(alias):
        await Author.objects.using(alias).acreate(name="next")
    assert server.one("SELECT count(*) FROM tests_author") == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_29_connection_lost_at_commit(alias: str, server: Server, loop: str) -> None:
    """A COMMIT whose server connection is lost behind PgBouncer is CommitInDoubt; no hook runs."""
    hooks: list[str] = []
    server.all("SELECT pg_advisory_lock(4711)")
    server.all(
        "CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON tests_author DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_commit()"
    )

    async def kill() -> None:
        pid = await until_running(server.all, "COMMIT")
        server.all("SELECT pg_terminate_backend(%s, 10000)", pid)

    async def main() -> None:
        with pytest.raises(CommitInDoubt):
            async with transaction.atomic(alias):
                await Author.objects.using(alias).acreate(name="in doubt")
                transaction.on_commit(lambda: hooks.append("ran"), using=alias)
                killing = asyncio.create_task(kill())
        await killing
        server.all("SELECT pg_advisory_unlock_all()")
        async with transaction.atomic(alias):
            await Author.objects.using(alias).acreate(name="next")

    try:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(main())
    finally:
        server.all("SELECT pg_advisory_unlock_all()")
        server.all("DROP TRIGGER at_commit ON tests_author")
        server.all("DROP FUNCTION wait_at_commit")
    assert server.all("SELECT name FROM tests_author") == [("next",)]
    assert hooks == []


async def test_29_characteristics(alias: str) -> None:
    """What a transaction asks for reaches its session, and no other transaction there."""
    shown = "SELECT concat(current_setting('transaction_isolation'), ' ',"
    shown += " current_setting('transaction_read_only'))"

    async def work(number: int) -> tuple[str, bool]:
        asks = number % 3 == 0
        asked: Any = {"isolation": "serializable", "read_only": True} if asks else {}
        async with atomic(using=alias, **asked):
            return await avalue(shown, alias), asks

    for found, asked in await asyncio.gather(*map(work, range(60))):
        assert found == ("serializable on" if asked else "read committed off")
    assert await avalue(shown, alias) == "read committed off"


async def test_29_nested_blocks(alias: str, server: Server) -> None:
    """Savepoints that go with statements stay in their sessions; blocks that raise are undone."""

    async def work(number: int) -> None:
        async with transaction.atomic(alias):
            for part in range(4):
                with suppress(ValueError, IntegrityError):
                    async with transaction.atomic(alias):
                        async with transaction.atomic(alias):
                            await Author.objects.using(alias).acreate(name=f"{number} {part}")
                        if part == 1:
                            raise ValueError
                        if part == 2:
                            await Author.objects.using(alias).acreate(name=f"{number} 0")

    await asyncio.gather(*map(work, range(60)))
    there = {name for (name,) in server.all("SELECT name FROM tests_author")}
    assert there == {f"{number} {part}" for number in range(60) for part in (0, 3)}
