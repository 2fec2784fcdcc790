"""gather(): side by side outside a transaction, and in plain threads."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError, OperationalError, connection, connections, transaction

from pgbackend import bridged
from pgbackend.futures import Future, NotAwaitedError, future, gather
from pgbackend.transaction import pinned
from tests.models import Author, Book, Elsewhere
from tests.support.fix_loops import Main
from tests.support.futures import authors, counted
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import pid, sleep
from tests.support.table_lock import TableLock
from tests.support.threads import run_in_thread
from tests.support.wrapper import AddAlias, on_loan, small_pool, until, use_wrapper


class Failed(Exception):
    pass


def test_side_by_side(run_main: Main) -> None:
    """Outside a transaction each call has a connection of its own, at the same time."""

    async def main() -> None:
        await gather(*[future(pid)() for _ in range(4)])
        barrier = asyncio.Barrier(4)

        def meet() -> int:
            with transaction.atomic():
                found = pid()
                future(barrier.wait)().result(PATIENCE)
                return found

        assert len(set(await gather(*[future(meet)() for _ in range(4)]))) == 4
        await until(lambda: not on_loan(connection))

    run_main(main())


def test_results(run_main: Main) -> None:
    """The results come in the order of the arguments; querysets are lists."""

    async def main() -> None:
        pks = await authors(5)
        found = await gather(
            Author.objects.order_by("pk"),
            Author.objects,
            future(Author.objects).count(),
            Author.objects.raw("SELECT id, name FROM tests_author WHERE name = 'a1'"),
            *[future(Author.objects).get(pk=pk) for pk in reversed(pks)],
        )
        assert [author.pk for author in found[0]] == pks
        assert len(found[1]) == found[2] == 5
        assert [author.name for author in found[3]] == ["a1"]
        assert [author.pk for author in found[4:]] == pks[::-1]
        assert await gather() == []

    run_main(main())


async def test_more_calls_than_connections() -> None:
    """A pool that is smaller than the number of calls is used as far as it goes."""
    wrapper = small_pool(2)
    found = await gather(*[future(pid)() for _ in range(50)])
    assert len(set(found)) <= 2
    await until(lambda: not on_loan(wrapper))


async def test_many_beyond_the_queue() -> None:
    """More calls than may wait for the pool are no TooManyRequests."""
    use_wrapper(options={"pool": {"max_size": 1, "max_waiting": 2, "timeout": 5.0}})
    assert await gather(*[future(Author.objects).count() for _ in range(20)]) == [0] * 20


async def test_caller_holds_the_connection() -> None:
    """Who holds the only connection of a pool gathers on it, and waits for nobody."""
    small_pool(1)
    async with pinned():
        own = await bridged(pid)()
        assert await gather(*[future(pid)() for _ in range(3)]) == [own] * 3
        assert await gather(Author.objects.all(), future(Author.objects).count()) == [[], 0]


@pytest.mark.parametrize("inside", [False, True])
async def test_failures(inside: bool) -> None:
    """The first failure is raised when all have ended; with return_exceptions each is returned."""
    await authors(2)

    def fail() -> None:
        raise Failed("at once")

    async def work(**options: Any) -> Any:
        return await gather(
            future(Author.objects).get(name="a1"),
            future(fail)(),
            future(Author.objects).get(name="nobody"),
            future(Author.objects).count(),
            **options,
        )

    async def both() -> None:
        with pytest.raises(Failed):
            await work()
        found = await work(return_exceptions=True)
        assert found[0].name == "a1"
        assert isinstance(found[1], Failed)
        assert isinstance(found[2], Author.DoesNotExist)
        assert found[3] == 2

    if inside:
        async with transaction.atomic():
            await both()
    else:
        await both()


async def test_failed_writes_are_alone() -> None:
    """Outside a transaction a failed write does not undo the others."""
    with pytest.raises(IntegrityError):
        await gather(*[future(Author.objects).create(name=name) for name in ["a", "b", "a", "c"]])
    assert await Author.objects.acount() == 3


def test_cancelled(run_main: Main, server: Server) -> None:
    """Cancelling the task stops all statements in the server, before it ends."""

    async def main() -> None:
        await gather(*[future(pid)() for _ in range(3)])
        with TableLock(server, "tests_book") as lock:
            task = asyncio.create_task(bridged_gather())
            await lock.waited_for(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not lock.waiting())
        await until(lambda: not on_loan(connection))

    async def bridged_gather() -> None:
        await gather(*[future(Book.objects).count() for _ in range(3)])

    run_main(main())


@pytest.mark.parametrize("inside", [False, True])
async def test_failures_before_a_cancellation(server: Server, inside: bool) -> None:
    """A cancelled gather() does not report what failed before, as asyncio's does not."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: reported.append(told))
    failed = asyncio.Event()

    def fail() -> None:
        failed.set()
        raise Failed

    async def work() -> None:
        if inside:
            async with transaction.atomic():
                await gather(future(fail)(), Book.objects.all(), future(Book.objects).count())
        else:
            await gather(future(fail)(), Book.objects.all())

    with TableLock(server, "tests_book") as lock:
        task = asyncio.create_task(work())
        await failed.wait()
        await lock.cancelled(task)
    del task
    gc.collect()
    assert reported == []


async def test_one_future_is_cancelled(server: Server) -> None:
    """Cancelling one future stops its statement; the others go on."""
    await authors(1)
    with TableLock(server, "tests_book") as lock:
        books = future(Book.objects).count()
        task = asyncio.ensure_future(
            _awaited(gather(books, future(Author.objects).count(), return_exceptions=True))
        )
        await lock.waited_for()
        assert books.cancel()
        found = await task
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1] == 1
        assert not lock.waiting()
    assert books.cancelled()


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def test_result_on_a_bare_loop() -> None:
    """`result` on a running loop names `await`."""
    gathering = gather(future(Author.objects).count())
    with pytest.raises(NotAwaitedError, match="await"):
        gathering.result()
    assert await gathering == [0]
    assert gathering.result() == [0]
    assert await gathering == [0]


def test_bridged(run_main: Main) -> None:
    """Bridged code gathers without awaiting, side by side or in its transaction."""

    @bridged
    def work() -> None:
        barrier = asyncio.Barrier(3)

        def meet() -> int:
            with transaction.atomic():
                found = pid()
                future(barrier.wait)().result(PATIENCE)
                return found

        assert len(set(gather(*[future(meet)() for _ in range(3)]).result())) == 3
        with transaction.atomic():
            Author.objects.create(name="uncommitted")
            assert gather(future(Author.objects).count()).result() == [1]
        with pytest.raises(TimeoutError):
            gather(future(sleep)(60)).result(timeout=0.01)

    run_main(work())


@pytest.mark.parametrize("inside", [False, True])
def test_in_a_plain_thread(inside: bool) -> None:
    """In a plain thread the calls run in it, one after another, on its own connection."""

    def work() -> None:
        Author.objects.create(name="a0")
        names = [threading.get_ident()]

        def call() -> int:
            names.append(threading.get_ident())
            return pid()

        def gathered() -> None:
            found = gather(
                Author.objects.all(), future(Author.objects).count(), future(call)(), future(call)()
            ).result()
            assert found[1:] == [1, pid(), pid()]
            with pytest.raises(Author.DoesNotExist):
                gather(future(Author.objects).get(name="nobody")).result()

        if inside:
            with transaction.atomic():
                gathered()
        else:
            gathered()
        assert len(set(names)) == 1

    run_in_thread(work)


async def test_in_a_thread_of_the_transaction() -> None:
    """A thread that joined a transaction gathers in it."""
    async with transaction.atomic():
        await Author.objects.acreate(name="uncommitted")
        found = await sync_to_async(
            lambda: gather(
                future(Author.objects).count(), future(Author.objects).create(name="x")
            ).result()
        )()
        assert found[0] == 1
        assert await Author.objects.acount() == 2


def test_async_to_sync() -> None:
    """A loop of async_to_sync gathers on the connection of the thread that waits for it."""

    async def gathered() -> list[Any]:
        return await gather(future(Author.objects).count(), Author.objects.all(), future(pid)())

    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="uncommitted")
            count, rows, served = async_to_sync(gathered)()
            assert (count, len(rows), served) == (1, 1, pid())

    run_in_thread(work)


async def test_other_aliases(add_alias: AddAlias, stock: str) -> None:
    """Aliases of any engine are gathered, each on connections of its own."""
    await authors(2)
    found = await gather(
        future(Author.objects).count(),
        future(Author.objects.using(stock)).count(),
        future(Elsewhere.objects).count(),
        future(Author.objects.using(add_alias())).count(),
    )
    assert found == [2, 2, 0, 2]
    await sync_to_async(lambda: connections[stock].close())()


async def test_futures_of_all_kinds() -> None:
    """What was begun before, what has ended, and what a maker will end, are all waited for."""
    remote = Future[str].pending()
    begun = future(Author.objects).count().start()
    ended = future(Author.objects).exists()
    await ended
    asyncio.get_running_loop().call_later(0.01, remote.set_result, "far")
    async with transaction.atomic():
        found = await gather(remote, begun, ended, future(Author.objects).count())
    assert found == ["far", 0, False, 0]
    with pytest.raises(TypeError, match="expected a future or a queryset"):
        gather(Author)


async def test_twice() -> None:
    """The same future may be gathered twice, and awaited after that; it runs once."""
    runs: list[int] = []

    def call() -> int:
        runs.append(Author.objects.count())
        return len(runs)

    one = future(call)()
    assert await gather(one, one) == [1, 1]
    assert await gather(one) == [1]
    assert await one == 1
    async with transaction.atomic():
        two = future(call)()
        assert await gather(two, two) == [2, 2]


async def test_single_future(server: Server) -> None:
    """One future is a task: who awaits it may be cancelled, `cancel` stops its statement."""
    await authors(1)
    with TableLock(server, "tests_book") as lock:
        books = future(Book.objects).count()
        waiter = asyncio.ensure_future(books)
        await lock.waited_for()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert lock.waiting() == 1
        books.cancel()
        with pytest.raises(asyncio.CancelledError):
            await books
        assert not lock.waiting()
    await until(lambda: not on_loan(connection))


async def test_single_future_in_a_transaction() -> None:
    """One future in a transaction runs in it."""
    async with transaction.atomic():
        await Author.objects.acreate(name="uncommitted")
        assert await future(Author.objects).count() == 1
        assert await bridged(lambda: future(Author.objects).count().result())() == 1


async def test_lost_connection(server: Server) -> None:
    """A connection that breaks in one call is that call's error."""
    with TableLock(server, "tests_book") as lock:
        task = asyncio.ensure_future(
            _awaited(
                gather(
                    future(Book.objects).count(),
                    future(Author.objects).count(),
                    return_exceptions=True,
                )
            )
        )
        await lock.waited_for()
        server.all("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        found = await task
        assert isinstance(found[0], OperationalError)
        assert found[1] == 0


async def test_one_message_for_many_readers(server: Server) -> None:
    """Two tasks that gather in transactions of their own do not meet."""
    async with counted(server, size=2):
        await authors(2)

        async def work(name: str) -> list[Any]:
            async with transaction.atomic():
                return await gather(
                    future(Author.objects).filter(name="a0").update(name=name),
                    future(Author.objects).filter(name=name).count(),
                    Author.objects.order_by("pk").values_list("name", flat=True),
                )

        first, second = await asyncio.gather(work("x"), work("y"))
    assert sorted([first[0], second[0]]) == [0, 1]
