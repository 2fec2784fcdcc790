"""as_completed(): futures as they end, on the event loop, in the bridge and in plain threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from pgbackend import bridged
from pgbackend.futures import Future, NotAwaitedError, as_completed, future
from tests.models import Author
from tests.support.fix_loops import Main
from tests.support.futures import authors
from tests.support.sessions import pid, sleep
from tests.support.threads import run_in_thread
from tests.support.wrapper import on_loan, until


def test_as_completed(run_main: Main) -> None:
    """Futures are yielded as they end; leaving the iteration cancels the rest."""

    async def main() -> None:
        gate = asyncio.Event()
        slow, quick = future(gate.wait)(), future(sleep)(0)
        found: list[Future[Any]] = []
        async for each in as_completed(slow, quick):
            found.append(each)
            gate.set()
        assert found == [quick, slow]
        gate.clear()
        never = future(sleep)(60)
        async for each in as_completed(never, future(sleep)(0)):
            assert each is not never
            break
        await until(never.cancelled)
        await until(lambda: not on_loan(connection))
        async with transaction.atomic():
            await Author.objects.acreate(name="uncommitted")
            counts = [each.result() async for each in as_completed(future(Author.objects).count())]
            assert counts == [1]

        @bridged
        def plain() -> None:
            slow, quick = future(gate.wait)(), future(sleep)(0)
            found: list[Future[Any]] = []
            for each in as_completed(slow, quick):
                found.append(each)
                gate.set()
            assert found == [quick, slow]

        await plain()
        with pytest.raises(NotAwaitedError):
            list(as_completed(quick))

    run_main(main())


@pytest.mark.parametrize("inside", [False, True])
def test_in_a_thread(inside: bool) -> None:
    """A plain thread runs one after another; what was not begun when it leaves is cancelled."""

    def work() -> None:
        calls = [future(pid)() for _ in range(3)]
        for each in as_completed(*calls):
            assert each.result() == pid()
            break
        # A transaction has all in its messages before the first one is yielded.
        assert [each.cancelled() for each in calls] == [False] + [not inside] * 2
        assert [each.result() for each in as_completed(future(pid)(), future(pid)())] == [pid()] * 2

    def within() -> None:
        with transaction.atomic():
            work()

    run_in_thread(within if inside else work)


def test_work_of_others_in_a_thread() -> None:
    """In a plain thread, too, the order is that of time, whoever does the work."""
    slow: Future[int] = Future.pending()
    quick: Future[int] = Future.pending()

    def yielded() -> list[Any]:
        found = []
        for each in as_completed(slow, quick, future(Author.objects).count()):
            found.append(each.result())
            if len(found) == 1:
                threading.Thread(target=quick.set_result, args=["quick"]).start()
            elif len(found) == 2:
                slow.set_result("slow")
        return found

    assert run_in_thread(yielded) == [0, "quick", "slow"]


async def test_savepoints_in_a_thread() -> None:
    """A transaction of a plain thread goes on where one of the calls fails."""
    await authors(1)

    def work() -> list[Any]:
        with transaction.atomic():
            futures = [future(Author.objects).create(name=name) for name in ("a0", "a1")]
            found = [each.exception() for each in as_completed(*futures, savepoints=True)]
            return [*map(type, found), Author.objects.count()]

    assert await bridged(run_in_thread)(work) == [IntegrityError, type(None), 2]
