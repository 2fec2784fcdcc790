"""Who waits for a turn: in the order of coming, woken one at a time, by holders that move."""

import asyncio
import functools
import gc
import sys
from collections.abc import Coroutine
from copy import deepcopy
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from tests.models import Author
from tests.support.fix_loops import Main
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import asleep, committed
from tests.support.turns import Holder, settle
from tests.support.wrapper import AddAlias


async def enter(name: str, order: list[str], *, fails: bool = False) -> None:
    async with transaction.atomic():
        order.append(name)
        await Author.objects.acreate(name=name)
        await settle()
        if fails:
            raise KeyError(name)


async def read(name: str, order: list[str]) -> None:
    await Author.objects.aexists()
    order.append(name)


# The order


def test_first_come_first_served(run_main: Main, server: Server) -> None:
    """Blocks and statements that wait for a turn have it in the order in which they came."""
    order: list[str] = []

    async def main() -> None:
        async with transaction.atomic():
            tasks = []
            async with Holder():
                for number in range(20):
                    use = read if number % 3 == 2 else enter
                    tasks.append(asyncio.create_task(use(f"{number:02}", order)))
                    await settle()
            await asyncio.gather(*tasks)

    run_main(main())
    blocks = [name for name in order if int(name) % 3 != 2]
    assert blocks == sorted(blocks)
    # A statement is sent in its turn; the answer comes when the next one may have begun.
    places = [order.index(name) for name in sorted(order)]
    assert all(abs(place - number) <= 2 for number, place in enumerate(places)), order
    assert committed(server) == sorted(blocks)


def test_no_entry_past_those_who_wait(run_main: Main) -> None:
    """Who asks for a block again and again goes behind those who wait for one already."""
    order: list[str] = []

    async def again() -> None:
        for number in range(10):
            await enter(f"again {number}", order)

    async def main() -> None:
        async with transaction.atomic():
            task = asyncio.create_task(again())
            await settle()
            others = [asyncio.create_task(enter(f"other {n}", order)) for n in range(3)]
            await asyncio.gather(task, *others)

    run_main(main())
    assert order[:4] == ["again 0", "other 0", "other 1", "other 2"]


def test_children_of_the_holder_go_before_its_siblings(run_main: Main, server: Server) -> None:
    """Who may go on inside the block on top is called, although others came before."""
    order: list[str] = []

    async def inside() -> None:
        async with transaction.atomic():
            await asyncio.gather(*(enter(f"child {n}", order) for n in range(5)))

    async def main() -> None:
        async with transaction.atomic():
            async with Holder():
                tasks = [asyncio.create_task(inside())]
                tasks += [asyncio.create_task(enter(f"sibling {n}", order)) for n in range(5)]
                await settle()
            await asyncio.gather(*tasks)

    run_main(main())
    assert order == [f"{who} {n}" for who in ("child", "sibling") for n in range(5)]
    assert len(committed(server)) == 10


# One at a time


def calls_per_child(run_main: Main, count: int) -> float:
    """Return the Python calls that one of *count* waiting children costs, all told."""
    calls = 0

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.aexists()

    async def main() -> None:
        async with transaction.atomic():
            await child()
            sys.setprofile(profile)
            try:
                await asyncio.gather(*(child() for _ in range(count)))
            finally:
                sys.setprofile(None)

    run_main(main())
    return calls / count


def test_a_child_costs_the_same_among_many(run_main: Main) -> None:
    """With twenty times as many children in one transaction, each costs what it did."""
    few, many = calls_per_child(run_main, 20), calls_per_child(run_main, 400)
    assert many < 1.1 * few


def test_a_child_that_is_refused_costs_the_same_among_many(run_main: Main) -> None:
    """So does each of those whose owner fails while they wait."""

    def refused(count: int) -> float:
        calls = 0

        def profile(frame: Any, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        async def own() -> None:
            async with transaction.atomic(), Holder() as holder:
                tasks.extend(asyncio.create_task(enter("", [])) for _ in range(count))
                await settle()
                holder.task.cancel()
                raise KeyError

        tasks: list[asyncio.Task[None]] = []

        async def main() -> None:
            sys.setprofile(profile)
            try:
                with pytest.raises((KeyError, asyncio.CancelledError)):
                    await own()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                sys.setprofile(None)
            # The first one may have had its turn before the owner failed: its statement is stopped.
            assert {type(each) for each in results[1:]} == {RuntimeError}
            assert isinstance(results[0], RuntimeError | OperationalError)

        run_main(main())
        return calls / count

    few, many = refused(50), refused(500)
    assert many < 1.2 * few


# Who gives up


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("how", ["cancelled", "closed", "collected"])
def test_giving_up(run_main: Main, server: Server, how: str, called: bool) -> None:
    """One that gives up, also at the very moment of its turn, leaves the turn to the next."""
    order: list[str] = []
    go = asyncio.Event()

    async def later(name: str) -> None:
        await go.wait()
        await enter(name, order)

    async def begin() -> None:
        # Driven by hand, up to where it waits for its turn: no task will close it.
        await go.wait()
        coroutine = enter("gone", order)
        future: Any = coroutine.send(None)
        future._asyncio_future_blocking = False
        coroutines.append(coroutine)

    coroutines: list[Coroutine[Any, Any, None]] = []

    def give_up() -> None:
        if how == "cancelled":
            first.cancel()
        elif how == "closed":
            coroutines.pop().close()
        else:
            coroutines.clear()
            gc.collect()

    async def main() -> None:
        nonlocal first
        async with transaction.atomic():
            first = asyncio.create_task(later("gone") if how == "cancelled" else begin())
            others = [asyncio.create_task(later(f"other {n}")) for n in range(3)]
            async with transaction.atomic():
                go.set()
                await settle()
                if not called:
                    give_up()
            # Here the next one was called, and has not run yet.
            if called:
                give_up()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([first, *others])
                await enter("last", order)

    first: asyncio.Task[None]
    run_main(main())
    assert order == ["other 0", "other 1", "other 2", "last"]
    assert committed(server) == sorted(order)


def test_all_give_up_but_one(run_main: Main, server: Server) -> None:
    """Hundreds that are cancelled at once keep nobody from a turn."""
    order: list[str] = []

    async def main() -> None:
        async with transaction.atomic():
            async with Holder():
                tasks = [asyncio.create_task(enter(str(n), order)) for n in range(300)]
                await settle()
                for task in tasks[:-1]:
                    task.cancel()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait(tasks)

    run_main(main())
    assert order == ["299"]
    assert committed(server) == ["299"]


def test_a_failing_block_leaves_the_turn(run_main: Main, server: Server) -> None:
    """Blocks that fail, each third one of many, leave the turn to the next."""
    order: list[str] = []

    async def main() -> None:
        async with transaction.atomic():
            results = await asyncio.gather(
                *(enter(str(n), order, fails=n % 3 == 0) for n in range(30)),
                return_exceptions=True,
            )
            assert sum(isinstance(each, KeyError) for each in results) == 10

    run_main(main())
    assert committed(server) == sorted(str(n) for n in range(30) if n % 3)


# Time


def test_a_queue_that_moves_ends_nobodys_wait(run_main: Main, add_alias: AddAlias) -> None:
    """Whoever waits longer than turn_timeout because many are before it, has its turn."""
    alias = add_alias({"turn_timeout": 1.0})

    async def child() -> None:
        async with transaction.atomic(using=alias):
            await asleep(0.25, alias)

    async def main() -> None:
        async with transaction.atomic(using=alias):
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(child() for _ in range(10)))

    run_main(main())


def test_a_holder_that_moves_ends_nobodys_wait(run_main: Main, add_alias: AddAlias) -> None:
    """A block that goes on with statements may last longer than others' turn_timeout."""
    alias = add_alias({"turn_timeout": 1.0})
    entered = asyncio.Event()

    async def hold() -> None:
        async with transaction.atomic(using=alias):
            entered.set()
            for _ in range(10):
                await asleep(0.25, alias)

    async def main() -> None:
        async with transaction.atomic(using=alias):
            holder = asyncio.create_task(hold())
            await entered.wait()
            assert not await Author.objects.using(alias).aexists()
            assert holder.done()

    run_main(main())


def test_who_waits_for_one_that_does_not_move(run_main: Main, add_alias: AddAlias) -> None:
    """All who wait for a holder that does nothing get the error; who comes later waits anew."""
    alias = add_alias({"turn_timeout": 0.2})

    async def main() -> None:
        async with transaction.atomic(using=alias):
            async with Holder(alias):
                for _ in range(2):
                    results = await asyncio.gather(
                        *(Author.objects.using(alias).aexists() for _ in range(50)),
                        return_exceptions=True,
                    )
                    messages = {str(each) for each in results}
                    assert len(messages) == 1
                    assert "the-holder is inside an atomic()" in messages.pop()
            assert not await Author.objects.using(alias).aexists()

    run_main(main())


def test_bridged_functions_wait_in_line(run_main: Main, server: Server) -> None:
    """Synchronous blocks in the bridge stand in the same line."""
    order: list[str] = []

    def work(name: str) -> None:
        with transaction.atomic():
            order.append(name)
            Author.objects.create(name=name)

    async def main() -> None:
        async with transaction.atomic():
            async with Holder():
                tasks = [
                    asyncio.create_task(bridged(work)(f"{n}") if n % 2 else enter(f"{n}", order))
                    for n in range(8)
                ]
                await settle()
            await asyncio.gather(*tasks)

    run_main(main())
    assert committed(server) == order == [str(n) for n in range(8)]


class OwnCursor(DatabaseWrapper):
    """A wrapper whose cursors are made one at a time, as those of django-tenants."""

    def _cursor(self, name: str | None = None) -> Any:
        return super()._cursor(name)


def test_making_a_cursor_waits_for_its_turn_first(run_main: Main) -> None:
    """Who waits for a turn does not keep its holder from making a cursor."""

    async def main() -> None:
        settings = deepcopy(connections["default"].settings_dict)
        settings["OPTIONS"]["turn_timeout"] = 5.0
        connections["default"] = OwnCursor(settings, "default")
        async with transaction.atomic():
            async with Holder() as holder:
                others = [asyncio.create_task(asleep(0)) for _ in range(3)]
                await settle()
                assert not any(other.done() for other in others)
                holder.then = functools.partial(asleep, 0)
            await asyncio.gather(*others)

    run_main(main())
