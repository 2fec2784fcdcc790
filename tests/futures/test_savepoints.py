"""gather(savepoints=True): what fails is undone, and the rest of the transaction goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from pgbackend import bridged
from pgbackend.futures import future, gather
from pgbackend.transaction import deferred_savepoint
from tests.models import Author, Book
from tests.support.fix_loops import Main
from tests.support.futures import authors, counted
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import on_loan, until


class Failed(Exception):
    pass


def create(*names: str) -> int:
    """Create authors, each by a statement, and return how many there are."""
    for name in names:
        Author.objects.create(name=name)
    return Author.objects.count()


def in_block(*names: str) -> int:
    with transaction.atomic():
        return create(*names)


def in_inner_block(*names: str) -> int:
    with transaction.atomic(savepoint=False):
        return create(*names)


def by_cursor(*names: str) -> None:
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])


async def names() -> list[str]:
    return [name async for name in Author.objects.order_by("pk").values_list("name", flat=True)]


def test_failed_statements(run_main: Main, server: Server) -> None:
    """Failed statements are undone; those behind them are sent again, in one message."""

    async def main() -> None:
        async with counted(server) as proxy:
            await authors(1)
            async with transaction.atomic():
                before = proxy.messages
                found = await gather(
                    *[future(Author.objects).create(name=name) for name in ["b", "a0", "c", "b"]],
                    future(Author.objects).count(),
                    return_exceptions=True,
                    savepoints=True,
                )
                # One more for each failure, and none for the end.
                assert proxy.messages - before == 3
                assert [getattr(each, "name", type(each)) for each in found[:4]] == [
                    "b",
                    IntegrityError,
                    "c",
                    IntegrityError,
                ]
                assert found[4] == 3
                assert await Author.objects.acount() == 3
            assert await names() == ["a0", "b", "c"]

    run_main(main())


async def test_raised() -> None:
    """The failure is raised, and may be caught in the block: its effect alone is undone."""
    await authors(1)
    async with transaction.atomic():
        with pytest.raises(IntegrityError):
            await gather(
                future(Author.objects).create(name="a0"),
                future(Author.objects).create(name="b"),
                savepoints=True,
            )
        await Author.objects.acreate(name="c")
    assert await names() == ["a0", "b", "c"]


@pytest.mark.parametrize("call", [in_block, in_inner_block, by_cursor])
async def test_calls_that_run_alone(call: Any) -> None:
    """What a failed call did by other means is undone as a whole."""
    await authors(1)
    async with transaction.atomic():
        found = await gather(
            future(call)("x", "a0"),
            future(Author.objects).create(name="b"),
            future(call)("y", "z"),
            future(call)("w", "y"),
            return_exceptions=True,
            savepoints=True,
        )
        assert isinstance(found[0], IntegrityError)
        assert found[1].name == "b"
        assert isinstance(found[3], IntegrityError)
        await Author.objects.acreate(name="c")
    assert sorted(await names()) == ["a0", "b", "c", "y", "z"]


async def test_failures_without_statements() -> None:
    """An exception that comes of no statement undoes what that call sent alone, no more."""
    await authors(1)

    def fail() -> None:
        by_cursor("x")
        raise Failed

    async with transaction.atomic():
        found = await gather(
            future(fail)(),
            future(Author.objects).get(name="nobody"),
            future(Author.objects).create(name="b"),
            return_exceptions=True,
            savepoints=True,
        )
        assert [type(each) for each in found] == [Failed, Author.DoesNotExist, Author]
    assert await names() == ["a0", "b"]


async def test_caught_in_the_call() -> None:
    """A call that catches the error of its statement goes on in a transaction that works."""
    await authors(1)

    def attempt() -> int:
        try:
            Author.objects.filter(pk__gt=0).update(name="same")
            Author.objects.filter(name="same").extra(where=["1/0 = 1"]).count()
        except DatabaseError:
            return -1
        return 0

    async with transaction.atomic():
        found = await gather(future(attempt)(), future(Author.objects).count(), savepoints=True)
        assert found == [-1, 1]
        assert await Author.objects.acount() == 1
    assert await names() == ["same"]


async def test_hooks() -> None:
    """Hooks of on_commit that a failed call has registered are dropped."""
    called: list[str] = []

    def call(name: str) -> None:
        transaction.on_commit(lambda: called.append(name))
        Author.objects.create(name=name)

    async with transaction.atomic():
        await gather(
            *[future(call)(name) for name in "aab"], return_exceptions=True, savepoints=True
        )
    assert called == ["a", "b"]


@bridged
def test_within_a_deferred_savepoint() -> None:
    """A deferred savepoint around the calls, and one inside a call, hold what they held."""
    Author.objects.create(name="a0")

    def saved(*names: str) -> None:
        block = deferred_savepoint()
        for name in names:
            try:
                with block:
                    Author.objects.create(name=name)
            except IntegrityError:
                pass
        with block:
            pass

    with transaction.atomic():
        outer = deferred_savepoint()
        with pytest.raises(Failed), outer:
            gather(future(create)("x"), future(create)("y"), savepoints=True).result()
            raise Failed
        with outer:
            gather(
                future(saved)("b", "a0", "c"),
                future(saved)(),
                future(Author.objects).create(name="d"),
                savepoints=True,
            ).result()
    assert sorted(Author.objects.values_list("name", flat=True)) == ["a0", "b", "c", "d"]


def test_cancelled(run_main: Main, server: Server) -> None:
    """A cancellation stops the statements, and none of those behind it is sent again."""

    async def main() -> None:
        await authors(1)

        async def work() -> None:
            async with transaction.atomic():
                await gather(
                    future(Author.objects).create(name="b"),
                    future(Book.objects).count(),
                    future(Author.objects).create(name="c"),
                    savepoints=True,
                )

        with TableLock(server, "tests_book") as lock:
            task = asyncio.create_task(work())
            await lock.waited_for()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: not on_loan(connection))
        assert await names() == ["a0"]

    run_main(main())


async def test_statement_timeout(server: Server) -> None:
    """A statement that takes too long is one that fails: the others go on."""
    await authors(1)

    async with transaction.atomic():
        await bridged(_limit)()
        with TableLock(server, "tests_book"):
            found = await gather(
                future(Author.objects).create(name="b"),
                future(Book.objects).count(),
                future(Author.objects).create(name="c"),
                return_exceptions=True,
                savepoints=True,
            )
        assert isinstance(found[1], DatabaseError)
    assert await names() == ["a0", "b", "c"]


def _limit() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 100")


async def test_outside_a_transaction() -> None:
    """Outside a transaction there is nothing to save."""
    found = await gather(
        *[future(Author.objects).create(name=name) for name in "aab"],
        return_exceptions=True,
        savepoints=True,
    )
    assert sorted(type(each).__name__ for each in found) == ["Author", "Author", "IntegrityError"]


async def test_many_failures(server: Server) -> None:
    """Many failures are not many messages with all the other statements in each."""
    await authors(1)
    async with counted(server) as proxy:

        async def failing(number: int) -> int:
            before = proxy.size
            async with transaction.atomic():
                found = await gather(
                    *[future(Author.objects).create(name="a0") for _ in range(number)],
                    future(Author.objects).create(name=f"b{number}"),
                    return_exceptions=True,
                    savepoints=True,
                )
            assert {*map(type, found[:-1])} == {IntegrityError}
            return proxy.size - before

        few = await failing(30)
        assert await failing(90) < 5 * few
        assert await names() == ["a0", "b30", "b90"]


@pytest.mark.load
async def test_many_hooks() -> None:
    """Many hooks of `on_commit` cost no more than the calls that register them."""
    told: list[int] = []

    def work(number: int) -> None:
        Author.objects.count()
        transaction.on_commit(lambda: told.append(number))
        Author.objects.count()
        if number % 2:
            raise Failed

    async with asyncio.timeout(20), transaction.atomic():
        await gather(
            *[future(work)(number) for number in range(1_000)],
            return_exceptions=True,
            savepoints=True,
        )
    assert told == [*range(0, 1_000, 2)]
