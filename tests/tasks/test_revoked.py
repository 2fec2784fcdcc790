"""Blocks in generators that end before the generator has left them."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    nullcontext,
)
from typing import Any

import pytest
from django.db import transaction

from pgbackend import bridged
from pgbackend.tasks.revoked import revoked_blocks
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.orphans import (
    KEPT,
    Failed,
    begin,
    end,
    lost,
    rows,
    write_by_cursor,
)
from tests.support.server import Server
from tests.support.sessions import committed


def sync_rows() -> Iterator[int]:
    with transaction.atomic():
        for number in range(3):
            Author.objects.create(name=lost())
            yield number


Step = Callable[[], Any]


def stepping() -> Step:
    """Return what makes a coroutine of the next step of a generator with a block."""
    generator: Any = rows()
    return lambda: anext(generator)


def stepping_bridged() -> Step:
    generator = sync_rows()
    return lambda: bridged(next)(generator)


def stepping_nested() -> Step:
    async def nested() -> AsyncIterator[int]:
        async with transaction.atomic(), transaction.atomic():
            for number in range(3):
                async with transaction.atomic():
                    await Author.objects.acreate(name=lost())
                yield number

    generator: Any = nested()
    return lambda: anext(generator)


def stepping_by_cursor() -> Step:
    async def numbers() -> AsyncIterator[int]:
        async with transaction.atomic():
            for number in range(3):
                await write_by_cursor()
                yield number

    generator: Any = numbers()
    return lambda: anext(generator)


STEPS = [stepping, stepping_bridged, stepping_nested, stepping_by_cursor]


async def succeeds(step: Any) -> None:
    await step


async def fails(step: Any) -> None:
    await step
    raise Failed


async def hangs(step: Any) -> None:
    await step
    running = asyncio.current_task()
    assert running is not None
    # When it waits already.
    asyncio.get_running_loop().call_soon(running.cancel)
    await asyncio.Event().wait()


async def in_a_task(work: Callable[[Any], Any], step: Any) -> None:
    await asyncio.wait([asyncio.create_task(work(step))])


@pytest.mark.filterwarnings("ignore:.* ended inside a transaction:ResourceWarning")
@pytest.mark.parametrize("outer", [False, True], ids=["outermost", "nested"])
@pytest.mark.parametrize("work", [succeeds, fails, hangs], ids=lambda f: f.__name__)
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_rest_of_a_generator(
    start: Callable[[], Step],
    work: Callable[[Any], Any],
    outer: bool,
    runner: asyncio.Runner,
    server: Server,
) -> None:
    """Of a generator whose block ended with its task nothing is executed; its readers' is."""

    async def read() -> None:
        step = start()
        await in_a_task(work, step())
        await Author.objects.acreate(name="of the reader")
        # An error in save() breaks the block that it is in.
        with pytest.raises(RuntimeError):
            async with transaction.atomic():
                await asyncio.create_task(succeeds(step()))
        step = start()
        await in_a_task(work, step())
        with pytest.raises(RuntimeError):
            async with transaction.atomic():
                await step()

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            if outer:
                async with transaction.atomic():
                    await read()
            else:
                await read()
        gc.collect()
        await end()
        assert revoked_blocks == []

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "of the reader"])


@pytest.mark.parametrize("later", [False, True], ids=["outside", "in a later block"])
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_rest_of_a_generator_after_the_block_around(
    start: Callable[[], Step], later: bool, runner: asyncio.Runner, server: Server
) -> None:
    """Nor of one that the block around has ended, wherever it goes on."""

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            step = start()
            async with transaction.atomic():
                await Author.objects.acreate(name="outer")
                await step()
            if later:
                async with transaction.atomic():
                    with pytest.raises(RuntimeError):
                        await step()
            else:
                with pytest.raises(RuntimeError):
                    await step()
        await end()
        assert revoked_blocks == []

    runner.run(main())
    assert committed(server) == sorted([*KEPT, "outer"])


@pytest.mark.parametrize("fail", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("start", STEPS, ids=lambda f: f.__name__)
def test_generator_below_a_childs_block(
    start: Callable[[], Step], fail: bool, runner: asyncio.Runner, server: Server
) -> None:
    """The block around waits for the child's, and not for its own in the generator."""

    async def child(inside: asyncio.Event) -> None:
        async with transaction.atomic():
            inside.set()
            await asyncio.sleep(0.05)

    async def main() -> None:
        await begin()
        async with asyncio.timeout(PATIENCE):
            step, inside = start(), asyncio.Event()
            with pytest.raises(Failed) if fail else nullcontext():
                async with transaction.atomic():
                    await Author.objects.acreate(name="outer")
                    await step()
                    task = asyncio.create_task(child(inside))
                    await inside.wait()
                    if fail:
                        raise Failed
            await asyncio.wait([task])
        del step
        gc.collect()
        await end()

    runner.run(main())
    assert committed(server) == sorted([*KEPT, *([] if fail else ["outer"])])
