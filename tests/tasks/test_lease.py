"""The lease: how long a cursor holds its connection, and who else uses it meanwhile."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import (
    InterfaceError,
    connection,
    transaction,
)
from django.test import override_settings

from pgbackend import bridged
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.models import Author
from tests.support.loops import LOOPS
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.wrapper import (
    PID,
    avalue,
    check_all_back,
    on_loan,
    pid_of,
    run,
    small_pool,
    value,
)


async def test_open_cursor_holds_its_connection() -> None:
    """While a cursor is open all statements of the task run on its connection; then it is back."""
    wrapper = small_pool(2)

    def statements() -> None:
        with connection.cursor() as first:
            pid = pid_of(first)
            with connection.cursor() as second:
                assert pid_of(second) == pid
            Author.objects.create(name="Ada")
            assert on_loan(wrapper) == 1
            assert wrapper.async_pool.get_stats()["pool_size"] == 1
            assert pid_of(first) == pid
        assert on_loan(wrapper) == 0

    await run_bridged(statements)


async def test_other_tasks_do_not_use_the_cursors_connection() -> None:
    """A task started while a cursor is open, outside a transaction, has its own connection."""
    wrapper = small_pool(2)

    def statements() -> None:
        with connection.cursor() as cursor:
            other = await_bridged(asyncio.create_task(run(wrapper, PID)))
            assert pid_of(cursor) != other

    await run_bridged(statements)


async def test_lease_ends_with_the_last_cursor() -> None:
    """Of several open cursors the last one to be closed gives the connection back."""
    wrapper = small_pool()

    def statements() -> None:
        first, second = connection.cursor(), connection.cursor()
        first.close()
        assert on_loan(wrapper) == 1
        second.close()
        assert on_loan(wrapper) == 0

    await run_bridged(statements)


async def test_lease_ends_with_a_collected_cursor() -> None:
    """A cursor that is dropped unclosed gives its connection back."""
    wrapper = small_pool()

    def statements() -> None:
        cursor = connection.cursor()
        pid_of(cursor)
        assert on_loan(wrapper) == 1
        del cursor
        gc.collect()
        assert on_loan(wrapper) == 0

    await run_bridged(statements)
    await check_all_back(wrapper)


@pytest.mark.parametrize("debug", [False, True])
async def test_lease_ends_with_the_bridged_call(debug: bool) -> None:
    """A cursor left open gives its connection back when the outermost bridged call ends."""
    wrapper = small_pool()
    kept: list[Any] = []

    def inner() -> None:
        cursor = connection.cursor()
        kept.append((pid_of(cursor), cursor))

    def outer() -> None:
        await_bridged(run_bridged(inner))
        pid, cursor = kept[0]
        # Not the end of the outermost call: the cursor is as it was.
        assert pid_of(cursor) == pid
        assert on_loan(wrapper) == 1

    with override_settings(DEBUG=debug):
        await run_bridged(outer)
    assert on_loan(wrapper) == 0
    await check_all_back(wrapper)


async def test_lease_ends_with_a_failing_call() -> None:
    """A cursor left open by a function that raised gives its connection back, too."""
    wrapper = small_pool()
    kept: list[Any] = []

    def statements() -> None:
        kept.append(connection.cursor())
        kept[0].execute("SELECT 1")
        raise LookupError

    with pytest.raises(LookupError):
        await run_bridged(statements)
    assert on_loan(wrapper) == 0


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda cursor: cursor.execute("SELECT 1"), id="execute"),
        pytest.param(lambda cursor: cursor.executemany("SELECT %s", [[1]]), id="executemany"),
        pytest.param(lambda cursor: cursor.callproc("now"), id="callproc"),
        pytest.param(
            lambda cursor: cursor.copy("COPY (SELECT 1) TO STDOUT").__enter__(), id="copy"
        ),
        pytest.param(lambda cursor: next(cursor.stream("SELECT 1")), id="stream"),
    ],
)
async def test_cursor_after_its_bridged_call(use: Callable[[Any], Any], debug: bool) -> None:
    """A cursor used after its call has ended is an InterfaceError that names the fix."""
    small_pool()
    with override_settings(DEBUG=debug):
        cursor = await run_bridged(lambda: connection.cursor())
        with pytest.raises(
            InterfaceError,
            match=r"given back.*open, use and close a cursor in one bridged function",
        ):
            await run_bridged(use, cursor)


async def test_late_close_does_not_touch_the_next_borrower() -> None:
    """Closing a cursor after its call has ended leaves the next borrower's statement alone."""
    wrapper = small_pool()
    cursor = await run_bridged(lambda: connection.cursor())

    def statements() -> None:
        with wrapper.cursor() as other:
            other.execute("SELECT 1")
            cursor.close()
            assert on_loan(wrapper) == 1
            assert other.fetchone() == (1,)
            pid_of(other)

    await run_bridged(statements)
    assert on_loan(wrapper) == 0


async def test_closed_while_an_asynchronous_generator_waits() -> None:
    """A closed reader's statement does not keep the task's next one from a connection.

    Before CPython 3.13 the generator that waits for it is not told.
    """
    wrapper = small_pool()

    async def read() -> None:
        async for _ in Author.objects.all():
            pass

    await Author.objects.acreate(name="Ada")
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    for _ in range(3):
        reader = read()
        reader.send(None)
        reader.close()
        assert await Author.objects.acount() == 1
    await check_all_back(wrapper)


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
