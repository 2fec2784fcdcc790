"""Transactions that are run again after a conflict: pgbackend.transaction.retrying."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.test import TestCase

from pgbackend import CommitInDoubt, bridged
from pgbackend.retries import is_conflict
from pgbackend.transaction import acommit, aon_commit, aset_autocommit, retrying
from tests.models import Author, Book
from tests.support.futures import counted
from tests.support.server import Server
from tests.support.wrapper import avalue, on_loan, use_wrapper, value


class Failed(Exception):
    pass


def conflict(code: str = "40001") -> None:
    """Let the server fail with *code*."""
    with connection.cursor() as cursor:
        cursor.execute(f"DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '{code}'; END $$")


aconflict = bridged(conflict)


async def increment(number: int) -> None:
    """Read a price, and write it back one higher."""
    book = await Book.objects.aget(pk=1)
    book.price += 1
    await book.asave(update_fields=["price"])


async def test_increments() -> None:
    """Of 100 increments at once in serializable transactions none is lost, and each waits."""
    use_wrapper(options={"pool": {"max_size": 8, "timeout": 60}})
    await Book.objects.acreate(pk=1, title="One")
    hooks: list[int] = []
    attempts = 0

    @retrying(isolation="serializable", attempts=200)
    async def work(number: int) -> int:
        nonlocal attempts
        attempts += 1
        transaction.on_commit(lambda: hooks.append(number))
        await increment(number)
        return number

    assert await asyncio.gather(*map(work, range(100))) == [*range(100)]
    assert (await Book.objects.aget(pk=1)).price == 100
    assert sorted(hooks) == [*range(100)]
    assert attempts > 100


async def test_increments_without() -> None:
    """Without it the same transactions fail, or at a lower level lose increments."""
    use_wrapper(options={"pool": {"max_size": 8, "timeout": 60}})
    await Book.objects.acreate(pk=1, title="One")

    @retrying
    async def work(number: int) -> None:
        await increment(number)

    await asyncio.gather(*map(work, range(100)))
    assert (await Book.objects.aget(pk=1)).price < 100

    @retrying(isolation="serializable", attempts=1)
    async def once(number: int) -> None:
        await increment(number)

    results = await asyncio.gather(*map(once, range(20)), return_exceptions=True)
    failed = [each for each in results if each is not None]
    assert failed
    assert all(isinstance(each, OperationalError) for each in failed)
    assert failed[0].__notes__ == ["This was the last of 1 attempts of retrying()."]


def test_threads() -> None:
    """So it is in threads, on Django's own path."""
    Book.objects.create(pk=1, title="One")
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    @retrying(isolation="serializable", attempts=100)
    def work() -> None:
        book = Book.objects.get(pk=1)
        book.price += 1
        book.save()

    def run() -> None:
        try:
            barrier.wait()
            for _ in range(5):
                work()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Book.objects.get(pk=1).price == 20


@pytest.mark.parametrize("way", ["async for", "decorator", "for"])
async def test_deadlock(way: str) -> None:
    """Two transactions that lock two rows in turns both come to their end."""
    await Author.objects.abulk_create([Author(pk=1, name="a"), Author(pk=2, name="b")])
    barrier = asyncio.Barrier(2)
    attempts: list[int] = []

    async def lock(one: int, two: int, first: bool) -> None:
        await Author.objects.filter(pk=one).aupdate(name=F("name"))
        if first:
            await barrier.wait()
        await Author.objects.filter(pk=two).aupdate(name=F("name"))

    async def by_loop(one: int, two: int) -> None:
        async for attempt in retrying():
            async with attempt:
                attempts.append(attempt.number)
                await lock(one, two, attempt.number == 1)

    @retrying
    async def by_decorator(*rows: int) -> None:
        attempts.append(len(attempts) // 2 + 1)
        await lock(*rows, len(attempts) <= 2)

    @bridged
    def by_for(one: int, two: int) -> None:
        from pgbackend import await_bridged

        for attempt in retrying():
            with attempt:
                attempts.append(attempt.number)
                await_bridged(lock(one, two, attempt.number == 1))

    work = {"async for": by_loop, "decorator": by_decorator, "for": by_for}[way]
    async with asyncio.timeout(30):
        await asyncio.gather(work(1, 2), work(2, 1))
    assert len(attempts) == 3


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_attempts(server: Server, code: str) -> None:
    """It gives up after so many attempts, with the last error; what they did is undone."""
    hooks: list[int] = []
    numbers: list[int] = []
    with pytest.raises(OperationalError, match="conflict") as caught:
        async for attempt in retrying(attempts=3, delay=0):
            async with attempt:
                numbers.append(attempt.number)
                await Author.objects.acreate(name="Ada")
                await aon_commit(lambda number=attempt.number: hooks.append(number))
                await aconflict(code)
    assert numbers == [1, 2, 3]
    assert hooks == []
    assert caught.value.__notes__ == ["This was the last of 3 attempts of retrying()."]
    assert not await Author.objects.aexists()


@pytest.mark.parametrize("error", [Failed, asyncio.CancelledError, KeyError])
async def test_other_errors(error: type[BaseException]) -> None:
    """Any other error leaves the first attempt, as it does `atomic`."""
    tried = 0

    @retrying
    async def work() -> None:
        nonlocal tried
        tried += 1
        await Author.objects.acreate(name="Ada")
        raise error

    with pytest.raises(error):
        await work()
    with pytest.raises(DatabaseError):
        async for attempt in retrying():
            async with attempt:
                tried += 1
                await aconflict("23505")
    assert tried == 2
    assert not await Author.objects.aexists()


async def test_commit_in_doubt(server: Server) -> None:
    """A COMMIT that nobody knows the outcome of is not repeated."""
    tried = 0
    async with counted(server) as proxy:
        proxy.drop_reply_to(b"COMMIT")

        @retrying
        async def work() -> None:
            nonlocal tried
            tried += 1
            await Author.objects.acreate(name="in doubt")

        with pytest.raises(CommitInDoubt):
            await work()
    assert tried == 1
    assert server.one("SELECT count(*) FROM tests_author") == 1


@pytest.mark.parametrize("way", ["async for", "decorator", "for"])
async def test_conflict_at_commit(server: Server, way: str) -> None:
    """A serialization failure that the COMMIT meets is answered by another attempt."""
    hooks: list[int] = []
    tried = 0

    def work() -> None:
        nonlocal tried
        tried += 1
        transaction.on_commit(lambda number=tried: hooks.append(number))
        Author.objects.count()
        if tried == 1:
            server.all("BEGIN ISOLATION LEVEL SERIALIZABLE")
            server.all("SELECT count(*) FROM tests_book")
            server.all("INSERT INTO tests_author (name) VALUES ('other')")
        Book.objects.create(title="One")
        if tried == 1:
            # Each has read what the other writes: now this one cannot be committed.
            server.all("COMMIT")

    @bridged
    def by_for() -> None:
        for attempt in retrying(isolation="serializable", delay=0.001):
            with attempt:
                work()

    async def by_loop() -> None:
        async for attempt in retrying(isolation="serializable", delay=0.001):
            async with attempt:
                await bridged(work)()

    by_decorator = bridged(retrying(isolation="serializable")(work))
    await {"async for": by_loop, "decorator": by_decorator, "for": by_for}[way]()
    assert (tried, hooks) == (2, [2])
    assert server.one("SELECT count(*) FROM tests_book") == 1


async def test_no_connection_while_it_waits() -> None:
    """Between two attempts the connection is in the pool."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1, "timeout": 5}})
    seen: list[int] = []

    async def work() -> None:
        async for attempt in retrying(delay=0.2):
            async with attempt:
                if attempt.number < 3:
                    await aconflict()

    async def others() -> None:
        for _ in range(5):
            await avalue("SELECT 1")
            seen.append(on_loan(wrapper))
            await asyncio.sleep(0.01)

    await asyncio.gather(work(), others())
    assert 0 in seen


async def test_waits() -> None:
    """The first attempt waits for nothing; each other one up to twice as long, within a limit."""
    asked = retrying(delay=0.1, max_delay=1)
    assert asked.wait_before(1) == 0
    for number, longest in ((2, 0.1), (3, 0.2), (4, 0.4), (7, 1), (5000, 1)):
        waits = [asked.wait_before(number) for _ in range(200)]
        assert 0 <= min(waits) < longest / 4
        assert longest * 3 / 4 < max(waits) <= longest


async def test_refused_in_a_transaction() -> None:
    """Inside an open transaction nothing can be run again: the message says where to put it."""

    @retrying
    async def work() -> None:
        pytest.fail("run")

    @retrying
    def in_thread() -> None:
        pytest.fail("run")

    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        for call in (work, bridged(in_thread), sync_to_async(in_thread)):
            with pytest.raises(RuntimeError, match=r"retrying\(\) has to be the outermost block"):
                await call()
        async for attempt in retrying():
            with pytest.raises(RuntimeError, match="outermost"):
                async with attempt:
                    pytest.fail("run")
            break
    await aset_autocommit(False)
    with pytest.raises(RuntimeError, match="outermost"):
        await work()
    await acommit()
    await aset_autocommit(True)
    assert await Author.objects.acount() == 1

    @retrying
    async def outer() -> None:
        await work()

    with pytest.raises(RuntimeError, match="outermost"):
        await outer()


async def test_attempt_without_a_block() -> None:
    """A loop that does not enter its attempt would never end: it is refused."""
    with pytest.raises(RuntimeError, match="async with attempt"):
        async for _ in retrying():
            pass
    with pytest.raises(RuntimeError, match="with attempt"):
        for _ in retrying():
            pass


async def test_left_early(server: Server) -> None:
    """`break` and `return` in the block commit it, and no other attempt follows."""

    async def first() -> int:
        async for attempt in retrying():
            async with attempt:
                await Author.objects.acreate(name="Ada")
                return attempt.number
        raise AssertionError

    assert await first() == 1
    async for attempt in retrying():
        async with attempt:
            await Author.objects.acreate(name="Bea")
            break
    assert server.one("SELECT count(*) FROM tests_author") == 2


async def test_tasks_in_the_block() -> None:
    """A conflict that a TaskGroup reports is one, unless there was another error."""
    tried = 0

    async def work(other: Any) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(Author.objects.acreate(name="Ada"))
            if tried < 3:
                group.create_task(aconflict())
                if other:
                    group.create_task(other())

    async for attempt in retrying(delay=0.001):
        async with attempt:
            tried += 1
            await work(None)
    assert tried == 3
    assert await Author.objects.acount() == 1


def test_is_conflict() -> None:
    """Errors of the database count, by their code, and those alone."""
    failure, deadlock = psycopg.errors.SerializationFailure(), psycopg.errors.DeadlockDetected()
    django = OperationalError()
    django.__cause__ = deadlock
    doubt = CommitInDoubt()
    doubt.__cause__ = failure
    other = Failed()
    other.__cause__ = django
    assert all(map(is_conflict, (failure, deadlock, django, ExceptionGroup("", [failure, django]))))
    unknown = (doubt, other, OperationalError(), ExceptionGroup("", [failure, other]))
    assert not any(map(is_conflict, unknown))


def test_cannot_decorate() -> None:
    """Generators are refused, and what returns a coroutine only when called is, then."""

    async def of_values() -> Any:
        yield 1

    def of_numbers() -> Any:
        yield 1

    for function in (of_values, of_numbers):
        with pytest.raises(TypeError, match="a generator"):
            retrying(function)

    async def work() -> None:
        pytest.fail("run")

    with pytest.raises(TypeError, match="decorate the coroutine function itself"):
        retrying(lambda: work())()
    for wrong in ({"attempts": 0}, {"delay": -1}, {"max_delay": -0.1}):
        with pytest.raises(ValueError, match="attempts is 1 or more"):
            retrying(**wrong)
    with pytest.raises(ValueError, match="isolation is"):
        retrying(isolation="snapshot")  # type: ignore[call-overload]


def test_repr() -> None:
    """What is tried says so."""
    asked = retrying("other", isolation="serializable", attempts=3)
    assert repr(asked) == "<retrying(isolation='serializable') on 'other', 3 attempts>"
    assert repr(next(iter(asked))) == f"<attempt 1 of {asked!r}>"


def test_in_a_test_case() -> None:
    """In a TestCase an attempt is a nested block, and is undone by its savepoint."""
    found: list[Any] = []

    class Case(TestCase):
        def test_it(self) -> None:
            for attempt in retrying(delay=0.001):
                with attempt:
                    Author.objects.create(name="Ada")
                    if attempt.number < 3:
                        conflict()
            found.append(Author.objects.count())
            found.append(value("SHOW transaction_isolation"))

    Case("test_it").debug()
    Case.doClassCleanups()
    assert found == [1, "read committed"]
