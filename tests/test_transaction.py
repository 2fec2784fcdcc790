"""pgbackend.transaction: asynchronous counterparts, the decorator's limits, pinned connections."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from types import coroutine
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

from pgbackend import bridged
from pgbackend.transaction import (
    acommit,
    aon_commit,
    arollback,
    asavepoint,
    asavepoint_commit,
    asavepoint_rollback,
    aset_autocommit,
    detached,
    pinned,
)
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import apid, asleep, committed, running, until
from tests.support.wrapper import AddAlias, avalue, on_loan, value


class Failed(Exception):
    pass


def execute(sql: str, alias: str = "default") -> None:
    """Execute raw SQL."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


aexecute = bridged(execute)


@pytest.fixture
def one(add_alias: AddAlias) -> str:
    """An alias whose pool has one connection: who leaves something in it meets it again."""
    return add_alias({"pool": {"max_size": 1, "timeout": 5}})


# Counterparts


@pytest.mark.parametrize(("end", "kept"), [(acommit, ["Ada"]), (arollback, [])])
async def test_transaction_by_hand(
    server: Server, end: Callable[[], Awaitable[None]], kept: list[str]
) -> None:
    """aset_autocommit, acommit and arollback are Django's functions, awaited."""
    await aset_autocommit(False)
    assert not transaction.get_autocommit()
    await Author.objects.acreate(name="Ada")
    own = await apid()
    assert committed(server) == []
    await end()
    assert committed(server) == kept
    assert await apid() == own
    await end()
    await aset_autocommit(True)
    assert transaction.get_autocommit()
    await Author.objects.acreate(name="Bea")
    assert committed(server) == [*kept, "Bea"]


async def test_counterparts_in_a_block() -> None:
    """Inside atomic() they are refused with Django's words, as Django's functions are."""
    async with transaction.atomic():
        for refused in (aset_autocommit(False), aset_autocommit(True), acommit(), arollback()):
            with pytest.raises(TransactionManagementError, match="'atomic' block"):
                await refused
        assert await Author.objects.acount() == 0


async def test_savepoints(server: Server) -> None:
    """asavepoint_rollback() undoes what came after its savepoint, asavepoint_commit() keeps it."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        savepoint = await asavepoint()
        assert savepoint is not None
        await Author.objects.acreate(name="Bea")
        await asavepoint_rollback(savepoint)
        kept = await asavepoint()
        assert kept not in (None, savepoint)
        await Author.objects.acreate(name="Cy")
        await asavepoint_commit(kept)
        with pytest.raises(DatabaseError):
            async with transaction.atomic():
                await asavepoint_rollback(kept)
    assert committed(server) == ["Ada", "Cy"]


async def test_savepoints_by_hand_with_autocommit_off(server: Server) -> None:
    """With autocommit off savepoints work without a block as well."""
    await aset_autocommit(False)
    await Author.objects.acreate(name="Ada")
    savepoint = await asavepoint()
    assert savepoint is not None
    await Author.objects.acreate(name="Bea")
    await asavepoint_rollback(savepoint)
    await acommit()
    await aset_autocommit(True)
    assert committed(server) == ["Ada"]


async def test_savepoint_outside_a_transaction(server: Server) -> None:
    """Outside a transaction there is no savepoint: None, and nothing to be sent."""
    connection.force_debug_cursor = True
    assert await asavepoint() is None
    await asavepoint_commit("s1")
    await asavepoint_rollback("s1")
    assert connection.queries == []


async def test_using(server: Server) -> None:
    """Each takes the alias that it is about, by name."""
    await aset_autocommit(False, using="other")
    assert transaction.get_autocommit()
    assert not transaction.get_autocommit(using="other")
    savepoint = await asavepoint(using="other")
    assert savepoint is not None
    await asavepoint_commit(savepoint, using="other")
    savepoint = await asavepoint(using="other")
    assert savepoint is not None
    await asavepoint_rollback(savepoint, using="other")
    await acommit(using="other")
    await arollback(using="other")
    await aset_autocommit(True, using="other")


async def test_on_djangos_own_path(add_alias: AddAlias, server: Server) -> None:
    """For an alias that is switched off they use the thread, as its a-methods do."""
    alias = add_alias({"bridge": False})
    authors = Author.objects.using(alias)
    await aset_autocommit(False, using=alias)
    await authors.acreate(name="Ada")
    savepoint = await asavepoint(using=alias)
    await authors.acreate(name="Bea")
    assert savepoint is not None
    await asavepoint_rollback(savepoint, using=alias)
    await acommit(using=alias)
    assert committed(server) == ["Ada"]
    await authors.acreate(name="Cy")
    await arollback(using=alias)
    await aset_autocommit(True, using=alias)
    ran: list[str] = []
    await aon_commit(lambda: ran.append("hook"), using=alias)
    assert (committed(server), ran) == (["Ada"], ["hook"])
    async with pinned(alias) as wrapper:
        assert wrapper.alias == alias
    await sync_to_async(connections.close_all)()


# What needs no I/O


async def test_functions_that_need_io(server: Server) -> None:
    """Functions that wait for the server are refused on the loop, with the way out named."""
    create = getattr(transaction, "savepoint_create", transaction.savepoint)
    async with transaction.atomic():
        with pytest.raises(SynchronousOnlyOperation, match="bridged"):
            create()
    with pytest.raises(SynchronousOnlyOperation, match="bridged"):
        transaction.set_autocommit(False)
    with pytest.raises(SynchronousOnlyOperation, match="bridged"):
        transaction.commit()
    with pytest.raises(SynchronousOnlyOperation, match="bridged"):
        transaction.rollback()
    with pytest.raises(SynchronousOnlyOperation, match="bridged"), transaction.atomic():
        pass
    with pytest.raises(SynchronousOnlyOperation, match="bridged"), pinned():
        pass
    assert await Author.objects.acount() == 0


# The decorator


def test_decorator_refuses_asynchronous_generators() -> None:
    """Decorating an asynchronous generator is a TypeError that names the fix, at once."""

    async def rows() -> AsyncIterator[int]:
        yield 1

    class View:
        async def rows(self) -> AsyncIterator[int]:
            yield 1

    for decorate in (transaction.atomic, transaction.atomic(durable=True)):
        for function in (rows, View.rows):
            with pytest.raises(TypeError, match=r"rows.*async with transaction\.atomic\(\)"):
                decorate(function)


async def test_decorated_functions(server: Server) -> None:
    """Decorated coroutine functions remain what they were: methods, names, asynchronous."""

    class Library:
        @transaction.atomic
        async def add(self, name: str) -> str:
            """Add an author."""
            assert connection.in_atomic_block
            await Author.objects.acreate(name=name)
            return name

        @classmethod
        @transaction.atomic(savepoint=False)
        async def fail(cls) -> None:
            await Author.objects.acreate(name="lost")
            raise Failed

        @staticmethod
        @transaction.atomic(using="other")
        async def elsewhere() -> bool:
            return connections["other"].in_atomic_block and not connection.in_atomic_block

    assert iscoroutinefunction(Library.add)
    assert (Library.add.__name__, Library.add.__doc__) == ("add", "Add an author.")
    assert await Library().add(name="Ada") == "Ada"
    with pytest.raises(Failed):
        await Library.fail()
    assert await Library.elsewhere()
    assert committed(server) == ["Ada"]


async def test_decorated_function_in_itself(server: Server) -> None:
    """One decorated function may call itself, and run in many tasks at once."""

    @transaction.atomic
    async def create(name: str, depth: int) -> None:
        await Author.objects.acreate(name=f"{name}{depth}")
        if depth:
            with suppress(Failed):
                await create(name, depth - 1)
        if depth == 1:
            raise Failed

    await asyncio.gather(create("a", 2), create("b", 0), create("c", 2))
    assert committed(server) == ["a2", "b0", "c2"]


async def test_generator_with_a_block_inside(server: Server) -> None:
    """A block inside an asynchronous generator ends with it, also when it is left early."""

    async def rows() -> AsyncIterator[str]:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            yield "first"
            yield "second"

    async with contextlib.aclosing(rows()) as each:
        async for row in each:
            assert row == "first"
            break
    assert committed(server) == []
    assert not connection.in_atomic_block


# Pinned connections

KEPT = {
    "setting": ("SET work_mem = '77MB'", "SHOW work_mem", "77MB"),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "Asia/Tokyo"),
    "custom setting": (
        "SELECT set_config('app.tenant', 'a', false)",
        "SELECT current_setting('app.tenant', true)",
        "a",
    ),
    "role": ("SET ROLE pg_monitor", "SELECT current_user", "pg_monitor"),
    "temporary table": ("CREATE TEMP TABLE t AS SELECT 5 AS n", "SELECT n FROM t", 5),
    "listen": ("LISTEN orders", "SELECT pg_listening_channels()", "orders"),
    "prepared statement": ("PREPARE p AS SELECT 6", "EXECUTE p", 6),
    "sequence": (
        "SELECT nextval(pg_get_serial_sequence('tests_author', 'id'))",
        "SELECT currval(pg_get_serial_sequence('tests_author', 'id')) > 0",
        True,
    ),
}

# The same questions, where nothing was left.
FRESH = {
    "setting": ("SHOW work_mem", "4MB"),
    "time zone": ("SHOW TimeZone", "UTC"),
    "custom setting": ("SELECT coalesce(current_setting('app.tenant', true), '')", ""),
    "role": ("SELECT current_user = session_user", True),
    "temporary table": ("SELECT to_regclass('t')", None),
    "listen": ("SELECT count(*) FROM pg_listening_channels()", 0),
    "prepared statement": ("SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'", 0),
}


async def check_fresh(alias: str, pid: int) -> None:
    """Check that the next borrower has the same connection, and nothing of the one before."""
    assert await apid(alias) == pid
    for query, expected in FRESH.values():
        assert await avalue(query, alias) == expected, query
    with pytest.raises(DatabaseError, match="not yet defined in this session"):
        await avalue(KEPT["sequence"][1], alias)


@pytest.mark.parametrize("name", KEPT)
async def test_pinned_session(one: str, name: str) -> None:
    """What lives in the session lives as long as the block, then the next borrower is fresh."""
    change, query, expected = KEPT[name]
    async with pinned(one) as wrapper:
        assert wrapper is connections[one]
        pid = await apid(one)
        await aexecute(change, one)
        assert await avalue(query, one) == expected
        async with transaction.atomic(using=one):
            assert await avalue(query, one) == expected
        with suppress(Failed):
            async with transaction.atomic(using=one):
                await aexecute("SELECT 1", one)
                raise Failed
        assert await avalue(query, one) == expected
        assert await apid(one) == pid
    await check_fresh(one, pid)


def test_pinned_session_in_bridged_code(one: str) -> None:
    """`with pinned()` in a bridged function is the same, with everything at once."""

    def work() -> int:
        with pinned(one) as wrapper:
            with wrapper.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                pid = int(cursor.fetchone()[0])
                for change, _, _ in KEPT.values():
                    if "ROLE" not in change:
                        cursor.execute(change)
            for change, query, expected in KEPT.values():
                if "ROLE" not in change:
                    assert value(query, one) == expected
            with transaction.atomic(using=one):
                Author.objects.using(one).create(name="Ada")
        return pid

    async def main() -> None:
        await check_fresh(one, await bridged(work)())

    asyncio.run(main())


async def test_pinned_advisory_lock(one: str, server: Server) -> None:
    """A session's advisory lock is held from its statement to the end of the block."""
    async with pinned(one):
        await aexecute("SELECT pg_advisory_lock(42)", one)
        assert not server.one("SELECT pg_try_advisory_lock(42)")
        await Author.objects.using(one).acreate(name="Ada")
        assert not server.one("SELECT pg_try_advisory_lock(42)")
    await apid(one)
    assert server.one("SELECT pg_try_advisory_lock(42)")
    server.all("SELECT pg_advisory_unlock(42)")


async def test_pinned_listen(one: str, server: Server) -> None:
    """LISTEN in a pinned session hears what others notify."""

    @bridged
    def hear() -> list[tuple[str, str]]:
        notifies = connections[one].connection.notifies(timeout=10, stop_after=2)
        return [(each.channel, each.payload) for each in notifies]

    async with pinned(one):
        await aexecute("LISTEN orders", one)
        server.all("SELECT pg_notify('orders', 'first')")
        await Author.objects.using(one).acount()
        server.all("SELECT pg_notify('orders', 'second')")
        assert await hear() == [("orders", "first"), ("orders", "second")]


async def test_pin_keeps_what_connecting_set_up(add_alias: AddAlias, server: Server) -> None:
    """The role, the time zone and what receivers had SET are there again after the reset."""
    alias = add_alias(
        {"pool": {"max_size": 1}, "assume_role": "pg_monitor"}, TIME_ZONE="Africa/Nairobi"
    )

    def receiver(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            execute("SET statement_timeout = '7s'", alias)
            execute("SELECT set_config('app.made', 'yes', false)", alias)

    connection_created.connect(receiver)
    probes = {
        "SELECT current_user": "pg_monitor",
        "SHOW TimeZone": "Africa/Nairobi",
        "SHOW statement_timeout": "7s",
        "SELECT current_setting('app.made')": "yes",
    }
    try:
        async with pinned(alias):
            pid = await apid(alias)
            for query, expected in probes.items():
                assert await avalue(query, alias) == expected
            await aexecute("RESET ROLE", alias)
            await aexecute("SET TIME ZONE 'Asia/Tokyo'", alias)
            await aexecute("SET statement_timeout = '8s'", alias)
            await aexecute("SELECT set_config('app.made', 'no', false)", alias)
        for query, expected in probes.items():
            assert await avalue(query, alias) == expected
        assert await apid(alias) == pid
    finally:
        connection_created.disconnect(receiver)


async def test_nested_pins(one: str) -> None:
    """Pins nest, of both forms; only the end of the outermost resets the session."""
    pin = pinned(one)

    @bridged
    def inner() -> None:
        with pin, pinned(one):
            execute("SET work_mem = '77MB'", one)

    async with pin:
        pid = await apid(one)
        await inner()
        async with pin, pinned(one):
            assert await apid(one) == pid
        assert await avalue("SHOW work_mem", one) == "77MB"
    await check_fresh(one, pid)


async def _rows_of_a_pinned_session(alias: str) -> AsyncIterator[int]:
    async with pinned(alias):
        await aexecute("SET work_mem = '77MB'", alias)
        for number in range(3):
            yield number


def _bridged_rows_of_a_pinned_session(alias: str) -> Iterator[int]:
    with pinned(alias), connections[alias].cursor() as cursor:
        cursor.execute("SET work_mem = '77MB'")
        yield from range(3)


async def by_break(alias: str) -> None:
    async for _ in _rows_of_a_pinned_session(alias):
        break
    # The loop closes the generator in a task of its own.
    await until(lambda: on_loan(connections[alias]) == 0)


async def by_collection_in_a_thread(alias: str) -> None:
    reading: Any = _bridged_rows_of_a_pinned_session(alias)
    await bridged(next)(reading)
    held = [reading]
    del reading
    await asyncio.get_running_loop().run_in_executor(None, held.clear)
    await until(lambda: on_loan(connections[alias]) == 0)


async def by_another_task(alias: str) -> None:
    pin = pinned(alias)
    await pin.__aenter__()
    await aexecute("SET work_mem = '77MB'", alias)
    await asyncio.create_task(pin.__aexit__(None, None, None))


@pytest.mark.parametrize(
    "leave", [by_break, by_collection_in_a_thread, by_another_task], ids=lambda f: f.__name__
)
async def test_pin_left_by_another_task(one: str, leave: Callable[[str], Awaitable[None]]) -> None:
    """A pin in a generator that is left early ends with that, not with the task."""
    pid = await apid(one)
    await leave(one)
    await check_fresh(one, pid)
    with detached():
        assert await asyncio.create_task(avalue("SHOW work_mem", one)) != "77MB"


@pytest.mark.filterwarnings("ignore:.* ended inside `pinned:ResourceWarning")
async def test_pin_of_several_tasks(add_alias: AddAlias) -> None:
    """That one of them leaves its generator early takes no other's pin."""
    two = add_alias({"pool": {"max_size": 2}})
    pin = pinned(two)

    async def numbers() -> AsyncIterator[int]:
        async with pin:
            yield 1

    async def leaves_early() -> None:
        async for _ in numbers():
            break

    async with pin:
        await aexecute("SET work_mem = '77MB'", two)
        with detached():
            task = asyncio.create_task(leaves_early())
        await task
        gc.collect()
        await until(lambda: on_loan(connections[two]) == 1)
        assert await avalue("SHOW work_mem", two) == "77MB"


async def test_pin_in_a_transaction(one: str, server: Server) -> None:
    """A pin in a transaction is on its connection, which is reset after the transaction."""
    async with transaction.atomic(using=one):
        pid = await apid(one)
        async with pinned(one):
            assert await apid(one) == pid
            await aexecute("SET work_mem = '77MB'", one)
            await Author.objects.using(one).acreate(name="Ada")
        assert await avalue("SHOW work_mem", one) == "77MB"
        assert committed(server) == []
    assert committed(server) == ["Ada"]
    await check_fresh(one, pid)


async def test_pin_that_outlasts_the_transaction_around_it(one: str, server: Server) -> None:
    """A pin and a transaction that overlap: each ends by itself, the session with the last."""
    block, pin = transaction.atomic(using=one), pinned(one)
    await block.__aenter__()
    pid = await apid(one)
    await pin.__aenter__()
    await aexecute("SET work_mem = '77MB'", one)
    await Author.objects.using(one).acreate(name="Ada")
    await block.__aexit__(None, None, None)
    assert committed(server) == ["Ada"]
    assert await avalue("SHOW work_mem", one) == "77MB"
    await pin.__aexit__(None, None, None)
    await check_fresh(one, pid)


async def test_transactions_in_a_pin(one: str, server: Server) -> None:
    """Transactions in a pin commit and roll back by themselves, hooks included."""
    ran: list[int] = []

    async def hook() -> None:
        ran.append(await apid(one))

    async with pinned(one):
        pid = await apid(one)
        async with transaction.atomic(using=one, durable=True):
            await Author.objects.using(one).acreate(name="Ada")
            await aon_commit(hook, using=one)
        assert committed(server) == ["Ada"]
        with pytest.raises(Failed):
            async with transaction.atomic(using=one):
                await Author.objects.using(one).acreate(name="lost")
                raise Failed
        await aset_autocommit(False, using=one)
        await Author.objects.using(one).acreate(name="Bea")
        await acommit(using=one)
        await aset_autocommit(True, using=one)
        assert await apid(one) == pid
    assert ran == [pid]
    assert committed(server) == ["Ada", "Bea"]


@pytest.mark.parametrize("in_a_transaction", [False, True])
async def test_exception_in_a_pin(one: str, server: Server, in_a_transaction: bool) -> None:
    """An exception leaves the block as it is; the connection is reset and back."""
    block = transaction.atomic(using=one) if in_a_transaction else contextlib.nullcontext()
    with pytest.raises(Failed):
        async with pinned(one), block:
            pid = await apid(one)
            await aexecute("SET work_mem = '77MB'", one)
            await Author.objects.using(one).acreate(name="Ada")
            raise Failed
    await check_fresh(one, pid)
    assert committed(server) == ([] if in_a_transaction else ["Ada"])


@pytest.mark.parametrize("in_a_statement", [False, True])
async def test_cancelled_in_a_pin(one: str, server: Server, in_a_statement: bool) -> None:
    """Cancelled inside, nothing of the session is left, nor a running statement."""

    async def work() -> None:
        async with pinned(one):
            await aexecute("SET work_mem = '77MB'", one)
            await aexecute("SELECT pg_advisory_lock(42)", one)
            entered.set()
            if in_a_statement:
                await asleep(600, one)
            await asyncio.Event().wait()

    entered = asyncio.Event()
    task = asyncio.create_task(work())
    await entered.wait()
    if in_a_statement:
        await until(lambda: running(server, "active", "%pg_sleep%") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await avalue("SHOW work_mem", one) == "4MB"
    assert server.one("SELECT pg_try_advisory_lock(42)")
    server.all("SELECT pg_advisory_unlock(42)")
    assert running(server, "active", "%pg_sleep%") == 0
    assert on_loan(connections[one]) == 0


async def test_pin_whose_connection_dies(one: str, server: Server) -> None:
    """A pinned connection that the server ends is an error in the block, then replaced."""
    async with pinned(one):
        pid = await apid(one)
        server.all("SELECT pg_terminate_backend(%s)", pid)
        for _ in range(2):
            # Never another connection, whose session is another one, unnoticed.
            with pytest.raises(DatabaseError):
                await apid(one)
    assert await apid(one) != pid


async def test_tasks_in_a_pin(add_alias: AddAlias) -> None:
    """Tasks and threads started in the block have connections of their own."""
    alias = add_alias({"pool": {"max_size": 3}})
    async with pinned(alias):
        pid = await apid(alias)
        await aexecute("SET work_mem = '77MB'", alias)
        others = await asyncio.gather(apid(alias), apid(alias))
        assert pid not in others
        assert await asyncio.create_task(avalue("SHOW work_mem", alias)) == "4MB"

        def work() -> str:
            work_mem = str(value("SHOW work_mem", alias))
            connections[alias].close()
            return work_mem

        assert await asyncio.to_thread(work) == "4MB"
        assert await apid(alias) == pid


async def test_tasks_in_a_transaction_in_a_pin(one: str) -> None:
    """Tasks started in a transaction inside a pin are in that transaction, as any others."""
    async with pinned(one):
        await aexecute("SET work_mem = '77MB'", one)
        async with transaction.atomic(using=one):
            assert await asyncio.create_task(avalue("SHOW work_mem", one)) == "77MB"


async def test_iterators_in_a_pin(one: str) -> None:
    """Cursors in the block are the pinned connection's, chunked and open ones too."""
    async with pinned(one):
        pid = await apid(one)
        authors = Author.objects.using(one)
        await authors.abulk_create([Author(name=name) for name in "abc"])
        async for _ in authors.aiterator(chunk_size=1):
            assert await apid(one) == pid
        async for _ in authors.all():
            assert await apid(one) == pid
            break
    await check_fresh(one, pid)


async def test_task_that_ends_inside_a_pin(one: str) -> None:
    """A task that ends without leaving the block gives its connection back, reset."""

    async def abandon() -> int:
        await pinned(one).__aenter__()
        await aexecute("SET work_mem = '77MB'", one)
        return await apid(one)

    with pytest.warns(ResourceWarning):
        pid = await asyncio.create_task(abandon())
        await check_fresh(one, pid)


def test_pinned_on_the_synchronous_path(add_alias: AddAlias) -> None:
    """Without a loop it changes nothing: the thread's connection keeps its session."""
    alias = add_alias()
    execute("SET work_mem = '77MB'", alias)
    pid = value("SELECT pg_backend_pid()", alias)
    with pinned(alias) as wrapper:
        assert wrapper is connections[alias]
        execute("SET work_mem = '88MB'", alias)
        with transaction.atomic(using=alias):
            assert value("SHOW work_mem", alias) == "88MB"
    assert value("SHOW work_mem", alias) == "88MB"
    assert value("SELECT pg_backend_pid()", alias) == pid


async def test_pinned_in_a_thread_of_a_transaction(one: str) -> None:
    """In a thread that joined a transaction it changes nothing either."""

    def work() -> int:
        with pinned(one):
            return int(value("SELECT pg_backend_pid()", one))

    async with transaction.atomic(using=one):
        assert await asyncio.to_thread(work) == await apid(one)


async def test_one_pin_in_two_tasks(add_alias: AddAlias) -> None:
    """One object used by two tasks at once is a pin of each, whichever ends first."""
    alias = add_alias({"pool": {"max_size": 2}})
    pin = pinned(alias)
    entered = [asyncio.Event(), asyncio.Event()]
    leave = [asyncio.Event(), asyncio.Event()]

    async def work(n: int) -> list[tuple[int, str]]:
        seen = []
        async with pin:
            await aexecute(f"SET work_mem = '{77 + n}MB'", alias)
            entered[n].set()
            await leave[n].wait()
            seen.append((await apid(alias), await avalue("SHOW work_mem", alias)))
            async with pin:
                seen.append((await apid(alias), await avalue("SHOW work_mem", alias)))
        return seen

    async with asyncio.timeout(PATIENCE):
        tasks = [asyncio.create_task(work(n)) for n in range(2)]
        for each in entered:
            await each.wait()
        results = []
        for n in range(2):
            leave[n].set()
            results.append(await tasks[n])
    for n, seen in enumerate(results):
        assert [setting for _, setting in seen] == [f"{77 + n}MB"] * 2
        assert seen[0] == seen[1]
    assert results[0][0][0] != results[1][0][0]
    await until(lambda: on_loan(connections[alias]) == 0)
    assert await avalue("SHOW work_mem", alias) == "4MB"


@pytest.mark.parametrize("dirty", [False, True])
async def test_prepared_statements_beside_a_pin(add_alias: AddAlias, dirty: bool) -> None:
    """Statements that psycopg had prepared work in a pin and after the reset of its session."""
    alias = add_alias(
        {"pool": {"max_size": 1}, "server_side_binding": True, "prepare_threshold": 1}
    )
    authors = Author.objects.using(alias).filter(name="Ada")

    async def prepared() -> int:
        names = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '_pg3%'"
        return int(await avalue(names, alias))

    async def read() -> None:
        for _ in range(4):
            assert await authors.acount() == 0

    await read()
    for _ in range(3):
        async with pinned(alias):
            await read()
            assert await prepared() > 0
            if dirty:
                await aexecute("DEALLOCATE ALL", alias)
                assert await prepared() == 0
            await read()
            async with transaction.atomic(using=alias):
                await read()
        pid = await apid(alias)
        await read()
        await aexecute("SET LOCAL work_mem = '77MB'", alias)
        await read()
    assert await apid(alias) == pid


# Where no connection is needed


async def test_get_autocommit_of_an_alias_not_used_yet(add_alias: AddAlias, server: Server) -> None:
    """It borrows nothing on the loop, in the bridge or outside, and in a thread that joined."""
    for autocommit in (True, False):
        alias = add_alias(AUTOCOMMIT=autocommit)
        assert transaction.get_autocommit(using=alias) is autocommit
        assert await bridged(transaction.get_autocommit)(using=alias) is autocommit
        assert await asyncio.create_task(bridged(transaction.get_autocommit)(alias)) is autocommit
    assert server.backends() == 0


@pytest.mark.parametrize("move", [async_to_sync, asyncio.run])
def test_get_autocommit_in_what_a_thread_waits_for(
    add_alias: AddAlias, server: Server, move: Callable[..., Any]
) -> None:
    """A coroutine is told of the transaction that it works in, its thread's or none."""
    alias = add_alias()

    async def ask() -> bool:
        return transaction.get_autocommit(using=alias)

    def call() -> Any:
        return async_to_sync(ask)() if move is async_to_sync else asyncio.run(ask())

    assert call() is True
    assert server.backends() == 0
    with transaction.atomic(using=alias):
        assert call() is False
    assert call() is True

    async def join() -> None:
        async with transaction.atomic(using=alias):
            if move is async_to_sync:
                assert await asyncio.to_thread(call) is False

    asyncio.run(join())


async def test_functions_that_need_no_io(add_alias: AddAlias, server: Server) -> None:
    """What says or does nothing in the server borrows no connection, outside a transaction."""
    alias = add_alias()
    ran: list[int] = []

    @bridged
    def ask() -> None:
        transaction.get_connection(alias)
        transaction.on_commit(lambda: ran.append(1), using=alias)
        transaction.rollback(using=alias)
        transaction.commit(using=alias)
        transaction.set_autocommit(True, using=alias)
        transaction.clean_savepoints(using=alias)
        connections[alias].close_if_unusable_or_obsolete()
        assert not connections[alias].in_atomic_block

    await ask()
    await aon_commit(lambda: ran.append(2), using=alias)
    await acommit(using=alias)
    await arollback(using=alias)
    await aset_autocommit(True, using=alias)
    assert await asavepoint(using=alias) is None
    assert ran == [1, 2]
    assert server.backends() == 0


# The end of the loop


async def abandon(server: Server) -> None:
    await transaction.atomic().__aenter__()
    await Author.objects.acreate(name="abandoned")


async def abandon_to_a_child(server: Server) -> None:
    await abandon(server)
    children.append(asyncio.create_task(asleep(600)))
    await until(lambda: running(server, "active", "%pg_sleep%") == 1)


async def wait_in_a_block(server: Server) -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="waiting")
        await asyncio.Event().wait()


async def wait_after_raw_sql(server: Server) -> None:
    async with transaction.atomic():
        await aexecute("INSERT INTO tests_author (name) VALUES ('waiting')")
        await asyncio.Event().wait()


async def wait_in_a_statement(server: Server) -> None:
    async with transaction.atomic():
        await asleep(600)


async def wait_in_a_pin(server: Server) -> None:
    async with pinned():
        await aexecute("SELECT 1")
        await asyncio.Event().wait()


# What the loop would forget.
children: list[asyncio.Task[None]] = []

Work = Callable[[Server], Coroutine[Any, Any, None]]


@pytest.mark.parametrize(
    ("work", "state", "query"),
    [
        (abandon, None, None),
        (abandon_to_a_child, None, None),
        (wait_in_a_block, "idle in transaction", "%INSERT%"),
        (wait_after_raw_sql, "idle in transaction", "%INSERT%"),
        (wait_in_a_statement, "active", "%pg_sleep%"),
        (wait_in_a_pin, "idle", "SELECT 1"),
    ],
)
@pytest.mark.parametrize("as_main", [False, True])
@pytest.mark.filterwarnings("ignore:.*ended inside a transaction:ResourceWarning")
def test_the_loop_ends_inside_a_block(
    server: Server, work: Work, state: str | None, query: str | None, as_main: bool
) -> None:
    """When asyncio.run() returns no backend is left, without the collector's doing."""

    async def main() -> None:
        task = asyncio.create_task(work(server))
        if state is None:
            await task
        else:
            await until(lambda: running(server, state, query or "") == 1)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(work(server) if as_main and state is None else main())
        server.wait_for_backends(0)
    finally:
        gc.enable()
        children.clear()
    assert committed(server) == []


# Cancellation at each point


class Interrupted:
    """A coroutine whose task is cancelled each time it is suspended for one of the *points*."""

    def __init__(self, work: Coroutine[Any, Any, Any], *points: int) -> None:
        self.work = work
        self.points = points
        # How often it was suspended, and whether it was cancelled.
        self.count = 0
        self.cancelled = False

    async def run(self) -> None:
        await self._steps()

    @coroutine
    def _steps(self) -> Generator[Any, Any, Any]:
        step, argument = self.work.send, None
        while True:
            try:
                waiting = step(argument)
            except StopIteration:
                return
            self.count += 1
            if self.count in self.points:
                self.cancelled = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                argument, step = (yield waiting), self.work.send
            except BaseException as error:
                argument, step = error, self.work.throw  # type: ignore[assignment]


async def interrupt(work: Coroutine[Any, Any, Any], *points: int) -> int:
    """Run *work* in a task that is cancelled at *points*, and then writes "next".

    Return how often the work was suspended; 0 if it had ended before the first point.
    """
    each = Interrupted(work, *points)

    async def run() -> None:
        if each.points:
            with suppress(asyncio.CancelledError):
                await each.run()
                assert not each.cancelled, "the cancellation was lost"
        else:
            await each.run()
        task = asyncio.current_task()
        assert task is not None
        while task.uncancel():
            pass
        assert not connection.in_atomic_block
        assert connection.run_on_commit == []
        async with transaction.atomic():
            await Author.objects.acreate(name="next")

    async with asyncio.timeout(PATIENCE):
        await asyncio.create_task(run())
    return each.count if each.cancelled or not points else 0


async def check_nothing_left(server: Server) -> None:
    await until(lambda: on_loan(connection) == 0)
    assert running(server, "active", "%tests_author%") == 0
    assert running(server, "idle in transaction%") == 0


async def sweep(
    work: Callable[[], Coroutine[Any, Any, None]],
    check: Callable[[list[str]], None],
    server: Server,
    *,
    twice: bool = False,
) -> None:
    """Cancel *work* at each of its suspensions, and at each pair; *check* what is committed."""
    await Author.objects.aexists()
    points = [(first,) for first in range(1, 200)]
    if twice:
        points = [(first, second) for first in range(1, 30) for second in range(first + 1, 40)]
    reached = 0
    last = (0, 0)
    for each in points:
        if twice and each[0] == last[0] and last[1] < each[1] - 1:
            continue
        count = await interrupt(work(), *each)
        await check_nothing_left(server)
        names = committed(server)
        assert names.pop(names.index("next")) == "next"
        check(names)
        server.all("TRUNCATE tests_author CASCADE")
        if not count:
            break
        reached += 1
        # No second point where it ends before.
        last = (each[0], count)
    assert reached > 2


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
async def test_cancelled_anywhere_in_a_transaction(server: Server, twice: bool) -> None:
    """Wherever it is cancelled, all is committed or nothing, and the task's next block commits."""
    ran: list[str] = []

    async def hook() -> None:
        ran.append("begun")
        await Author.objects.acount()
        ran.append("ended")

    async def work() -> None:
        ran.clear()
        async with transaction.atomic():
            await Author.objects.acreate(name="outer")
            with suppress(Failed):
                async with transaction.atomic():
                    await Author.objects.acreate(name="lost")
                    raise Failed
            async with transaction.atomic():
                await Author.objects.acreate(name="inner")
                transaction.on_commit(hook)

    def check(names: list[str]) -> None:
        assert names in ([], ["inner", "outer"])
        assert names or not ran

    await sweep(work, check, server, twice=twice)


async def test_cancelled_anywhere_in_a_failing_transaction(server: Server) -> None:
    """Wherever a transaction that fails is cancelled, nothing of it is committed."""

    async def work() -> None:
        with suppress(Failed):
            async with transaction.atomic():
                await Author.objects.acreate(name="outer")
                async with transaction.atomic():
                    await Author.objects.acreate(name="inner")
                    raise Failed

    def check(names: list[str]) -> None:
        assert names == []

    await sweep(work, check, server)


async def test_cancelled_anywhere_while_children_work(server: Server) -> None:
    """The same with children in blocks of their own, which are cancelled with their owner."""

    async def child(name: str) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=name)

    async def work() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            async with asyncio.TaskGroup() as group:
                group.create_task(child("first"))
                group.create_task(child("second"))
                group.create_task(Author.objects.acount())

    def check(names: list[str]) -> None:
        assert names in ([], ["first", "owner", "second"])

    await sweep(work, check, server)


async def test_child_cancelled_anywhere(server: Server) -> None:
    """Wherever one of two children is cancelled, what is acknowledged is what is committed."""
    acknowledged: list[str] = []

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            with suppress(Failed):
                async with transaction.atomic():
                    await Author.objects.acreate(name="lost")
                    raise Failed
        acknowledged.append("child")

    async def sibling() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="sibling")
        acknowledged.append("sibling")

    await Author.objects.aexists()
    for point in range(1, 200):
        acknowledged.clear()
        each = Interrupted(child(), point)
        try:
            async with transaction.atomic():
                await Author.objects.acreate(name="owner")
                results = await asyncio.gather(each.run(), sibling(), return_exceptions=True)
            acknowledged.append("owner")
        except DatabaseError:
            # The server stopped a statement outside any block, a savepoint's own for instance.
            acknowledged.clear()
        await check_nothing_left(server)
        names = committed(server)
        assert "lost" not in names
        # Cancelled while its block was being left, the child's rows are in doubt.
        assert set(names) - set(acknowledged) <= {"child"}
        assert set(acknowledged) <= set(names)
        assert "sibling" in names or not names
        server.all("TRUNCATE tests_author CASCADE")
        if not each.cancelled:
            assert results == [None, None]
            break
        assert "child" in acknowledged or isinstance(results[0], asyncio.CancelledError)
    assert point > 5


async def test_cancelled_anywhere_in_a_pin(server: Server) -> None:
    """Wherever it is cancelled, the session that the next borrower meets is fresh."""

    async def work() -> None:
        async with pinned():
            await aexecute("SET work_mem = '77MB'")
            await Author.objects.acreate(name="pinned")
            await aexecute("SELECT pg_advisory_lock(42)")

    def check(names: list[str]) -> None:
        assert names in ([], ["pinned"])
        assert server.one("SELECT pg_try_advisory_lock(42)")
        server.all("SELECT pg_advisory_unlock(42)")

    await sweep(work, check, server)
    for _ in range(8):
        assert await avalue("SHOW work_mem") == "4MB"


async def test_cancelled_anywhere_by_hand(server: Server) -> None:
    """With autocommit off, cancelled anywhere and then rolled back, it is all or nothing."""

    async def work() -> None:
        try:
            await aset_autocommit(False)
            await Author.objects.acreate(name="first")
            savepoint = await asavepoint()
            await Author.objects.acreate(name="second")
            if savepoint is not None:
                await asavepoint_commit(savepoint)
            await acommit()
        finally:
            await arollback()
            await aset_autocommit(True)

    def check(names: list[str]) -> None:
        assert names in ([], ["first", "second"])

    await sweep(work, check, server)
