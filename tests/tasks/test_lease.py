"""The lease: how long a cursor holds its connection, and who else uses it meanwhile."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from django.db import (
    InterfaceError,
    connection,
)
from django.test import override_settings

from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.models import Author
from tests.support.wrapper import PID, check_all_back, on_loan, pid_of, run, small_pool


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
