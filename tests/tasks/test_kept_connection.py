"""A `connection.connection` that is kept after its lease ended: closed for whoever kept it."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction

from pgbackend import bridged
from tests.models import Author
from tests.support.loops import LOOPS
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.wrapper import PID, avalue, on_loan, small_pool, value

# What somebody may keep, made from the connection while it is on loan.
KEPT: dict[str, Callable[[Any], Any]] = {
    "connection": lambda raw: raw,
    "cursor": lambda raw: raw.cursor(),
    "psycopg's cursor": psycopg.Cursor,
    "client cursor": psycopg.ClientCursor,
    "of a wrapper": lambda raw: connection.cursor().cursor.connection,
    "server-side cursor": lambda raw: psycopg.ServerCursor(raw, "kept"),
}

# What they may try with it, each on a connection or on a cursor.
USES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda kept: kept.execute("INSERT INTO tests_author (name) VALUES ('strange')"),
    "a cursor": lambda kept: getattr(kept, "connection", kept).cursor().execute("SELECT 1"),
    "commit": lambda kept: _checked(getattr(kept, "connection", kept).commit),
    "rollback": lambda kept: _checked(getattr(kept, "connection", kept).rollback),
    "autocommit": lambda kept: setattr(getattr(kept, "connection", kept), "autocommit", False),
    "transaction": lambda kept: getattr(kept, "connection", kept).transaction().__enter__(),
    "notifies": lambda kept: next(getattr(kept, "connection", kept).notifies(timeout=0.01)),
    "type information": lambda kept: psycopg.types.TypeInfo.fetch(
        getattr(kept, "connection", kept), "text"
    ),
}


def _checked(function: Callable[[], Any]) -> None:
    function()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("keep", KEPT)
async def test_kept_after_its_lease(keep: str, use: str, server: Server) -> None:
    """Whatever was kept raises OperationalError, and the next borrower notices nothing."""
    wrapper = small_pool(1)
    kept: list[Any] = []

    @bridged
    def first() -> int:
        with connection.cursor() as cursor:
            cursor.execute(PID)
            kept.append(KEPT[keep](connection.connection))
            return int(cursor.fetchone()[0])

    @bridged
    def second() -> None:
        with transaction.atomic():
            Author.objects.create(name="second")
            with pytest.raises(psycopg.OperationalError, match="closed"):
                USES[use](kept[0])
            assert value(PID) == pid
            assert connection.connection.info.transaction_status.name == "INTRANS"
            Author.objects.create(name="second too")
        if keep == "server-side cursor":
            # Who drops it open is told so by psycopg.
            kept[0].close()

    pid = await first()
    assert on_loan(wrapper) == 0
    await second()
    assert committed(server) == ["second", "second too"]
    assert await avalue(PID) == pid


async def test_closed_by_who_kept_it(server: Server) -> None:
    """Who closes, cancels or collects what was kept closes nothing of the pool's."""
    small_pool(1)
    kept: list[Any] = []

    @bridged
    def first() -> None:
        kept.append(connection.connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            kept.append(connection.connection)

    await first()
    pid = await avalue(PID)

    @bridged
    def second() -> None:
        with transaction.atomic():
            Author.objects.create(name="second")
            for each in filter(None, kept):
                assert each.closed
                each.cancel()
                each.cancel_safe()
                each.close()
                assert "BAD" in repr(each)
            kept.clear()
            gc.collect()
            assert value(PID) == pid

    await second()
    assert committed(server) == ["second"]


async def test_kept_in_its_own_transaction(server: Server) -> None:
    """In the transaction it was asked for in, it is the same one and works, also over calls."""

    @bridged
    async def work() -> None:
        async with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            raw = connection.connection
            await Author.objects.acreate(name="orm")
            assert connection.connection is raw
            raw.execute("INSERT INTO tests_author (name) VALUES ('raw')")
        with pytest.raises(psycopg.OperationalError, match="closed"):
            raw.execute("SELECT 1")

    await work()
    assert committed(server) == ["orm", "raw"]


async def test_what_was_changed_on_it_is_not_the_next_ones() -> None:
    """Adapters, factories and handlers of a kept connection are not those of the next."""
    small_pool(1)
    seen: list[Any] = []
    kept: list[Any] = []

    @bridged
    def first() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            raw = connection.connection
            kept.append(raw)
            raw.row_factory = psycopg.rows.dict_row
            raw.add_notice_handler(lambda diagnostic: seen.append("first"))

    @bridged
    def second() -> None:
        kept[0].adapters.register_dumper(int, psycopg.types.string.StrDumper)
        kept[0].add_notice_handler(lambda diagnostic: seen.append("kept"))
        with connection.cursor() as cursor:
            raw = connection.connection
            assert raw.row_factory is not psycopg.rows.dict_row
            raw.add_notice_handler(lambda diagnostic: seen.append("second"))
            cursor.execute("SELECT %s + 1", [1])
            assert cursor.fetchone() == (2,)
            cursor.execute("DO $$ BEGIN RAISE NOTICE 'heard'; END $$")

    await first()
    await second()
    assert seen == ["second"]


@pytest.mark.parametrize("loop", LOOPS)
def test_many_borrowers(loop: str, server: Server) -> None:
    """Forty tasks that keep what they had disturb none of the others' transactions."""
    kept: list[Any] = []

    @bridged
    def work(number: int) -> int:
        with transaction.atomic():
            Author.objects.create(name=f"{number}")
            refused = 0
            for each in list(kept):
                try:
                    each.execute("INSERT INTO tests_author (name) VALUES ('strange')")
                except psycopg.OperationalError:
                    refused += 1
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                mine = connection.connection
        kept.append(mine)
        return refused

    async def main() -> None:
        small_pool(4)
        await asyncio.gather(*map(work, range(40)))

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    assert sorted(map(int, committed(server))) == list(range(40))
