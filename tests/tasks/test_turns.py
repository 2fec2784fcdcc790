"""Turns: of the tasks that share a transaction, one uses it at a time, and blocks nest."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError

from pgbackend import await_bridged, bridged
from pgbackend.transaction import acommit, aset_autocommit
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import apid, asleep, committed, running, until
from tests.support.turns import Block, Failed, count, entered, log, turns
from tests.support.wrapper import AddAlias

BROKEN = "end of the 'atomic' block"
ENDED = "transaction that has ended"


async def fail() -> None:
    raise Failed


# Ancestors


async def test_nested_holder_awaits_its_own_children(server: Server) -> None:
    """Inside a block of its own a task may wait for tasks that it started there."""

    async def child(number: int) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=f"child {number}")
            await turns()

    async def holder() -> None:
        async with transaction.atomic():
            await asyncio.gather(child(1), child(2), Author.objects.acreate(name="reader"))
            assert await Author.objects.acount() == 3

    async with transaction.atomic():
        await asyncio.gather(holder(), Author.objects.acreate(name="sibling"))
    assert committed(server) == ["child 1", "child 2", "reader", "sibling"]


async def test_failed_holder_takes_its_childrens_rows(server: Server) -> None:
    """Rows of tasks started inside a nested block go with that block, and no others do."""

    async def holder() -> None:
        async with transaction.atomic():
            await asyncio.gather(*(Author.objects.acreate(name=name) for name in "ab"))
            raise Failed

    async with transaction.atomic():
        results = await asyncio.gather(
            holder(), Author.objects.acreate(name="sibling"), return_exceptions=True
        )
        assert isinstance(results[0], Failed)
    assert committed(server) == ["sibling"]


async def test_grandchildren_nest_in_their_parents_block(server: Server) -> None:
    """A grandchild's block that fails takes its rows only; its parent's takes them all."""

    async def create(name: str, *children: Any, fails: bool = False) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
            await asyncio.gather(*children, return_exceptions=True)
            if fails:
                raise Failed

    async with transaction.atomic():
        await asyncio.gather(
            create("a", create("ab"), create("ac", create("acd"), fails=True)),
            create("b", create("bc", create("bcd")), create("bd", fails=True)),
            create("c", create("cd", create("cde")), fails=True),
            return_exceptions=True,
        )
    assert committed(server) == ["a", "ab", "b", "bc", "bcd"]


async def test_child_outlives_the_nested_block_it_was_started_in(server: Server) -> None:
    """A task started in a nested block goes on in the transaction when that block has ended."""
    proceed = asyncio.Event()

    async def child() -> None:
        await proceed.wait()
        async with transaction.atomic():
            await Author.objects.acreate(name="child")

    async with transaction.atomic():
        with suppress(Failed):
            async with transaction.atomic():
                await Author.objects.acreate(name="lost")
                task = asyncio.create_task(child())
                raise Failed
        proceed.set()
        await task
        assert committed(server) == []
    assert committed(server) == ["child"]


@pytest.mark.parametrize("then", [turns, fail])
async def test_leaving_a_nested_block_waits_for_a_childs(
    server: Server, then: Callable[[], Awaitable[None]]
) -> None:
    """A nested block, failed or not, is left after the blocks that children entered inside it."""
    order: list[str] = []

    async def note() -> None:
        await turns()
        order.append("child")

    async with transaction.atomic():
        with suppress(Failed):
            async with transaction.atomic():
                child = await entered("child", note)
                # Runs before the next wait of this task has an end.
                asyncio.get_running_loop().call_soon(child.release.set)
                await then()
        order.append("owner")
        await child.task
    assert order == ["child", "owner"]
    assert committed(server) == ([] if then is fail else ["child"])


async def shared_context(*coroutines: Any) -> list[Any]:
    """Run coroutines in tasks that share one Context, as Signal.asend() of Django 6.1 does."""
    context = contextvars.copy_context()
    tasks = [asyncio.create_task(each, context=context) for each in coroutines]
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_tasks_that_share_a_context_take_turns(server: Server) -> None:
    """Tasks with one Context are siblings in their parent's transaction, as any others."""

    async def child(number: int) -> None:
        async with transaction.atomic():
            for part in range(3):
                await Author.objects.acreate(name=f"{number} {part}")
                await turns()
            if number % 2:
                raise Failed

    async with transaction.atomic():
        results = await shared_context(*map(child, range(4)))
    assert [type(each) for each in results] == [type(None), Failed] * 2
    assert committed(server) == [f"{number} {part}" for number in (0, 2) for part in range(3)]


async def test_tasks_that_share_a_context_begin_their_own_transactions(server: Server) -> None:
    """Outside a transaction, the one of a task is not joined by others with its Context."""
    written, proceed = asyncio.Event(), asyncio.Event()

    async def failing() -> int:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            pid = await apid()
            written.set()
            await proceed.wait()
            raise Failed(pid)

    async def other() -> int:
        await written.wait()
        try:
            async with transaction.atomic():
                assert await Author.objects.acount() == 0
                await Author.objects.acreate(name="kept")
                pid = await apid()
            assert committed(server) == ["kept"]
            return pid
        finally:
            proceed.set()

    failure, pid = await shared_context(failing(), other())
    assert isinstance(failure, Failed), failure
    assert isinstance(pid, int), pid
    assert failure.args != (pid,)
    assert committed(server) == ["kept"]


# Which block is broken


def marked(error: Exception, wait: Any) -> None:
    """Raise *error*, after *wait*, where Django marks the block for rollback."""
    with transaction.mark_for_rollback_on_error():
        await_bridged(wait)
        raise error


async def test_error_beside_a_siblings_block_breaks_the_owners(server: Server) -> None:
    """A Python error where Django marks for rollback breaks the block that it was raised in."""
    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        block = await entered("block")
        with pytest.raises(Failed):
            await asyncio.create_task(bridged(marked)(Failed(), turns()))
        # The block on top is none of the failed task's.
        block.then = Author(name="second").asave
        await block.leave()
        with pytest.raises(TransactionManagementError, match=BROKEN):
            await Author.objects.acount()
    assert committed(server) == []


async def test_error_in_a_siblings_block_breaks_that_one(server: Server) -> None:
    """The same error inside a sibling's block breaks that block, and not the owner's."""

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            with pytest.raises(Failed):
                await bridged(marked)(Failed(), turns())
            with pytest.raises(TransactionManagementError, match=BROKEN):
                await Author.objects.acount()

    async with transaction.atomic():
        await asyncio.gather(child(), Author.objects.acreate(name="kept"))
        assert await Author.objects.acount() == 1
    assert committed(server) == ["kept"]


async def test_error_outside_a_grandchilds_block_breaks_the_childs(server: Server) -> None:
    """An error in a block breaks it although a block entered inside it is on top."""

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            grandchild = await entered("grandchild")
            with pytest.raises(Failed):
                await bridged(marked)(Failed(), turns())
            grandchild.then = Author(name="second").asave
            await grandchild.leave()
            with pytest.raises(TransactionManagementError, match=BROKEN):
                await Author.objects.acount()

    async with transaction.atomic():
        await asyncio.gather(child(), Author.objects.acreate(name="kept"))
        assert await Author.objects.acount() == 1
    assert committed(server) == ["kept"]


@pytest.mark.parametrize("before", [False, True])
async def test_set_rollback_beside_a_siblings_block(server: Server, before: bool) -> None:
    """set_rollback(True) and get_rollback() are about the caller's block, whatever is on top."""
    proceed = asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            await proceed.wait()
            assert transaction.get_rollback() is before

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        if before:
            transaction.set_rollback(True)
        task = asyncio.create_task(child())
        await turns()
        transaction.set_rollback(True)
        assert transaction.get_rollback()
        proceed.set()
        await task
        assert transaction.get_rollback()
    assert committed(server) == []


async def test_integrity_error_of_a_sibling(server: Server) -> None:
    """A database error that a sibling's block caught leaves everybody else's work usable."""

    async def duplicate() -> None:
        with pytest.raises(IntegrityError):
            async with transaction.atomic():
                await Author.objects.acreate(name="owner")

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        block = await entered("block")
        task = asyncio.create_task(duplicate())
        await turns()
        await block.leave()
        await task
        await Author.objects.acreate(name="after")
    assert committed(server) == ["after", "block", "owner"]


# The end of the transaction


async def end(failure: str) -> None:
    """Fail, or let the running task be cancelled."""
    if failure == "cancelled":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()
    raise Failed


FAILURES = pytest.mark.parametrize("failure", ["failed", "cancelled"])


@FAILURES
@pytest.mark.parametrize("child_fails", [False, True])
async def test_owner_fails_while_a_child_is_nested(
    server: Server, failure: str, child_fails: bool
) -> None:
    """Nothing of either is committed; the child's late exit sends no SQL and commits nothing."""
    blocks: list[Block] = []

    async def own() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            blocks.append(await entered("child", fail if child_fails else turns))
            await end(failure)

    log()
    with pytest.raises((Failed, asyncio.CancelledError)):
        await asyncio.create_task(own())
    assert committed(server) == []
    assert running(server, "idle in transaction") == 0
    before = log()
    assert before[-1] == "ROLLBACK"
    if child_fails:
        with pytest.raises(Failed):
            await blocks[0].leave()
    else:
        with pytest.raises(RuntimeError, match="nothing of it was committed"):
            await blocks[0].leave()
    assert log() == before
    assert committed(server) == []


@FAILURES
async def test_late_exit_beside_the_next_transaction(
    server: Server, failure: str, add_alias: AddAlias
) -> None:
    """The late exit leaves the next transaction alone, on the same task and connection."""
    alias = add_alias({"pool": {"max_size": 1, "timeout": 5}})
    authors = Author.objects.using(alias)

    async def own() -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises((Failed, asyncio.CancelledError)):
            async with transaction.atomic(using=alias):
                pid = await apid(alias)
                child = await entered("child", using=alias)
                await end(failure)
        task.uncancel()
        async with transaction.atomic(using=alias):
            await authors.acreate(name="before")
            assert await apid(alias) == pid
            with suppress(Failed):
                async with transaction.atomic(using=alias):
                    await authors.acreate(name="undone")
                    with pytest.raises(RuntimeError, match="nothing of it was committed"):
                        await child.leave()
                    await authors.acreate(name="undone too")
                    raise Failed
            await authors.acreate(name="after")

    await asyncio.create_task(own())
    assert committed(server) == ["after", "before"]


@FAILURES
async def test_statement_of_a_child_after_the_owner_failed(server: Server, failure: str) -> None:
    """Inside its block a child whose owner failed gets a RuntimeError before any SQL."""
    children: list[Block] = []

    async def own() -> None:
        async with transaction.atomic():
            children.append(await entered("child", Author.objects.acount))
            await end(failure)

    with pytest.raises((Failed, asyncio.CancelledError)):
        await asyncio.create_task(own())
    requests = connection.async_pool.get_stats()["requests_num"]
    with pytest.raises(RuntimeError, match=ENDED):
        await children[0].leave()
    assert connection.async_pool.get_stats()["requests_num"] == requests


@FAILURES
@pytest.mark.parametrize("nested", [False, True])
async def test_owner_fails_while_a_childs_statement_runs(
    server: Server, failure: str, nested: bool
) -> None:
    """The statement is stopped in the server; the rollback does not wait for its end."""
    tasks: list[asyncio.Task[None]] = []

    async def child() -> None:
        if nested:
            async with transaction.atomic():
                await asleep(600)
        else:
            await asleep(600)

    async def own() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            # The second one waits for the connection, or for its turn.
            tasks.extend(asyncio.create_task(child()) for _ in range(2))
            await until(lambda: running(server, "active", "%pg_sleep%") == 1)
            await end(failure)

    with pytest.raises((Failed, asyncio.CancelledError)):
        async with asyncio.timeout(PATIENCE):
            await asyncio.create_task(own())
    assert committed(server) == []
    assert running(server, "active", "%pg_sleep%") == 0
    assert running(server, "idle in transaction%") == 0
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], DatabaseError), results
    assert isinstance(results[1], DatabaseError | RuntimeError), results
    assert await Author.objects.acount() == 0


@FAILURES
async def test_nested_block_fails_while_a_childs_statement_runs(
    server: Server, failure: str
) -> None:
    """A nested block that fails waits for its child's statement; the owner then goes on."""

    async def nested() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            tasks.append(asyncio.create_task(asleep(0.2)))
            await until(lambda: running(server, "active", "%pg_sleep%") == 1)
            await end(failure)

    tasks: list[asyncio.Task[None]] = []
    async with transaction.atomic():
        with pytest.raises((Failed, asyncio.CancelledError)):
            await asyncio.create_task(nested())
        await tasks[0]
        await Author.objects.acreate(name="kept")
    assert committed(server) == ["kept"]


async def test_abandoned_while_a_childs_statement_runs(server: Server) -> None:
    """An owner that ends without leaving its block leaves no statement in the server either."""
    tasks: list[asyncio.Task[None]] = []

    async def abandon() -> None:
        await transaction.atomic().__aenter__()
        tasks.append(asyncio.create_task(asleep(600)))
        await until(lambda: running(server, "active", "%pg_sleep%") == 1)

    with pytest.warns(ResourceWarning, match="ended inside a transaction"):
        await asyncio.create_task(abandon())
        await asyncio.wait(tasks)
    assert isinstance(tasks[0].exception(), DatabaseError)
    await until(lambda: running(server, "active", "%pg_sleep%") == 0)


async def test_block_by_hand_fails_while_a_child_is_nested(server: Server) -> None:
    """With autocommit off a failed block waits for its child's; the transaction goes on."""
    await aset_autocommit(False)
    await Author.objects.acreate(name="before")
    with pytest.raises(Failed):
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            child = await entered("child")
            asyncio.get_running_loop().call_soon(child.release.set)
            raise Failed
    await child.task
    assert not await bridged(transaction.get_autocommit)()
    await Author.objects.acreate(name="after")
    assert committed(server) == []
    await acommit()
    assert committed(server) == ["after", "before"]
    await aset_autocommit(True)


async def test_commit_by_hand_waits_for_a_childs_block(server: Server) -> None:
    """With autocommit off, commit() waits until a child has left its block."""
    await aset_autocommit(False)
    await Author.objects.acreate(name="owner")
    child = await entered("child")
    commit = asyncio.create_task(acommit())
    await turns()
    assert not commit.done()
    await child.leave()
    await commit
    assert committed(server) == ["child", "owner"]
    await aset_autocommit(True)


# A turn that never comes


async def enter(alias: str) -> None:
    async with transaction.atomic(using=alias):
        pass


@pytest.mark.parametrize("use", [enter, count])
async def test_turn_that_never_comes(
    add_alias: AddAlias, server: Server, use: Callable[[str], Awaitable[None]]
) -> None:
    """It ends in a RuntimeError that names the holder, with nothing done; the rest is committed."""
    alias = add_alias({"turn_timeout": 0.1})
    async with transaction.atomic(using=alias):
        holder = await entered("the-holder", using=alias)
        with pytest.raises(RuntimeError, match=r"0\.1 s .*the-holder.*turn_timeout"):
            await use(alias)
        with pytest.raises(RuntimeError, match=r"0\.1 s .*the-holder.*turn_timeout"):
            await asyncio.create_task(use(alias))
        await holder.leave()
        assert await Author.objects.using(alias).acount() == 1
    assert committed(server) == ["the-holder"]


async def test_block_that_awaits_a_task_started_before_it(add_alias: AddAlias) -> None:
    """A task's block that awaits one started outside it ends in the same error, not for ever."""
    alias = add_alias({"turn_timeout": 0.1})
    proceed = asyncio.Event()

    async def wait_and_count() -> int:
        await proceed.wait()
        return await Author.objects.using(alias).acount()

    async with transaction.atomic(using=alias):
        count = asyncio.create_task(wait_and_count())
        async with transaction.atomic(using=alias):
            proceed.set()
            with pytest.raises(RuntimeError, match="turn_timeout"):
                await count


async def test_thread_that_holds_the_turn_is_named(add_alias: AddAlias) -> None:
    """A holder that is a thread is named by the thread's name."""
    import threading

    alias = add_alias({"turn_timeout": 0.5})
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        threading.current_thread().name = "the-thread"
        with transaction.atomic(using=alias):
            entered.set()
            release.wait(PATIENCE)

    async with transaction.atomic(using=alias):
        task = asyncio.create_task(asyncio.to_thread(hold))
        await until(entered.is_set)
        with pytest.raises(RuntimeError, match="the-thread is inside an atomic"):
            await Author.objects.using(alias).acount()
        release.set()
        await task
        assert await Author.objects.using(alias).acount() == 0
