"""A transaction's own threads: few, side by side, and ended with it."""

import asyncio
import threading
import warnings

import pytest
from django.db import transaction

from tests.support.fix_loops import Main
from tests.support.moves import (
    MOVES,
    Function,
    Move,
    create,
    create_in_block,
    insensitive,
)
from tests.support.server import Server
from tests.support.sessions import committed, until


@pytest.mark.parametrize("move", [insensitive, asyncio.to_thread])
def test_threads_run_side_by_side(run_main: Main, move: Move) -> None:
    """Inside a transaction, too, functions in threads run at the same time."""
    barrier = threading.Barrier(20)

    async def main() -> None:
        async with transaction.atomic():
            await asyncio.gather(*(move(barrier.wait, 20) for _ in range(20)))

    run_main(main())


@pytest.mark.parametrize("move", [insensitive, asyncio.to_thread])
@pytest.mark.parametrize("use", [create, create_in_block])
def test_many_need_few_threads(run_main: Main, server: Server, move: Move, use: Function) -> None:
    """Hundreds of calls in one transaction wait on the loop, not each in a thread."""
    most = 0

    def work(number: int) -> None:
        nonlocal most
        most = max(most, threading.active_count())
        use(f"{number}")

    async def main() -> None:
        async with transaction.atomic():
            await asyncio.gather(*(move(work, number) for number in range(400)))

    run_main(main())
    assert len(committed(server)) == 400
    assert most < 100


@MOVES
@pytest.mark.parametrize("end", ["committed", "failed", "cancelled", "abandoned"])
def test_threads_end_with_their_transaction(run_main: Main, move: Move, end: str) -> None:
    """However a transaction ends, no thread of its own is left when what they run has ended."""
    waiting = threading.Event()

    async def own() -> None:
        block = transaction.atomic()
        await block.__aenter__()
        calls = [move(create_in_block, f"{n}") for n in range(5)]
        try:
            await asyncio.gather(*calls)
            if end == "abandoned":
                return
            asyncio.create_task(late())  # noqa: RUF006  # waits on
            if end == "failed":
                raise KeyError
            if end == "cancelled":
                asyncio.current_task().cancel()  # type: ignore[union-attr]  # there is one
                await asyncio.sleep(0)
        except BaseException as error:
            await block.__aexit__(type(error), error, error.__traceback__)
            raise
        await block.__aexit__(None, None, None)

    async def late() -> None:
        await asyncio.sleep(0.1)
        await move(waiting.set)

    async def main() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            await asyncio.wait([asyncio.create_task(own())])
        await until(
            lambda: not [t for t in threading.enumerate() if t.name.startswith("pgbackend_")]
        )
        if end != "abandoned":
            # What comes too late has a thread all the same.
            await until(waiting.is_set)

    run_main(main())
