"""Joining: which tasks are in a transaction, which are refused, and which have their own."""

import asyncio
import gc
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.dispatch import Signal

from pgbackend import await_bridged, bridged
from pgbackend.transaction import aset_autocommit, detached
from tests.models import Author, Elsewhere
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import apid, asleep, committed, running, until
from tests.support.wrapper import AddAlias

ENDED = r"transaction that has ended.*on_commit\(\) or inside `with pgbackend.transaction.detached"

Work = Callable[[], Coroutine[Any, Any, Any]]


class Failed(Exception):
    pass


# Ways to start tasks


async def gather(*work: Work) -> None:
    await asyncio.gather(*(each() for each in work))


async def group(*work: Work) -> None:
    async with asyncio.TaskGroup() as tasks:
        for each in work:
            tasks.create_task(each())


async def create(*work: Work) -> None:
    for task in [asyncio.create_task(each()) for each in work]:
        await task


async def wait_for(*work: Work) -> None:
    # A task of its own on Python 3.11, the caller's from 3.12 on.
    for each in work:
        await asyncio.wait_for(each(), PATIENCE)


async def shield(*work: Work) -> None:
    await asyncio.gather(*(asyncio.shield(each()) for each in work))


async def eager(*work: Work) -> None:
    # Tasks that begin inside the one that creates them.
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        await asyncio.gather(*(loop.create_task(each()) for each in work))
    finally:
        loop.set_task_factory(None)


def signal_to(*work: Work) -> Signal:
    """Return a signal with an asynchronous receiver for each of *work*."""
    signal = Signal()
    for each in work:

        async def receiver(each: Work = each, **kwargs: Any) -> None:
            await each()

        signal.connect(receiver, weak=False)
    return signal


async def asend(*work: Work) -> None:
    await signal_to(*work).asend(sender=None)


async def asend_robust(*work: Work) -> None:
    for _, error in await signal_to(*work).asend_robust(sender=None):
        assert error is None


async def asend_to_synchronous(*work: Work) -> None:
    # Beside an asynchronous receiver, without which Django 5.2 makes no task for them either.
    signal = signal_to(Author.objects.acount)
    for each in work:

        def receiver(each: Work = each, **kwargs: Any) -> None:
            await_bridged(each())

        signal.connect(receiver, weak=False)
    await signal.asend(sender=None)


async def send(*work: Work) -> None:
    await bridged(signal_to(*work).send)(sender=None)


WAYS = [gather, group, create, wait_for, shield, asend, asend_robust, asend_to_synchronous, send]
if sys.version_info >= (3, 12):
    WAYS.append(eager)


# In the transaction


@pytest.mark.parametrize("start", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("bridge", [False, True], ids=["tasks", "bridged"])
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
async def test_tasks_are_in_the_transaction(
    server: Server, start: Callable[..., Awaitable[None]], bridge: bool, fails: bool
) -> None:
    """Whatever starts them, tasks work on the owner's connection and share its end."""
    pids: set[int] = set()
    created: list[bool] = []

    async def get_or_create() -> None:
        pids.add(await apid())
        created.append((await Author.objects.aget_or_create(name="shared"))[1])

    async def read() -> None:
        assert "owner" in [author.name async for author in Author.objects.all()]
        assert await Author.objects.filter(name="owner").aexists()
        pids.add(await apid())

    async def write() -> None:
        await Author.objects.acreate(name="written")
        await Author.objects.filter(name="written").aupdate(name="changed")
        pids.add(await apid())

    async def nest() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="nested")
            with pytest.raises(Failed):
                async with transaction.atomic(savepoint=True):
                    await Author.objects.acreate(name="lost")
                    raise Failed
            pids.add(await apid())

    @bridged
    def write_synchronously() -> None:
        with transaction.atomic(savepoint=False):
            Author(name="saved").save()
        assert connection.in_atomic_block

    async def own() -> None:
        async with transaction.atomic():
            pids.add(await apid())
            await Author.objects.acreate(name="owner")
            await start(get_or_create, get_or_create, read, write, nest, write_synchronously)
            assert await Author.objects.acount() == 5
            assert committed(server) == []
            if fails:
                raise Failed

    if fails:
        with pytest.raises(Failed):
            await (bridged(own) if bridge else own)()
    else:
        await (bridged(own) if bridge else own)()
    assert len(pids) == 1
    assert sorted(created) == [False, True]
    expected = ["changed", "nested", "owner", "saved", "shared"]
    assert committed(server) == ([] if fails else expected)


async def test_failing_group_is_rolled_back_together(server: Server) -> None:
    """The failure of one task of a group that leaves the block takes all rows along."""

    async def failing() -> None:
        await Author.objects.acreate(name="failing")
        raise Failed

    with pytest.raises(ExceptionGroup):
        async with transaction.atomic(), asyncio.TaskGroup() as group:
            group.create_task(failing())
            group.create_task(Author.objects.acreate(name="other"))
            group.create_task(asleep(600))
    assert committed(server) == []
    assert running(server, "active", "%pg_sleep%") == 0


async def test_a_task_joins_each_open_transaction(server: Server) -> None:
    """A task is in the transactions of all databases that were open when it started."""

    async def write() -> None:
        await Author.objects.acreate(name="child")
        await Elsewhere.objects.acreate(name="child")

    async with transaction.atomic():
        with pytest.raises(Failed):
            async with transaction.atomic(using="other"):
                await asyncio.gather(write())
                raise Failed
        assert await Elsewhere.objects.acount() == 0
        assert committed(server) == []
    assert committed(server) == ["child"]


async def test_a_tasks_own_transaction_on_another_database(server: Server) -> None:
    """What a child begins on a database where its parent has nothing open is the child's own."""

    async def write() -> None:
        async with transaction.atomic(using="other"):
            await Elsewhere.objects.acreate(name="child")

    with pytest.raises(Failed):
        async with transaction.atomic():
            await asyncio.gather(write(), Author.objects.acreate(name="child"))
            assert [each.name async for each in Elsewhere.objects.all()] == ["child"]
            raise Failed
    assert committed(server) == []
    assert await Elsewhere.objects.acount() == 1


async def test_tasks_join_a_transaction_by_hand(server: Server) -> None:
    """With autocommit off, tasks started are in the transaction; after commit() in the next."""
    await aset_autocommit(False)
    await asyncio.gather(*(Author.objects.acreate(name=name) for name in "ab"))
    assert committed(server) == []
    await bridged(transaction.commit)()
    await asyncio.gather(*(Author.objects.acreate(name=name) for name in "cd"))
    await bridged(transaction.rollback)()
    await aset_autocommit(True)
    assert committed(server) == ["a", "b"]


async def test_durable_is_refused_in_a_child(server: Server) -> None:
    """durable=True is refused in a task that is in a transaction of its parent's."""

    @transaction.atomic(durable=True)
    async def durable() -> None:
        await Author.objects.acreate(name="durable")

    async with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"):
            await asyncio.create_task(durable())
        await Author.objects.acreate(name="owner")
    assert committed(server) == ["owner"]


# Stopped statements


async def by_timeout(work: Work, server: Server) -> None:
    async with asyncio.timeout(0.1):
        await work()


async def by_wait_for(work: Work, server: Server) -> None:
    await asyncio.wait_for(work(), 0.1)


async def by_cancelling_a_child(work: Work, server: Server) -> None:
    task = asyncio.create_task(work())
    await until(lambda: running(server, "active", "%pg_sleep%") == 1)
    task.cancel()
    await task


Stop = Callable[[Work, Server], Awaitable[None]]

stops = pytest.mark.parametrize(
    "stop", [by_timeout, by_wait_for, by_cancelling_a_child], ids=lambda stop: stop.__name__
)
stopped = pytest.raises((TimeoutError, asyncio.CancelledError))


async def sleep() -> None:
    await asleep(600)


@stops
async def test_stopped_statement_in_a_nested_block(server: Server, stop: Stop) -> None:
    """A statement that is stopped in a block of its own leaves the transaction usable."""

    async def nest() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await sleep()

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        with stopped:
            await stop(nest, server)
        await Author.objects.acreate(name="after")
    assert committed(server) == ["after", "owner"]


@stops
async def test_statement_after_a_stopped_one(server: Server, stop: Stop) -> None:
    """A statement that is stopped without a block of its own breaks the owner's block."""
    with pytest.raises(DatabaseError):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            with stopped:
                await stop(sleep, server)
            await Author.objects.acreate(name="after")
    assert committed(server) == []


@stops
async def test_commit_after_a_stopped_statement(server: Server, stop: Stop) -> None:
    """A block whose statement was stopped does not end as if it had been committed."""
    hooks: list[str] = []
    with pytest.raises(DatabaseError):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            transaction.on_commit(lambda: hooks.append("ran"))
            with stopped:
                await stop(sleep, server)
    assert committed(server) == []
    assert hooks == []
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert committed(server) == ["next"]


# Tasks that outlive it


async def count() -> None:
    await Author.objects.acount()


async def iterate() -> None:
    async for _ in Author.objects.aiterator():
        pass


async def enter() -> None:
    async with transaction.atomic():
        pass


async def enter_durably() -> None:
    async with transaction.atomic(durable=True):
        pass


async def turn_autocommit_off() -> None:
    await aset_autocommit(False)


USES = [count, iterate, apid, enter, enter_durably, turn_autocommit_off]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
async def test_task_that_outlives_the_transaction(use: Work, fails: bool) -> None:
    """Whatever it then does is a RuntimeError that names the fix, before any connection."""
    proceed = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def late() -> None:
        await Author.objects.acount()
        proceed.set()
        for _ in range(2):
            await ended.wait()
            with pytest.raises(RuntimeError, match=ENDED):
                await use()

    ended = asyncio.Event()
    try:
        async with transaction.atomic():
            tasks.append(asyncio.create_task(late()))
            await proceed.wait()
            if fails:
                raise Failed
    except Failed:
        pass
    requests = connection.async_pool.get_stats()["requests_num"]
    ended.set()
    await tasks[0]
    assert connection.async_pool.get_stats()["requests_num"] == requests


async def test_outliving_does_not_end_with_the_next_transaction(server: Server) -> None:
    """A task that outlives one transaction is not in the next one of the same owner."""
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        await Author.objects.acreate(name="late")

    async with transaction.atomic():
        task = asyncio.create_task(late())
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
        ended.set()
        with pytest.raises(RuntimeError, match=ENDED):
            await task
    assert committed(server) == ["next"]


async def test_child_of_a_task_that_outlives(server: Server) -> None:
    """A task started by one that outlives its transaction is refused as well."""

    async def child() -> None:
        await ended.wait()
        await asyncio.create_task(count())

    ended = asyncio.Event()
    async with transaction.atomic():
        task = asyncio.create_task(child())
    ended.set()
    with pytest.raises(RuntimeError, match=ENDED):
        await task


async def test_outliving_task_on_another_database() -> None:
    """The transaction that a task outlives says nothing about other databases."""
    ended = asyncio.Event()

    async def late() -> int:
        await ended.wait()
        async with transaction.atomic(using="other"):
            return await Elsewhere.objects.acount()

    async with transaction.atomic():
        task = asyncio.create_task(late())
    ended.set()
    assert await task == 0


async def test_task_started_from_on_commit(server: Server) -> None:
    """A task that a hook starts is outside the transaction, and may begin its own."""

    @transaction.atomic
    async def write() -> None:
        await Author.objects.acreate(name="hook")

    tasks: list[asyncio.Task[None]] = []
    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        transaction.on_commit(lambda: tasks.append(asyncio.create_task(write())))
    await tasks[0]
    assert committed(server) == ["hook", "owner"]


# Tasks outside it


async def test_task_started_before_the_transaction(server: Server) -> None:
    """A task that was started before does not join, also if it runs only then."""
    opened = asyncio.Event()

    async def other() -> int:
        await opened.wait()
        assert await Author.objects.acount() == 0
        return await apid()

    task = asyncio.create_task(other())
    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        opened.set()
        assert await task != await apid()


async def test_detached_task(server: Server) -> None:
    """A task started in detached() has a connection and transactions of its own."""

    @transaction.atomic(durable=True)
    async def audit() -> int:
        assert await Author.objects.acount() == 0
        await Author.objects.acreate(name="audit")
        return await apid()

    with pytest.raises(Failed):
        async with transaction.atomic(), transaction.atomic():
            await Author.objects.acreate(name="owner")
            with detached():
                task = asyncio.create_task(audit())
                # The block is for starting tasks: its own queries are where they were.
                assert await Author.objects.acount() == 1
                await Author.objects.acreate(name="owner's too")
            assert await task != await apid()
            assert committed(server) == ["audit"]
            assert await Author.objects.acount() == 3
            raise Failed
    assert committed(server) == ["audit"]


@pytest.mark.parametrize("fails", [False, True], ids=["committed", "rolled back"])
async def test_detached_task_outlives_the_transaction(server: Server, fails: bool) -> None:
    """A detached task, and what it starts, goes on when the transaction has ended."""
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        async with transaction.atomic():
            await asyncio.gather(*(Author.objects.acreate(name=name) for name in "ab"))

    try:
        async with transaction.atomic():
            with detached():
                task = asyncio.create_task(late())
            if fails:
                raise Failed
    except Failed:
        pass
    ended.set()
    await task
    assert committed(server) == ["a", "b"]


async def test_detached_is_about_tasks_started_in_it(server: Server) -> None:
    """A task started after detached() joins as before; the block nests in itself."""
    async with transaction.atomic():
        with detached(), detached():
            pass
        own = await apid()
        assert await asyncio.create_task(apid()) == own
        with detached():
            assert await asyncio.create_task(apid()) != own
    with detached():
        assert await asyncio.create_task(Author.objects.acount()) == 0


async def test_detached_from_a_child(server: Server) -> None:
    """A child that leaves the transaction by detached() takes no turn in it."""

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            with detached():
                await asyncio.create_task(Author.objects.acreate(name="detached"))

    with pytest.raises(Failed):
        async with transaction.atomic():
            await asyncio.create_task(child())
            raise Failed
    assert committed(server) == ["detached"]


async def test_state_goes_with_its_task() -> None:
    """Neither a task's state nor the ancestors that it knew keep it alive when it has ended."""

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acount()

    async def own() -> None:
        async with transaction.atomic():
            task = asyncio.create_task(child())
            ended.append(weakref.ref(task))
            await task

    ended: list[weakref.ref[asyncio.Task[None]]] = []
    # Nobody is to wait for a connection being opened: asyncio keeps the context of a timer that
    # was cancelled until it would have been due.
    await Author.objects.acount()
    task = asyncio.create_task(own())
    ended.append(weakref.ref(task))
    await task
    del task
    await Author.objects.acount()
    gc.collect()
    assert [each() for each in ended] == [None, None]


# Other event loops


def run(work: Work) -> Any:
    """Run a coroutine on an event loop of its own, in the calling thread."""
    return asyncio.run(work())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "move",
    [
        asyncio.to_thread,
        lambda function, work: sync_to_async(function, thread_sensitive=False)(work),
        lambda function, work: sync_to_async(function)(work),
    ],
    ids=["to_thread", "sync_to_async", "thread-sensitive"],
)
async def test_tasks_of_another_loop_are_refused(server: Server, move: Any) -> None:
    """A loop started in a thread that joined cannot wait for the connection: it is told so."""
    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        for use in (count, apid, enter):
            with pytest.raises(RuntimeError, match=r"another event loop.*transaction\.detached"):
                await move(run, use)
        assert await Author.objects.acount() == 1
    assert committed(server) == ["owner"]


async def test_detached_loop_in_a_thread(server: Server) -> None:
    """A loop started in a thread inside detached() has its own connections."""

    async def write() -> None:
        assert await Author.objects.acount() == 0
        async with transaction.atomic():
            await Author.objects.acreate(name="other loop")

    with pytest.raises(Failed):
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            with detached():
                await asyncio.to_thread(run, write)
            raise Failed
    assert committed(server) == ["other loop"]


async def test_loop_of_a_thread_after_the_transaction(server: Server) -> None:
    """A loop in a thread that outlives the transaction is refused like any task."""
    ended = asyncio.Event()

    async def late() -> None:
        await ended.wait()
        await asyncio.to_thread(run, count)

    async with transaction.atomic():
        task = asyncio.create_task(late())
    ended.set()
    with pytest.raises(RuntimeError, match=ENDED):
        await task


async def test_pools_of_one_and_two_transactions(add_alias: AddAlias, server: Server) -> None:
    """Two tasks that each hold a connection and want the other's pool end with an error."""
    pool = {"pool": {"max_size": 1, "timeout": 0.5}}
    aliases = [add_alias(pool), add_alias(pool)]
    barrier = asyncio.Barrier(2)

    async def hold(mine: str, other: str) -> None:
        async with transaction.atomic(using=mine):
            await Author.objects.using(mine).acreate(name=mine)
            await barrier.wait()
            await Author.objects.using(other).acount()

    results = await asyncio.gather(hold(*aliases), hold(*reversed(aliases)), return_exceptions=True)
    failures = [each for each in results if each is not None]
    assert failures
    assert all(isinstance(each, DatabaseError) for each in failures), results
    assert all("no connection of the pool" in str(each) for each in failures)
    assert len(committed(server)) == 2 - len(failures)


async def test_gather_in_a_transaction_on_a_pool_of_one(add_alias: AddAlias) -> None:
    """Tasks inside a transaction need no connection beside its own, aiterator() neither."""
    alias = add_alias({"pool": {"max_size": 1, "timeout": 0.5}})
    authors = Author.objects.using(alias)

    async def iterate() -> list[str]:
        return [author.name async for author in authors.order_by("name").aiterator(chunk_size=1)]

    async with transaction.atomic(using=alias):
        await asyncio.gather(*(authors.acreate(name=name) for name in "abc"))
        assert await asyncio.gather(iterate(), iterate(), iterate()) == [["a", "b", "c"]] * 3
