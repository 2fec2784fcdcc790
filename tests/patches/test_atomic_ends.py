"""Ends of blocks where something comes between: what raised is not committed, and the rest is."""

import asyncio
import gc
import itertools
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.db.transaction import TransactionManagementError

from pgbackend import CommitInDoubt, NotCommitted, bridged
from pgbackend.transaction import acommit, arollback, aset_autocommit
from tests.faults.sweep import Interrupted
from tests.models import Author
from tests.support.authors import write
from tests.support.gate import WAITS
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.turns import Failed, turns
from tests.support.work import ended, execute, pid, settled, until_running
from tests.support.wrapper import AddAlias, use_wrapper

# The end of a nested block is interrupted


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_end_that_waits_for_a_childs_statement(
    run: Callable[..., Any],
    server: Server,
    gate: Callable[[], None],
    fails: bool,
    twice: bool,
) -> None:
    """A nested block whose RELEASE or ROLLBACK TO is cancelled while it waits keeps no row."""
    children: list[asyncio.Task[Any]] = []
    leaving, left = asyncio.Event(), asyncio.Event()

    async def nested() -> None:
        async with transaction.atomic():
            await write("inner")
            children.append(asyncio.create_task(execute(WAITS)))
            await until_running(server.all, "%advisory%")
            leaving.set()
            if fails:
                raise Failed

    async def owner() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with transaction.atomic():
            await write("outer")
            with pytest.raises(asyncio.CancelledError):
                await nested()
            left.set()
            while task.uncancel():
                pass
            assert isinstance((await ended(*children))[0], OperationalError)
            assert await Author.objects.acount() == 1
            await write("outer 2")

    async def main() -> None:
        task = asyncio.create_task(owner())
        await leaving.wait()
        await turns()
        task.cancel()
        if twice:
            await turns()
            # On a busy machine the server may have answered by now.
            if not left.is_set():
                task.cancel()
        await task
        await settled()

    run(main())
    assert committed(server) == ["outer", "outer 2"]


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_end_that_waits_for_a_childs_block(
    run: Callable[..., Any], server: Server, fails: bool
) -> None:
    """The same while it waits for a child's block, whose task learns that it has ended."""
    inside, leaving, proceed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    children: list[asyncio.Task[Any]] = []

    async def child() -> None:
        async with transaction.atomic():
            await write("child")
            inside.set()
            await proceed.wait()
            with pytest.raises(RuntimeError, match="has ended already"):
                await write("late")
            with pytest.raises(RuntimeError, match="has ended already"):
                # Started inside the block that is no more.
                await asyncio.create_task(write("later"))

    async def owner() -> None:
        task = asyncio.current_task()
        assert task is not None
        async with transaction.atomic():
            await write("outer")
            with pytest.raises(asyncio.CancelledError):
                async with transaction.atomic():
                    await write("inner")
                    children.append(asyncio.create_task(child()))
                    await inside.wait()
                    leaving.set()
                    if fails:
                        raise Failed
            task.uncancel()
            proceed.set()
            (error,) = await ended(*children)
            assert isinstance(error, RuntimeError), error
            await write("outer 2")
            # Its task is out of the block that was taken from it, and goes on in the transaction.
            await asyncio.create_task(write("outer 3"))

    async def main() -> None:
        task = asyncio.create_task(owner())
        await leaving.wait()
        await turns()
        task.cancel()
        await task
        await settled()

    run(main())
    assert committed(server) == ["outer", "outer 2", "outer 3"]


async def test_turn_to_leave_a_nested_block_never_comes(
    add_alias: AddAlias, server: Server
) -> None:
    """A nested block that waits in vain for a child's is rolled back; the outer one goes on."""
    alias = add_alias({"turn_timeout": 0.1})
    inside, proceed = asyncio.Event(), asyncio.Event()
    children: list[asyncio.Task[Any]] = []

    async def child() -> None:
        async with transaction.atomic(alias):
            inside.set()
            await proceed.wait()

    async with transaction.atomic(alias):
        await Author.objects.using(alias).acreate(name="outer")
        with pytest.raises(RuntimeError, match="turn_timeout"):
            async with transaction.atomic(alias):
                await Author.objects.using(alias).acreate(name="inner")
                children.append(asyncio.create_task(child()))
                await inside.wait()
        await Author.objects.using(alias).acreate(name="outer 2")
    proceed.set()
    assert isinstance((await ended(*children))[0], RuntimeError)
    assert committed(server) == ["outer", "outer 2"]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("savepoint", [True, False], ids=["savepoint", "no savepoint"])
def test_nested_block_cancelled_anywhere(
    run: Callable[..., Any], server: Server, late: bool, fails: bool, savepoint: bool
) -> None:
    """Wherever a nested block is cancelled, what it wrote is there if, and only if, it ended."""

    # The suspension at which RELEASE is waited for.
    released = 0

    async def nested() -> None:
        nonlocal released
        with suppress(Failed):
            async with transaction.atomic(savepoint=savepoint):
                await write("inner")
                if fails:
                    raise Failed
                released = each.count + 1

    async def once(point: int) -> bool:
        task = asyncio.current_task()
        assert task is not None
        nonlocal each
        each = Interrupted(nested(), (point,), late=late)
        each.start()
        done, outcome = [], "raised"
        with suppress(DatabaseError):
            async with transaction.atomic():
                done.append(await write("outer"))
                try:
                    await each.run()
                except asyncio.CancelledError:
                    task.uncancel()
                else:
                    assert not each.cancelled
                    if not fails:
                        done.append("inner")
                done.append(await write("outer 2"))
            outcome = "committed"
        # A savepoint that is released already when the task hears of it is no more.
        assert outcome == "committed" or not savepoint or point == released
        assert committed(server) == (sorted(done) if outcome == "committed" else [])
        await settled()
        server.all("TRUNCATE tests_author CASCADE")
        return bool(each.cancelled)

    async def main() -> int:
        await Author.objects.aexists()
        for point in itertools.count(1):
            if not await asyncio.create_task(once(point)):
                return point
        raise AssertionError

    each: Interrupted
    assert run(main()) > 2 * savepoint


@pytest.mark.parametrize("end", ["RELEASE", "ROLLBACK TO"])
async def test_end_that_an_execute_wrapper_fails(server: Server, end: str) -> None:
    """A nested block is rolled back when anything raises at its end, not database errors only."""

    def failing(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith(end):
            raise ZeroDivisionError
        return execute(sql, *args)

    async with transaction.atomic():
        await write("outer")
        with pytest.raises(ZeroDivisionError), connection.execute_wrapper(failing):
            async with transaction.atomic():
                await write("inner")
                transaction.on_commit(pytest.fail)
                if end != "RELEASE":
                    raise Failed
        await write("outer 2")
    assert committed(server) == ["outer", "outer 2"]


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "outermost"])
def test_cancelled_while_a_block_is_rolled_back(
    run: Callable[..., Any], server: Server, gate: Callable[[], None], nested: bool
) -> None:
    """A cancellation that comes while a block that failed is cleaned up is raised afterwards."""
    failing = asyncio.Event()
    children: list[asyncio.Task[Any]] = []

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("RELEASE"):
            failing.set()
            raise ZeroDivisionError
        return execute(sql, *args)

    async def block() -> None:
        async with transaction.atomic():
            await write("inner")
            children.append(asyncio.create_task(execute(WAITS)))
            await until_running(server.all, "%advisory%")
            if not nested:
                failing.set()
                raise Failed

    async def owner() -> None:
        if not nested:
            await block()
            return
        task = asyncio.current_task()
        assert task is not None
        async with transaction.atomic():
            await write("outer")
            with pytest.raises(asyncio.CancelledError), connection.execute_wrapper(fail):
                await block()
            task.uncancel()
            await write("outer 2")

    async def main() -> None:
        task = asyncio.create_task(owner())
        await failing.wait()
        task.cancel()
        (error,) = await ended(task)
        assert isinstance(error, type(None) if nested else asyncio.CancelledError), error
        await ended(*children)
        await settled()

    run(main())
    assert committed(server) == (["outer", "outer 2"] if nested else [])


async def test_hooks_of_an_interrupted_block(server: Server, gate: Callable[[], None]) -> None:
    """on_commit hooks of a nested block whose end was interrupted do not run; others do."""
    ran: list[str] = []
    async with transaction.atomic():
        transaction.on_commit(lambda: ran.append("outer"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                async with transaction.atomic():
                    transaction.on_commit(lambda: ran.append("inner"))
                    task = asyncio.create_task(execute(WAITS))
                    await until_running(server.all, "%advisory%")
                    timeout.reschedule(0)
        await ended(task)
    assert ran == ["outer"]


async def test_children_wait_while_a_nested_block_is_left(
    server: Server, gate: Callable[[], None]
) -> None:
    """What a child begins while a nested block is being rolled back is not rolled back with it."""
    leaving = asyncio.Event()

    async def child() -> None:
        await leaving.wait()
        async with transaction.atomic():
            await write("child")

    async def opened() -> None:
        await turns()
        gate()

    async with transaction.atomic():
        with suppress(Failed):
            async with transaction.atomic():
                await write("inner")
                task = asyncio.create_task(child())
                running = asyncio.create_task(execute(WAITS))
                await until_running(server.all, "%advisory%")
                leaving.set()
                opening = asyncio.create_task(opened())
                raise Failed
        await asyncio.gather(task, running, opening)
        await write("outer")
    assert committed(server) == ["child", "outer"]


# Where it cannot be rolled back alone


@asynccontextmanager
async def frozen_at(server: Server, message: bytes) -> AsyncIterator[Proxy]:
    """Let the running task use a server that does not answer any more when it gets *message*."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        use_wrapper(
            HOST="127.0.0.1",
            PORT=proxy.port,
            options={"pool": {"max_size": 2}, "cancel_timeout": 0.3},
        )
        # Where statements are logged, a savepoint is released at the end of its block.
        connection.force_debug_cursor = True
        proxy.freeze_at(message)
        yield proxy
        proxy.thaw()


@pytest.mark.parametrize("writes_on", [False, True])
@pytest.mark.parametrize("message", [b"RELEASE", b"ROLLBACK TO"])
async def test_savepoint_that_cannot_be_reached(
    server: Server, message: bytes, writes_on: bool
) -> None:
    """Where the nested block cannot be rolled back, the outer one is, and says so."""
    async with frozen_at(server, message) as proxy:
        with pytest.raises(NotCommitted) as caught:
            async with transaction.atomic():
                await write("outer")
                transaction.on_commit(pytest.fail)
                with pytest.raises((TimeoutError, Failed)):
                    async with asyncio.timeout(0.1):
                        async with transaction.atomic():
                            await write("inner")
                            if message != b"RELEASE":
                                raise Failed
                proxy.thaw()
                connection.force_debug_cursor = False
                if writes_on:
                    with pytest.raises(TransactionManagementError):
                        await write("outer 2")
        assert caught.value.__cause__ is not None
        assert not connection.in_atomic_block
        async with transaction.atomic():
            await write("next")
        await settled()
    assert committed(server) == ["next"]


async def test_broken_block_in_a_transaction_by_hand(server: Server) -> None:
    """acommit() after a block that could not be rolled back raises; arollback() mends it."""
    async with frozen_at(server, b"RELEASE") as proxy:
        await aset_autocommit(False)
        await write("outer")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async with transaction.atomic():
                    await write("inner")
        proxy.thaw()
        with pytest.raises(NotCommitted):
            await acommit()
        with pytest.raises(TransactionManagementError):
            async with transaction.atomic():
                await write("inner 2")
        with suppress(OperationalError):
            await arollback()
        await bridged(connection.close)()
        await aset_autocommit(False)
        await write("next")
        await acommit()
        await aset_autocommit(True)
        await settled()
    assert committed(server) == ["next"]


# The connection is lost in a block, and that is caught


def kill(server: Server, process: int) -> None:
    server.all("SELECT pg_terminate_backend(%s, 10000)", process)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("savepoint", [True, False], ids=["savepoint", "no savepoint"])
@pytest.mark.parametrize("work", [lambda: write("inner"), lambda: execute("SELECT 1")])
def test_connection_lost_in_a_nested_block(
    run: Callable[..., Any],
    server: Server,
    work: Callable[[], Awaitable[Any]],
    savepoint: bool,
    depth: int,
) -> None:
    """Each block around one that lost the connection raises, though the error was caught."""

    async def nest(depth: int) -> None:
        if not depth:
            kill(server, await pid())
            await work()
            return
        try:
            async with transaction.atomic(savepoint=savepoint):
                await nest(depth - 1)
        except OperationalError as error:
            errors.append(error)

    errors: list[OperationalError] = []

    async def main() -> None:
        with pytest.raises(NotCommitted) as caught:
            async with transaction.atomic():
                await write("outer")
                transaction.on_commit(pytest.fail)
                await nest(depth)
        assert isinstance(caught.value.__cause__, OperationalError)
        assert not connection.in_atomic_block
        async with transaction.atomic():
            await write("next")
        await settled()

    run(main())
    assert len(errors) == depth
    assert all(isinstance(each, NotCommitted) for each in errors[1:])
    assert committed(server) == ["next"]


@pytest.mark.parametrize(
    "work",
    [lambda: write("lost"), lambda: execute("SELECT 1"), lambda: pid()],
    ids=["write", "execute", "pid"],
)
async def test_connection_lost_and_caught_in_the_outermost_block(
    server: Server, work: Callable[[], Awaitable[Any]]
) -> None:
    """The outermost block raises an OperationalError; nothing is in doubt."""
    with pytest.raises(OperationalError) as caught:
        async with transaction.atomic():
            await write("outer")
            kill(server, await pid())
            with pytest.raises(OperationalError):
                await work()
    assert not isinstance(caught.value, CommitInDoubt)
    async with transaction.atomic():
        await write("next")
    assert committed(server) == ["next"]


async def test_connection_lost_in_a_child(server: Server) -> None:
    """A child's block that loses the connection, gathered with its errors, fails the owner's."""

    async def child() -> None:
        async with transaction.atomic():
            kill(server, await pid())
            await write("child")

    with pytest.raises(NotCommitted):
        async with transaction.atomic():
            await write("outer")
            await asyncio.gather(child(), write("sibling"), return_exceptions=True)
    assert committed(server) == []


@pytest.mark.parametrize("nested", [False, True])
async def test_rollback_that_was_asked_for(server: Server, nested: bool) -> None:
    """set_rollback(True) in a block that lost its connection: who asked is told nothing."""
    async with transaction.atomic():
        await write("outer")
        with suppress(OperationalError):
            if nested:
                async with transaction.atomic():
                    kill(server, await pid())
                    await write("inner")
            else:
                kill(server, await pid())
                await write("inner")
        transaction.set_rollback(True)
    assert committed(server) == []


async def test_djangos_own_reasons_to_roll_back(server: Server) -> None:
    """What Django rolls back by its documented rules is rolled back without an error, as there."""
    async with transaction.atomic():
        await write("outer")
        with suppress(Failed):
            async with transaction.atomic(savepoint=False):
                raise Failed
    async with transaction.atomic():
        await write("outer")
        with suppress(IntegrityError):
            await write("outer")
    assert committed(server) == []


# Children, when the outermost end is due


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
def test_child_that_waits_for_the_connection(
    run: Callable[..., Any], server: Server, gate: Callable[[], None], fails: bool
) -> None:
    """A child's statement that waits for another one when the end is due is refused."""
    tasks: list[asyncio.Task[Any]] = []

    async def main() -> None:
        with suppress(Failed):
            async with transaction.atomic():
                await write("owner")
                tasks.append(asyncio.create_task(execute(WAITS)))
                await until_running(server.all, "%advisory%")
                tasks.append(asyncio.create_task(write("child")))
                tasks.append(
                    asyncio.create_task(execute("INSERT INTO tests_author (name) VALUES ('raw')"))
                )
                await turns()
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(opened()))
                if fails:
                    raise Failed
        first, *others = await ended(*tasks)
        assert isinstance(first, OperationalError) if fails else first is not BaseException
        assert [type(each) for each in others] == [RuntimeError, RuntimeError], others
        assert all("has ended" in str(each) for each in others)
        await settled()

    async def opened() -> None:
        await turns()
        if not fails:
            gate()

    run(main())
    assert committed(server) == ([] if fails else ["owner"])


@pytest.mark.parametrize(
    "begin",
    [
        lambda: write("child"),
        lambda: execute("INSERT INTO tests_author (name) VALUES ('child')"),
        lambda: transaction.atomic().__aenter__(),
        lambda: Author.objects.acount(),
    ],
)
def test_child_that_begins_during_the_commit(
    run: Callable[..., Any],
    server: Server,
    slow_commit: Callable[[], None],
    begin: Callable[[], Awaitable[Any]],
) -> None:
    """A child's statement or block that begins while COMMIT runs is refused at once."""

    async def child() -> None:
        await until_running(server.all, "COMMIT")
        try:
            with pytest.raises(RuntimeError, match="has ended"):
                await begin()
        finally:
            slow_commit()

    async def main() -> None:
        async with transaction.atomic():
            await write("owner")
            task = asyncio.create_task(child())
        await task
        await settled()

    run(main())
    assert committed(server) == ["owner"]


@pytest.mark.parametrize("fails", ["not", "in the block", "at COMMIT"])
def test_children_that_write_on(run: Callable[..., Any], server: Server, fails: str) -> None:
    """Of children that write all the time, what was acknowledged is what the owner committed."""

    async def child(name: str, written: list[str]) -> None:
        with suppress(RuntimeError, DatabaseError):
            for number in itertools.count():
                written.append(await write(f"{name} {number}"))

    async def once(number: int) -> None:
        written: list[str] = []
        tasks: list[asyncio.Task[Any]] = []
        raised = False
        try:
            async with transaction.atomic():
                await write(f"{number}")
                if fails == "at COMMIT":
                    await execute(
                        "INSERT INTO tests_book (title, author_id, price, on_loan, data)"
                        " VALUES ('x', -1, 0, false, '{}')"
                    )
                tasks += [asyncio.create_task(child(f"{number} {each}", written)) for each in "ab"]
                while len(written) < 5:
                    await asyncio.sleep(0)
                if fails == "in the block":
                    raise Failed
        except (Failed, IntegrityError):
            raised = True
        await ended(*tasks)
        found = server.all(
            "SELECT name, xmin::text FROM tests_author WHERE name LIKE %s", f"{number} %"
        )
        assert sorted(name for name, _ in found) == ([] if raised else sorted(written))
        assert raised == (fails != "not")
        assert len({xmin for _, xmin in found}) <= 1

    async def main() -> None:
        for number in range(20):
            await once(number)
        await settled()

    run(main())


async def test_child_that_waits_when_autocommit_is_turned_on(
    server: Server, gate: Callable[[], None]
) -> None:
    """The same for a transaction by hand: after the COMMIT nobody writes in its place."""
    await aset_autocommit(False)
    await write("owner")
    first = asyncio.create_task(execute(WAITS))
    await until_running(server.all, "%advisory%")
    commit = asyncio.create_task(turns())
    child = None

    async def late() -> None:
        nonlocal child
        await turns()
        child = asyncio.create_task(write("child"))
        await turns()
        gate()

    helper = asyncio.create_task(late())
    await acommit()
    try:
        await aset_autocommit(True)
    except ProgrammingError:
        # The child was quicker, and has begun the next transaction.
        await acommit()
        await aset_autocommit(True)
    await asyncio.gather(first, commit, helper)
    assert child is not None
    (outcome,) = await ended(child)
    await settled()
    if outcome == "child":
        assert committed(server) == ["child", "owner"]
    else:
        assert isinstance(outcome, RuntimeError), outcome
        assert committed(server) == ["owner"]


async def test_owner_ends_while_a_child_waits_for_the_connection(
    server: Server, gate: Callable[[], None]
) -> None:
    """A task that ends inside its block takes the statements that wait for it along."""
    tasks: list[asyncio.Task[Any]] = []

    async def owner() -> None:
        await transaction.atomic().__aenter__()
        await write("owner")
        tasks.append(asyncio.create_task(execute(WAITS)))
        await until_running(server.all, "%advisory%")
        tasks.append(asyncio.create_task(write("child")))
        await turns()

    with pytest.warns(ResourceWarning, match="ended inside a transaction"):
        await asyncio.create_task(owner())
        first, second = await ended(*tasks)
    assert isinstance(first, OperationalError), first
    assert isinstance(second, RuntimeError), second
    await settled()
    assert committed(server) == []


def test_on_commit_when_the_transaction_has_ended(run: Callable[..., Any], server: Server) -> None:
    """on_commit() in a task or thread that outlived its transaction raises, and calls nothing."""
    ended_by_now = asyncio.Event()

    async def child() -> None:
        await ended_by_now.wait()
        with pytest.raises(RuntimeError, match="has ended"):
            transaction.on_commit(pytest.fail)

    async def inside() -> None:
        async with transaction.atomic():
            entered.set()
            await ended_by_now.wait()
            with pytest.raises(RuntimeError, match="has ended"):
                transaction.on_commit(pytest.fail)

    def in_thread() -> None:
        go.wait()
        with pytest.raises(RuntimeError, match="has ended"):
            transaction.on_commit(pytest.fail)

    go, entered = threading.Event(), asyncio.Event()

    async def main() -> None:
        with suppress(Failed):
            async with transaction.atomic():
                tasks = [asyncio.create_task(each()) for each in (child, inside)]
                tasks.append(asyncio.create_task(asyncio.to_thread(in_thread)))
                await entered.wait()
                raise Failed
        ended_by_now.set()
        go.set()
        outcomes = await ended(*tasks)
        assert [type(each) for each in outcomes] == [type(None), RuntimeError, type(None)]
        # One of the owner's is outside of any transaction.
        called: list[int] = []
        await bridged(transaction.on_commit)(lambda: called.append(1))
        assert called == [1]

    run(main())


async def test_on_commit_beside_a_childs_block(server: Server) -> None:
    """A hook registered while a child's block is open runs although that block is rolled back."""
    ran: list[str] = []
    entered, proceed = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            transaction.on_commit(lambda: ran.append("child"))
            entered.set()
            await proceed.wait()
            raise Failed

    async with transaction.atomic():
        task = asyncio.create_task(child())
        await entered.wait()
        transaction.on_commit(lambda: ran.append("owner"))
        proceed.set()
        await ended(task)
    assert ran == ["owner"]


# Hooks of bridged code


async def test_on_commit_of_bridged_code(server: Server) -> None:
    """What bridged synchronous code caught counts as well."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="outer")
            with suppress(OperationalError), transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_backend_pid()")
                    kill(server, cursor.fetchone()[0])
                Author.objects.create(name="inner")

    with pytest.raises(NotCommitted):
        await work()
    assert committed(server) == []


# Cursors that outlast their transaction


@pytest.mark.parametrize("fails", [False, True], ids=["commit", "rollback"])
@pytest.mark.parametrize("leave", ["closed", "dropped", "exhausted", "left open"])
async def test_cursor_with_hold(add_alias: AddAlias, fails: bool, leave: str) -> None:
    """A server-side cursor opened before a transaction does not reach the next borrower."""
    alias = add_alias({"pool": {"max_size": 1}})
    await Author.objects.using(alias).abulk_create(Author(name=f"{each}") for each in range(9))
    authors = Author.objects.using(alias).order_by("name")

    async def borrow() -> None:
        rows = authors.aiterator(2)
        await anext(rows)
        with suppress(Failed):
            async with transaction.atomic(alias):
                await Author.objects.using(alias).acreate(name="other")
                if leave == "closed":
                    await rows.aclose()
                elif leave == "dropped":
                    del rows
                elif leave == "exhausted":
                    assert [each.name async for each in rows]
                if fails:
                    raise Failed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        await asyncio.create_task(borrow())
        gc.collect()
        await settled(connections[alias])
    assert await execute("SELECT count(*) FROM pg_cursors", alias=alias) == 0
