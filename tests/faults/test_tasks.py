"""Tasks that share a transaction, and kinds of tasks: rows 18, 27 and 34."""

import asyncio
from contextlib import suppress

import pytest
from django.db import OperationalError, connection, transaction

from pgbackend import await_bridged, bridged
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import committed
from tests.support.work import ended, execute, pid, settled, until_running
from tests.support.wrapper import until, use_wrapper


class Failed(Exception):
    pass


# Children of a transaction


@pytest.mark.parametrize("cancelled", [False, True], ids=["one fails", "one is cancelled"])
async def test_18_gather_in_a_transaction(server: Server, cancelled: bool) -> None:
    """Children's blocks never interleave; committed is what was acknowledged, and no more."""
    acknowledged: list[str] = ["owner"]
    inside: list[str] = []
    waits = asyncio.Event()

    async def child(number: int) -> None:
        async with transaction.atomic():
            inside.append(f"child {number}")
            await Author.objects.acreate(name=f"child {number}")
            assert inside == [f"child {number}"]
            if number == 3:
                waits.set()
                if not cancelled:
                    inside.clear()
                    raise Failed
                try:
                    await asyncio.Event().wait()
                finally:
                    inside.clear()
            await execute("SELECT pg_sleep(0.001)")
            assert inside == [f"child {number}"]
            inside.clear()
        acknowledged.append(f"child {number}")

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        tasks = [asyncio.create_task(child(number)) for number in range(8)]
        await asyncio.wait_for(waits.wait(), PATIENCE)
        if cancelled:
            tasks[3].cancel()
        results = await ended(*tasks)
    expected = asyncio.CancelledError if cancelled else Failed
    assert [type(each) for each in results if each is not None] == [expected]
    assert committed(server) == sorted(acknowledged)
    assert len(acknowledged) == 8


async def test_18_turn_is_bounded() -> None:
    """A turn that never comes is a RuntimeError that names the holder, after turn_timeout."""
    use_wrapper(options={"turn_timeout": 0.2})
    release, entered = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with transaction.atomic():
            entered.set()
            await release.wait()

    async with transaction.atomic():
        holder = asyncio.create_task(hold(), name="the holder")
        await entered.wait()
        with pytest.raises(RuntimeError, match=r"waited 0\.2 s .*the holder"):
            await asyncio.create_task(Author.objects.acount())  # type: ignore[arg-type]
        release.set()
        await holder


async def test_18_outlives_its_transaction(server: Server) -> None:
    """A task that outlives its transaction gets a RuntimeError before any SQL."""
    go = asyncio.Event()

    async def late() -> None:
        await go.wait()
        await Author.objects.acreate(name="late")

    async with transaction.atomic():
        await Author.objects.acreate(name="owner")
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
    go.set()
    (error,) = await ended(task)
    assert isinstance(error, RuntimeError)
    assert "detached" in str(error)
    assert committed(server) == ["owner"]


@pytest.mark.parametrize("cancelled", [False, True], ids=["fails", "is cancelled"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle child", "busy child"])
async def test_34_owner_ends_while_a_child_is_nested(
    server: Server, cancelled: bool, busy: bool
) -> None:
    """Nothing of an owner that fails is committed; the child's late exit only unwinds."""
    entered, release = asyncio.Event(), asyncio.Event()
    children: list[asyncio.Task[None]] = []

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="child")
            entered.set()
            if busy:
                await execute("SELECT pg_sleep(600)")
            else:
                await release.wait()

    async def owner() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="owner")
            children.append(asyncio.create_task(child()))
            await entered.wait()
            if busy:
                await asyncio.to_thread(lambda: None)
                await until(lambda: bool(busy_now(server)))
            if cancelled:
                await asyncio.Event().wait()
            raise Failed

    task = asyncio.create_task(owner())
    await asyncio.wait_for(entered.wait(), PATIENCE)
    if cancelled:
        if busy:
            await until_running(server.all, "%pg_sleep%")
        task.cancel()
    (error,) = await ended(task)
    assert isinstance(error, asyncio.CancelledError if cancelled else Failed)
    release.set()
    (late,) = await ended(*children)
    assert isinstance(late, OperationalError if busy else RuntimeError)
    async with transaction.atomic():
        await Author.objects.acreate(name="next")
    assert committed(server) == ["next"]
    await settled()


def test_41_connection_is_closed_while_its_statement_is_stopped(runner: asyncio.Runner) -> None:
    """Nothing of a closed connection is used any more; once that ended in freed memory."""

    async def child() -> None:
        async with transaction.atomic():
            await execute("SELECT pg_sleep(0.05)")

    async def once(turns: int) -> None:
        children = []
        ready = asyncio.Event()

        async def owner() -> None:
            async with transaction.atomic():
                children.append(asyncio.create_task(child()))
                await asyncio.sleep(0.004)
                ready.set()

        task = asyncio.create_task(owner())
        await ready.wait()
        children[0].cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        # It waits for the child's block, and gives the connection up.
        task.cancel()
        await ended(task, *children)

    async def main() -> None:
        use_wrapper(options={"pool": {"max_size": 6}})

        async def work() -> None:
            for turns in [*range(12)] * 2:
                await once(turns)

        await asyncio.gather(*(work() for _ in range(6)))
        await settled()
        await bridged(connection.close_pool)()

    runner.run(main())


def busy_now(server: Server) -> list[object]:
    return server.all(
        "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgbackend-tests'"
        " AND state = 'active' AND query LIKE '%%pg_sleep%%'"
    )


# Kinds of tasks and loops


def test_27_every_kind_of_task_and_loop(runner: asyncio.Runner) -> None:
    """Hundreds of tasks, bridges nested in them, each get their own rows and results."""

    async def nested(number: int) -> str:
        return (await Author.objects.aget(name=f"author {number}")).name

    def work(number: int) -> list[str]:
        first = await_bridged(nested(number))
        # A task of its own, eager perhaps, awaited from bridged code.
        second = await_bridged(asyncio.create_task(nested(number)))
        third = Author.objects.get(name=f"author {number}").name
        fourth = await_bridged(bridged(lambda: Author.objects.get(name=first).name)())
        return [first, second, third, fourth]

    async def main() -> None:
        await Author.objects.abulk_create([Author(name=f"author {each}") for each in range(200)])
        results = await ended(*(asyncio.ensure_future(bridged(work)(n)) for n in range(200)))
        assert results == [[f"author {number}"] * 4 for number in range(200)]
        async with transaction.atomic():
            before = await pid()
            # They join, whenever they begin.
            assert set(await asyncio.gather(*(pid() for _ in range(20)))) == {before}
        with suppress(Failed):
            async with transaction.atomic():
                await asyncio.gather(*(Author.objects.acreate(name=f"lost {n}") for n in range(9)))
                raise Failed
        assert await Author.objects.acount() == 200
        assert not connection.in_atomic_block
        await settled()

    runner.run(main())
