"""One queryset that several tasks evaluate at once: each gets what stock Django gives."""

import asyncio
import functools
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Prefetch, QuerySet
from django.test.utils import CaptureQueriesContext

from pgbackend import await_bridged, bridged
from tests.models import Author, Book
from tests.support.fix_loops import Main
from tests.support.limits import PATIENCE
from tests.support.turns import Holder, settle
from tests.support.wrapper import small_pool

BOOKS = 3


def make() -> None:
    authors = Author.objects.bulk_create(Author(name=f"{n:02}") for n in range(10))
    Book.objects.bulk_create(
        Book(title=f"{author} {n}", author=author) for author in authors for n in range(BOOKS)
    )


def plain() -> Any:
    return Author.objects.order_by("name")


def prefetching() -> Any:
    return Author.objects.order_by("name").prefetch_related("books__readers", "reads")


def to_attribute() -> Any:
    books = Book.objects.order_by("-title").prefetch_related("readers")
    return plain().prefetch_related(Prefetch("books", queryset=books, to_attr="listed"))


def raw() -> Any:
    return Author.objects.raw("SELECT * FROM tests_author ORDER BY name").prefetch_related("books")


def values() -> Any:
    return plain().values_list("name", flat=True)


SHARED = pytest.mark.parametrize("make_shared", [plain, prefetching, to_attribute, raw, values])


def look(row: Any) -> Any:
    """Return what is known of a row, by relations that must be there already."""
    if isinstance(row, str):
        return row
    if "listed" in vars(row):
        return row.name, [(book.title, list(book.readers.all())) for book in row.listed]
    cached = getattr(row, "_prefetched_objects_cache", {})
    return row.name, {name: [str(each.pk) for each in rows] for name, rows in cached.items()}


async def aiterate(shared: Any) -> list[Any]:
    return [row async for row in shared]


async def iterate(shared: Any) -> list[Any]:
    return await bridged(list)(shared)


async def measure(shared: Any) -> list[Any]:
    """As a template does: whether it is empty, how long it is, then each."""

    def use() -> list[Any]:
        return list(shared) if shared and len(shared) else []

    return await bridged(use)()


@SHARED
@pytest.mark.parametrize("use", [aiterate, iterate, measure])
def test_by_several_tasks(run_main: Main, make_shared: Callable[[], Any], use: Any) -> None:
    """Whenever each begins, each gets all rows, with what is prefetched; one set of instances."""

    async def main() -> None:
        await bridged(make)()
        alone = [look(row) for row in await use(make_shared())]
        for rest in range(0, 40, 4):
            shared, seen = make_shared(), []

            async def later(steps: int, shared: Any = shared, seen: list[Any] = seen) -> list[Any]:
                for _ in range(steps):
                    await asyncio.sleep(0)
                rows: list[Any] = await use(shared)
                # At once: what it got must be whole then.
                seen.append([look(row) for row in rows])
                return rows

            results = await asyncio.gather(*(later(steps) for steps in (0, 1, 3, rest)))
            assert seen == [alone] * 4
            assert len({id(rows[0]) for rows in results}) == 1

    run_main(main())


@SHARED
def test_alone_it_costs_no_query_more(run_main: Main, make_shared: Callable[[], Any]) -> None:
    """One evaluation is one query and one for each prefetch; a second one, and a copy, none."""

    def evaluate() -> int:
        shared = make_shared()
        with CaptureQueriesContext(connection) as captured:
            list(shared)
            list(shared)
            if make_shared is not raw:
                assert deepcopy(shared)._result_cache is None
        return len(captured)

    async def main() -> None:
        await bridged(make)()
        expected = {plain: 1, prefetching: 4, to_attribute: 3, raw: 2, values: 1}
        assert await bridged(evaluate)() == expected[make_shared]

    run_main(main())


def test_of_which_one_is_cancelled(run_main: Main) -> None:
    """A task that is cancelled in the middle leaves the queryset to the others as it was."""

    async def main() -> None:
        await bridged(make)()
        alone = [look(row) for row in await aiterate(prefetching())]
        for steps in range(0, 30, 3):
            shared = prefetching()
            tasks = [asyncio.create_task(aiterate(shared)) for _ in range(3)]
            for _ in range(steps):
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.wait(tasks)
            for task in tasks[1:]:
                assert [look(row) for row in task.result()] == alone
            assert [look(row) for row in await aiterate(shared)] == alone

    run_main(main())


def test_that_fails_in_its_prefetch(run_main: Main) -> None:
    """An error while it prefetches is raised by each evaluation, also by a later one."""

    async def main() -> None:
        await bridged(make)()
        shared = plain().prefetch_related("nothing")
        for _ in range(2):
            results = await asyncio.gather(
                *(aiterate(shared) for _ in range(3)), return_exceptions=True
            )
            assert [type(each) for each in results] == [AttributeError] * 3

    run_main(main())


def test_inside_and_outside_a_block(run_main: Main) -> None:
    """Who has the turn does not wait for who evaluates the same queryset and waits for a turn."""

    async def main() -> None:
        await bridged(make)()
        shared = prefetching()
        async with transaction.atomic():
            async with Holder() as holder:
                waiter = asyncio.create_task(aiterate(shared))
                await settle()
                assert not waiter.done()
                holder.then = functools.partial(aiterate, shared)
            async with asyncio.timeout(PATIENCE):
                assert len(await waiter) == 10

    run_main(main())


def test_with_the_last_connection(run_main: Main) -> None:
    """Who has the last connection does not wait for who evaluates it and waits for one."""

    async def main() -> None:
        await bridged(make)()
        small_pool(1)
        shared = prefetching()
        async with transaction.atomic():
            await Author.objects.acount()
            context = asyncio.create_task(outside(shared))
            await settle()
            assert len(await aiterate(shared)) == 10
        assert len(await context) == 10

    async def outside(shared: Any) -> list[Any]:
        from pgbackend.transaction import detached

        with detached():
            return await asyncio.create_task(aiterate(shared))

    run_main(main())


class Own(QuerySet[Author]):
    """A queryset with a prefetching of its own."""

    prefetched = 0

    def _prefetch_related_objects(self) -> None:
        self.prefetched += 1
        super()._prefetch_related_objects()  # type: ignore[misc]  # Django's, private


def test_prefetching_of_a_subclass(run_main: Main) -> None:
    """A subclass's own method is called on the queryset itself, as in stock Django."""

    def evaluate() -> int:
        shared = Own(Author).prefetch_related("books")
        list(shared)
        return shared.prefetched

    async def main() -> None:
        await bridged(make)()
        assert await bridged(evaluate)() == 1

    run_main(main())


def test_pickled_while_another_evaluates_it(run_main: Main) -> None:
    """A queryset that is pickled or copied meanwhile is whole, too."""

    def pickled(shared: Any) -> Any:
        return pickle.loads(pickle.dumps(shared))

    async def main() -> None:
        await bridged(make)()
        shared = prefetching()
        results = await asyncio.gather(aiterate(shared), bridged(pickled)(shared))
        await settle()
        assert [look(row) for row in results[1]] == [look(row) for row in results[0]]

    run_main(main())


@pytest.mark.parametrize(
    "rows",
    [
        lambda: plain().values_list("name"),
        lambda: plain().values_list("name", flat=True),
        lambda: plain().values_list("name", named=True),
        lambda: plain().values("name"),
        plain,
        lambda: plain().values_list("name").union(plain().values_list("name")).order_by("name"),
    ],
)
@pytest.mark.parametrize("left_early", [False, True])
def test_aiterator_of_each_kind(run_main: Main, rows: Callable[[], Any], left_early: bool) -> None:
    """aiterator() gives what a list gives, for each kind of row; read to its end or left early."""

    async def read() -> list[Any]:
        found: list[Any] = []
        iterator = rows().aiterator(chunk_size=3)
        async for row in iterator:
            found.append(row)
            if left_early and len(found) == 4:
                break
        await iterator.aclose()
        return found

    async def main() -> None:
        await bridged(make)()
        expected = await bridged(list)(rows())
        for found in (await read(), await bridged(read)(), await bridged(_await)(read)):
            assert sorted(map(str, found)) == sorted(map(str, expected))[: len(found)]
            assert len(found) == (4 if left_early else 10)

    run_main(main())


def _await(function: Callable[[], Any]) -> Any:
    return await_bridged(function())
